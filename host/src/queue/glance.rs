//! A glance, from beat to beat, at whether a topic's keys are still what they
//! were when it was opened: a read that waits for one of them knows nothing of
//! the others.

use super::reader::Flags;
use super::source::Source;
use super::topic_queue::{Kind, Opened, TopicQueue};
use super::{QueueError, reply};
use redis::Value;
use std::collections::BTreeMap;

/// What a glance told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    pub flags: Flags,
    /// The topic is to be opened again.
    pub has_changed: bool,
}

/// What a stream says of our group.
pub(super) struct Group {
    /// How many other groups read the stream.
    pub(super) others: usize,
    pub(super) last_delivered: String,
}

impl TopicQueue {
    /// Looks at no more than it must: this is most of what an idle topic costs.
    pub async fn glance(&self, opened: &Opened) -> Result<Glance, QueueError> {
        let flags = self.flags().await?;
        let mut has_changed = false;
        for source in &opened.sources {
            match self.own_group(*source).await? {
                Some(group) => self.set_others(*source, group.others),
                None => has_changed = true,
            }
        }
        let may_stand = |source: &&Source| match source {
            Source::High => flags.has_high,
            Source::Normal => true,
            Source::Work => opened.kind == Kind::List,
            Source::Low => flags.has_low,
        };
        let absent: Vec<_> = opened.absent.iter().filter(may_stand).map(|source| source.key(self.keys())).collect();
        if !has_changed && !absent.is_empty() {
            let found: u64 = redis::cmd("EXISTS").arg(absent).query_async(&mut self.shared()).await?;
            has_changed = found > 0;
        }
        Ok(Glance { flags, has_changed })
    }

    /// Our group of a stream; nothing where it is gone, or the stream is.
    pub(super) async fn own_group(&self, source: Source) -> Result<Option<Group>, QueueError> {
        let mut command = redis::cmd("XINFO");
        command.arg("GROUPS").arg(source.key(self.keys()));
        let answer = command.query_async::<Vec<BTreeMap<String, Value>>>(&mut self.shared()).await;
        let groups = match answer.map_err(QueueError::from) {
            Err(QueueError::WrongType(_)) => return Ok(None),
            Err(QueueError::Failed(error)) if error.contains("no such key") => return Ok(None),
            groups => groups?,
        };
        let others = groups.len().saturating_sub(1);
        let name = Value::BulkString(self.group().into());
        let ours = groups.into_iter().find(|info| info.get("name") == Some(&name));
        let last_delivered = ours.and_then(|mut info| info.remove("last-delivered-id"));
        last_delivered.map(|id| Ok(Group { others, last_delivered: reply::text(id)? })).transpose()
    }
}
