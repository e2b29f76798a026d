//! Keeps lines of the log below the size at which container engines split them.

use crate::text::sanitize_json;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Docker splits lines of 16 KiB. The line end is included.
pub(super) const LINE_BYTES_MAX: usize = 16 << 10;

/// Room for the note on what is missing.
const NOTE_BYTES: usize = 40;

/// A line of text that is short enough.
pub(super) fn text_line(line: &[u8]) -> Cow<'_, [u8]> {
    if line.len() < LINE_BYTES_MAX {
        return Cow::Borrowed(line);
    }
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\n');
    let kept = text.floor_char_boundary(LINE_BYTES_MAX - NOTE_BYTES);
    Cow::Owned(format!("{}... ({} bytes more)\n", &text[..kept], text.len() - kept).into_bytes())
}

/// A line of JSON that is short enough: its longest texts are truncated, and say how
/// many bytes are missing. It stays one object with the same fields.
pub(super) fn json_line(line: String) -> String {
    if line.len() < LINE_BYTES_MAX {
        return line;
    }
    let Ok(Fields(mut fields)) = serde_json::from_str(&line) else { return line };
    loop {
        let line = written(&fields);
        let excess = (line.len() + 1).saturating_sub(LINE_BYTES_MAX);
        let longest = fields.iter_mut().filter_map(|(_, value)| match value {
            Value::String(text) => Some(text),
            _ => None,
        });
        let longest = longest.max_by_key(|text| encoded(text).len());
        match longest {
            Some(text) if excess > 0 && text.len() > NOTE_BYTES => shorten(text, excess + NOTE_BYTES),
            _ => return line,
        }
    }
}

/// Cuts at least this many encoded bytes off.
fn shorten(text: &mut String, mut excess: usize) {
    let (before, missing) = split_note(text);
    let (mut kept, mut buffer) = (before.len(), [0; 4]);
    for char in before.chars().rev() {
        if excess == 0 {
            break;
        }
        kept -= char.len_utf8();
        excess = excess.saturating_sub(encoded(char.encode_utf8(&mut buffer)).len() - 2);
    }
    let missing = missing + before.len() - kept;
    text.truncate(kept);
    let _ = write!(text, "... ({missing} bytes more)");
}

/// A text that is shortened twice has one note.
fn split_note(text: &str) -> (&str, usize) {
    let parsed = text.rsplit_once("... (").and_then(|(before, note)| {
        let missing = note.strip_suffix(" bytes more)")?.parse().ok()?;
        Some((before, missing))
    });
    parsed.unwrap_or((text, 0))
}

fn encoded(text: &str) -> String {
    let json = Value::from(text).to_string();
    sanitize_json(&json).into_owned()
}

fn written(fields: &[(String, Value)]) -> String {
    let one = |(name, value): &(String, Value)| {
        let value = match value {
            Value::String(text) => encoded(text),
            other => other.to_string(),
        };
        format!("{}:{value}", encoded(name))
    };
    format!("{{{}}}\n", fields.iter().map(one).collect::<Vec<_>>().join(","))
}

/// The fields of an object in their order.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_truncated_and_say_how_much_is_missing() {
        for unit in ["x", "\u{202e}", "\\", "\u{1}", "€", "\u{1f600}"] {
            let (long, longer) = (unit.repeat(9000), unit.repeat(10_000));
            let fields = [("level", "WARN"), ("id", &long), ("message", &longer), ("target", "handler")];
            let fields: Vec<_> = fields.map(|(name, text)| (name.to_owned(), Value::from(text))).into();
            let line = json_line(written(&fields));
            assert!((15 << 10..LINE_BYTES_MAX).contains(&line.len()), "{unit:?}: {}", line.len());
            let Fields(shortened) = serde_json::from_str(&line).unwrap();
            for ((name, before), (same_name, after)) in fields.iter().zip(&shortened) {
                assert_eq!(name, same_name);
                let (before, after) = (before.as_str().unwrap(), after.as_str().unwrap());
                let (kept, missing) = split_note(after);
                assert!(before.starts_with(kept) && kept.len() + missing == before.len(), "{name}: {missing}");
            }
        }
    }

    #[test]
    fn short_lines_stay_and_long_lines_of_text_are_cut() {
        let line = "{\"a\":1}\n";
        assert_eq!(json_line(line.to_owned()), line);
        assert_eq!(text_line(line.as_bytes()), line.as_bytes());
        let cut = text_line(&[b'x'; 20_000]).into_owned();
        let cut = String::from_utf8(cut).unwrap();
        assert!(cut.len() <= LINE_BYTES_MAX && cut.ends_with(" bytes more)\n"), "{}", &cut[cut.len() - 40..]);
    }
}
