//! Puts verdicts into effect, many at a time: what is simply done shares one
//! acknowledgement, what moves shares one script.

use super::keys::Keys;
use super::scripts::PIECE_BYTES;
use super::source::{EntryKey, Source};
use super::topic_queue::TopicQueue;
use super::{QueueError, Taken, scripts};
use crate::message::{Fields, MESSAGE_FIELD};
use crate::publication::Publication;
use redis::ScriptInvocation;
use std::ops::Range;
use std::time::Duration;

/// Why a message is dead, among the fields of its letter.
pub const ERROR_FIELD: &str = "gw-error";

/// What is to happen to one taken message.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    pub entry: EntryKey,
    deliveries: u32,
    fate: Fate,
    /// What its script reads, and what it is sent.
    bytes: usize,
}

/// `set` are fields that the entry gains, or has anew, where it goes.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Done { counted: Counted, mark: Option<String>, publications: Vec<Publication>, unsent: Option<Box<Fate>> },
    Later { after: Duration, set: Fields },
    Dead { set: Fields },
}

/// What a message that is done with counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    Done,
    /// Another of its id had finished before.
    Duplicate,
    Expired,
}

impl Counted {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Duplicate => "duplicate",
            Self::Expired => "expired",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Ok,
    /// It was settled before, or is no longer ours: nothing was changed.
    Gone,
    /// Nothing was changed; another time it may work.
    Failed(String),
}

impl Taken {
    /// Finished. `mark` is what copies of it are known by, where they are not
    /// to run; `unsent` is what becomes of it where its follow-ups can't be sent.
    pub fn done(&self, mark: Option<String>, publications: Vec<Publication>, unsent: Option<Settlement>) -> Settlement {
        let bytes = publications.iter().map(|one| one.body.len()).sum();
        let unsent = unsent.map(|other| Box::new(other.fate));
        self.settlement(Fate::Done { counted: Counted::Done, mark, publications, unsent }, bytes)
    }

    /// Finished without a run.
    pub fn dropped(&self, counted: Counted) -> Settlement {
        self.settlement(Fate::Done { counted, mark: None, publications: Vec::new(), unsent: None }, 0)
    }

    pub fn later(&self, after: Duration, set: Fields) -> Settlement {
        self.settlement(Fate::Later { after, set }, self.bytes())
    }

    pub fn dead(&self, set: Fields) -> Settlement {
        self.settlement(Fate::Dead { set }, self.bytes())
    }

    fn settlement(&self, fate: Fate, bytes: usize) -> Settlement {
        Settlement { entry: self.entry.clone(), deliveries: self.deliveries, fate, bytes }
    }
}

impl Settlement {
    /// What becomes of a run after this error: one whose follow-ups find a key
    /// of another type has failed, since its message would run for ever.
    pub fn unsent(&self, error: &str) -> Option<Self> {
        let Fate::Done { unsent: Some(fate), .. } = &self.fate else { return None };
        let (_, told) = error.split_once("WRONGTYPE ")?;
        let mut fate = fate.clone();
        if let Fate::Dead { set } = &mut *fate {
            set.retain(|(name, _)| name != ERROR_FIELD.as_bytes());
            set.push((ERROR_FIELD.into(), format!("its follow-ups can't be sent: {told}").into_bytes()));
        }
        Some(Self { fate: *fate, ..self.clone() })
    }

    pub fn is_dead(&self) -> bool {
        matches!(self.fate, Fate::Dead { .. })
    }

    /// When it comes back, if it does.
    pub fn comes_back_in(&self) -> Option<Duration> {
        match self.fate {
            Fate::Later { after, .. } => Some(after),
            _ => None,
        }
    }

    /// What it is counted as, if it needs nothing but an acknowledgement.
    fn plain(&self) -> Option<Counted> {
        match &self.fate {
            Fate::Done { counted, publications, .. } if publications.is_empty() => Some(*counted),
            _ => None,
        }
    }

    fn mark(&self) -> Option<&String> {
        match &self.fate {
            Fate::Done { mark, .. } => mark.as_ref(),
            _ => None,
        }
    }
}

