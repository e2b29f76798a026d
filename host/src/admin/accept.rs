//! Content negotiation by RFC 9110, 12.5.1: which format of the metrics a client
//! prefers. An element that is no media range is skipped; a header without any
//! says nothing, as if it were missing.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Text,
}

/// The weight of a range in thousandths.
type Weight = u16;

#[derive(Debug)]
struct Range {
    kind: String,
    subtype: String,
    parameters: Vec<(String, String)>,
    weight: Weight,
}

/// The format to answer in: the first of the offered ones for a client that has
/// no preference, none for a client that accepts none of them.
pub(super) fn choose(headers: &HeaderMap, offered: &[Format]) -> Option<Format> {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let ranges: Vec<Range> = lines.flat_map(|line| split(line, ',')).filter_map(Range::parse).collect();
    if ranges.is_empty() {
        return offered.first().copied();
    }
    let weighed = offered.iter().filter_map(|format| Some((format.rank(&ranges)?, *format)));
    weighed.max_by_key(|(rank, _)| *rank).map(|(_, format)| format)
}

impl Format {
    fn media_type(self) -> (&'static str, &'static str, Option<&'static str>) {
        match self {
            Self::Json => ("application", "json", None),
            Self::OpenMetrics => ("application", "openmetrics-text", Some("1.0.0")),
            Self::Text => ("text", "plain", Some("0.0.4")),
        }
    }

    /// None if the client does not accept this format. Where the weights are equal,
    /// JSON comes first, and OpenMetrics before text only if it is asked for by name.
    fn rank(self, ranges: &[Range]) -> Option<(Weight, u8)> {
        let matching = ranges.iter().filter(|range| range.matches(self));
        let best = matching.max_by_key(|range| (range.specificity(), range.weight))?;
        let preference = match self {
            Self::Json => 3,
            Self::OpenMetrics if best.subtype != "*" => 2,
            Self::Text => 1,
            Self::OpenMetrics => 0,
        };
        (best.weight > 0).then_some((best.weight, preference))
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = split(text, ';').map(str::trim);
        let name = parts.next()?.to_ascii_lowercase();
        // Old Java clients send `*` for `*/*`.
        let (kind, subtype) = if name == "*" { ("*", "*") } else { name.split_once('/')? };
        if !is_token(kind) || !is_token(subtype) || kind == "*" && subtype != "*" {
            return None;
        }
        let mut range =
            Self { kind: kind.to_owned(), subtype: subtype.to_owned(), parameters: Vec::new(), weight: 1000 };
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
            if name == "q" {
                range.weight = weight(value)?;
                // What follows the weight is no part of the media type.
                break;
            }
            range.parameters.push((name, value.to_ascii_lowercase()));
        }
        Some(range)
    }

    fn matches(&self, format: Format) -> bool {
        let (kind, subtype, version) = format.media_type();
        let is_type = (self.kind == "*" || self.kind == kind) && (self.subtype == "*" || self.subtype == subtype);
        is_type
            && self.parameters.iter().all(|(name, value)| match name.as_str() {
                "version" => Some(value.as_str()) == version,
                "charset" => value == "utf-8",
                // How Prometheus wants names that are not ASCII: there are none.
                "escaping" => true,
                _ => false,
            })
    }

    /// A type beats `type/*`, which beats `*/*`; then more parameters beat fewer.
    fn specificity(&self) -> (bool, bool, usize) {
        (self.kind != "*", self.subtype != "*", self.parameters.len())
    }
}

