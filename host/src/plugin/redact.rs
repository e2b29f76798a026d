//! Redacts the secrets that a plugin has read from its logs and errors.

use crate::capability::Secret;
use arc_swap::ArcSwap;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

/// A shorter value occurs in too many texts by chance.
pub(super) const BYTES_MIN: usize = 4;
/// A line of a longer value, such as a PEM key, is also redacted alone.
const LINE_BYTES_MIN: usize = 16;
/// Replaced values are still redacted: handlers may have stored them.
const VALUES_MAX: usize = 1000;
/// Lines of one value: a bundle of keys must not evict other values.
const LINES_MAX: usize = 200;
/// Upper bound for the input; longer text is truncated first. The result may be
/// longer, because a replacement may be longer than its value.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// The values that the runs of a plugin version have read.
#[derive(Default)]
pub(super) struct Redactor(ArcSwap<Vec<RedactedValue>>);

#[derive(Clone)]
struct RedactedValue {
    name: String,
    value: Secret,
    is_line: bool,
    /// Increases with each value that is added.
    sequence: u64,
}

impl Redactor {
    /// Redacts the value from now on, for all runs.
    pub(super) fn add(&self, name: &str, secret: &Secret) {
        let value = secret.reveal();
        if value.len() < BYTES_MIN || self.0.load().iter().any(|known| known.value == *secret) {
            return;
        }
        let lines = value.lines().filter(|line| line.len() >= LINE_BYTES_MIN && line.len() < value.len());
        self.0.rcu(|known| {
            let sequence = known.iter().map(|known| known.sequence).max().unwrap_or(0) + 1;
            let new = |text: &str, is_line| {
                let (name, value) = (name.to_owned(), Secret::new(text.to_owned()));
                RedactedValue { name, value, is_line, sequence }
            };
            let mut all: Vec<RedactedValue> = lines.clone().take(LINES_MAX).map(|line| new(line, true)).collect();
            all.push(new(value, false));
            all.extend(known.iter().cloned());
            // Evicts lines before whole values, and the oldest first.
            all.sort_by_key(|known| (known.is_line, Reverse(known.sequence)));
            all.truncate(VALUES_MAX);
            // Longest first, because a value may contain another one.
            all.sort_by_key(|known| Reverse(known.value.reveal().len()));
            Arc::new(all)
        });
    }

