//! Settlements that Redis has refused: one whose key has another type, or all
//! that write while memory is full. They are tried again apart from the others,
//! with pauses of their own.

use super::keep::BEAT;
use super::{BATCH_MAX, PAUSE_MAX, PAUSE_MIN};
use crate::queue::{EntryId, Settlement};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

pub(super) struct Refused {
    /// The one that has waited longest is in front.
    waiting: VecDeque<Settlement>,
    due: Instant,
    pause: Duration,
    /// One of those that nobody has been told of, and why.
    untold: Option<(EntryId, String)>,
    told: Option<Instant>,
}

impl Default for Refused {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), due: Instant::now(), pause: PAUSE_MIN, untold: None, told: None }
    }
}

impl Refused {
    pub(super) fn add(&mut self, (settlement, error): (Settlement, String)) {
        if self.waiting.is_empty() {
            self.pause = PAUSE_MIN;
            self.due = Instant::now() + self.pause;
        }
        self.untold = Some((settlement.entry.clone(), error));
        self.waiting.push_back(settlement);
    }

    /// Waits until some are to be tried again; without any, for ever.
    pub(super) async fn are_due(&self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.due).await;
    }

    /// Those that are to be tried again now.
    pub(super) fn take_due(&mut self) -> Vec<Settlement> {
        let count = if Instant::now() < self.due { 0 } else { self.waiting.len().min(BATCH_MAX) };
        self.waiting.drain(..count).collect()
    }

    /// So many were tried, and these refused again: the others are next, at once
    /// if all of them have passed.
    pub(super) fn tried(&mut self, count: usize, again: Vec<(Settlement, String)>) {
        self.pause = match again.len() {
            0 => Duration::ZERO,
            refused if refused < count => PAUSE_MIN,
            _ => (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
        };
        self.due = Instant::now() + self.pause;
        for (settlement, error) in again {
            self.untold = Some((settlement.entry.clone(), error));
            self.waiting.push_back(settlement);
        }
    }

    /// How many wait, and one of them with its error, where it is time to tell.
    pub(super) fn tell(&mut self) -> Option<(usize, EntryId, String)> {
        if self.told.is_some_and(|at| at.elapsed() < BEAT) {
            return None;
        }
        let (entry, error) = self.untold.take()?;
        self.told = Some(Instant::now());
        Some((self.waiting.len(), entry, error))
    }
}
