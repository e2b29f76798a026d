//! Strikes the secrets that a plugin has read out of what is told about it.

use crate::capability::Secret;
use arc_swap::ArcSwap;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

/// A shorter value stands in too many texts by chance.
pub(super) const BYTES_MIN: usize = 4;
/// A line of a longer value, such as a key in PEM, is struck out by itself.
const LINE_BYTES_MIN: usize = 16;
/// One that was replaced may still be about.
const VALUES_MAX: usize = 1000;
/// So many of one value's lines: a bundle of keys must not push others out.
const LINES_MAX: usize = 200;
/// More of a text is not looked at, and cut off: nobody is told as much, and
/// names are longer than what they stand for.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// What the runs of a plugin have read so far.
#[derive(Default)]
pub(super) struct Redactor(ArcSwap<Vec<RedactedValue>>);

#[derive(Clone)]
struct RedactedValue {
    name: String,
    value: Secret,
    is_line: bool,
    /// The later it was read, the larger.
    turn: u64,
}

impl Redactor {
    /// What a run has read is struck out from now on, of the others' too.
    pub(super) fn add(&self, name: &str, secret: &Secret) {
        let value = secret.reveal();
        if value.len() < BYTES_MIN || self.0.load().iter().any(|known| known.value == *secret) {
            return;
        }
        let lines = value.lines().filter(|line| line.len() >= LINE_BYTES_MIN && line.len() < value.len());
        self.0.rcu(|known| {
            let turn = known.iter().map(|known| known.turn).max().unwrap_or(0) + 1;
            let new = |text: &str, is_line| {
                let (name, value) = (name.to_owned(), Secret::new(text.to_owned()));
                RedactedValue { name, value, is_line, turn }
            };
            let mut all: Vec<RedactedValue> = lines.clone().take(LINES_MAX).map(|line| new(line, true)).collect();
            all.push(new(value, false));
            all.extend(known.iter().cloned());
            // Lines go before values, and of both the oldest.
            all.sort_by_key(|known| (known.is_line, Reverse(known.turn)));
            all.truncate(VALUES_MAX);
            // One may be a part of another.
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

    /// The same for a text that was cut, maybe within a secret.
    pub(super) fn redact_truncated(&self, text: &str) -> String {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let mut text = self.redact(text).into_owned();
        for known in self.0.load().iter() {
            let value = known.value.reveal();
            let begun = (BYTES_MIN..value.len())
                .rev()
                .find(|length| value.get(..*length).is_some_and(|begin| text.ends_with(begin)));
            if let Some(length) = begun {
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
    fn what_was_read_is_struck_out_wherever_it_stands() {
        let redactor = redactor_with(&[("A", "abcd"), ("B", "abcdef"), ("A", "abcd"), ("SHORT", "xyz")]);
        assert_eq!(redactor.redact("abcd abcdef xabcdx xyz"), "[secret:A] [secret:B] x[secret:A]x xyz");
        // Also what it was before it was replaced.
        redactor.add("A", &Secret::new("new-value".to_owned()));
        assert_eq!(redactor.redact("new-value, once abcd"), "[secret:A], once [secret:A]");
        // The longer one first, in whatever order they were read.
        assert_eq!(redactor_with(&[("B", "abcdef"), ("A", "abcd")]).redact("abcdef"), "[secret:B]");
        assert!(matches!(redactor.redact("nothing"), Cow::Borrowed(_)));
        assert!(matches!(Redactor::default().redact("abcd"), Cow::Borrowed("abcd")));
    }

    #[test]
    fn a_key_of_many_lines_is_struck_out_line_by_line() {
        let redactor = redactor_with(&[("KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\nshort\n")]);
        assert_eq!(redactor.redact("line MIIEvQIBADANBgkqhkiG, short"), "line [secret:KEY], short");
    }

    #[test]
    fn a_value_of_very_many_lines_pushes_no_other_out() {
        let lines = |mark: char| (0..4000).map(|number| format!("{mark}{number:0>15}\n")).collect::<String>();
        let redactor = redactor_with(&[("FIRST", "abcd")]);
        for mark in 'a'..='z' {
            redactor.add("BUNDLE", &Secret::new(lines(mark)));
        }
        assert_eq!(redactor.redact("abcd"), "[secret:FIRST]");
        assert_eq!(redactor.redact(&lines('a')[..5000]).len(), 5000, "lines of the oldest go first");
        assert_eq!(redactor.redact("z000000000000000"), "[secret:BUNDLE]");
        assert!(redactor.0.load().len() <= VALUES_MAX);
        // Of values too, the oldest go first, and not the shortest.
        for number in 0..VALUES_MAX {
            redactor.add("MANY", &Secret::new(format!("value number {number:0>20}")));
        }
        redactor.add("LAST", &Secret::new("wxyz".to_owned()));
        assert_eq!(redactor.redact("abcd wxyz"), "abcd [secret:LAST]");
    }

    #[test]
    fn a_bundle_leaves_the_lines_of_other_keys_in_place() {
        let bundle: String = (0..4000).map(|number| format!("b{number:0>15}\n")).collect();
        let redactor = redactor_with(&[("KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n"), ("BUNDLE", &bundle)]);
        assert_eq!(redactor.redact("line MIIEvQIBADANBgkqhkiG"), "line [secret:KEY]");
    }

    #[test]
    fn a_text_grows_by_no_more_than_is_told_of_it() {
        let name = "N".repeat(128);
        let redactor = redactor_with(&[(&name, "aaaa"), ("B", "bcdefgh")]);
        let text = "a".repeat(32 << 20);
        let told = redactor.redact(&text);
        assert!(told.len() < 50 * TEXT_BYTES_MAX && !told.contains("aaaa"), "{}", told.len());
        // Cut within a secret.
        let text = format!("{}bcdefgh", "x".repeat(TEXT_BYTES_MAX - 5));
        assert!(redactor.redact(&text).ends_with("x[secret:B]..."));
    }

    #[test]
    fn a_text_may_be_cut_within_a_secret() {
        let redactor = redactor_with(&[("A", "äabcdefgh")]);
        assert_eq!(redactor.redact_truncated("it is äabcdefg"), "it is [secret:A]");
        assert_eq!(redactor.redact_truncated("it is äab"), "it is [secret:A]");
        assert_eq!(redactor.redact_truncated("it is äa"), "it is äa");
        assert_eq!(redactor.redact_truncated("äabcdefgh."), "[secret:A].");
    }
}
