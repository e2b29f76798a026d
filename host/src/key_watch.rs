//! Watches what others do under this worker's prefix: another deployment whose
//! prefix begins it, and publishers whose topics have illegal names.

use crate::events;
use crate::metrics::Metrics;
use crate::queue::{Connection, Overlap, UnservableKeys, overlap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(60);
/// A Redis that takes longer does not delay the start: a worker starts without it.
const START_TIMEOUT: Duration = Duration::from_secs(2);
/// A scan is repeated after at least so many times what it took.
const SCAN_PAUSE_FACTOR: u32 = 100;

pub struct KeyWatch {
    connection: Connection,
    prefix: String,
    metrics: Arc<Metrics>,
    has_warned: bool,
}

/// Another deployment's prefix, which begins ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "queue.prefix: \"{ours}\" begins with \"{other}\", the prefix of a worker that was seen at this Redis within a \
     minute, so each would use keys of the other: change one of the two such that neither begins with the other \
     (GATEWAY_QUEUE_PREFIX)"
)]
pub struct PrefixOverlap {
    ours: String,
    other: String,
}

impl KeyWatch {
    pub fn new(connection: &Connection, prefix: &str, metrics: &Arc<Metrics>) -> Self {
        let (connection, prefix, metrics) = (connection.clone(), prefix.to_owned(), metrics.clone());
        Self { connection, prefix, metrics, has_warned: false }
    }

    /// Before the worker does anything under its prefix. Where Redis does not answer
    /// now, the later looks say it.
    pub async fn check_start(&mut self) -> Result<(), PrefixOverlap> {
        match tokio::time::timeout(START_TIMEOUT, self.find_overlap()).await {
            Ok(Some(overlap)) => Err(overlap),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let watching = async {
            let mut unservable = UnservableKeys::new(&self.connection, &self.prefix);
            let mut next_scan = Instant::now();
            loop {
                self.watch_prefix().await;
                if Instant::now() >= next_scan {
                    let started = Instant::now();
                    if let Err(error) = unservable.warn().await {
                        tracing::debug!(%error, "keys without a legal topic can't be looked for now");
                    }
                    next_scan = Instant::now() + started.elapsed() * SCAN_PAUSE_FACTOR;
                }
                tokio::time::sleep(INTERVAL).await;
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    /// The worker goes on, because its messages are its own as well.
    async fn watch_prefix(&mut self) {
        let was_overlapping = self.metrics.prefix_overlap.get() > 0;
        match self.find_overlap().await {
            Some(overlap) => {
                self.metrics.prefix_overlap.set(1);
                tracing::error!("{}: {overlap}", events::PREFIX_OVERLAP);
            }
            None => {
                self.metrics.prefix_overlap.set(0);
                if was_overlapping {
                    tracing::info!("{}", events::PREFIX_FREE);
                }
            }
        }
    }

    async fn find_overlap(&mut self) -> Option<PrefixOverlap> {
        match overlap(&self.connection, &self.prefix).await {
            Ok(Overlap::With(other)) => Some(PrefixOverlap { ours: self.prefix.clone(), other }),
            Ok(Overlap::Unknown(reason)) if !std::mem::replace(&mut self.has_warned, true) => {
                tracing::warn!(reason, "{}", events::PREFIX_UNCHECKED);
                None
            }
            Ok(Overlap::None | Overlap::Unknown(_)) => None,
            // The loop of the health says why Redis does not answer.
            Err(error) => {
                tracing::debug!(%error, "the prefixes of other workers can't be looked at now");
                None
            }
        }
    }
}
