//! Who holds what: leases are renewed, found again, taken over from the dead
//! and given back.

use super::source::{EntryKey, Source};
use super::topic_queue::TopicQueue;
use super::{QueueError, Taken, reply, scripts};
use redis::Value;
use std::time::{Duration, Instant};

/// The idle time that marks an entry as given back: no owner that lives lets
/// one lie for a day, so such entries may be taken over without waiting.
pub(super) const GIVEN_BACK: Duration = Duration::from_secs(24 * 60 * 60);

/// Who takes messages in a script takes no more once they had so many bytes: an
/// answer that is too long to come in time would only be asked for again.
const TAKE_BYTES: usize = 8 << 20;

/// How many names one script takes off a list.
const FORGET_MAX: usize = 100;

/// What is remembered of losses while alone, in case nobody removes it.
const SUSPECT_SECONDS: u32 = 7 * 24 * 60 * 60;

/// How long an owner's silence must be before its messages are taken over.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Owners that renew.
    pub lease: Duration,
    /// The original's consumers, which never do.
    pub legacy: Duration,
    /// For how long we have been connected. Before that Redis may have been away,
    /// and everybody's silence is as long: each has its whole time anew, and only
    /// what was given back on purpose is taken.
    pub connected: Duration,
}

impl Patience {
    fn with_who_has(self, time: Duration) -> Duration {
        if self.connected < time { time.max(GIVEN_BACK) } else { time }
    }
}

/// What Redis' clock showed, and when that was.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    unix_ms: i64,
    seen: Instant,
}

impl Clock {
    /// It shows this now.
    pub fn showing(unix_ms: i64) -> Self {
        Self { unix_ms, seen: Instant::now() }
    }

    fn now(self) -> i64 {
        let elapsed = i64::try_from(self.seen.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.unix_ms.saturating_add(elapsed)
    }
}

/// What a take-over found.
pub struct TakenOver {
    pub clock: Clock,
    /// Redis' clock was set; nothing was taken.
    pub clock_stepped: bool,
    /// Messages that others have in flight.
    pub others: u64,
    /// With the names of those who had them before.
    pub taken: Vec<(Taken, String)>,
}

impl TopicQueue {
    /// Renews the leases of what we hold; returns what we no longer do.
    pub async fn renew(&self, held: &[EntryKey]) -> Result<Vec<EntryKey>, QueueError> {
        let mut lost = Vec::new();
        for source in Source::ALL {
            let held = ids(held, source);
            if !held.is_empty() {
                let mut script = scripts::RENEW.key(source.key(self.keys()));
                script.arg(self.group()).arg(self.me()).arg(&held);
                let ids: Vec<String> = script.invoke_async(&mut self.shared()).await?;
                lost.extend(ids.into_iter().map(|id| EntryKey { source, id }));
            }
        }
        Ok(lost)
    }

    /// Finds a piece of what was delivered to us and never arrived; nothing is
    /// the end. Only to be called while no read and no take-over is under way.
    pub async fn reconcile(&self, source: Source, held: &[EntryKey]) -> Result<Vec<Taken>, QueueError> {
        let mut script = scripts::RECONCILE.key(source.key(self.keys()));
        script.arg(self.group()).arg(self.me()).arg(TAKE_BYTES).arg(GIVEN_BACK.as_millis()).arg(ids(held, source));
        let rows: Vec<Value> = script.invoke_async(&mut self.shared()).await?;
        rows.into_iter().map(|row| Ok(reply::row(source, row)?.0)).collect()
    }

