//! `logging`, and the lines that a guest prints.

use crate::plugin::bindings::logging;
use crate::plugin::component::PluginContext;
use crate::plugin::guest::Guest;
use crate::run_span::RunSpan;
use crate::text::sanitize;
use crate::text::truncate;

/// Limits of one line; longer texts are truncated.
const TEXT_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 32;
const FIELD_NAME_BYTES_MAX: usize = 64;
const FIELD_VALUE_BYTES_MAX: usize = 1 << 10;

impl logging::Host for Guest {
    fn log(&mut self, level: logging::Level, text: String) {
        self.line_log().log(level, &text, &[]);
    }

    fn log_with(&mut self, level: logging::Level, text: String, fields: Vec<(String, String)>) {
        self.line_log().log(level, &text, &fields);
    }
}

impl Guest {
    fn line_log(&self) -> LineLog<'_> {
        LineLog { context: &self.context, span: self.run.span.as_ref() }
    }
}

/// Writes the lines of one run.
pub(in crate::plugin) struct LineLog<'a> {
    pub(in crate::plugin) context: &'a PluginContext,
    /// A load check has none.
    pub(in crate::plugin) span: Option<&'a RunSpan>,
}

impl LineLog<'_> {
    pub(in crate::plugin) fn log(&self, level: logging::Level, text: &str, fields: &[(String, String)]) {
        let length = |(name, value): &(String, String)| {
            name.len().min(FIELD_NAME_BYTES_MAX) + value.len().min(FIELD_VALUE_BYTES_MAX)
        };
        let bytes = text.len().min(TEXT_BYTES_MAX) + fields.iter().take(FIELDS_MAX).map(length).sum::<usize>();
        if !self.context.may_log(bytes) {
            return;
        }
        let text = self.safe_text(text);
        let fields = (!fields.is_empty()).then(|| self.format_fields(fields));
        // The span of a run names the plugin; a load check has no span.
        let plugin = self.span.is_none().then_some(self.context.name.as_str());
        let log = || match level {
            logging::Level::Debug => tracing::debug!(target: "handler", plugin, fields, "{text}"),
            logging::Level::Info => tracing::info!(target: "handler", plugin, fields, "{text}"),
            logging::Level::Warn => tracing::warn!(target: "handler", plugin, fields, "{text}"),
            logging::Level::Error => tracing::error!(target: "handler", plugin, fields, "{text}"),
        };
        match self.span {
            Some(span) => span.in_scope(log),
            None => log(),
        }
    }

    /// The text, or its beginning and how much more there is.
    fn safe_text(&self, text: &str) -> String {
        let redacted = self.context.redactor.redact(text);
        if text.len().max(redacted.len()) <= TEXT_BYTES_MAX {
            return sanitize(&redacted).into_owned();
        }
        let kept = redacted.floor_char_boundary(TEXT_BYTES_MAX);
        let missing = text.len().max(redacted.len()) - kept;
        format!("{}... ({missing} bytes more)", sanitize(&redacted[..kept]))
    }

    /// Formats all fields into one, so that a handler can't forge fields of the host.
    fn format_fields(&self, fields: &[(String, String)]) -> String {
        let format = |(name, value): &(String, String)| {
            let name = self.safe(name, FIELD_NAME_BYTES_MAX);
            let value = self.safe(value, FIELD_VALUE_BYTES_MAX);
            let is_word = !value.is_empty() && !value.contains([' ', '\t', '"', '=']);
            if is_word { format!("{name}={value}") } else { format!("{name}={value:?}") }
        };
        let mut all: Vec<String> = fields.iter().take(FIELDS_MAX).map(format).collect();
        if fields.len() > FIELDS_MAX {
            all.push(format!("and {} more", fields.len() - FIELDS_MAX));
        }
        all.join(" ")
    }

    /// Redacts before it truncates and sanitizes, since both can split a secret.
    fn safe(&self, text: &str, bytes_max: usize) -> String {
        sanitize(&truncate(&self.context.redactor.redact(text), bytes_max)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Secret;

    #[test]
    fn a_secret_is_redacted_before_the_text_is_truncated() {
        let guest = Guest::for_test("");
        guest.context.redactor.add("KEY", &Secret::new("sesame!open".to_owned()));
        for bytes_max in [12, 20] {
            let safe = guest.line_log().safe("it is sesame!open.", bytes_max);
            assert!(safe.starts_with("it is [secre") && !safe.contains("sesame"), "{safe}");
        }
        // An escape sequence after it does not matter.
        assert_eq!(guest.line_log().safe("sesame!open\u{1b}[2J", 100), "[secret:KEY]");
    }
}
