//! Seats: which topics read from Redis by a connection of their own. A blocking
//! read delays everything else on its connection, so each needs one; and a server
//! takes only so many connections, so a worker has a fixed number of seats, whatever
//! the number of its topics. The busiest topics have them. The others are polled, by
//! a connection that they share.

use crate::events;
use crate::queue::{self, BlockingReader, QueueError, TopicHandle};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The connections of a worker that are no seats: for commands, for polling, and for
/// the key-value store of plugins.
pub(super) const OTHER_CONNECTIONS: usize = 3;

/// From so many successful reads a second on a topic may take the seat of another.
const BUSY: u32 = 5;

/// How long a topic keeps a seat at least.
const KEPT_MIN: Duration = Duration::from_secs(1);

/// How long a topic waits for a seat that another was asked to leave. It polls
/// meanwhile.
const LEFT_WITHIN: Duration = Duration::from_millis(100);

/// After a seat's connection was refused, the next attempt.
const REFUSED: Duration = Duration::from_secs(5);

/// A polled topic is looked at this often, where there are few.
const POLL_MIN: Duration = Duration::from_millis(50);

/// All polled topics together cost at most 1,000 commands a second, two each.
const POLL_PER_TOPIC: Duration = Duration::from_millis(2);

/// The seats of a worker.
pub(super) struct Seats {
    free: Arc<Semaphore>,
    taken: Mutex<Vec<Arc<Seat>>>,
    polled: AtomicUsize,
}

/// What one reader needs to have a seat for some time, and to do without one.
#[derive(Default)]
pub(super) struct Seat {
    /// The id of the connection's reader, 0 for none.
    reader_id: AtomicI64,
    /// A busier topic wants the seat.
    must_leave: AtomicBool,
    /// Ends a pause between two polls.
    interrupted: Notify,
    pace: Mutex<Pace>,
}

/// How often a reader has found something lately.
#[derive(Default)]
struct Pace {
    second: Option<Instant>,
    reads: u32,
    reads_before: u32,
    seated_at: Option<Instant>,
    refused_at: Option<Instant>,
}

/// Gives the seat back when it is dropped, after its connection.
pub(super) struct Seated {
    pub(super) reader: BlockingReader,
    seat: Arc<Seat>,
    shared: Arc<Seats>,
    _permit: OwnedSemaphorePermit,
}

/// Counts a reader that has no seat, for as long as it lives.
pub(super) struct Polled(Arc<Seats>);

