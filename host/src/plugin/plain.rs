//! Text from a guest as it may stand in a log or on a terminal: it can't draw on a terminal,
//! begin a line of its own, or turn round what is read.

use std::borrow::Cow;
use std::fmt::Write;

/// No sequence that a terminal takes for an order is longer than this.
const SEQUENCE_CHARS_MAX: usize = 64;

pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(is_dangerous) {
        safe.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(char) = rest.chars().next() else { break };
        match char {
            '\u{1b}' | '\u{90}' | '\u{9b}' | '\u{9d}' => {
                rest = &rest[sequence(rest)..];
                continue;
            }
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            _ => safe.push('\u{fffd}'),
        }
        rest = &rest[char.len_utf8()..];
    }
    safe.push_str(rest);
    Cow::Owned(safe)
}

/// The same for JSON, where it can be told exactly: what a terminal could take
/// for something else is escaped. JSON has such characters within texts alone,
/// but for the ends of its own lines.
pub fn plain_json(json: &str) -> Cow<'_, str> {
    let is_to_escape = |char: char| char != '\n' && is_dangerous(char);
    if !json.contains(is_to_escape) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len());
    for char in json.chars() {
        if is_to_escape(char) {
            // All of them have four digits.
            let _ = write!(safe, "\\u{:04x}", u32::from(char));
        } else {
            safe.push(char);
        }
    }
    Cow::Owned(safe)
}

/// Controls, line separators, and what changes the direction of writing.
pub fn is_dangerous(char: char) -> bool {
    (char.is_control() && char != '\t')
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The bytes of the terminal's order that begins here: at least its first
/// character, and no more where it does not end.
fn sequence(text: &str) -> usize {
    let mut chars = text.char_indices().take(SEQUENCE_CHARS_MAX);
    let first = chars.next().map_or(0, |(_, char)| char.len_utf8());
    let opener = match text.chars().next() {
        Some('\u{9b}') => Some('['),
        Some('\u{90}' | '\u{9d}') => Some(']'),
        _ => chars.next().map(|(_, char)| char),
    };
    let end = |(at, char): (usize, char)| at + char.len_utf8();
    match opener {
        // Colours, movements: parameters, then one letter.
        Some('[') => chars
            .find(|(_, char)| !matches!(char, ' '..='?'))
            .map_or(first, |last| if matches!(last.1, '@'..='~') { end(last) } else { first }),
        // Titles and the like: up to a bell or a string terminator.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            let mut escaped = false;
            let last = chars.find(|(_, char)| {
                let is_end = matches!(char, '\u{7}' | '\u{9c}') || (escaped && *char == '\\');
                escaped = *char == '\u{1b}';
                is_end
            });
            last.map_or(first, end)
        }
        Some(char @ ' '..='~') => first + char.len_utf8(),
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_taken_out() {
        for (text, safe) in [
            ("plain text\tä", "plain text\tä"),
            ("one\ntwo\r\n", "one\\ntwo\\r\\n"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}[2J\u{1b}[1;1Hover", "over"),
            ("\u{9b}31mred", "red"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]8;;http://a\u{1b}\\link", "link"),
            ("\u{1b}cgone", "gone"),
            ("\u{1b}", ""),
            ("\u{1b}[31", "[31"),
            ("\u{1b}]never ends", "]never ends"),
            ("\u{1b}[3\n1m", "[3\\n1m"),
            ("a\0b\u{8}c\u{7f}", "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("a\u{2028}b\u{2029}c\u{85}d", "a\u{fffd}b\u{fffd}c\u{fffd}d"),
            ("user\u{202e}gnp.exe\u{2066}\u{200f}", "user\u{fffd}gnp.exe\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(plain(text), safe, "{text:?}");
        }
    }

    #[test]
    fn json_means_the_same_without_what_could_deceive() {
        let text = "a\u{1b}[2J\u{9b}31m\u{85}\u{7f}\u{202e}gnp.exe\u{2066}\u{2028}\u{61c}\n\tä";
        let json = serde_json::to_string_pretty(&serde_json::json!({ text: [text] })).unwrap();
        let safe = plain_json(&json);
        assert!(!safe.contains(|char| char != '\n' && is_dangerous(char)), "{safe}");
        assert!(safe.contains("\\u009b31m\\u0085\\u007f\\u202egnp.exe\\u2066\\u2028\\u061c"), "{safe}");
        let same = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(same(&safe), same(&json));
        assert!(matches!(plain_json("{\n  \"a\": 1\n}"), Cow::Borrowed(_)));
    }

    #[test]
    fn nothing_is_swallowed_by_a_sequence_without_end() {
        let long = "x".repeat(1000);
        assert_eq!(plain(&format!("\u{1b}]{long}\u{7}")), format!("]{long}\u{fffd}"));
        assert_eq!(plain(&format!("\u{1b}[{}m", "1".repeat(100))), format!("[{}m", "1".repeat(100)));
    }
}
