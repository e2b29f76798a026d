//! The markers of finished messages: in slices of the window, by Redis' clock.

use crate::messages::take;
use crate::support::{Redis, SkewedClock};
use crate::topic_client::TopicClient;
use gateway_worker::queue::{Claim, ClaimAnswer, ClaimRequest, ClaimTerms, Settled, StreamKind};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(10);

async fn redis_ms(redis: &Redis) -> u64 {
    let [seconds, micros]: [u64; 2] = redis.run("TIME").await;
    seconds * 1000 + micros / 1000
}

/// Moves Redis' clock to this time within the present window of an hour, or within
/// the next one.
async fn set_within_hour(redis: &Redis, clock: &SkewedClock, at: Duration) {
    clock.set_ahead(Duration::ZERO);
    let hour = HOUR.as_millis() as u64;
    let ahead = hour - redis_ms(redis).await % hour + at.as_millis() as u64;
    clock.set_ahead(Duration::from_secs(ahead / 1000));
}

/// A message with this id finishes under this window.
async fn finish(redis: &Redis, queue: &TopicClient, id: &str, window: Duration) {
    redis.publish("t", id, "{}").await;
    let one = take(queue, StreamKind::Normal, 1).await.remove(0);
    let claim = Claim::new(id, one.first_entry(), LEASE);
    let done = one.done(Some(claim), Vec::new());
    assert_eq!(queue.settlements.settle(&[done], window).await.unwrap(), [Settled::Ok]);
}

