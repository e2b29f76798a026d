//! Makes untrusted text safe for a log or a terminal: without escape sequences,
//! line breaks or changes of the writing direction.

use std::borrow::Cow;
use std::fmt::Write;

/// A longer escape sequence is not recognised; terminals accept none either.
const SEQUENCE_CHARS_MAX: usize = 64;

pub fn sanitize(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control_or_bidi) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    let mut left = text;
    while let Some(at) = left.find(is_control_or_bidi) {
        safe.push_str(&left[..at]);
        left = &left[at..];
        let Some(char) = left.chars().next() else { break };
        match char {
            '\u{1b}' | '\u{90}' | '\u{9b}' | '\u{9d}' => {
                left = &left[sequence_length(left)..];
                continue;
            }
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            _ => safe.push('\u{fffd}'),
        }
        left = &left[char.len_utf8()..];
    }
    safe.push_str(left);
    Cow::Owned(safe)
}

/// Sanitizes each line; the line breaks remain.
pub fn sanitize_lines(text: &str) -> String {
    text.split('\n').map(sanitize).collect::<Vec<_>>().join("\n")
}

/// Escapes the same characters in JSON, which keeps its meaning: except for line
/// breaks between its tokens, JSON has them only within strings.
pub fn sanitize_json(json: &str) -> Cow<'_, str> {
    let needs_escape = |char: char| char != '\n' && is_control_or_bidi(char);
    if !json.contains(needs_escape) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len());
    for char in json.chars() {
        if needs_escape(char) {
            // None of them is above U+FFFF.
            let _ = write!(safe, "\\u{:04x}", u32::from(char));
        } else {
            safe.push(char);
        }
    }
    Cow::Owned(safe)
}

/// Control characters, line separators, and characters that change the writing
/// direction.
pub fn is_control_or_bidi(char: char) -> bool {
    (char.is_control() && char != '\t')
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The length in bytes of the escape sequence that the text begins with; only
/// its first character if the sequence has no end.
fn sequence_length(text: &str) -> usize {
    let mut chars = text.char_indices().take(SEQUENCE_CHARS_MAX);
    let first = chars.next().map_or(0, |(_, char)| char.len_utf8());
    let opener = match text.chars().next() {
        Some('\u{9b}') => Some('['),
        Some('\u{90}' | '\u{9d}') => Some(']'),
        _ => chars.next().map(|(_, char)| char),
    };
    let end = |(at, char): (usize, char)| at + char.len_utf8();
    match opener {
        // Colours and cursor movements: parameters, then one letter.
        Some('[') => chars
            .find(|(_, char)| !matches!(char, ' '..='?'))
            .map_or(first, |last| if matches!(last.1, '@'..='~') { end(last) } else { first }),
        // Titles and links: up to a bell or a string terminator.
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
    fn control_characters_and_escape_sequences_are_removed() {
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
            assert_eq!(sanitize(text), safe, "{text:?}");
        }
    }

    #[test]
    fn sanitized_json_keeps_its_meaning() {
        let text = "a\u{1b}[2J\u{9b}31m\u{85}\u{7f}\u{202e}gnp.exe\u{2066}\u{2028}\u{61c}\n\tä";
        let json = serde_json::to_string_pretty(&serde_json::json!({ text: [text] })).unwrap();
        let safe = sanitize_json(&json);
        assert!(!safe.contains(|char| char != '\n' && is_control_or_bidi(char)), "{safe}");
        assert!(safe.contains("\\u009b31m\\u0085\\u007f\\u202egnp.exe\\u2066\\u2028\\u061c"), "{safe}");
        let same = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(same(&safe), same(&json));
        assert!(matches!(sanitize_json("{\n  \"a\": 1\n}"), Cow::Borrowed(_)));
    }

    #[test]
    fn an_unterminated_sequence_swallows_no_text() {
        let long = "x".repeat(1000);
        assert_eq!(sanitize(&format!("\u{1b}]{long}\u{7}")), format!("]{long}\u{fffd}"));
        assert_eq!(sanitize(&format!("\u{1b}[{}m", "1".repeat(100))), format!("[{}m", "1".repeat(100)));
    }
}
