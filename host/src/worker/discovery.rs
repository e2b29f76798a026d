//! Finds the topics that no plugin names, for the catch-all plugin. Looks only
//! while there is one.

use crate::plugin::Routes;
use crate::queue::TopicDiscovery;
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(5);

/// Each topic has a connection of its own, and whoever may publish can make
/// topics.
const TOPICS_MAX: usize = 256;

pub(super) struct Discovery {
    pub(super) topics: TopicDiscovery,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) found: watch::Sender<BTreeSet<Topic>>,
}

impl Discovery {
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        let has_catch_all = |routes: &Arc<Routes>| routes.catch_all.is_some();
        let discovering = async {
            let mut is_full = false;
            loop {
                if self.routes.wait_for(has_catch_all).await.is_err() {
                    return;
                }
                match self.topics.topics_with_messages().await {
                    Ok(topics) => {
                        let chosen = self.choose(topics, &mut is_full);
                        self.found.send_if_modified(|found| {
                            let is_new = *found != chosen;
                            *found = chosen;
                            is_new
                        });
                    }
                    // The topics that were found before are probably still there.
                    Err(error) => tracing::debug!(%error, "topics can't be discovered now"),
                }
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    _ = self.routes.wait_for(|routes| !has_catch_all(routes)) => drop(self.found.send_replace(BTreeSet::new())),
                }
            }
        };
        let _ = stop.run_until_cancelled(discovering).await;
    }

    /// The topics that no plugin has, up to the limit: first those that are
    /// consumed already.
    fn choose(&self, topics: BTreeSet<Topic>, is_full: &mut bool) -> BTreeSet<Topic> {
        let routes = self.routes.borrow().clone();
        let before = self.found.borrow().clone();
        for topic in topics.iter().filter(|topic| !before.contains(topic) && !routes.by_topic.contains_key(topic)) {
            if let Some(plugin) = routes.reserved.get(topic) {
                tracing::debug!(%topic, plugin, "the topic is reserved for a plugin that is not live; the catch-all does not take it");
            }
        }
        let (known, new): (Vec<Topic>, Vec<Topic>) =
            topics.into_iter().filter(|topic| routes.is_for_catch_all(topic)).partition(|topic| before.contains(topic));
        let count = known.len() + new.len();
        if count > TOPICS_MAX && !std::mem::replace(is_full, true) {
            tracing::warn!(
                count,
                max = TOPICS_MAX,
                "more topics without a plugin have messages than the catch-all takes at a time; the others wait"
            );
        }
        *is_full = count > TOPICS_MAX;
        known.into_iter().chain(new).take(TOPICS_MAX).collect()
    }
}
