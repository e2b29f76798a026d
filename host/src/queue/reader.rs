//! New messages, by reads on a connection of its own.

use super::connection::Seat;
use super::reply::{self, fields, text, unexpected};
use super::source::{EntryKey, Source};
use super::topic_queue::{Opened, TopicQueue};
use super::{QueueError, Taken, scripts};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Value};
use std::time::Duration;

/// A read that has not come back this long after its time is up has no
/// connection any more.
const OVERDUE: Duration = Duration::from_secs(3);

pub struct Reader {
    connection: MultiplexedConnection,
    seat: Seat,
}

/// What the topic's state says beside a read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    pub is_paused: bool,
    /// Streams of a priority that were written to at some time.
    pub has_high: bool,
    pub has_low: bool,
}

/// What a take has to keep to, over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowControl {
    /// How many may be in flight.
    pub total: Option<usize>,
    /// How many may begin in how long.
    pub rate: Option<(u32, Duration)>,
    /// Where the weighted round of the sources goes on.
    pub turn: usize,
}

impl FlowControl {
    pub fn is_none(&self) -> bool {
        self.total.is_none() && self.rate.is_none()
    }
}

/// What a take under flow control brought.
#[derive(Debug, PartialEq)]
pub enum Take {
    Taken(Vec<Taken>),
    Paused,
    /// As many are in flight as may be.
    Full,
    /// As many have begun as may in this span.
    TooSoon(Duration),
    /// Nothing waits behind these ids, one for each source.
    Empty(Vec<String>),
}

impl Reader {
    pub async fn connect(queue: &TopicQueue) -> Result<Self, QueueError> {
        let (connection, seat) = queue.connection().blocking(&queue.keys().stream).await?;
        Ok(Self { connection, seat })
    }

    /// The id that [`TopicQueue::unblock`] takes to end a read early.
    pub fn client_id(&self) -> i64 {
        self.seat.id()
    }