    pub(super) fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if text.len() > TEXT_BYTES_MAX {
            return Cow::Owned(self.redact_truncated(text) + "...");
        }
        let mut text = Cow::Borrowed(text);
        for known in self.0.load().iter() {
            if text.contains(known.value.reveal()) {
                text = Cow::Owned(text.replace(known.value.reveal(), &format!("[secret:{}]", known.name)));
            }
        }
        text
    }

    /// Where the longest end of the text begins that may be the beginning of a value of
    /// several lines.
    pub(super) fn begins_value_at(&self, text: &str) -> Option<usize> {
        let known = self.0.load();
        let values = known.iter().map(|known| known.value.reveal()).filter(|value| value.contains('\n'));
        let begins = values.filter_map(|value| {
            let longest = text.len().min(value.len() - 1);
            let length = (1..=longest).rev().find(|length| {
                value.as_bytes()[length - 1] == b'\n' && value.get(..*length).is_some_and(|part| text.ends_with(part))
            });
            length.map(|length| text.len() - length)
        });
        begins.min()
    }

    /// Redacts a text whose end may be the beginning of a secret.
    pub(super) fn redact_truncated(&self, text: &str) -> String {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let mut text = self.redact(text).into_owned();
        for known in self.0.load().iter() {
            let value = known.value.reveal();
            let prefix = (BYTES_MIN..value.len())
                .rev()
                .find(|length| value.get(..*length).is_some_and(|prefix| text.ends_with(prefix)));
            if let Some(length) = prefix {
                text.truncate(text.len() - length);
                text.push_str(&format!("[secret:{}]", known.name));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor_with(secrets: &[(&str, &str)]) -> Redactor {
        let redactor = Redactor::default();
        secrets.iter().for_each(|(name, value)| redactor.add(name, &Secret::new((*value).to_owned())));
        redactor
    }

    #[test]
    fn values_that_were_read_are_redacted_everywhere() {
        let redactor = redactor_with(&[("A", "abcd"), ("B", "abcdef"), ("A", "abcd"), ("SHORT", "xyz")]);
        assert_eq!(redactor.redact("abcd abcdef xabcdx xyz"), "[secret:A] [secret:B] x[secret:A]x xyz");
        // The previous value of a secret is redacted too.
        redactor.add("A", &Secret::new("new-value".to_owned()));
        assert_eq!(redactor.redact("new-value, once abcd"), "[secret:A], once [secret:A]");
        // The longer value is replaced first, whatever the order of reads.
        assert_eq!(redactor_with(&[("B", "abcdef"), ("A", "abcd")]).redact("abcdef"), "[secret:B]");
        assert!(matches!(redactor.redact("nothing"), Cow::Borrowed(_)));
        assert!(matches!(Redactor::default().redact("abcd"), Cow::Borrowed("abcd")));
    }

    #[test]
    fn lines_of_a_key_are_redacted_one_by_one() {
        let redactor = redactor_with(&[("KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\nshort\n")]);
        assert_eq!(redactor.redact("line MIIEvQIBADANBgkqhkiG, short"), "line [secret:KEY], short");
    }

    #[test]
    fn a_value_of_many_lines_evicts_no_other() {
        let lines = |prefix: char| (0..4000).map(|number| format!("{prefix}{number:0>15}\n")).collect::<String>();
        let redactor = redactor_with(&[("FIRST", "abcd")]);
        for prefix in 'a'..='z' {
            redactor.add("BUNDLE", &Secret::new(lines(prefix)));
        }
        assert_eq!(redactor.redact("abcd"), "[secret:FIRST]");
        assert_eq!(redactor.redact(&lines('a')[..5000]).len(), 5000, "lines of the oldest value are evicted first");
        assert_eq!(redactor.redact("z000000000000000"), "[secret:BUNDLE]");
        assert!(redactor.0.load().len() <= VALUES_MAX);
        // The oldest values are evicted first, not the shortest.
        for number in 0..VALUES_MAX {
            redactor.add("MANY", &Secret::new(format!("value number {number:0>20}")));
        }
        redactor.add("LAST", &Secret::new("wxyz".to_owned()));
        assert_eq!(redactor.redact("abcd wxyz"), "abcd [secret:LAST]");
    }

    #[test]
    fn a_bundle_does_not_evict_the_lines_of_other_keys() {
        let bundle: String = (0..4000).map(|number| format!("b{number:0>15}\n")).collect();
        let redactor = redactor_with(&[("KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n"), ("BUNDLE", &bundle)]);
        assert_eq!(redactor.redact("line MIIEvQIBADANBgkqhkiG"), "line [secret:KEY]");
    }

    #[test]
    fn the_length_of_redacted_text_is_bounded() {
        let name = "N".repeat(128);
        let redactor = redactor_with(&[(&name, "aaaa"), ("B", "bcdefgh")]);
        let text = "a".repeat(32 << 20);
        let redacted = redactor.redact(&text);
        assert!(redacted.len() < 50 * TEXT_BYTES_MAX && !redacted.contains("aaaa"), "{}", redacted.len());
        // The text is truncated within a secret.
        let text = format!("{}bcdefgh", "x".repeat(TEXT_BYTES_MAX - 5));
        assert!(redactor.redact(&text).ends_with("x[secret:B]..."));
    }

    #[test]
    fn a_secret_at_the_end_of_truncated_text_is_redacted() {
        let redactor = redactor_with(&[("A", "äabcdefgh")]);
        assert_eq!(redactor.redact_truncated("it is äabcdefg"), "it is [secret:A]");
        assert_eq!(redactor.redact_truncated("it is äab"), "it is [secret:A]");
        assert_eq!(redactor.redact_truncated("it is äa"), "it is äa");
        assert_eq!(redactor.redact_truncated("äabcdefgh."), "[secret:A].");
    }
}
