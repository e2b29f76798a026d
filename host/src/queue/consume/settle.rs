//! Applies settlements in batches: messages that need only an acknowledgement
//! share one command, all others share one script.

use crate::message::{Fields, MESSAGE_FIELD};
use crate::publication::Publication;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{Keys, StreamKind};
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::settlement::{Disposition, DoneKind, Settlement};
use crate::queue::topic::TopicHandle;
use redis::ScriptInvocation;
use std::borrow::Borrow;
use std::ops::Range;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Ok,
    /// It was settled before, or the lease is no longer ours: nothing was changed.
    Gone,
    /// The message is done, but the key for one of its follow-ups has another
    /// type, as this text says. Nothing was changed.
    FollowUpsRefused(String),
    /// Nothing was changed; a later attempt may succeed.
    Failed(String),
}

pub struct Settlements {
    handle: TopicHandle,
}

impl Settlements {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Settles a batch; the results are in its order. For those that are simply done
    /// the result is `Ok` also if the lease was lost meanwhile, because a look at each
    /// would cost as much as the acknowledgement.
    ///
    /// `window` is how long the deduplication keys of finished messages are stored.
    /// On an error Redis is away and some messages may be settled: send the same
    /// batch again.
    pub async fn settle<S: Borrow<Settlement>>(
        &self,
        batch: &[S],
        window: Duration,
    ) -> Result<Vec<Settled>, QueueError> {
        let mut results = vec![Settled::Ok; batch.len()];
        for stream in StreamKind::ALL {
            let all = || batch.iter().map(Borrow::borrow).enumerate();
            let of_stream = || all().filter(move |(_, one): &(usize, &Settlement)| one.entry.stream == stream);
            for kind in DoneKind::ALL {
                let is_kind = |(_, one): &(usize, &Settlement)| one.acknowledgement() == Some(kind);
                let (positions, done): (Vec<_>, Vec<_>) = of_stream().filter(is_kind).unzip();
                if !done.is_empty() {
                    let settled = self.acknowledge(stream, kind, &done, window).await;
                    record(&mut results, &positions, settled.map(|()| vec![Settled::Ok; done.len()]))?;
                }
            }
            let needs_script = |(_, one): &(usize, &Settlement)| one.acknowledgement().is_none();
            let (positions, moving): (Vec<_>, Vec<_>) = of_stream().filter(needs_script).unzip();
            for batch in batches(&moving) {
                let moved = self.move_all(stream, &moving[batch.clone()], window).await;
                record(&mut results, &positions[batch], moved)?;
            }
        }
        Ok(results)
    }

    /// Whether some of its follow-ups are sent through the outbox.
    pub fn uses_outbox(&self, settlement: &Settlement) -> bool {
        settlement.publications().iter().any(|one| !self.handle.is_same_slot(&one.topic))
    }

    async fn acknowledge(
        &self,
        stream: StreamKind,
        kind: DoneKind,
        done: &[&Settlement],
        window: Duration,
    ) -> Result<(), QueueError> {
        let handle = &self.handle;
        let mut script = scripts::SETTLE_DONE.key(handle.key(stream));
        script.key(&handle.keys().state);
        for dedup_key in done.iter().filter_map(|one| one.dedup_key()) {
            script.key(handle.keys().done(dedup_key));
        }
        script.arg(handle.group()).arg(handle.deletes_settled(stream));
        script.arg(window.as_millis().max(1)).arg(kind.name());
        for one in done {
            script.arg(&one.entry.id);
        }
        Ok(script.invoke_async(&mut handle.shared()).await?)
    }

    async fn move_all(
        &self,
        stream: StreamKind,
        moving: &[&Settlement],
        window: Duration,
    ) -> Result<Vec<Settled>, QueueError> {
        let handle = &self.handle;
        let mut targets = Targets::new(handle, moving);
        let keys = handle.keys();
        let mut script = scripts::SETTLE.prepare_invoke();
        let own = [handle.key(stream), &keys.state, &keys.delayed, &keys.delayed_body, &keys.dead, &keys.outbox];
        script.key(&own[..]);
        for (_, keys) in &targets.topics {
            script.key(&keys.for_publish()[..]);
        }
        for dedup_key in moving.iter().filter_map(|one| one.dedup_key()) {
            script.key(keys.done(dedup_key));
        }
        script.arg(handle.group()).arg(handle.consumer()).arg(handle.deletes_settled(stream)).arg(stream.class());
        script.arg(window.as_millis().max(1));
        for one in moving {
            arguments(one, &mut targets).iter().for_each(|argument| argument.add_to(&mut script));
        }
        let results: Vec<String> = script.invoke_async(&mut handle.shared()).await?;
        if results.len() != moving.len() {
            return Err(QueueError::Failed("settle.lua returned another number of results".to_owned()));
        }
        Ok(results.into_iter().zip(moving).map(|(result, one)| parse_result(result, one)).collect())
    }
}

