//! The log as JSON lines, safe for a terminal: texts of others, such as message ids
//! and reasons of handlers, may contain control characters. They are escaped, which
//! means the same to a JSON parser.

use super::queue::LineQueue;
use super::shorten::json_line;
use crate::text::sanitize_json;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// A writer of whole lines into the queue, which never fails.
#[derive(Clone)]
pub(super) struct JsonLines(Arc<LineQueue>);

impl JsonLines {
    pub(super) fn new(queue: Arc<LineQueue>) -> Self {
        Self(queue)
    }
}

impl Write for JsonLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        self.0.push(json_line(sanitize_json(&line).into_owned()).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an event as one flat object, with the fields of its spans after the level.
/// The field of an inner span replaces one of the same name of an outer span, and a
/// field of the event replaces both.
pub(super) struct FlatJson(Format<Json>);

impl FlatJson {
    pub(super) fn new() -> Self {
        let json = tracing_subscriber::fmt::format().json();
        Self(json.flatten_event(true).with_current_span(false).with_span_list(false))
    }
}

impl<S, N> FormatEvent<S, N> for FlatJson
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(spans) = context.event_scope() else { return self.0.format_event(context, writer, event) };
        let mut fields: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
        for span in spans.from_root() {
            if let Some(formatted) = span.extensions().get::<FormattedFields<N>>() {
                fields.append(&mut serde_json::from_str(formatted).unwrap_or_default());
            }
        }
        let mut names = Names(BTreeSet::from(["timestamp", "level", "target"]));
        event.record(&mut names);
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let (head, tail) = line.split_at(end_of_level(&line).ok_or(fmt::Error)?);
        writer.write_str(head)?;
        for (name, value) in fields.iter().filter(|(name, _)| !names.0.contains(name.as_str())) {
            let name = serde_json::to_string(name).map_err(|_| fmt::Error)?;
            write!(writer, ",{name}:{value}")?;
        }
        writer.write_str(tail)
    }
}

/// The position after the value of `level`, which follows the timestamp.
fn end_of_level(line: &str) -> Option<usize> {
    const KEY: &str = ",\"level\":\"";
    let value = line.find(KEY)? + KEY.len();
    Some(value + line[value..].find('"')? + 1)
}

/// The names of the fields that an event has.
struct Names(BTreeSet<&'static str>);

impl Visit for Names {
    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.0.insert(field.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::fmt::format::JsonFields;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        /// The lines without their timestamps.
        fn take(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
            let without_time = |line: &str| {
                assert!(line.starts_with("{\"timestamp\":\""), "{line}");
                line[line.find(",\"level\"").unwrap()..].to_owned()
            };
            text.lines().map(without_time).collect()
        }
    }

    fn log() {
        tracing::info!("plain");
        tracing::warn!(topic = "a", count = 2, is_odd = false, ratio = 0.5, error = ?Some("x\"y"), "with {}", "fields");
        tracing::error!(target: "handler", id = Option::<&str>::None, "\u{1b}[31m");
    }

    #[test]
    fn events_outside_spans_are_written_as_by_the_library() {
        let (flat, library) = (Lines::default(), Lines::default());
        let ours = tracing_subscriber::fmt().fmt_fields(JsonFields::new()).event_format(FlatJson::new());
        tracing::subscriber::with_default(ours.with_writer(flat.clone()).finish(), log);
        let theirs = tracing_subscriber::fmt().json().flatten_event(true).with_current_span(false);
        let theirs = theirs.with_span_list(false).with_writer(library.clone());
        tracing::subscriber::with_default(theirs.finish(), log);
        let lines = flat.take();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines, library.take());
    }

    #[test]
    fn fields_of_spans_are_written_flat_and_fields_of_the_event_replace_them() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().fmt_fields(JsonFields::new()).event_format(FlatJson::new());
        tracing::subscriber::with_default(subscriber.with_writer(lines.clone()).finish(), || {
            let outer = tracing::error_span!("outer", topic = "a\"b", attempt = 1, target = "forged");
            let inner =
                tracing::error_span!(parent: &outer, "inner", id = "m-1", attempt = 2, size = Option::<u64>::None);
            inner.in_scope(|| {
                tracing::warn!(target: "handler", id = Option::<&str>::None, "first");
                tracing::warn!(target: "handler", id = "m-2", "second");
            });
        });
        assert_eq!(
            lines.take(),
            [
                r#","level":"WARN","attempt":2,"id":"m-1","topic":"a\"b","message":"first","target":"handler"}"#,
                r#","level":"WARN","attempt":2,"topic":"a\"b","message":"second","id":"m-2","target":"handler"}"#,
            ]
        );
    }
}
