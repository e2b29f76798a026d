//! Sums up what would be logged again and again: of each kind the first few lines are
//! written in full, and the others as one line per interval with their count.

use crate::events;
use crate::text::truncate;
use crate::topic::Topic;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines of one kind and interval that are written in full, unless the interval
/// before had more.
const IN_FULL: u64 = 10;

const INTERVAL: Duration = Duration::from_secs(10);

const EXAMPLE_BYTES_MAX: usize = 512;

/// What is the same of lines that are summed up, besides their topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) event: &'static str,
    pub(super) outcome: Option<&'static str>,
    pub(super) dead: Option<&'static str>,
}

/// The repeated lines of one topic. Nothing is left out when it is dropped.
pub(super) struct Repeats {
    topic: Topic,
    windows: Mutex<BTreeMap<Kind, Window>>,
}

struct Window {
    since: Instant,
    in_full_max: u64,
    seen: u64,
    repeated: u64,
    /// Of the last one that was not written in full.
    example: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Summary {
    kind: Kind,
    repeated: u64,
    example: String,
}

impl Repeats {
    pub(super) fn new(topic: &Topic) -> Self {
        Self { topic: topic.clone(), windows: Mutex::default() }
    }

    /// Whether this line is to be written in full. If not, it is counted, with an
    /// example of what the line would say.
    pub(super) fn admit(&self, kind: Kind, example: impl FnOnce() -> String) -> bool {
        let (is_in_full, summary) = self.admit_at(kind, example, Instant::now());
        self.log(summary);
        is_in_full
    }

    /// Writes the sums whose interval is over. To be called from time to time.
    pub(super) fn report(&self) {
        let summaries = self.summaries_at(Instant::now(), false);
        self.log(summaries);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit_at(&self, kind: Kind, example: impl FnOnce() -> String, now: Instant) -> (bool, Option<Summary>) {
        let mut windows = self.lock();
        let window = windows.entry(kind).or_insert_with(|| Window::new(now, IN_FULL));
        let summary = window.end_if_over(kind, now);
        window.seen += 1;
        let is_in_full = window.seen <= window.in_full_max;
        if !is_in_full {
            window.repeated += 1;
            window.example = truncate(&example(), EXAMPLE_BYTES_MAX).into_owned();
        }
        (is_in_full, summary)
    }

    fn summaries_at(&self, now: Instant, is_last: bool) -> Vec<Summary> {
        let mut windows = self.lock();
        let end = |(kind, window): (&Kind, &mut Window)| {
            if is_last { window.take_summary(*kind) } else { window.end_if_over(*kind, now) }
        };
        let summaries = windows.iter_mut().filter_map(end).collect();
        windows.retain(|_, window| window.seen > 0 || window.in_full_max < IN_FULL);
        summaries
    }

    fn log(&self, summaries: impl IntoIterator<Item = Summary>) {
        let topic = &self.topic;
        for Summary { kind: Kind { event, outcome, dead }, repeated, example } in summaries {
            tracing::warn!(%topic, event, outcome, dead, repeated, last = example, "{}", events::REPEATED);
        }
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        let summaries = self.summaries_at(Instant::now(), true);
        self.log(summaries);
    }
}

impl Window {
    fn new(since: Instant, in_full_max: u64) -> Self {
        Self { since, in_full_max, seen: 0, repeated: 0, example: String::new() }
    }

    fn end_if_over(&mut self, kind: Kind, now: Instant) -> Option<Summary> {
        if now.saturating_duration_since(self.since) < INTERVAL {
            return None;
        }
        let summary = self.take_summary(kind);
        *self = Self::new(now, if self.seen > IN_FULL { 0 } else { IN_FULL });
        summary
    }

    fn take_summary(&mut self, kind: Kind) -> Option<Summary> {
        let (repeated, example) = (std::mem::take(&mut self.repeated), std::mem::take(&mut self.example));
        (repeated > 0).then_some(Summary { kind, repeated, example })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REJECT: Kind = Kind { event: events::SETTLED, outcome: Some("reject"), dead: Some("reject") };

    fn repeats() -> Repeats {
        Repeats::new(&Topic::parse("t").unwrap())
    }

    /// Lets lines come and returns how many were written in full, and the sums.
    fn lines(repeats: &Repeats, count: u64, now: Instant) -> (u64, Vec<Summary>) {
        let (mut in_full, mut summaries) = (0, Vec::new());
        for at in 0..count {
            let (is_in_full, summary) = repeats.admit_at(REJECT, || format!("m-{at}"), now);
            in_full += u64::from(is_in_full);
            summaries.extend(summary);
        }
        (in_full, summaries)
    }

    fn summary(repeated: u64, example: &str) -> Summary {
        Summary { kind: REJECT, repeated, example: example.to_owned() }
    }

    #[test]
    fn the_first_are_written_in_full_and_the_others_summed_up() {
        let (repeats, start) = (repeats(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(lines(&repeats, 10, start), (10, vec![]));
        assert_eq!(lines(&repeats, 500, after(9)), (0, vec![]));
        // The flood goes on: no line is written in full.
        assert_eq!(lines(&repeats, 100, after(10)), (0, vec![summary(500, "m-499")]));
        assert_eq!(repeats.summaries_at(after(19), false), []);
        assert_eq!(repeats.summaries_at(after(20), false), [summary(100, "m-99")]);
        // It is over, and what comes much later is written in full.
        assert_eq!(lines(&repeats, 1, after(21)), (0, vec![]));
        assert_eq!(repeats.summaries_at(after(30), false), [summary(1, "m-0")]);
        assert_eq!(lines(&repeats, 11, after(31)), (10, vec![]));
        // Other kinds are told apart, and nothing is left out at the end.
        assert!(repeats.admit_at(Kind { dead: None, ..REJECT }, String::new, after(31)).0);
        assert_eq!(repeats.summaries_at(after(31), true), [summary(1, "m-10")]);
    }

    #[test]
    fn sums_and_full_lines_add_up() {
        let (repeats, start) = (repeats(), Instant::now());
        let (mut in_full, mut repeated) = (0, 0);
        for second in 0..300 {
            let (more, summaries) = lines(&repeats, second % 70, start + Duration::from_secs(second));
            in_full += more;
            repeated += summaries.iter().map(|one| one.repeated).sum::<u64>();
        }
        repeated += repeats.summaries_at(start, true).iter().map(|one| one.repeated).sum::<u64>();
        assert_eq!(in_full + repeated, (0..300).map(|second| second % 70).sum::<u64>());
        assert!(in_full < 100, "{in_full}");
    }
}
