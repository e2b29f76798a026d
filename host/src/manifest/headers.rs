//! Headers with secrets that the host adds to requests; the guest does not see
//! them. Faults never quote a value, because anybody may read them.

use super::value::SecretName;

/// A header whose value is assembled when a request is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// In lower case.
    pub name: String,
    pub value: Vec<HeaderPart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderPart {
    Text(String),
    Secret(SecretName),
}

/// Headers of the connection, or that route the request.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Header {
    pub(super) fn parse(name: &str, value: &str) -> Result<Self, String> {
        let name = name.to_ascii_lowercase();
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("not a valid header name".to_owned());
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(format!("`{name}` is set by the host itself"));
        }
        if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
            return Err(format!("the value of `{name}` has characters other than printable ASCII"));
        }
        let value = parts(value).map_err(|error| format!("the value of `{name}`: {error}"))?;
        Ok(Self { name, value })
    }
}

/// Parses `Bearer ${secret:API_KEY}`. A `$` without `{` is literal.
fn parts(text: &str) -> Result<Vec<HeaderPart>, String> {
    let mut parts = Vec::new();
    let mut remaining = text;
    while let Some((before, after)) = remaining.split_once("${") {
        let (inside, behind) = after.split_once('}').ok_or("`${` without `}`")?;
        let name = inside.strip_prefix("secret:").ok_or("only ${secret:NAME} is supported in `${...}`")?;
        parts.push(HeaderPart::Text(before.to_owned()));
        parts.push(HeaderPart::Secret(SecretName::parse(name)?));
        remaining = behind;
    }
    parts.push(HeaderPart::Text(remaining.to_owned()));
    parts.retain(|part| *part != HeaderPart::Text(String::new()));
    Ok(parts)
}
