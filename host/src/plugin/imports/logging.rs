//! Lines in the log, and whatever a guest prints.

use crate::plugin::bindings::logging;
use crate::plugin::guest::Guest;

impl logging::Host for Guest {
    fn log(&mut self, level: logging::Level, text: String) {
        self.log_line(level, &text, &[]);
    }

    fn log_with(&mut self, level: logging::Level, text: String, fields: Vec<(String, String)>) {
        self.log_line(level, &text, &fields);
    }
}

impl Guest {
    pub(in crate::plugin) fn log_line(&self, level: logging::Level, text: &str, fields: &[(String, String)]) {
        let length = text.len() + fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let Some(dropped) = self.facts.log.admit(length) else { return };
        // Of a batch, the line may be any one's.
        let id = if let [only] = self.members.as_slice() { only.id.as_str() } else { "" };
        let (plugin, topic) = (self.facts.name.as_str(), self.topic.as_ref().map_or("", |topic| topic.as_str()));
        if dropped > 0 {
            tracing::warn!(plugin, dropped, "log lines dropped: more than limits.log");
        }
        let text = printable(text);
        let fields: Option<String> = (!fields.is_empty()).then(|| {
            fields
                .iter()
                .map(|(name, value)| format!("{}={}", printable(name), printable(value)))
                .collect::<Vec<_>>()
                .join(" ")
        });
        match level {
            logging::Level::Debug => tracing::debug!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Info => tracing::info!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Warn => tracing::warn!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Error => tracing::error!(target: "handler", plugin, topic, id, fields, "{text}"),
        }
    }
}

/// Text that can't draw on a terminal or forge a line.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\t' { '\u{fffd}' } else { char }).collect()
}