impl TopicQueue {
    /// Settles a batch; the results are in its order. `window` is how long the
    /// marks of what has finished last. On an error, which is that Redis is
    /// away, some may have been settled and some not: send the same batch again.
    pub async fn settle(&self, batch: &[Settlement], window: Duration) -> Result<Vec<Settled>, QueueError> {
        let mut results = vec![Settled::Ok; batch.len()];
        for source in Source::ALL {
            let of_source = || batch.iter().enumerate().filter(move |(_, one)| one.entry.source == source);
            for counted in [Counted::Done, Counted::Duplicate, Counted::Expired] {
                let is_such = |(_, one): &(usize, &Settlement)| one.plain() == Some(counted);
                let (places, plain): (Vec<_>, Vec<_>) = of_source().filter(is_such).unzip();
                if !plain.is_empty() {
                    let settled = self.settle_plain(source, counted, &plain, window).await;
                    note(&mut results, &places, settled.map(|()| vec![Settled::Ok; plain.len()]))?;
                }
            }
            let (places, moving): (Vec<_>, Vec<_>) = of_source().filter(|(_, one)| one.plain().is_none()).unzip();
            for piece in pieces(&moving) {
                let moved = self.settle_moving(source, &moving[piece.clone()], window).await;
                note(&mut results, &places[piece], moved)?;
            }
        }
        Ok(results)
    }

    /// Whether this has follow-ups that leave through the outbox.
    pub fn sends_out(&self, settlement: &Settlement) -> bool {
        match &settlement.fate {
            Fate::Done { publications, .. } => publications.iter().any(|one| !self.reaches(&one.topic)),
            _ => false,
        }
    }

