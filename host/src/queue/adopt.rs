//! Takes over a stream from the original's workers, or works beside them. They
//! never acknowledge a failed message but append a copy with its `retry` one
//! higher, or write a dead letter; they die with messages in hand that nobody
//! asks for again. So of what is pending under their names, what has a copy is
//! history and what has none is still to be run.
//!
//! A copy that has been run and deleted is no evidence any more. So this is
//! settled before the first message is taken, before a copy is run, before
//! history is swept, and before anything of theirs is taken over.

use super::scripts::PIECE_BYTES;
use super::source::Source;
use super::topic_queue::TopicQueue;
use super::{QueueError, Taken, reply, scripts};
use crate::message::{self, MESSAGE_FIELD};
use redis::Value;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;

const PAGE: usize = 500;

/// A pending entry of one of the original's consumers.
struct Pending {
    entry_id: String,
    owner: String,
    id: String,
    retry: i64,
}

/// As much of an envelope as tells copies apart.
#[derive(Deserialize)]
struct Evidence {
    id: String,
    #[serde(default)]
    retry: i64,
}

#[derive(Deserialize)]
struct LegacyDead {
    original_message: Evidence,
}

/// Of each id, what has been written of it later, and where: in the place of a
/// dead letter only the time counts, since it is in another stream.
type Copies = HashMap<String, Vec<(Place, i64)>>;

/// A stream's id, as numbers.
type Place = (u64, u64);

impl TopicQueue {
    /// Acknowledges what the original has already copied. Returns how many.
    /// Entries that were active within `idle` are left alone.
    pub async fn adopt(&self, idle: Duration) -> Result<usize, QueueError> {
        self.adopt_up_to(idle, "+").await
    }

    /// The same by those copies only that the stream has up to this one.
    pub(super) async fn adopt_up_to(&self, idle: Duration, last: &str) -> Result<usize, QueueError> {
        let pending = self.legacy_pending(idle).await?;
        let copies = self.copies(&pending, last).await?;
        let is_copied = |one: &&Pending| {
            let is_later = |(at, retry): &(Place, i64)| *at > place(&one.entry_id) && *retry > one.retry;
            copies.get(&one.id).is_some_and(|copies| copies.iter().any(is_later))
        };
        self.acknowledge(pending.iter().filter(is_copied)).await
    }

    /// Acknowledges what the original has failed at and these are copies of.
    /// Returns how many.
    pub async fn supersede(&self, taken: &[Taken]) -> Result<usize, QueueError> {
        let mut copies: HashMap<String, i64> = HashMap::new();
        for one in taken.iter().filter(|one| one.entry.source == Source::Normal) {
            let body = message::field(&one.fields, MESSAGE_FIELD).filter(|body| is_copy(body));
            if let Some(copy) = body.and_then(parse::<Evidence>) {
                let retry = copies.entry(copy.id).or_default();
                *retry = copy.retry.max(*retry);
            }
        }
        if copies.is_empty() {
            return Ok(0);
        }
        let pending = self.legacy_pending(Duration::ZERO).await?;
        let is_copied = |one: &&Pending| copies.get(&one.id).is_some_and(|retry| *retry > one.retry);
        self.acknowledge(pending.iter().filter(is_copied)).await
    }

    async fn acknowledge(&self, superseded: impl Iterator<Item = &Pending>) -> Result<usize, QueueError> {
        let mut count = 0;
        for piece in superseded.collect::<Vec<_>>().chunks(PAGE) {
            let mut script = scripts::SUPERSEDE.key(&self.keys().stream);
            script.arg(self.group());
            for one in piece {
                script.arg(&one.entry_id).arg(&one.owner);
            }
            count += script.invoke_async::<usize>(&mut self.shared()).await?;
        }
        Ok(count)
    }

    /// What can be decoded among the entries under consumers of the original.
    /// The rest has no copy, for the same reason that it has no id.
    async fn legacy_pending(&self, idle: Duration) -> Result<Vec<Pending>, QueueError> {
        let mut found = Vec::new();
        let mut from = "-".to_owned();
        loop {
            let mut command = redis::cmd("XPENDING");
            command.arg(&self.keys().stream).arg(self.group()).arg("IDLE").arg(idle.as_millis());
            let rows: Vec<(String, String, i64, i64)> =
                command.arg(&from).arg("+").arg(PAGE).query_async(&mut self.shared()).await?;
            for (entry_id, owner, ..) in &rows {
                if is_legacy(owner)
                    && let Some(evidence) = self.evidence_at(entry_id).await?
                {
                    let (entry_id, owner) = (entry_id.clone(), owner.clone());
                    found.push(Pending { entry_id, owner, id: evidence.id, retry: evidence.retry });
                }
            }
            match rows.last() {
                Some((last, ..)) if rows.len() == PAGE => from = format!("({last}"),
                _ => return Ok(found),
            }
        }
    }

