//! Searches a topic's keys for messages, a batch at a time and without taking any.

use super::location::{Match, Section};
use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;
use redis::Value;

/// The most that one script reads, since nothing else runs on the server meanwhile.
const BATCH: usize = 500;

/// Called with how many more messages were searched.
pub(crate) type Progress<'a> = dyn FnMut(u64) + Send + 'a;

/// What is searched for.
#[derive(Debug, Clone)]
pub(crate) struct SearchQuery<'a> {
    /// Empty for every message.
    id: &'a str,
    /// The longest part of the id that JSON never escapes.
    unescaped: &'a str,
    limit: usize,
}

impl<'a> SearchQuery<'a> {
    pub(crate) fn id(id: &'a str) -> Self {
        let may_be_escaped = |char: char| !char.is_ascii_alphanumeric() && !matches!(char, '-' | '_' | '.' | ':' | ' ');
        let unescaped = id.split(may_be_escaped).max_by_key(|part| part.len()).unwrap_or_default();
        Self { id, unescaped, limit: usize::MAX }
    }

    pub(crate) fn all(limit: usize) -> Self {
        Self { id: "", unescaped: "", limit }
    }
}

/// Every message of a section that contains the id of the query.
pub(crate) async fn search(
    handle: &TopicHandle,
    section: Section,
    query: &SearchQuery<'_>,
    progress: &mut Progress<'_>,
) -> Result<Vec<Match>, QueueError> {
    let (strategy, key, second) = strategy(handle, section, query.id.is_empty());
    let (mut cursor, mut matches) = (Vec::new(), Vec::new());
    loop {
        let mut script = scripts::SEARCH.key(key);
        if let Some(second) = second {
            script.key(second);
        }
        script.arg(strategy).arg(&cursor).arg(BATCH.min(query.limit)).arg(BATCH_BYTES);
        script.arg(handle.group()).arg(query.id).arg(query.unescaped);
        type Reply = (Vec<u8>, u64, Vec<Value>);
        let reply = script.invoke_async::<Reply>(&mut handle.shared()).await.map_err(QueueError::from);
        let (next, searched, found) = match reply {
            // A key of another type contains no message.
            Err(QueueError::WrongType(_)) => return Ok(matches),
            reply => reply?,
        };
        for one in found {
            matches.push(Match::parse(section, one)?);
        }
        progress(searched);
        if next.is_empty() || matches.len() >= query.limit {
            matches.truncate(query.limit);
            return Ok(matches);
        }
        cursor = next;
    }
}

/// How the script searches a section, and the keys that it needs.
fn strategy(handle: &TopicHandle, section: Section, by_time: bool) -> (&'static str, &str, Option<&str>) {
    let keys = handle.keys();
    let state = Some(keys.state.as_str());
    match section {
        Section::Delayed => (if by_time { "due" } else { "body" }, &keys.delayed_body, Some(&keys.delayed)),
        Section::LegacyDelayed => (if by_time { "ranked" } else { "scored" }, &keys.legacy_delayed, None),
        Section::List => ("list", &keys.main, state),
        Section::Input => ("list", &keys.input, state),
        Section::Waiting(stream) => ("waiting", handle.key(stream), state),
        Section::InFlight(stream) => ("pending", handle.key(stream), state),
        Section::Outbox => ("entries", &keys.outbox, state),
        Section::Dead => ("entries", &keys.dead, state),
        Section::LegacyDead => ("entries", &keys.legacy_dead, None),
    }
}
