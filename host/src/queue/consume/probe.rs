//! Probes whether a topic's keys have changed since it was opened: a blocking
//! read waits for one key and does not notice changes of the others.

use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::topic::groups::own_group;
use crate::queue::topic::{TopicFlags, TopicHandle, TopicKeys, TopicKind, reply};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub flags: TopicFlags,
    /// The topic has to be opened again.
    pub has_changed: bool,
}

pub struct Probes {
    handle: TopicHandle,
}

impl Probes {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    pub async fn flags(&self) -> Result<TopicFlags, QueueError> {
        reply::flags(self.handle.flags_command().query_async(&mut self.handle.shared()).await?)
    }

    /// Sends as few commands as possible: probes are most of the cost of an idle topic.
    pub async fn probe(&self, keys: &TopicKeys) -> Result<Probe, QueueError> {
        let flags = self.flags().await?;
        let mut has_changed = false;
        for stream in &keys.streams {
            match own_group(&self.handle, *stream).await? {
                Some(group) => self.handle.set_other_groups(*stream, group.others),
                None => has_changed = true,
            }
        }
        let may_exist = |stream: &&StreamKind| match stream {
            StreamKind::High => flags.has_high,
            StreamKind::Normal => true,
            StreamKind::Work => keys.kind == TopicKind::List,
            StreamKind::Low => flags.has_low,
        };
        let absent: Vec<_> = keys.absent.iter().filter(may_exist).map(|stream| self.handle.key(*stream)).collect();
        if !has_changed && !absent.is_empty() {
            let found: u64 = redis::cmd("EXISTS").arg(absent).query_async(&mut self.handle.shared()).await?;
            has_changed = found > 0;
        }
        Ok(Probe { flags, has_changed })
    }
}