    /// Waits up to `block` for at most `count` new messages. Never to be
    /// dropped while it waits: what Redis delivers then reaches nobody.
    pub async fn read(
        &mut self,
        queue: &TopicQueue,
        source: Source,
        count: usize,
        block: Duration,
    ) -> Result<(Vec<Taken>, Flags), QueueError> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(queue.group()).arg(queue.me()).arg("COUNT").arg(count);
        read.arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(source.key(queue.keys())).arg(">");
        // What the state says once there is something, not before.
        let mut pipe = redis::pipe();
        pipe.add_command(read).add_command(queue.flags_command()).ignore_errors();
        let replies = in_time(block, pipe.query_async(&mut self.connection)).await?;
        let (entries, flags): (RedisResult<Value>, RedisResult<Value>) = replies;
        let (entries, flags) = (reply::entries(entries?)?, flags?);
        let taken = |(id, fields)| Taken { entry: EntryKey { source, id }, deliveries: 1, losses: 0, fields };
        Ok((entries.into_iter().map(taken).collect(), reply::flags(flags)?))
    }

    /// Takes at most `count` new messages from these sources, each in its turn,
    /// without waiting.
    pub async fn take(
        &mut self,
        queue: &TopicQueue,
        sources: &[Source],
        control: FlowControl,
        count: usize,
    ) -> Result<Take, QueueError> {
        let mut script = scripts::TAKE.key(&queue.keys().state);
        sources.iter().for_each(|source| {
            script.key(source.key(queue.keys()));
        });
        let (limit, span) = control.rate.unwrap_or_default();
        script.arg(queue.group()).arg(queue.me()).arg(count).arg(control.total.unwrap_or(0));
        script.arg(limit).arg(span.as_millis()).arg(control.turn);
        sources.iter().for_each(|source| {
            script.arg(source.weight());
        });
        read_take(in_time(Duration::ZERO, script.invoke_async(&mut self.connection)).await?, sources)
    }

    /// Waits up to `block` for something behind these ids, one for each source,
    /// and for any key where there is nothing yet to become a stream, which none
    /// does by itself: the wait makes no key. Returns whether one has.
    pub async fn wait_for_more(
        &mut self,
        queue: &TopicQueue,
        opened: &Opened,
        behind: &[String],
        block: Duration,
    ) -> Result<bool, QueueError> {
        let key = |source: &Source| source.key(queue.keys()).to_owned();
        let known: Vec<_> = opened.sources.iter().map(key).collect();
        let absent: Vec<_> = opened.absent.iter().map(key).collect();
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(&known).arg(&absent);
        command.arg(behind).arg(vec!["0"; absent.len()]);
        match in_time(block, command.query_async::<Value>(&mut self.connection)).await {
            Ok(found) => Ok(reply::streams(found)?.iter().any(|stream| absent.contains(stream))),
            // It became a list.
            Err(QueueError::WrongType(_)) if !absent.is_empty() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Waits up to `block` for something in the list of plain clients; the
    /// oldest by that end is put aside for [`TopicQueue::ingest`].
    pub async fn wait_for_list(&mut self, queue: &TopicQueue, end: End, block: Duration) -> Result<bool, QueueError> {
        let mut command = redis::cmd("BLMOVE");
        command.arg(&queue.keys().stream).arg(&queue.keys().input).arg(end.name()).arg("RIGHT");
        command.arg(block.as_secs_f64().max(0.001));
        let moved: Value = in_time(block, command.query_async(&mut self.connection)).await?;
        Ok(moved != Value::Nil)
    }
}

async fn in_time<T>(block: Duration, query: impl Future<Output = RedisResult<T>>) -> Result<T, QueueError> {
    match tokio::time::timeout(block + OVERDUE, query).await {
        Ok(reply) => Ok(reply?),
        Err(_) => Err(QueueError::Away(format!("no answer to a read within {:?}", block + OVERDUE))),
    }
}

/// An end of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Left,
    Right,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

impl TopicQueue {
    /// What the topic's state says.
    pub async fn flags(&self) -> Result<Flags, QueueError> {
        reply::flags(self.flags_command().query_async(&mut self.shared()).await?)
    }

    fn flags_command(&self) -> Cmd {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keys().state).arg("paused").arg("high").arg("low");
        command
    }

    /// Moves a piece of the list of plain clients into the work stream, the
    /// oldest by that end first. Returns how many.
    pub async fn ingest(&self, end: End) -> Result<usize, QueueError> {
        /// In one script, which nothing else runs beside.
        const PIECE: usize = 256;
        const BYTES_MAX: usize = 1 << 20;
        let keys = self.keys();
        let mut script = scripts::INGEST.prepare_invoke();
        script.key(&[&keys.stream, &keys.input, &keys.work, &keys.state][..]);
        script.arg(PIECE).arg(BYTES_MAX).arg(end.name());
        Ok(script.invoke_async(&mut self.shared()).await?)
    }
}

fn read_take(reply: Vec<Value>, sources: &[Source]) -> Result<Take, QueueError> {
    let mut words = reply.into_iter();
    let verdict = text(words.next().unwrap_or(Value::Nil))?;
    Ok(match verdict.as_str() {
        "paused" => Take::Paused,
        "full" => Take::Full,
        "rate" => {
            let wait = reply::number(words.next().unwrap_or(Value::Nil))?;
            Take::TooSoon(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
        }
        "empty" => Take::Empty(words.map(text).collect::<Result<_, _>>()?),
        _ => {
            let taken = |value| {
                let [at, id, list] = reply::array(value)?;
                let at = usize::try_from(reply::number(at)?).unwrap_or(usize::MAX);
                let source = *sources.get(at).ok_or_else(|| unexpected(&id))?;
                let entry = EntryKey { source, id: text(id)? };
                Ok::<_, QueueError>(Taken { entry, deliveries: 1, losses: 0, fields: fields(list)? })
            };
            Take::Taken(words.map(taken).collect::<Result<_, _>>()?)
        }
    })
}

/// 0 would block for ever.
fn millis(block: Duration) -> u128 {
    block.as_millis().max(1)
}