/// `0` to `1` with at most three decimals. Java sends `.2`.
fn weight(text: &str) -> Option<Weight> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_number = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths: Weight = format!("{decimals:0<3}").parse().ok().filter(|_| is_number)?;
    match whole {
        "" if decimals.is_empty() => None,
        "" | "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// Splits at a separator outside of quoted strings.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |char| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match char {
            '\\' if is_quoted && !was_escaped => is_escaped = true,
            '"' if !was_escaped => is_quoted = !is_quoted,
            _ => return char == separator && !is_quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::Format::{Json, OpenMetrics, Text};
    use super::*;

    fn chosen(lines: &[&str], offered: &[Format]) -> Option<Format> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, axum::http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        choose(&headers, offered)
    }

    #[test]
    fn the_heaviest_format_is_chosen_and_json_where_both_are_as_good() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let protobuf =
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7";
        for (accept, expected) in [
            ("application/json, text/plain, */*", Some(Json)),
            ("*/*", Some(Json)),
            ("*", Some(Json)),
            ("text/html, image/gif, *; q=.2, */*; q=.2", Some(Json)),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", Some(Json)),
            ("application/*", Some(Json)),
            ("text/*", Some(Text)),
            ("text/plain", Some(Text)),
            ("TEXT/PLAIN;Q=0.1", Some(Text)),
            ("text/plain;version=0.0.4", Some(Text)),
            ("text/plain; version=\"0.0.4\"; charset=UTF-8", Some(Text)),
            ("text/plain, application/json;q=0.9", Some(Text)),
            ("text/plain;q=0.5, application/json;q=0.500", Some(Json)),
            ("application/json;q=0, */*", Some(Text)),
            ("application/json;q=0, text/plain;q=0.0, */*", Some(OpenMetrics)),
            ("application/openmetrics-text;q=0, text/plain", Some(Text)),
            ("application/openmetrics-text", Some(OpenMetrics)),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Some(OpenMetrics)),
            ("text/plain, application/openmetrics-text", Some(OpenMetrics)),
            ("application/openmetrics-text;version=0.0.1, text/plain;q=0.1", Some(Text)),
            ("application/openmetrics-text;version=2.0.0", None),
            ("text/plain;version=1.0.0", None),
            ("text/plain;charset=iso-8859-1", None),
            ("text/plain;version=0.0.4;q=0, text/plain", None),
            ("application/xml, image/*", None),
            ("*/*;q=0", None),
            ("application/json;q=0", None),
            (prometheus_2, Some(OpenMetrics)),
            (prometheus_3, Some(OpenMetrics)),
            (protobuf, None),
            // A comma and a semicolon in a quoted string are text.
            ("application/xml;a=\"x, text/plain;q=1\\\", */*\", text/plain;q=0.1", Some(Text)),
        ] {
            assert_eq!(chosen(&[accept], &[Json, OpenMetrics, Text]), expected, "{accept}");
        }
    }

    #[test]
    fn several_lines_are_one_list_and_garbage_is_skipped() {
        for (lines, expected) in [
            (vec![], Some(Json)),
            (vec!["application/json;q=0.1", "text/plain"], Some(Text)),
            (vec![""], Some(Json)),
            (vec![" , ,"], Some(Json)),
            (vec!["openmetrics"], Some(Json)),
            (vec!["*/plain, text/"], Some(Json)),
            (vec!["text/plain;q=2, application/json;q=0.1"], Some(Json)),
            (vec!["text/plain;q=-1"], Some(Json)),
            (vec!["text/plain;q="], Some(Json)),
            (vec!["text/plain;q=0.0001"], Some(Json)),
            (vec!["text/plain;q=NaN, text/plain;q=0.5, application/json;q=0.4"], Some(Text)),
            (vec!["\u{fc}/plain", "text/plain"], Some(Text)),
            (vec!["text/plain;q=1;extension=\"x\""], Some(Text)),
        ] {
            assert_eq!(chosen(&lines, &[Json, OpenMetrics, Text]), expected, "{lines:?}");
        }
    }

    #[test]
    fn scrapers_get_text_unless_they_ask_for_open_metrics() {
        for (accept, expected) in [
            (vec![], Some(Text)),
            (vec!["*/*"], Some(Text)),
            (vec!["application/json, */*;q=0.1"], Some(Text)),
            (vec!["application/json"], None),
            (vec!["application/openmetrics-text;version=1.0.0, */*;q=0.1"], Some(OpenMetrics)),
        ] {
            assert_eq!(chosen(&accept, &[Text, OpenMetrics]), expected, "{accept:?}");
        }
    }
}
