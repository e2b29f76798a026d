//! `publisher`: follow-up messages, buffered until the run has succeeded.

use super::fault;
use crate::plugin::bindings::Fault;
use crate::plugin::bindings::publisher::{self, Options, Priority as WitPriority};
use crate::plugin::guest::{BatchItem, Guest, RunState};
use crate::publication::{Draft, Priority};
use crate::topic::Topic;
use jiff::Timestamp;
use std::time::Duration;

/// Publications of one run.
const PUBLICATIONS_MAX: usize = 1000;
const PUBLISHED_BYTES_MAX: usize = 16 << 20;
/// Upper bound for a chain of messages that were each published without a delay by
/// the handler of the previous one: a longer chain is an endless loop.
const HOPS_MAX: u32 = 100;

const EXPIRY_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How much a run has published.
#[derive(Default)]
pub(in crate::plugin) struct Buffer {
    messages: usize,
    bytes: usize,
}

impl publisher::Host for Guest {
    fn publish(&mut self, topic: String, data: Vec<u8>) -> Result<String, Fault> {
        let options = Options {
            id: None,
            parent: None,
            delay_seconds: 0,
            priority: WitPriority::Normal,
            headers: Vec::new(),
            dedup_key: None,
            expires_seconds: 0,
        };
        self.publish_with(topic, data, options)
    }

    fn publish_with(&mut self, topic: String, data: Vec<u8>, options: Options) -> Result<String, Fault> {
        let topic = Topic::parse(&topic).map_err(|error| fault("invalid", error))?;
        let is_granted = self.context.manifest.grants.publish.contains(&topic);
        self.require(is_granted, &format!("publishing to {topic}"), &format!("publish = [\"{topic}\"]"))?;
        if self.run.buffer.messages >= PUBLICATIONS_MAX {
            return Err(fault("too-many", format!("a run publishes at most {PUBLICATIONS_MAX} messages")));
        }
        let used = self.run.buffer.bytes;
        let data =
            std::str::from_utf8(&data).map_err(|error| fault("invalid", format!("data is not UTF-8: {error}")))?;
        let priority = match options.priority {
            WitPriority::High => Priority::High,
            WitPriority::Normal => Priority::Normal,
            WitPriority::Low => Priority::Low,
        };
        let delay = Duration::from_secs(options.delay_seconds.into());
        let now = self.context.capabilities.clock.as_ref().map_or_else(Timestamp::now, |clock| clock.now());
        let expires_at = expiry(now, delay, options.expires_seconds)?;
        let from = self.run.topic_name().to_owned();
        let parent = self.run.parent(options.parent.as_deref())?;
        // A delayed message starts a new chain.
        let hops = if delay.is_zero() { parent.hops.saturating_add(1) } else { 0 };
        if hops > HOPS_MAX {
            let reason = format!(
                "the last {HOPS_MAX} messages were each published without a delay by the previous one's handler, which looks like a loop; end it, or publish with a delay"
            );
            return Err(fault("too-many", reason));
        }
        // A retry of the same entry derives the same ids.
        let derived = || format!("{from}/{}/{}", parent.entry, parent.publications.len() + 1);
        let draft = Draft::new(options.id.unwrap_or_else(derived), &topic, data);
        let dedup_key = options.dedup_key.as_deref();
        let draft = Draft { headers: &options.headers, priority, delay, hops, dedup_key, expires_at, ..draft };
        let publication = draft.encode(now).map_err(|error| fault("invalid", error))?;
        let (id, bytes) = (publication.id.clone(), publication.body.len());
        // The bytes include envelope and headers.
        if used + bytes > PUBLISHED_BYTES_MAX {
            return Err(fault("too-large", format!("a run publishes at most {PUBLISHED_BYTES_MAX} bytes")));
        }
        parent.publications.push(publication);
        self.run.buffer.messages += 1;
        self.run.buffer.bytes += bytes;
        Ok(id)
    }
}

/// When a message that is published now expires: never, if `seconds` is 0. A
/// message that expires before it is due could never run.
fn expiry(now: Timestamp, delay: Duration, seconds: u32) -> Result<Option<Timestamp>, Fault> {
    if seconds == 0 {
        return Ok(None);
    }
    let lifetime = Duration::from_secs(seconds.into());
    if lifetime > EXPIRY_MAX {
        return Err(fault("invalid", format!("expires-seconds is {seconds}, allowed: at most 366 days")));
    }
    if lifetime <= delay {
        let reason = format!("expires-seconds is {seconds}, allowed: more than the delay of {} s", delay.as_secs());
        return Err(fault("invalid", reason));
    }
    now.checked_add(lifetime).map(Some).map_err(|error| fault("invalid", error))
}

impl RunState {
    /// The message that a publication follows. A batch has to name it.
    fn parent(&mut self, named: Option<&str>) -> Result<&mut BatchItem, Fault> {
        let reason = if self.items.len() > 1 {
            "name the parent: set `parent` to the id of a message of this batch"
        } else {
            "`parent` is not the id of the message being handled"
        };
        let parent = match (named, self.items.as_mut_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(named), items) => items.iter_mut().find(|item| item.id == named),
        };
        parent.ok_or_else(|| fault("invalid", reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_expires_after_it_is_due_and_within_366_days() {
        let now: Timestamp = "2026-11-23T07:45:23Z".parse().unwrap();
        let expiry = |delay, seconds| {
            expiry(now, Duration::from_secs(delay), seconds)
                .map(|at| at.map(|at| at.to_string()))
                .map_err(|fault| fault.code)
        };
        assert_eq!(expiry(60, 0), Ok(None));
        assert_eq!(expiry(60, 61), Ok(Some("2026-11-23T07:46:24Z".to_owned())));
        assert_eq!(expiry(0, 366 * 86_400), Ok(Some("2027-11-24T07:45:23Z".to_owned())));
        for (delay, seconds) in [(60, 60), (61, 60), (0, 366 * 86_400 + 1)] {
            assert_eq!(expiry(delay, seconds), Err("invalid".to_owned()), "{delay} {seconds}");
        }
    }

    #[test]
    fn a_publication_follows_a_message_of_the_run() {
        let mut guest = Guest::for_test("");
        let mut parent = |items: &[&str], named| {
            let item =
                |id: &&str| BatchItem { id: (*id).to_owned(), entry: String::new(), hops: 0, publications: Vec::new() };
            guest.run.items = items.iter().map(item).collect();
            guest.run.parent(named).map(|found| found.id.clone()).map_err(|fault| fault.code)
        };
        let invalid = Err("invalid".to_owned());
        assert_eq!(parent(&["a"], None), Ok("a".to_owned()));
        assert_eq!(parent(&["a"], Some("b")), invalid);
        assert_eq!(parent(&["a", "b"], Some("b")), Ok("b".to_owned()));
        for named in [None, Some("c")] {
            assert_eq!(parent(&["a", "b"], named), invalid);
        }
    }
}
