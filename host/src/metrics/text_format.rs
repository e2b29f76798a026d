//! The text formats of the metrics. The library writes OpenMetrics only; the older
//! text format of Prometheus differs in what describes a family of samples, not in
//! the samples.

use std::fmt::Write as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// 1.0.0.
    OpenMetrics,
    /// 0.0.4.
    Prometheus,
}

impl TextFormat {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Rewrites the lines that describe families. OpenMetrics names a counter without
/// the `_total` of its samples and an info without their `_info`; the text format
/// names every family as its samples, and knows neither infos, units nor an end.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    // The help comes before the type, which decides the name.
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), about) => help = Some((name, about.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                if let Some((_, about)) = help.take().filter(|(described, _)| *described == name) {
                    let _ = writeln!(written, "# HELP {name}{suffix} {about}");
                }
                let _ = writeln!(written, "# TYPE {name}{suffix} {kind}");
            }
            (Some("#"), ..) => {}
            _ => {
                written.push_str(line);
                written.push('\n');
            }
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;
    use crate::topic::Topic;
    use std::collections::BTreeMap;

    /// Metrics with at least one sample of every family.
    fn metrics() -> Metrics {
        let metrics = Metrics::default();
        for name in ["orders", "a \"quoted\\ topic: 订单"] {
            let topic = metrics.topic(&Topic::parse(name).unwrap());
            topic.outcome("done").inc();
            topic.handler_seconds.observe(0.01);
            topic.dead_letter("trap");
            topic.dead_letters_evicted("age", 1);
            topic.reclaimed.inc();
        }
        metrics.reload("loaded");
        metrics.plugin("orders", "0123", true);
        metrics.secret_read("orders", "KEY");
        metrics
    }

    /// The family that a sample belongs to.
    fn family<'a>(sample: &'a str, kinds: &BTreeMap<&'a str, &str>) -> &'a str {
        let name = sample.split(['{', ' ']).next().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        of_histogram.filter(|base| kinds.get(base) == Some(&"histogram")).unwrap_or(name)
    }

    #[test]
    fn in_the_text_format_every_sample_has_a_type_and_a_help_of_its_own_name() {
        let text = metrics().text(TextFormat::Prometheus).unwrap();
        let (mut kinds, mut helps, mut seen) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for line in text.lines() {
            match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
                ["#", "HELP", name, help] => assert!(helps.insert(name, help).is_none(), "{line}"),
                ["#", "TYPE", name, kind] => {
                    assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                    assert!(kinds.insert(name, kind).is_none(), "{line}");
                }
                ["#", ..] => panic!("{line}"),
                _ => {
                    let family = family(line, &kinds);
                    assert!(kinds.contains_key(family) && helps.contains_key(family), "{line}");
                    assert_eq!(kinds[family] == "counter", family.ends_with("_total"), "{line}");
                    // The samples of a family are together.
                    if seen.last() != Some(&family) {
                        assert!(!seen.contains(&family), "{line}");
                        seen.push(family);
                    }
                }
            }
        }
        assert_eq!(kinds["gateway_build_info"], "gauge");
        assert_eq!(kinds["gateway_message_handler_seconds"], "histogram");
        assert_eq!(kinds.len(), seen.len(), "{kinds:?} {seen:?}");
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let metrics = metrics();
        let samples = |format| -> Vec<String> {
            let text = metrics.text(format).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(samples(TextFormat::OpenMetrics), samples(TextFormat::Prometheus));
        assert!(metrics.text(TextFormat::OpenMetrics).unwrap().ends_with("\n# EOF\n"));
        let escaped = "gateway_messages_total{topic=\"a \\\"quoted\\\\ topic: 订单\",outcome=\"done\"} 1";
        assert!(samples(TextFormat::Prometheus).iter().any(|line| line == escaped));
    }
}
