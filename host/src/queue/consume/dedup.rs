//! Deduplication: which deliveries may run now, of several messages with one key.

use crate::queue::claim::Claim;
use crate::queue::delivery::Delivery;
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::lua::scripts::{self, batches};
use crate::queue::topic::{TopicHandle, markers};
use jiff::Timestamp;
use std::time::Duration;

/// The most deliveries or claims of one script.
const BATCH: usize = 256;

pub struct Dedup {
    handle: TopicHandle,
}

/// A delivery that asks for its claim.
pub struct ClaimRequest<'a> {
    pub delivery: &'a Delivery,
    pub claim: &'a Claim,
    pub expires_at: Option<Timestamp>,
}

/// What holds for all requests of a call.
#[derive(Debug, Clone, Copy)]
pub struct ClaimTerms {
    /// For how long finished messages count.
    pub window: Duration,
    pub lease: Duration,
    /// Whether the deliveries were fetched just now. Others may no longer be ours.
    pub is_fetched: bool,
    /// Whether the deliveries were counted for the topic's rate limit. What is not
    /// run then counts no longer.
    pub is_rated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimAnswer {
    Run,
    /// A message with its key has finished within the window.
    Duplicate,
    Expired,
    /// Another message has the claim. This one was parked: it is delayed.
    Busy,
    /// It is no longer pending for us, so it is no longer ours to run.
    Gone,
    /// Nothing was changed, for this reason.
    Failed(String),
}

impl Dedup {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Asks for the claims of deliveries; the answers are in their order. May be
    /// called again after an error.
    pub async fn claim(
        &self,
        requests: &[ClaimRequest<'_>],
        terms: ClaimTerms,
    ) -> Result<Vec<ClaimAnswer>, QueueError> {
        let mut answers = Vec::with_capacity(requests.len());
        // The script reads the entries that it parks.
        for batch in batches(requests.iter().map(|one| one.delivery.bytes()), BATCH) {
            answers.extend(self.claim_batch(&requests[batch], terms).await?);
        }
        Ok(answers)
    }

    async fn claim_batch(
        &self,
        requests: &[ClaimRequest<'_>],
        terms: ClaimTerms,
    ) -> Result<Vec<ClaimAnswer>, QueueError> {
        let (handle, keys) = (&self.handle, self.handle.keys());
        let mut script = scripts::CLAIM.key(&keys.state);
        script.key(&keys.claims).key(&keys.delayed).key(&keys.delayed_body);
        script.arg(handle.group()).arg(handle.consumer());
        script.arg(terms.window.as_millis()).arg(terms.lease.as_millis()).arg(u8::from(terms.is_rated));
        let usual = requests.first().map_or(StreamKind::Normal, |one| one.delivery.entry.stream);
        script.arg(StreamKind::ALL.len()).arg(usual as usize + 1);
        for stream in StreamKind::ALL {
            // What was delivered just now is still ours, or its lease is found lost by the renewal.
            let may_be_lost = !terms.is_fetched;
            let ids =
                requests.iter().map(|one| &one.delivery.entry).filter(|entry| may_be_lost && entry.stream == stream);
            let (first, last) = (ids.clone().min_by_key(|one| one.order()), ids.max_by_key(|one| one.order()));
            script.key(handle.key(stream)).arg(handle.deletes_settled(stream)).arg(stream.class());
            script.arg(first.map_or("", |one| &one.id)).arg(last.map_or("", |one| &one.id));
        }
        for ClaimRequest { delivery, claim, expires_at } in requests {
            // Scripts count from 1.
            let stream = delivery.entry.stream as usize + 1;
            let (expires, crashes) = (expires_at.map_or(0, Timestamp::as_millisecond), delivery.crash_count);
            let is_usual = delivery.entry.stream == usual && expires == 0 && crashes == 0;
            let rest = if is_usual { String::new() } else { format!("{stream} {expires} {crashes}") };
            script.arg(&claim.key_hash).arg(&delivery.entry.id).arg(claim.first_entry.to_string()).arg(rest);
        }
        let answers: Vec<String> = script.invoke_async(&mut handle.shared()).await?;
        if answers.len() != requests.len() {
            return Err(QueueError::Failed("claim.lua returned another number of answers".to_owned()));
        }
        Ok(answers.into_iter().map(parse_answer).collect())
    }

    /// Extends the claims of messages in flight. Returns how many are still theirs.
    pub async fn extend(&self, claims: &[Claim]) -> Result<usize, QueueError> {
        let mut extended = 0;
        for batch in claims.chunks(BATCH) {
            let mut script = scripts::EXTEND_CLAIMS.key(&self.handle.keys().claims);
            script.arg(batch[0].lasts.as_millis());
            for claim in batch {
                script.arg(&claim.key_hash).arg(claim.first_entry.to_string());
            }
            extended += script.invoke_async::<usize>(&mut self.handle.shared()).await?;
        }
        Ok(extended)
    }

    /// Which of these deduplication keys belong to a message that has finished
    /// within the topic's window.
    pub async fn finished(&self, dedup_keys: &[String]) -> Result<Vec<bool>, QueueError> {
        markers::finished(&self.handle, dedup_keys).await
    }
}

fn parse_answer(answer: String) -> ClaimAnswer {
    match answer.as_str() {
        "run" => ClaimAnswer::Run,
        "duplicate" => ClaimAnswer::Duplicate,
        "expired" => ClaimAnswer::Expired,
        "busy" => ClaimAnswer::Busy,
        "gone" => ClaimAnswer::Gone,
        _ => ClaimAnswer::Failed(answer),
    }
}
