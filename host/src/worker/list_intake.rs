//! The list-intake loop: moves what plain clients push into a list to a stream,
//! where it can be leased. The key stays a list for those clients, also while it
//! is drained.

use super::retry_log::log_retry;
use super::seats::Seated;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{ListEnd, ListIntake as ListQueue, QueueError};
use crate::settings::PopSide;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one wait for the list lasts. It also limits how long an item that
/// a lost worker has moved aside waits.
const WAIT: Duration = Duration::from_secs(4);

const PAUSE: Duration = Duration::from_secs(2);

pub(super) struct ListIntake;

impl TopicLoop<TopicState> for ListIntake {
    const NAME: &'static str = "list intake";

    type Memory = ();

    /// Lasts as long as the topic's key is a list. The intake gives a hint
    /// whenever it finds one.
    async fn visit(&self, topic: &Arc<TopicState>, (): &mut ()) -> Option<Duration> {
        if topic.stop.is_cancelled() || !topic.view.is_list() {
            return None;
        }
        let ended = ingest(topic).await;
        // It may be a list no longer, or what was moved last came unseen.
        topic.view.set_must_reopen();
        let _ = topic.intake.seat.interrupt(&topic.queue).await;
        if let Err(error) = ended {
            log_retry(topic, events::LIST_INTAKE_FAILED, &error, Instant::now(), PAUSE);
            let _ = tokio::time::timeout(PAUSE, topic.stop.cancelled()).await;
        }
        Some(Duration::ZERO)
    }
}

/// One connection's life. Where the end that publishers push to is not known,
/// both ends have their turn, and the whole list is moved each time.
async fn ingest(topic: &TopicState) -> Result<(), QueueError> {
    let (seats, seat) = (&topic.shared.seats, &topic.intake.list_seat);
    let list = ListQueue::new(topic.queue.clone());
    let (mut seated, _polled) = (None::<Seated>, seats.polled());
    let side = topic.settings().list_pop_side;
    let mut end = match side {
        PopSide::Left => ListEnd::Left,
        PopSide::Right | PopSide::Both => ListEnd::Right,
    };
    while !topic.stop.is_cancelled() && topic.view.is_list() {
        if seat.must_leave() {
            seated = None;
        }
        if seated.is_none() {
            seated = seats.take(seat, &topic.queue).await;
        }
        if list.move_batch(end).await? > 0 {
            seat.add_read();
        } else if let Some(seated) = &mut seated {
            // Ended by the stop: what it moves is safe wherever it is then.
            tokio::select! {
                moved = seated.reader.wait_for_list(end, WAIT) => { moved?; }
                () = topic.stop.cancelled() => {}
            }
        } else if list.is_stream().await? {
            // A blocking read would have failed.
            return Ok(());
        } else {
            let _ = topic.stop.run_until_cancelled(seat.pause(seats.poll_interval().min(WAIT))).await;
        }
        if side == PopSide::Both {
            end = end.other();
        }
    }
    Ok(())
}
