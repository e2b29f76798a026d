//! Looks through a topic's keys, a piece at a time and without taking anything.

use super::hit::{Hit, hit};
use super::scripts::PIECE_BYTES;
use super::source::Source;
use super::topic_queue::TopicQueue;
use super::{QueueError, scripts};
use redis::Value;

/// How many are looked at by one script, which nothing else runs beside.
pub(super) const PIECE: usize = 500;

/// Where messages of a topic can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Later,
    LegacyLater,
    List,
    /// What was moved out of the list, on its way.
    Input,
    Waiting(Source),
    InFlight(Source),
    /// Follow-ups of what has run.
    Outgoing,
    Dead,
    LegacyDead,
}

impl Part {
    /// In the order in which messages pass through them, so that one that moves
    /// on meanwhile is met again.
    pub(super) const WAITING: [Self; 8] = [
        Self::Later,
        Self::LegacyLater,
        Self::List,
        Self::Input,
        Self::Waiting(Source::High),
        Self::Waiting(Source::Normal),
        Self::Waiting(Source::Work),
        Self::Waiting(Source::Low),
    ];
    pub(super) const TAKEN: [Self; 7] = [
        Self::InFlight(Source::High),
        Self::InFlight(Source::Normal),
        Self::InFlight(Source::Work),
        Self::InFlight(Source::Low),
        Self::Outgoing,
        Self::Dead,
        Self::LegacyDead,
    ];
}

/// What is looked for; with an empty id, everything.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    id: &'a str,
    /// Every writer of JSON leaves these characters as they are.
    plain: &'a str,
    limit: usize,
}

impl<'a> Wanted<'a> {
    pub(super) fn id(id: &'a str) -> Self {
        let is_escaped = |char: char| !char.is_ascii_alphanumeric() && !matches!(char, '-' | '_' | '.' | ':' | ' ');
        let plain = id.split(is_escaped).max_by_key(|part| part.len()).unwrap_or_default();
        Self { id, plain, limit: usize::MAX }
    }

    pub(super) fn anything(limit: usize) -> Self {
        Self { id: "", plain: "", limit }
    }
}

impl TopicQueue {
    /// What of a part mentions what is wanted. `looked_at` is told how many
    /// more were looked at.
    pub(super) async fn look(
        &self,
        part: Part,
        wanted: &Wanted<'_>,
        looked_at: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Vec<Hit>, QueueError> {
        let (how, key, second) = self.way(part, wanted.id.is_empty());
        let (mut from, mut hits) = (Vec::new(), Vec::new());
        loop {
            let mut script = scripts::LOOK.key(key);
            if let Some(second) = second {
                script.key(second);
            }
            script.arg(how).arg(&from).arg(PIECE.min(wanted.limit)).arg(PIECE_BYTES);
            script.arg(self.group()).arg(wanted.id).arg(wanted.plain);
            type Answers = (Vec<u8>, u64, Vec<Value>);
            let (next, count, found) =
                match script.invoke_async::<Answers>(&mut self.shared()).await.map_err(QueueError::from) {
                    // Of another type than it should be, it holds no message.
                    Err(QueueError::WrongType(_)) => return Ok(hits),
                    answers => answers?,
                };
            for one in found {
                hits.push(hit(part, one)?);
            }
            looked_at(count);
            if next.is_empty() || hits.len() >= wanted.limit {
                hits.truncate(wanted.limit);
                return Ok(hits);
            }
            from = next;
        }
    }

    /// How the script looks through a part, and the keys that it takes.
    fn way(&self, part: Part, by_time: bool) -> (&'static str, &str, Option<&str>) {
        let keys = self.keys();
        let state = Some(keys.state.as_str());
        match part {
            Part::Later => (if by_time { "due" } else { "body" }, &keys.later_body, Some(&keys.later)),
            Part::LegacyLater => (if by_time { "ranked" } else { "scored" }, &keys.legacy_delay, None),
            Part::List => ("list", &keys.stream, state),
            Part::Input => ("list", &keys.input, state),
            Part::Waiting(source) => ("waiting", source.key(keys), state),
            Part::InFlight(source) => ("pending", source.key(keys), state),
            Part::Outgoing => ("entries", &keys.out, state),
            Part::Dead => ("entries", &keys.dead, state),
            Part::LegacyDead => ("entries", &keys.legacy_dead, None),
        }
    }
}
