//! Pending entries of legacy workers. A legacy worker never acknowledges a failed
//! message: it appends a copy with a higher `retry`, or writes a dead letter. It
//! also leaves entries pending when it dies. So a pending entry of its consumers
//! is finished if a copy exists, and has to run if none does.
//!
//! A copy that has run and was deleted is no evidence any more. So this is
//! checked before the first message is taken, before a copy runs, before the
//! history is swept, and before an entry of a legacy worker is reclaimed.

use crate::message::{self, MESSAGE_FIELD};
use crate::queue::delivery::Delivery;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{StreamKind, position};
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::{TopicHandle, reply};
use redis::Value;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;

const PAGE: usize = 500;

/// A pending entry of a legacy consumer.
struct Pending {
    entry: String,
    consumer: String,
    id: String,
    retry: i64,
}

/// The fields of an envelope that identify copies of a message.
#[derive(Deserialize)]
struct Evidence {
    id: String,
    #[serde(default)]
    retry: i64,
}

#[derive(Deserialize)]
struct DeadEvidence {
    original_message: Evidence,
}

/// By message id the later copies: where each is and its `retry`. The position of
/// a dead letter has only its time, because it is in another stream.
type Copies = HashMap<String, Vec<(Position, i64)>>;

/// The id of an entry as numbers.
type Position = (u64, u64);

pub struct LegacyPending {
    handle: TopicHandle,
}

impl LegacyPending {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Acknowledges pending entries of which copies exist, unless they were active
    /// within `idle`. Returns how many.
    pub async fn acknowledge_copied(&self, idle: Duration) -> Result<usize, QueueError> {
        self.acknowledge_copied_up_to(idle, "+").await
    }

    /// The same with the copies in the stream up to this entry only.
    pub(crate) async fn acknowledge_copied_up_to(&self, idle: Duration, last: &str) -> Result<usize, QueueError> {
        let pending = self.pending(idle).await?;
        let copies = self.copies(&pending, last).await?;
        let is_copied = |one: &&Pending| {
            let is_later = |(at, retry): &(Position, i64)| *at > position(&one.entry) && *retry > one.retry;
            copies.get(&one.id).is_some_and(|copies| copies.iter().any(is_later))
        };
        self.acknowledge(pending.iter().filter(is_copied)).await
    }

    /// Acknowledges pending entries of which these deliveries are copies. Returns
    /// how many.
    pub async fn acknowledge_superseded_by(&self, deliveries: &[Delivery]) -> Result<usize, QueueError> {
        let mut copies: HashMap<String, i64> = HashMap::new();
        for one in deliveries.iter().filter(|one| one.entry.stream == StreamKind::Normal) {
            let body = message::field(&one.fields, MESSAGE_FIELD).filter(|body| is_copy(body));
            if let Some(copy) = body.and_then(parse::<Evidence>) {
                let retry = copies.entry(copy.id).or_default();
                *retry = copy.retry.max(*retry);
            }
        }
        if copies.is_empty() {
            return Ok(0);
        }
        let pending = self.pending(Duration::ZERO).await?;
        let is_copied = |one: &&Pending| copies.get(&one.id).is_some_and(|retry| *retry > one.retry);
        self.acknowledge(pending.iter().filter(is_copied)).await
    }

    async fn acknowledge(&self, superseded: impl Iterator<Item = &Pending>) -> Result<usize, QueueError> {
        let mut count = 0;
        for page in superseded.collect::<Vec<_>>().chunks(PAGE) {
            let mut script = scripts::LEGACY_ACKNOWLEDGE.key(&self.handle.keys().main);
            script.arg(self.handle.group());
            for one in page {
                script.arg(&one.entry).arg(&one.consumer);
            }
            count += script.invoke_async::<usize>(&mut self.handle.shared()).await?;
        }
        Ok(count)
    }