/// The answer for a copy of it under this window.
async fn answer(redis: &Redis, queue: &TopicClient, id: &str, window: Duration) -> ClaimAnswer {
    redis.publish("t", id, "{}").await;
    let delivery = &take(queue, StreamKind::Normal, 1).await.remove(0);
    let claim = &Claim::new(id, delivery.first_entry(), LEASE);
    let terms = ClaimTerms { window, lease: LEASE, is_fetched: false, is_rated: false };
    let request = ClaimRequest { delivery, claim, expires_at: None };
    let answer = queue.dedup.claim(&[request], terms).await.unwrap().remove(0);
    let done = delivery.dead_letter(Vec::new()).with_claim(Some(claim.clone()));
    queue.settlements.settle(&[done], window).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_counts_for_its_window_and_across_slices() {
    let (redis, clock) = Redis::start_with_clock();
    let queue = redis.queue("t", "me");
    set_within_hour(&redis, &clock, Duration::from_secs(3500)).await;
    finish(&redis, &queue, "a", HOUR).await;
    let slice = redis_ms(&redis).await / 3_600_000;
    let key = format!("{{mq:t}}:dedup:{slice}");
    assert_eq!(redis.run::<u64>(&format!("PEXPIRETIME {key}")).await, (slice + 2) * 3_600_000);
    for (after, expected) in [
        (Duration::from_secs(3500), ClaimAnswer::Duplicate),
        // In the next slice.
        (HOUR, ClaimAnswer::Duplicate),
        (Duration::from_secs(2 * 3600 - 200), ClaimAnswer::Duplicate),
        // The slice is still read, but the marker is older than the window.
        (Duration::from_secs(2 * 3600 - 50), ClaimAnswer::Run),
    ] {
        set_within_hour(&redis, &clock, after).await;
        let is_duplicate = expected == ClaimAnswer::Duplicate;
        assert_eq!(queue.dedup.finished(&["a".to_owned()]).await.unwrap(), [is_duplicate], "{after:?}");
        assert_eq!(answer(&redis, &queue, "a", HOUR).await, expected, "{after:?}");
        assert_eq!(redis.run::<i64>(&format!("EXISTS {key}")).await, 1);
    }
    set_within_hour(&redis, &clock, 2 * HOUR + Duration::from_secs(1)).await;
    assert_eq!(redis.run::<i64>(&format!("EXISTS {key}")).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_window_counts_from_the_times_of_the_markers() {
    let (redis, clock) = Redis::start_with_clock();
    let queue = redis.queue("t", "me");
    set_within_hour(&redis, &clock, Duration::from_secs(600)).await;
    finish(&redis, &queue, "a", HOUR).await;
    // Replicas with both versions of the manifest finish messages at the same time.
    finish(&redis, &queue, "b", 24 * HOUR).await;
    finish(&redis, &queue, "c", HOUR).await;
    set_within_hour(&redis, &clock, Duration::from_secs(1200)).await;
    for id in ["a", "b", "c"] {
        for (window, expected) in [
            (HOUR, ClaimAnswer::Duplicate),
            (2 * HOUR, ClaimAnswer::Duplicate),
            (24 * HOUR, ClaimAnswer::Duplicate),
            (Duration::from_secs(300), ClaimAnswer::Run),
        ] {
            assert_eq!(answer(&redis, &queue, id, window).await, expected, "{id} {window:?}");
        }
    }
    // Windows are forgotten after the last of their markers.
    set_within_hour(&redis, &clock, 30 * HOUR).await;
    finish(&redis, &queue, "d", 24 * HOUR).await;
    let windows: String = redis.run("HGET {mq:t}:state dedup-windows").await;
    assert!(windows.starts_with("86400000:") && !windows.contains(' '), "{windows}");
    assert_eq!(queue.dedup.finished(&["a", "b", "d"].map(str::to_owned)).await.unwrap(), [false, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_nobody_frees_are_forgotten() {
    let (redis, clock) = Redis::start_with_clock();
    let queue = redis.queue("t", "me");
    let claim = async |id: &str| {
        redis.publish("t", id, "{}").await;
        let delivery = &take(&queue, StreamKind::Normal, 1).await.remove(0);
        let claim = &Claim::new(id, delivery.first_entry(), LEASE);
        let terms = ClaimTerms { window: HOUR, lease: LEASE, is_fetched: false, is_rated: false };
        let request = ClaimRequest { delivery, claim, expires_at: None };
        assert_eq!(queue.dedup.claim(&[request], terms).await.unwrap(), [ClaimAnswer::Run]);
    };
    for number in 0..20 {
        claim(&format!("lost-{number}")).await;
    }
    clock.set_ahead(HOUR / 2);
    claim("kept").await;
    clock.set_ahead(HOUR + HOUR / 4);
    for number in 0..40 {
        claim(&format!("new-{number}")).await;
    }
    // Each look removes up to two.
    assert!(redis.run::<i64>("HLEN {mq:t}:dedup:claims").await < 61);
    clock.set_ahead(3 * HOUR);
    assert_eq!(redis.run::<i64>("EXISTS {mq:t}:dedup:claims").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_twice_as_long_each_time_up_to_five_minutes() {
    let (redis, clock) = Redis::start_with_clock();
    let queue = redis.queue("t", "me");
    let (mut ahead, terms) =
        (Duration::ZERO, ClaimTerms { window: HOUR, lease: LEASE, is_fetched: false, is_rated: false });
    for id in ["first", "copy"] {
        redis.publish("t", id, r#"{"a":1}"#).await;
    }
    let mut taken = take(&queue, StreamKind::Normal, 2).await;
    let (mut copy, first) = (taken.remove(1), taken.remove(0));
    let fields = copy.fields.clone();
    for (times, seconds) in [10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
        let claims = [&first, &copy].map(|one| Claim::new("same", one.first_entry(), LEASE));
        let request = |(delivery, claim)| ClaimRequest { delivery, claim, expires_at: None };
        let requests: Vec<_> = [&first, &copy].into_iter().zip(&claims).map(request).collect();
        let before = redis_ms(&redis).await;
        assert_eq!(queue.dedup.claim(&requests, terms).await.unwrap(), [ClaimAnswer::Run, ClaimAnswer::Busy]);
        let after = redis_ms(&redis).await;
        let [(_, due)]: [(String, u64); 1] = redis.run("ZRANGE {mq:t}:delayed 0 -1 WITHSCORES").await;
        assert!((before + seconds * 1000..=after + seconds * 1000).contains(&due), "{times} times: {due} at {before}");
        ahead += Duration::from_secs(seconds + 1);
        clock.set_ahead(ahead);
        assert_eq!(queue.delayed.promote().await.unwrap().moved, 1);
        copy = take(&queue, StreamKind::Normal, 1).await.remove(0);
        let parked = (b"gw-parked".to_vec(), (times + 1).to_string().into_bytes());
        assert_eq!(copy.fields, [&fields[..], &[parked]].concat());
    }
}