/// Stores the results of one script for the messages at these positions. An error
/// of the script concerns only them, unless Redis is away.
fn record(
    results: &mut [Settled],
    positions: &[usize],
    settled: Result<Vec<Settled>, QueueError>,
) -> Result<(), QueueError> {
    let settled = match settled {
        Err(error @ QueueError::Away(_)) => return Err(error),
        Err(error) => vec![Settled::Failed(error.to_string()); positions.len()],
        Ok(settled) => settled,
    };
    positions.iter().zip(settled).for_each(|(position, one)| results[*position] = one);
    Ok(())
}

/// Splits by bytes: a server closes the connection of a client whose command is
/// too long, and would do so again after a retry.
fn batches(moving: &[&Settlement]) -> Vec<Range<usize>> {
    let (mut batches, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (at, one) in moving.iter().enumerate() {
        if at > first && bytes + one.bytes > BATCH_BYTES {
            batches.push(first..at);
            (first, bytes) = (at, 0);
        }
        bytes += one.bytes;
    }
    if first < moving.len() {
        batches.push(first..moving.len());
    }
    batches
}

fn parse_result(result: String, settlement: &Settlement) -> Settled {
    match result.as_str() {
        "ok" => Settled::Ok,
        "gone" => Settled::Gone,
        _ => match result.split_once("WRONGTYPE ") {
            // Retrying the settlement can't help: the message would stay in flight for ever.
            Some((_, reason)) if !settlement.publications().is_empty() => Settled::FollowUpsRefused(reason.to_owned()),
            _ => Settled::Failed(result),
        },
    }
}

/// How many keys precede those of the first follow-up's topic.
const OWN_KEYS: usize = 6;

/// The topics of a batch's follow-ups that its script can write to, each once,
/// and the number of the next marker's key.
struct Targets {
    topics: Vec<(String, Keys)>,
    next_marker: usize,
}

impl Targets {
    fn new(handle: &TopicHandle, moving: &[&Settlement]) -> Self {
        let mut topics = Vec::new();
        for publication in moving.iter().flat_map(|one| one.publications()) {
            let name = publication.topic.as_str();
            if !topics.iter().any(|(known, _)| known == name) && handle.is_same_slot(&publication.topic) {
                topics.push((name.to_owned(), handle.keys_of(&publication.topic)));
            }
        }
        let next_marker = OWN_KEYS + 1 + topics.len() * Keys::PUBLISH;
        Self { topics, next_marker }
    }

    /// The number of the topic's first key, if the script can write to the topic.
    fn first_key(&self, publication: &Publication) -> Option<usize> {
        let at = self.topics.iter().position(|(known, _)| known == publication.topic.as_str())?;
        Some(OWN_KEYS + 1 + at * Keys::PUBLISH)
    }

    fn marker(&mut self, dedup_key: Option<&String>) -> usize {
        let Some(_) = dedup_key else { return 0 };
        self.next_marker += 1;
        self.next_marker - 1
    }
}

enum Argument<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Number(u128),
}

impl Argument<'_> {
    fn add_to(&self, script: &mut ScriptInvocation<'_>) {
        match self {
            Self::Text(text) => script.arg(text),
            Self::Bytes(bytes) => script.arg(bytes),
            Self::Number(number) => script.arg(number.to_string()),
        };
    }
}

/// The arguments of one settlement for `settle.lua`.
fn arguments<'a>(settlement: &'a Settlement, targets: &mut Targets) -> Vec<Argument<'a>> {
    let id = Argument::Text(&settlement.entry.id);
    let delivery_count = Argument::Number(settlement.delivery_count.into());
    match &settlement.disposition {
        Disposition::Done { dedup_key, publications, .. } => {
            let marker = targets.marker(dedup_key.as_ref());
            let mut list = vec![Argument::Text("done"), id, Argument::Number(marker as u128), count(publications)];
            for publication in publications {
                match targets.first_key(publication) {
                    Some(first) => list.push(Argument::Number(first as u128)),
                    None => list.extend([Argument::Number(0), Argument::Text(publication.topic.as_str())]),
                }
                list.extend([Argument::Number(publication.delay.as_millis()), Argument::Text(publication.class())]);
                list.extend([Argument::Number(2), Argument::Text(MESSAGE_FIELD), Argument::Bytes(&publication.body)]);
            }
            list
        }
        Disposition::RunAgain { after, set_fields } => {
            let mut list = vec![Argument::Text("run-again"), id, delivery_count, Argument::Number(after.as_millis())];
            push_fields(&mut list, set_fields);
            list
        }
        Disposition::DeadLetter { set_fields } => {
            let mut list = vec![Argument::Text("dead-letter"), id, delivery_count];
            push_fields(&mut list, set_fields);
            list
        }
    }
}

fn count<T>(list: &[T]) -> Argument<'static> {
    Argument::Number(list.len() as u128)
}

fn push_fields<'a>(list: &mut Vec<Argument<'a>>, fields: &'a Fields) {
    list.push(Argument::Number(2 * fields.len() as u128));
    for (name, value) in fields {
        list.extend([Argument::Bytes(name), Argument::Bytes(value)]);
    }
}
