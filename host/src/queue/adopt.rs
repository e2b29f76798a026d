//! Takes over a stream from the original's workers. They never acknowledge a
//! failed message but append a copy with its `retry` one higher, or write a
//! dead letter; they die with messages in hand that nobody asks for again. So
//! of what is pending under their names, what has a copy is history and what
//! has none is still to be run.
//!
//! This must be finished before the first message is taken: a copy that has
//! been run and deleted is no evidence any more.

use super::scripts::PIECE_BYTES;
use super::topic_queue::TopicQueue;
use super::{QueueError, reply, scripts};
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

impl TopicQueue {
    /// Acknowledges what the original has already copied. Returns how many.
    /// Entries that were active within `idle` may be in a living worker's hands
    /// and are left alone.
    pub async fn adopt(&self, idle: Duration) -> Result<usize, QueueError> {
        let pending = self.legacy_pending(idle).await?;
        let Some(first) = pending.first() else { return Ok(0) };
        let copies = self.copies(&first.entry_id).await?;
        let superseded = pending.iter().filter(|one| copies.get(&one.id).is_some_and(|retry| *retry > one.retry));
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

    /// The highest `retry` of each id from an entry on; a dead letter beats all.
    async fn copies(&self, first: &str) -> Result<HashMap<String, i64>, QueueError> {
        let mut copies = HashMap::new();
        let mut note = |evidence: Evidence| {
            let highest = copies.entry(evidence.id).or_insert(evidence.retry);
            *highest = evidence.retry.max(*highest);
        };
        self.walk(&self.keys().stream, first, |body| parse(body).into_iter().for_each(&mut note)).await?;
        let legacy_dead = |body: &[u8]| {
            let dead = parse::<LegacyDead>(body).map(|dead| dead.original_message);
            dead.into_iter().for_each(|dead| note(Evidence { retry: i64::MAX, ..dead }));
        };
        self.walk(&self.keys().legacy_dead, "-", legacy_dead).await?;
        Ok(copies)
    }

    /// Shows each body from here to where the stream ends now: to chase what
    /// comes meanwhile would have no end.
    async fn walk(&self, key: &str, from: &str, mut show: impl FnMut(&[u8])) -> Result<(), QueueError> {
        let mut newest = redis::cmd("XREVRANGE");
        newest.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: Vec<(String, Value)> = newest.query_async(&mut self.shared()).await?;
        let Some((to, _)) = newest.first() else { return Ok(()) };
        let mut from = from.to_owned();
        loop {
            let page = self.page(key, &from, to).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = format!("({last}");
            page.iter().for_each(|(_, body)| show(body));
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

/// `consumer-<nanoseconds>`, new at every start and never taken back.
fn is_legacy(owner: &str) -> bool {
    owner
        .strip_prefix("consumer-")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}
