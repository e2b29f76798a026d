//! Single values of a manifest, which are checked when they are parsed.

use crate::text::{size, span};
use crate::topic::Topic;
use serde::Deserialize;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const HOUR: u64 = 3_600_000;
pub(super) const DAY: u64 = 24 * HOUR;

/// An item of `topics`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) enum RawTopic {
    Named(Topic),
    /// `*`: topics that no other plugin claims.
    Any,
    /// `*:*`: also those with a colon.
    AnyWithColon,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Publishable(pub(super) Topic);

#[derive(Deserialize)]
#[serde(try_from = "i64")]
pub(super) struct Count<const MAX: u32>(pub(super) u32);

/// A time like `30s`, within bounds in milliseconds.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span<const MIN_MS: u64, const MAX_MS: u64>(pub(super) Duration);

/// A size like `64MiB`, within bounds in bytes.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Bytes<const MIN: u64, const MAX: u64>(pub(super) u64);

/// A rate like `64KiB/s`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct BytesPerSecond(pub(super) u64);

/// The name of a secret, which is also the name of a file and of an environment
/// variable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretName(String);

/// An absolute path without `.` and `..`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AbsolutePath(pub(super) PathBuf);

impl SecretName {
    pub fn parse(text: &str) -> Result<Self, String> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if (1..=128).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            // The text is not quoted, because it may be the secret itself.
            Err("not a valid secret name: use 1 to 128 characters of A-Z a-z 0-9 _ -".to_owned())
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SecretName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl TryFrom<String> for RawTopic {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "*" => Ok(Self::Any),
            "*:*" => Ok(Self::AnyWithColon),
            _ => Topic::parse(&text).map(Self::Named).map_err(|error| error.to_string()),
        }
    }
}

impl fmt::Display for RawTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(topic) => topic.fmt(f),
            Self::Any => f.write_str("\"*\""),
            Self::AnyWithColon => f.write_str("\"*:*\""),
        }
    }
}

impl TryFrom<String> for Publishable {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Topic::parse(&text).map(Self).map_err(|error| error.to_string())
    }
}

impl<const MAX: u32> TryFrom<i64> for Count<MAX> {
    type Error = String;

    fn try_from(count: i64) -> Result<Self, String> {
        within(count, 1..=i64::from(MAX))?;
        u32::try_from(count).map(Self).map_err(|error| error.to_string())
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64> TryFrom<String> for Span<MIN_MS, MAX_MS> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let time = humantime::parse_duration(&text)
            .map_err(|error| format!("\"{text}\": {error}; a time is written like \"500ms\", \"30s\" or \"5m\""))?;
        let format = |ms| span(Duration::from_millis(ms));
        if (Duration::from_millis(MIN_MS)..=Duration::from_millis(MAX_MS)).contains(&time) {
            Ok(Self(time))
        } else {
            Err(format!("\"{text}\" is out of range: {} to {}", format(MIN_MS), format(MAX_MS)))
        }
    }
}

impl<const MIN: u64, const MAX: u64> TryFrom<String> for Bytes<MIN, MAX> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_size(&text, MIN..=MAX).map(Self)
    }
}

impl TryFrom<String> for BytesPerSecond {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = text.strip_suffix("/s").ok_or_else(|| format!("\"{text}\": a rate is written like \"64KiB/s\""))?;
        parse_size(bytes, 1..=GIB).map(Self)
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_valid = text.starts_with('/') && !text.split('/').any(|part| part == "." || part == "..");
        if is_valid {
            Ok(Self(text.into()))
        } else {
            Err(format!("\"{}\": a directory must be an absolute path without \".\" and \"..\"", text.escape_debug()))
        }
    }
}

fn parse_size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let bytes: bytesize::ByteSize =
        text.parse().map_err(|_| format!("\"{text}\": a size is written like \"64MiB\" or \"512KiB\""))?;
    if range.contains(&bytes.as_u64()) {
        Ok(bytes.as_u64())
    } else {
        let [min, max] = [range.start(), range.end()].map(|bytes| size(*bytes));
        Err(format!("\"{text}\" is out of range: {min} to {max}"))
    }
}

fn within<T: PartialOrd + fmt::Display>(value: T, range: RangeInclusive<T>) -> Result<(), String> {
    if range.contains(&value) {
        Ok(())
    } else {
        Err(format!("{value} is out of range: {} to {}", range.start(), range.end()))
    }
}
