//! Applies settlements in batches: messages that need only an acknowledgement
//! share one command, all others share one script.

use crate::message::{Fields, MESSAGE_FIELD};
use crate::publication::Publication;
use crate::queue::claim::Claim;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, Keys, StreamKind};
use crate::queue::lua::scripts::{self, batches};
use crate::queue::registry::register;
use crate::queue::settlement::{Disposition, DoneKind, Settlement};
use crate::queue::topic::TopicHandle;
use redis::ScriptInvocation;
use std::borrow::Borrow;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Ok,
    /// It was settled before, or the lease is no longer ours: nothing was changed.
    Gone,
    /// It is ours, but its entry was deleted while it was in flight: it can only
    /// become a dead letter, made from the copy in hand. Nothing was changed.
    Deleted,
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
    /// `window` is how long finished messages count as such for their copies; zero
    /// where the topic does not deduplicate.
    /// On an error Redis is away and some messages may be settled: send the same
    /// batch again.
    pub async fn settle<S: Borrow<Settlement>>(
        &self,
        batch: &[S],
        window: Duration,
    ) -> Result<Vec<Settled>, QueueError> {
        for publication in batch.iter().flat_map(|one| one.borrow().publications()) {
            register(&self.handle, &publication.topic).await;
        }
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
            for batch in batches(moving.iter().map(|one| one.bytes), usize::MAX) {
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
        let (handle, ids) = (&self.handle, done.iter().map(|one| one.entry.id.as_str()));
        let claims: Vec<&Claim> = done.iter().filter_map(|one| one.claim.as_ref()).collect();
        let script = if claims.is_empty() { &scripts::SETTLE_DONE } else { &scripts::SETTLE_CLAIMED };
        let mut script = script.key(handle.key(stream));
        script.key(&handle.keys().state).key(&handle.keys().deleted);
        script.arg(handle.group()).arg(handle.consumer()).arg(handle.deletes_settled(stream));
        script.arg(stream.class()).arg(kind.name());
        if !claims.is_empty() {
            let window = if kind == DoneKind::Done { window } else { Duration::ZERO };
            script.key(&handle.keys().claims).arg(window.as_millis()).arg(done.len());
        }
        for id in ids {
            script.arg(id);
        }
        for claim in claims {
            script.arg(&claim.key_hash).arg(claim.first_entry.to_string());
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
        let targets = Targets::new(handle, moving);
        let keys = handle.keys();
        let mut script = scripts::SETTLE.prepare_invoke();
        let own = [handle.key(stream), &keys.state, &keys.delayed, &keys.delayed_body, &keys.dead, &keys.outbox];
        script.key(&own[..]).key(&keys.claims).key(&keys.deleted);
        for (_, keys) in &targets.topics {
            script.key(&keys.for_publish()[..]);
        }
        script.arg(handle.group()).arg(handle.consumer()).arg(handle.deletes_settled(stream)).arg(stream.class());
        script.arg(window.as_millis());
        for one in moving {
            arguments(one, &targets).iter().for_each(|argument| argument.add_to(&mut script));
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

fn parse_result(result: String, settlement: &Settlement) -> Settled {
    match result.as_str() {
        "ok" => Settled::Ok,
        "gone" => Settled::Gone,
        "deleted" => Settled::Deleted,
        _ => match result.split_once("WRONGTYPE ") {
            // Retrying the settlement can't help: the message would stay in flight for ever.
            Some((_, reason)) if !settlement.publications().is_empty() => Settled::FollowUpsRefused(reason.to_owned()),
            _ => Settled::Failed(result),
        },
    }
}

/// How many keys precede those of the first follow-up's topic.
const OWN_KEYS: usize = 8;

/// The topics of a batch's follow-ups that its script can write to, each once.
struct Targets {
    topics: Vec<(String, Keys)>,
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
        Self { topics }
    }

    /// The number of the topic's first key, if the script can write to the topic.
    fn first_key(&self, publication: &Publication) -> Option<usize> {
        let at = self.topics.iter().position(|(known, _)| known == publication.topic.as_str())?;
        Some(OWN_KEYS + 1 + at * Keys::PUBLISH)
    }
}

enum Argument<'a> {
    Text(&'a str),
    Entry(&'a EntryId),
    Bytes(&'a [u8]),
    Number(u128),
}

impl Argument<'_> {
    fn add_to(&self, script: &mut ScriptInvocation<'_>) {
        match self {
            Self::Text(text) => script.arg(text),
            Self::Entry(entry) => script.arg(entry.to_string()),
            Self::Bytes(bytes) => script.arg(bytes),
            Self::Number(number) => script.arg(number.to_string()),
        };
    }
}

/// The arguments of one settlement for `settle.lua`.
fn arguments<'a>(settlement: &'a Settlement, targets: &Targets) -> Vec<Argument<'a>> {
    let id = Argument::Text(&settlement.entry.id);
    let [hash, first, lasts] = claim(settlement.claim.as_ref());
    let delivery_count = Argument::Number(settlement.delivery_count.into());
    match &settlement.disposition {
        Disposition::Done { publications, .. } => {
            let mut list = vec![Argument::Text("done"), id, hash, first, lasts, count(publications)];
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
            let mut list = vec![Argument::Text("run-again"), id, hash, first, lasts];
            list.extend([delivery_count, Argument::Number(after.as_millis())]);
            push_fields(&mut list, set_fields);
            list
        }
        Disposition::DeadLetter { set_fields } => {
            let mut list = vec![Argument::Text("dead-letter"), id, hash, first, lasts, delivery_count];
            push_fields(&mut list, set_fields);
            list
        }
        Disposition::EntryDeleted { fields } => {
            let mut list = vec![Argument::Text("entry-deleted"), id, hash, first, lasts, delivery_count];
            push_fields(&mut list, fields);
            list
        }
    }
}

fn claim(claim: Option<&Claim>) -> [Argument<'_>; 3] {
    match claim {
        Some(claim) => [
            Argument::Text(&claim.key_hash),
            Argument::Entry(&claim.first_entry),
            Argument::Number(claim.lasts.as_millis()),
        ],
        None => [Argument::Text(""), Argument::Text(""), Argument::Number(0)],
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