impl Seats {
    /// `connections` is how many connections the worker may have in all.
    pub(super) fn new(connections: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(connections.saturating_sub(OTHER_CONNECTIONS)));
        Arc::new(Self { free, taken: Mutex::default(), polled: AtomicUsize::new(0) })
    }

    /// A seat, if one is free or a topic that is less busy leaves its own. Without one
    /// the topic is polled.
    pub(super) async fn take(self: &Arc<Self>, seat: &Arc<Seat>, topic: &TopicHandle) -> Option<Seated> {
        if seat.pace().was_refused_lately() {
            return None;
        }
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.taken_over(seat, topic).await?,
        };
        // Where Redis is away, polling fails too and says why.
        let Ok(reader) = BlockingReader::connect(topic).await else {
            seat.pace().refused_at = Some(Instant::now());
            return None;
        };
        seat.must_leave.store(false, Ordering::SeqCst);
        seat.reader_id.store(reader.client_id(), Ordering::SeqCst);
        seat.pace().seated_at = Some(Instant::now());
        self.taken().push(seat.clone());
        tracing::debug!(topic = %topic.topic(), "{}", events::SEAT_TAKEN);
        Some(Seated { reader, seat: seat.clone(), shared: self.clone(), _permit: permit })
    }

    /// The seat of the least busy topic, if this one is twice as busy.
    async fn taken_over(&self, seat: &Arc<Seat>, topic: &TopicHandle) -> Option<OwnedSemaphorePermit> {
        let rate = seat.pace().rate();
        if rate < BUSY {
            return None;
        }
        let least_busy = self.least_busy(rate / 2)?;
        least_busy.must_leave.store(true, Ordering::SeqCst);
        // A failed interruption only makes it leave later.
        let _ = least_busy.interrupt(topic).await;
        timeout(LEFT_WITHIN, self.free.clone().acquire_owned()).await.ok()?.ok()
    }

    fn least_busy(&self, rate_max: u32) -> Option<Arc<Seat>> {
        let taken = self.taken();
        let rates = taken.iter().filter_map(|seat| {
            let mut pace = seat.pace();
            let is_settled = pace.seated_at.is_some_and(|at| at.elapsed() >= KEPT_MIN);
            (is_settled && !seat.must_leave()).then(|| (pace.rate(), seat))
        });
        rates.filter(|(rate, _)| *rate <= rate_max).min_by_key(|(rate, _)| *rate).map(|(_, seat)| seat.clone())
    }

    pub(super) fn polled(self: &Arc<Self>) -> Polled {
        self.polled.fetch_add(1, Ordering::Relaxed);
        Polled(self.clone())
    }

    /// How long a topic without a seat that has brought nothing is left alone.
    pub(super) fn poll_interval(&self) -> Duration {
        let polled = u32::try_from(self.polled.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        POLL_MIN.max(POLL_PER_TOPIC.saturating_mul(polled))
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.0.polled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Seat {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_taken(&self) -> bool {
        self.reader_id.load(Ordering::SeqCst) != 0
    }

    pub(super) fn must_leave(&self) -> bool {
        self.must_leave.load(Ordering::SeqCst)
    }

    /// A read has brought something.
    pub(super) fn add_read(&self) {
        self.pace().add_read();
    }

    /// Ends the blocking read of this seat, if one is under way, or the pause between
    /// two polls. To drop the read instead would lose what Redis is just about to
    /// answer.
    pub(super) async fn interrupt(&self, topic: &TopicHandle) -> Result<(), QueueError> {
        self.interrupted.notify_one();
        match self.reader_id.load(Ordering::SeqCst) {
            0 => Ok(()),
            reader_id => queue::unblock(topic, reader_id).await,
        }
    }

    /// Waits this long, or until interrupted.
    pub(super) async fn pause(&self, pause: Duration) {
        let _ = timeout(pause, self.interrupted.notified()).await;
    }
}

impl Pace {
    fn add_read(&mut self) {
        self.roll();
        self.reads = self.reads.saturating_add(1);
    }

    /// Reads in the last whole second, or in this one if it has had more.
    fn rate(&mut self) -> u32 {
        self.roll();
        self.reads.max(self.reads_before)
    }

    /// Begins a new second where the last one is over.
    fn roll(&mut self) {
        let age = self.second.map(|second| second.elapsed());
        if age.is_some_and(|age| age < Duration::from_secs(1)) {
            return;
        }
        let is_next = age.is_some_and(|age| age < Duration::from_secs(2));
        (self.reads_before, self.reads) = (if is_next { self.reads } else { 0 }, 0);
        self.second = Some(Instant::now());
    }

    fn was_refused_lately(&self) -> bool {
        self.refused_at.is_some_and(|at| at.elapsed() < REFUSED)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.seat.reader_id.store(0, Ordering::SeqCst);
        self.shared.taken().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_second_and_is_forgotten() {
        let mut pace = Pace::default();
        (0..7).for_each(|_| pace.add_read());
        assert_eq!(pace.rate(), 7);
        let ago = |age: u64| Instant::now().checked_sub(Duration::from_millis(age));
        pace.second = ago(1100);
        assert_eq!((pace.rate(), pace.reads), (7, 0));
        pace.second = ago(2100);
        assert_eq!(pace.rate(), 0);
    }

    #[test]
    fn polling_has_a_bounded_price() {
        let seats = Seats::new(3);
        assert_eq!(seats.free.available_permits(), 0);
        let few: Vec<_> = (0..10).map(|_| seats.polled()).collect();
        assert_eq!(seats.poll_interval(), POLL_MIN);
        let many: Vec<_> = (0..4990).map(|_| seats.polled()).collect();
        assert_eq!(seats.poll_interval(), Duration::from_secs(10));
        drop((few, many));
        assert_eq!(seats.poll_interval(), POLL_MIN);
    }
}
