//! Commands to a master that was demoted.

use crate::support::{Redis, topic};
use gateway_worker::message::Fields;
use gateway_worker::publication::Draft;
use gateway_worker::queue::dead::{Order, Origin};
use gateway_worker::queue::{BlockingReader, FlowControl, QueueError, Settled, StreamKind, Take};
use jiff::Timestamp;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_demoted_master_rejects_is_unchanged_and_succeeds_later() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for id in ["dies", "again", "sends"] {
        redis.publish("t", id, "{}").await;
    }
    redis.run::<String>("XADD {mq:t}:dead * message {}").await;
    queue.open().await.unwrap();
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    let take = reader.take(&[StreamKind::Normal], FlowControl::default(), 3).await.unwrap();
    let Take::Taken(taken) = take else { panic!("{take:?}") };
    let topic = topic("child");
    let child = Draft::new("c".to_owned(), &topic, "{}").encode(Timestamp::now()).unwrap();
    let batch = [
        taken[0].dead_letter(Fields::new()),
        taken[1].run_again(HOUR, Fields::new()),
        taken[2].done(None, vec![child]),
    ];
    let letters = queue.dead_letters.list(Origin::Ours, Order::OldestFirst).await.unwrap().next().await.unwrap();
    redis.run::<()>("REPLICAOF 127.0.0.1 1").await;
    for refused in [
        queue.settlements.settle(&batch, HOUR).await.map(drop),
        queue.settlements.settle(&[taken[0].done(None, Vec::new())], HOUR).await.map(drop),
        queue.replay.replay(&letters).await.map(drop),
    ] {
        assert!(matches!(&refused, Err(QueueError::Away(why)) if why.contains("read only replica")), "{refused:?}");
    }
    redis.run::<()>("REPLICAOF NO ONE").await;
    assert_eq!(queue.settlements.settle(&batch, HOUR).await.unwrap(), [Settled::Ok, Settled::Ok, Settled::Ok]);
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 0);
}
