//! Lines in the log, and whatever a guest prints.

use crate::plugin::bindings::logging;
use crate::plugin::guest::Guest;
use crate::text::sanitize;
use crate::text::truncate;

/// What a line may have; more is cut.
const TEXT_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 32;
const FIELD_NAME_BYTES_MAX: usize = 64;
const FIELD_VALUE_BYTES_MAX: usize = 1 << 10;

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
        let length = |(name, value): &(String, String)| {
            name.len().min(FIELD_NAME_BYTES_MAX) + value.len().min(FIELD_VALUE_BYTES_MAX)
        };
        let bytes = text.len().min(TEXT_BYTES_MAX) + fields.iter().take(FIELDS_MAX).map(length).sum::<usize>();
        if !self.context.may_log(bytes) {
            return;
        }
        // Of a batch, the line may be any one's.
        let id = if let [only] = self.run.items.as_slice() { only.id.as_str() } else { "" };
        let (plugin, topic) = (self.context.name.as_str(), self.run.topic_name());
        let text = self.safe(text, TEXT_BYTES_MAX);
        let fields = (!fields.is_empty()).then(|| self.shown_fields(fields));
        match level {
            logging::Level::Debug => tracing::debug!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Info => tracing::info!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Warn => tracing::warn!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Error => tracing::error!(target: "handler", plugin, topic, id, fields, "{text}"),
        }
    }

    /// All in one field of ours, so that they can't pass for others.
    fn shown_fields(&self, fields: &[(String, String)]) -> String {
        let shown = |(name, value): &(String, String)| {
            let name = self.safe(name, FIELD_NAME_BYTES_MAX);
            let value = self.safe(value, FIELD_VALUE_BYTES_MAX);
            let is_word = !value.is_empty() && !value.contains([' ', '\t', '"', '=']);
            if is_word { format!("{name}={value}") } else { format!("{name}={value:?}") }
        };
        let mut all: Vec<String> = fields.iter().take(FIELDS_MAX).map(shown).collect();
        if fields.len() > FIELDS_MAX {
            all.push(format!("and {} more", fields.len() - FIELDS_MAX));
        }
        all.join(" ")
    }

    /// Without secrets, first of all: what is cut or taken out could hide one.
    fn safe(&self, text: &str, bytes_max: usize) -> String {
        sanitize(&truncate(&self.context.redactor.redact(text), bytes_max)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Secret;

    #[test]
    fn half_a_secret_is_one_too() {
        let guest = Guest::under("");
        guest.context.redactor.add("KEY", &Secret::new("sesame!open".to_owned()));
        for bytes_max in [12, 20] {
            let told = guest.safe("it is sesame!open.", bytes_max);
            assert!(told.starts_with("it is [secre") && !told.contains("sesame"), "{told}");
        }
        // Nor one that only what steers a terminal keeps apart.
        assert_eq!(guest.safe("sesame!open\u{1b}[2J", 100), "[secret:KEY]");
    }
}