    /// Which of these have finished within their window, by their marks.
    pub async fn finished(&self, marks: &[String]) -> Result<Vec<bool>, QueueError> {
        let mut command = redis::cmd("MGET");
        marks.iter().for_each(|mark| {
            command.arg(self.keys().done(mark));
        });
        let found: Vec<Option<String>> = command.query_async(&mut self.shared()).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    async fn settle_plain(
        &self,
        source: Source,
        counted: Counted,
        plain: &[&Settlement],
        window: Duration,
    ) -> Result<(), QueueError> {
        let mut script = scripts::DONE.key(source.key(self.keys()));
        script.key(&self.keys().state);
        plain.iter().filter_map(|one| one.mark()).for_each(|mark| {
            script.key(self.keys().done(mark));
        });
        script.arg(self.group()).arg(self.deletes(source)).arg(window.as_millis().max(1)).arg(counted.name());
        plain.iter().for_each(|one| {
            script.arg(&one.entry.id);
        });
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    async fn settle_moving(
        &self,
        source: Source,
        moving: &[&Settlement],
        window: Duration,
    ) -> Result<Vec<Settled>, QueueError> {
        let mut targets = Targets::of(self, moving);
        let keys = self.keys();
        let mut script = scripts::SETTLE.prepare_invoke();
        script.key(&[source.key(keys), &keys.state, &keys.later, &keys.later_body, &keys.dead, &keys.out][..]);
        for (_, keys) in &targets.topics {
            script.key(&keys.for_publish()[..]);
        }
        for mark in moving.iter().filter_map(|one| one.mark()) {
            script.key(keys.done(mark));
        }
        script.arg(self.group()).arg(self.me()).arg(self.deletes(source)).arg(source.class());
        script.arg(window.as_millis().max(1));
        for one in moving {
            words(one, &mut targets).iter().for_each(|word| word.add_to(&mut script));
        }
        let results: Vec<String> = script.invoke_async(&mut self.shared()).await?;
        if results.len() != moving.len() {
            return Err(QueueError::Failed("settle answered for another number of messages".to_owned()));
        }
        Ok(results.into_iter().map(read_result).collect())
    }
}

/// What a script said of the messages at these places. An error of its own is
/// theirs, and no other's, unless Redis is away.
fn note(results: &mut [Settled], places: &[usize], said: Result<Vec<Settled>, QueueError>) -> Result<(), QueueError> {
    let said = match said {
        Err(error @ QueueError::Away(_)) => return Err(error),
        Err(error) => vec![Settled::Failed(error.to_string()); places.len()],
        Ok(said) => said,
    };
    places.iter().zip(said).for_each(|(place, said)| results[*place] = said);
    Ok(())
}

/// What one script settles: a server closes the connection of who sends too
/// much at once, and would close it again.
fn pieces(moving: &[&Settlement]) -> Vec<Range<usize>> {
    let (mut pieces, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (at, one) in moving.iter().enumerate() {
        if at > first && bytes + one.bytes > PIECE_BYTES {
            pieces.push(first..at);
            (first, bytes) = (at, 0);
        }
        bytes += one.bytes;
    }
    if first < moving.len() {
        pieces.push(first..moving.len());
    }
    pieces
}

fn read_result(result: String) -> Settled {
    match result.as_str() {
        "ok" => Settled::Ok,
        "gone" => Settled::Gone,
        _ => Settled::Failed(result),
    }
}

/// Keys before those of the first follow-up's topic.
const OWN_KEYS: usize = 6;

/// The topics that follow-ups of a batch go to, each once, as far as they are
/// in reach of the script; and whose marker comes next.
struct Targets {
    topics: Vec<(String, Keys)>,
    next_mark: usize,
}

impl Targets {
    fn of(queue: &TopicQueue, moving: &[&Settlement]) -> Self {
        let mut topics = Vec::new();
        for one in moving {
            let Fate::Done { publications, .. } = &one.fate else { continue };
            for publication in publications {
                let name = publication.topic.as_str();
                let keys = || queue.keys_of(&publication.topic);
                if !topics.iter().any(|(known, _)| known == name) && queue.reaches(&publication.topic) {
                    topics.push((name.to_owned(), keys()));
                }
            }
        }
        let next_mark = OWN_KEYS + 1 + topics.len() * Keys::PUBLISH;
        Self { topics, next_mark }
    }

    /// The number of the topic's first key, if the script can reach it.
    fn first_key(&self, publication: &Publication) -> Option<usize> {
        let at = self.topics.iter().position(|(known, _)| known == publication.topic.as_str())?;
        Some(OWN_KEYS + 1 + at * Keys::PUBLISH)
    }

    fn mark(&mut self, mark: Option<&String>) -> usize {
        let Some(_) = mark else { return 0 };
        self.next_mark += 1;
        self.next_mark - 1
    }
}

enum Word<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Number(u128),
}

impl Word<'_> {
    fn add_to(&self, script: &mut ScriptInvocation<'_>) {
        match self {
            Self::Text(text) => script.arg(text),
            Self::Bytes(bytes) => script.arg(bytes),
            Self::Number(number) => script.arg(number.to_string()),
        };
    }
}

/// One settlement in the words that `settle.lua` reads.
fn words<'a>(settlement: &'a Settlement, targets: &mut Targets) -> Vec<Word<'a>> {
    let (id, deliveries) = (Word::Text(&settlement.entry.id), Word::Number(settlement.deliveries.into()));
    match &settlement.fate {
        Fate::Done { mark, publications, .. } => {
            let mark = targets.mark(mark.as_ref());
            let mut words = vec![Word::Text("done"), id, Word::Number(mark as u128), count(publications)];
            for publication in publications {
                match targets.first_key(publication) {
                    Some(first) => words.push(Word::Number(first as u128)),
                    None => words.extend([Word::Number(0), Word::Text(publication.topic.as_str())]),
                }
                words.extend([Word::Number(publication.delay.as_millis()), Word::Text(publication.class())]);
                words.extend([Word::Number(2), Word::Text(MESSAGE_FIELD), Word::Bytes(&publication.body)]);
            }
            words
        }
        Fate::Later { after, set } => {
            let mut words = vec![Word::Text("later"), id, deliveries, Word::Number(after.as_millis())];
            push_fields(&mut words, set);
            words
        }
        Fate::Dead { set } => {
            let mut words = vec![Word::Text("dead"), id, deliveries];
            push_fields(&mut words, set);
            words
        }
    }
}

fn count<T>(list: &[T]) -> Word<'static> {
    Word::Number(list.len() as u128)
}

fn push_fields<'a>(words: &mut Vec<Word<'a>>, fields: &'a Fields) {
    words.push(Word::Number(2 * fields.len() as u128));
    for (name, value) in fields {
        words.extend([Word::Bytes(name), Word::Bytes(value)]);
    }
}