    /// The decodable pending entries of legacy consumers. An entry that can't be
    /// decoded has no id, so it has no copies either.
    async fn pending(&self, idle: Duration) -> Result<Vec<Pending>, QueueError> {
        let mut found = Vec::new();
        let mut from = "-".to_owned();
        loop {
            let mut command = redis::cmd("XPENDING");
            command.arg(&self.handle.keys().main).arg(self.handle.group()).arg("IDLE").arg(idle.as_millis());
            let rows: Vec<(String, String, i64, i64)> =
                command.arg(&from).arg("+").arg(PAGE).query_async(&mut self.handle.shared()).await?;
            for (entry, consumer, ..) in &rows {
                if is_legacy(consumer)
                    && let Some(evidence) = self.evidence_at(entry).await?
                {
                    let (entry, consumer) = (entry.clone(), consumer.clone());
                    found.push(Pending { entry, consumer, id: evidence.id, retry: evidence.retry });
                }
            }
            match rows.last() {
                Some((last, ..)) if rows.len() == PAGE => from = format!("({last}"),
                _ => return Ok(found),
            }
        }
    }

    async fn evidence_at(&self, entry: &str) -> Result<Option<Evidence>, QueueError> {
        Ok(self.page(&self.handle.keys().main, entry, entry).await?.pop().and_then(|(_, body)| parse(&body)))
    }

    /// The later copies of pending entries: in the stream up to `last`, and as
    /// dead letters, which count as the highest `retry`.
    async fn copies(&self, pending: &[Pending], last: &str) -> Result<Copies, QueueError> {
        let mut copies: Copies = pending.iter().map(|one| (one.id.clone(), Vec::new())).collect();
        let Some(first) = pending.first() else { return Ok(copies) };
        let mut note = |evidence: Option<Evidence>, at: Position| {
            let Some(evidence) = evidence else { return };
            if let Some(known) = copies.get_mut(&evidence.id) {
                known.push((at, evidence.retry));
            }
        };
        let keys = self.handle.keys();
        self.for_each(&keys.main, &first.entry, last, |id, body| note(parse(body), position(id))).await?;
        let from = position(&first.entry).0.to_string();
        self.for_each(&keys.legacy_dead, &from, "+", |id, body| {
            let dead = parse::<DeadEvidence>(body).map(|dead| Evidence { retry: i64::MAX, ..dead.original_message });
            note(dead, (position(id).0, u64::MAX));
        })
        .await?;
        Ok(copies)
    }

    /// Calls `visit` with each body from `from` to `to`, but not beyond the newest
    /// entry at the start, so that it ends while others append.
    async fn for_each(
        &self,
        key: &str,
        from: &str,
        to: &str,
        mut visit: impl FnMut(&str, &[u8]),
    ) -> Result<(), QueueError> {
        let mut newest = redis::cmd("XREVRANGE");
        newest.arg(key).arg(to).arg("-").arg("COUNT").arg(1);
        let newest: Vec<(String, Value)> = newest.query_async(&mut self.handle.shared()).await?;
        let Some((to, _)) = newest.first() else { return Ok(()) };
        let mut from = from.to_owned();
        loop {
            let page = self.page(key, &from, to).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = format!("({last}");
            page.iter().for_each(|(id, body)| visit(id, body));
        }
    }

    /// A page of a stream, empty at the end: ids and the field `message`.
    async fn page(&self, key: &str, from: &str, to: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let mut script = scripts::READ_STREAM.key(key);
        script.arg("XRANGE").arg(from).arg(to).arg(PAGE).arg(BATCH_BYTES);
        let list: Vec<Value> = script.invoke_async(&mut self.handle.shared()).await?;
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

/// Whether this may be a copy that a legacy worker made of a message. Copies end
/// with `"retry":N,"max_retry":N}`; parsing every message would cost too much.
fn is_copy(body: &[u8]) -> bool {
    const NAME: &[u8] = b"\"retry\":";
    const END_MAX: usize = 64;
    let end = &body[body.len().saturating_sub(END_MAX)..];
    let begins = |at: &[u8]| at.strip_prefix(NAME).is_some_and(|value| matches!(value.first(), Some(b'1'..=b'9')));
    (0..end.len()).any(|at| begins(&end[at..]))
}

/// Legacy consumers are named `consumer-<nanoseconds>`. Each start makes a new
/// one, and none is ever removed.
fn is_legacy(consumer: &str) -> bool {
    let number = consumer.strip_prefix("consumer-");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_recognised_by_its_end() {
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
    fn positions_are_in_the_order_of_their_numbers() {
        assert!(position("9-10") > position("9-9") && position("10-0") > position("9-10"));
        assert!((position("9-1").0, u64::MAX) > position("9-2"));
    }
}
