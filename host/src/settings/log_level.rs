//! The level of the log: a name in any case, or directives for targets. A word that
//! is neither would be the name of a target, and nothing else would be logged.

/// The usual names, and the levels that they mean here.
const LEVELS: [(&str, &str); 12] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("notice", "info"),
    ("warn", "warn"),
    ("warning", "warn"),
    ("err", "error"),
    ("error", "error"),
    ("crit", "error"),
    ("critical", "error"),
    ("fatal", "error"),
    ("off", "off"),
];

const ALLOWED: &str = "allowed: trace, debug, info, notice, warn, error, critical, fatal or off, or a filter like \
                       info,handler=debug";

/// The directives with the names of levels that the log knows.
pub(super) fn directives(text: &str) -> Result<String, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let directives = parts.map(directive).collect::<Result<Vec<_>, _>>()?;
    if directives.is_empty() {
        Err(format!("\"{}\" has no level; {ALLOWED}", text.escape_debug()))
    } else {
        Ok(directives.join(","))
    }
}

fn directive(part: &str) -> Result<String, String> {
    let is_target =
        |text: &str| !text.is_empty() && !text.chars().any(|char| char.is_whitespace() || char.is_control());
    let invalid = |word: &str| Err(format!("\"{}\" is not a level; {ALLOWED}", word.escape_debug()));
    match part.rsplit_once('=') {
        // An equals sign in brackets belongs to a field of a span.
        Some((target, word)) if !word.contains(']') => match level(word) {
            Some(level) if is_target(target) => Ok(format!("{target}={level}")),
            Some(_) => invalid(part),
            None => invalid(word),
        },
        _ => match level(part) {
            Some(level) => Ok(level.to_owned()),
            // Nobody misspells a level like this.
            None if is_target(part) && (part.contains("::") || part.ends_with(']')) => Ok(part.to_owned()),
            None => invalid(part),
        },
    }
}

fn level(word: &str) -> Option<&'static str> {
    LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, level)| *level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_levels_in_any_case() {
        for (text, expected) in [
            ("trace", "trace"),
            ("DEBUG", "debug"),
            ("Info", "info"),
            ("notice", "info"),
            ("warning", "warn"),
            ("WARN", "warn"),
            ("err", "error"),
            ("Error", "error"),
            ("crit", "error"),
            ("CRITICAL", "error"),
            ("fatal", "error"),
            ("off", "off"),
            ("info,gateway_worker::queue=debug", "info,gateway_worker::queue=debug"),
            (" warning , handler=CRIT ,", "warn,handler=error"),
            ("info,gateway_worker::queue", "info,gateway_worker::queue"),
            ("info,[run{topic=a}]=trace", "info,[run{topic=a}]=trace"),
            ("info,[run{topic=a}]", "info,[run{topic=a}]"),
        ] {
            assert_eq!(directives(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused_with_those_that_exist() {
        for text in ["wran", "info,debgu", "handler=loud", "=debug", "verbose", "3", ",", "info debug", "handler"] {
            let error = directives(text).unwrap_err();
            assert!(error.contains("warn, error") && error.contains("handler=debug"), "{text}: {error}");
        }
    }
}