    async fn evidence_at(&self, entry_id: &str) -> Result<Option<Evidence>, QueueError> {
        Ok(self.page(&self.keys().stream, entry_id, entry_id).await?.pop().and_then(|(_, body)| parse(&body)))
    }

    /// What was written later of what is pending: copies in the stream up to the
    /// last, and dead letters, which beat all.
    async fn copies(&self, pending: &[Pending], last: &str) -> Result<Copies, QueueError> {
        let mut copies: Copies = pending.iter().map(|one| (one.id.clone(), Vec::new())).collect();
        let Some(first) = pending.first() else { return Ok(copies) };
        let mut note = |evidence: Option<Evidence>, at: Place| {
            let Some(evidence) = evidence else { return };
            if let Some(known) = copies.get_mut(&evidence.id) {
                known.push((at, evidence.retry));
            }
        };
        self.walk(&self.keys().stream, &first.entry_id, last, |id, body| note(parse(body), place(id))).await?;
        let (from, dead) = (place(&first.entry_id).0.to_string(), &self.keys().legacy_dead);
        self.walk(dead, &from, "+", |id, body| {
            let buried = parse::<LegacyDead>(body).map(|dead| Evidence { retry: i64::MAX, ..dead.original_message });
            note(buried, (place(id).0, u64::MAX));
        })
        .await?;
        Ok(copies)
    }

    /// Shows each body from here to there, or to where the stream ends now: to
    /// chase what comes meanwhile would have no end.
    async fn walk(&self, key: &str, from: &str, to: &str, mut show: impl FnMut(&str, &[u8])) -> Result<(), QueueError> {
        let mut newest = redis::cmd("XREVRANGE");
        newest.arg(key).arg(to).arg("-").arg("COUNT").arg(1);
        let newest: Vec<(String, Value)> = newest.query_async(&mut self.shared()).await?;
        let Some((to, _)) = newest.first() else { return Ok(()) };
        let mut from = from.to_owned();
        loop {
            let page = self.page(key, &from, to).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = format!("({last}");
            page.iter().for_each(|(id, body)| show(id, body));
        }
    }

    /// Some entries of a stream, none at the end: id and the field `message`.
    async fn page(&self, key: &str, from: &str, to: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let mut script = scripts::READ.key(key);
        script.arg("XRANGE").arg(from).arg(to).arg(PAGE).arg(PIECE_BYTES);
        let list: Vec<Value> = script.invoke_async(&mut self.shared()).await?;
        let entry = |value| {
            let (id, fields) = reply::entry(value)?;
            Ok((id, message::field(&fields, MESSAGE_FIELD).unwrap_or_default().to_vec()))
        };
        list.into_iter().map(entry).collect()
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

fn place(id: &str) -> Place {
    let (ms, sequence) = id.split_once('-').unwrap_or((id, ""));
    (ms.parse().unwrap_or(0), sequence.parse().unwrap_or(0))
}

/// Whether this may be a copy that the original has made of a message. It ends
/// each with `"retry":N,"max_retry":N}`, and to read all of every message for
/// that would cost too much.
fn is_copy(body: &[u8]) -> bool {
    const NAME: &[u8] = b"\"retry\":";
    const END_MAX: usize = 64;
    let end = &body[body.len().saturating_sub(END_MAX)..];
    let begins = |at: &[u8]| at.strip_prefix(NAME).is_some_and(|rest| matches!(rest.first(), Some(b'1'..=b'9')));
    (0..end.len()).any(|at| begins(&end[at..]))
}

/// `consumer-<nanoseconds>`, new at every start and never taken back.
fn is_legacy(owner: &str) -> bool {
    owner
        .strip_prefix("consumer-")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_known_by_its_end() {
        let envelope = |data: &str, retry: &str| {
            format!(
                r#"{{"id":"1-1","topic":"t","data":{data},"timestamp":"2026-11-23T07:45:23Z","retry":{retry},"max_retry":3}}"#
            )
        };
        for (body, expected) in [
            (envelope("{}", "1"), true),
            (envelope("{}", "12"), true),
            (envelope("{}", "0"), false),
            (envelope(&format!("{{\"retry\":5,\"text\":\"{}\"}}", "x".repeat(100)), "0"), false),
            ("{}".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_copy(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn places_are_in_the_order_of_their_numbers() {
        assert!(place("9-10") > place("9-9") && place("10-0") > place("9-10"));
        assert!((place("9-1").0, u64::MAX) > place("9-2"));
    }
}