    /// Takes over at most `count` messages whose owner let its lease run out, or
    /// fewer where they are large, unless the clock shows something else than the last time.
    pub async fn take_over(
        &self,
        source: Source,
        patience: Patience,
        last: Option<Clock>,
        count: usize,
    ) -> Result<TakenOver, QueueError> {
        let lease = patience.with_who_has(patience.lease);
        let legacy = patience.with_who_has(patience.legacy);
        let mut script = scripts::TAKE_OVER.key(source.key(self.keys()));
        script.arg(self.group()).arg(self.me()).arg(lease.as_millis()).arg(legacy.as_millis()).arg(count);
        // Less than this does no harm, and a busy machine is no wrong clock.
        let tolerance = patience.lease.min(Duration::from_secs(60)) / 3;
        script.arg(last.map_or(0, Clock::now)).arg(tolerance.as_millis()).arg(TAKE_BYTES);
        let reply: Vec<Value> = script.invoke_async(&mut self.shared()).await?;
        let mut words = reply.into_iter();
        let mut number = || reply::number(words.next().unwrap_or(Value::Nil));
        let (unix_ms, others) = (number()?, number()?);
        Ok(TakenOver {
            clock: Clock::showing(unix_ms),
            clock_stepped: others < 0,
            others: u64::try_from(others).unwrap_or(0),
            taken: words.map(|row| reply::row(source, row)).collect::<Result<_, _>>()?,
        })
    }

    /// After a step of the clock: every lease begins anew, whoever has it.
    pub async fn restamp(&self, source: Source, which: Restamp) -> Result<usize, QueueError> {
        let mut script = scripts::RESTAMP.key(source.key(self.keys()));
        script.arg(self.group()).arg(u8::from(which == Restamp::All));
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    /// Gives back what we have taken, except what we still hold.
    pub async fn give_back(&self, source: Source, held: &[EntryKey]) -> Result<usize, QueueError> {
        let mut script = scripts::GIVE_BACK.key(source.key(self.keys()));
        script.arg(self.group()).arg(self.me()).arg((GIVEN_BACK + Duration::from_secs(1)).as_millis());
        Ok(script.arg(ids(held, source)).invoke_async(&mut self.shared()).await?)
    }

    /// Gives back this one, which others may then take at once.
    pub async fn hand_on(&self, entry: &EntryKey) -> Result<(), QueueError> {
        let mut script = scripts::HAND_ON.key(entry.source.key(self.keys()));
        script.arg(self.group()).arg(self.me()).arg((GIVEN_BACK + Duration::from_secs(1)).as_millis());
        Ok(script.arg(&entry.id).invoke_async(&mut self.shared()).await?)
    }

    /// Takes our name off the group's list, if nothing is left under it.
    pub async fn leave(&self, source: Source) -> Result<(), QueueError> {
        let mut script = scripts::LEAVE.key(source.key(self.keys()));
        Ok(script.arg(self.group()).arg(self.me()).invoke_async(&mut self.shared()).await?)
    }

    /// Takes off the group's list who has nothing in hand and has not asked for
    /// this long. Returns how many. Who lives all the same is on it again with
    /// its next message.
    pub async fn forget_the_gone(&self, source: Source, idle: Duration) -> Result<usize, QueueError> {
        let mut script = scripts::FORGET.key(source.key(self.keys()));
        script.arg(self.group()).arg(self.me()).arg(idle.as_millis()).arg(FORGET_MAX);
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    /// Writes down that a message is about to run alone. Returns how often it
    /// was lost so before.
    pub async fn suspect(&self, entry: &EntryKey) -> Result<u32, QueueError> {
        let mut script = scripts::SUSPECT.key(entry.source.key(self.keys()));
        script.key(&self.keys().suspects).arg(self.group()).arg(self.me()).arg(&entry.id);
        script.arg(entry.to_string()).arg(SUSPECT_SECONDS);
        let runs: u32 = script.invoke_async(&mut self.shared()).await?;
        Ok(runs.saturating_sub(1))
    }

    /// A message that ran alone has ended in some way, and its worker lives.
    pub async fn acquit(&self, entry: &EntryKey) -> Result<(), QueueError> {
        let mut command = redis::cmd("HDEL");
        // What it was lost with, and who wrote that down last.
        command.arg(&self.keys().suspects).arg(entry.to_string()).arg(format!("{entry}:by"));
        Ok(command.query_async(&mut self.shared()).await?)
    }
}

/// Which leases begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restamp {
    All,
    /// Those from the future: a clock that was set back made them.
    Future,
}

fn ids(held: &[EntryKey], source: Source) -> Vec<&str> {
    held.iter().filter(|entry| entry.source == source).map(|entry| entry.id.as_str()).collect()
}
