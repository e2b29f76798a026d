//! Finds the topics that no plugin names, for the plugin that takes them. Looks
//! only while there is such a one.

use crate::plugin::Routes;
use crate::queue::{Connection, topics_with_messages};
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(5);

/// Each topic has a connection of its own, and anybody who may publish can
/// make topics.
const TOPICS_MAX: usize = 256;

pub(super) struct Discovery {
    pub(super) connection: Connection,
    pub(super) prefix: String,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) found: watch::Sender<BTreeSet<Topic>>,
}

impl Discovery {
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        let is_wanted = |routes: &Arc<Routes>| routes.catch_all.is_some();
        let looking = async {
            let mut is_full = false;
            loop {
                if self.routes.wait_for(is_wanted).await.is_err() {
                    return;
                }
                match topics_with_messages(&self.connection, &self.prefix).await {
                    Ok(topics) => {
                        let taken = self.taken(topics, &mut is_full);
                        self.found.send_if_modified(|found| {
                            let is_new = *found != taken;
                            *found = taken;
                            is_new
                        });
                    }
                    // What was found is still there, for all we know.
                    Err(error) => tracing::debug!(%error, "topics can't be looked for now"),
                }
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    _ = self.routes.wait_for(|routes| !is_wanted(routes)) => drop(self.found.send_replace(BTreeSet::new())),
                }
            }
        };
        let _ = stop.run_until_cancelled(looking).await;
    }

    /// Those that nobody has, as many as can be taken: first the ones that are.
    fn taken(&self, topics: BTreeSet<Topic>, is_full: &mut bool) -> BTreeSet<Topic> {
        let routes = self.routes.borrow().clone();
        let before = self.found.borrow().clone();
        let is_free = |topic: &Topic| !routes.by_topic.contains_key(topic) && !routes.reserved.contains_key(topic);
        for topic in topics.iter().filter(|topic| !before.contains(topic) && !routes.by_topic.contains_key(topic)) {
            if let Some(plugin) = routes.reserved.get(topic) {
                tracing::debug!(%topic, plugin, "the topic belongs to a plugin that is not live: it is not taken with the rest");
            }
        }
        let (known, new): (Vec<Topic>, Vec<Topic>) =
            topics.into_iter().filter(is_free).partition(|topic| before.contains(topic));
        let count = known.len() + new.len();
        if count > TOPICS_MAX && !std::mem::replace(is_full, true) {
            tracing::warn!(
                count,
                max = TOPICS_MAX,
                "more topics have messages and no plugin than are taken at a time; the others wait"
            );
        }
        *is_full = count > TOPICS_MAX;
        known.into_iter().chain(new).take(TOPICS_MAX).collect()
    }
}
