//! Headers that the host adds to requests, with secrets in them: the guest
//! sees neither. A fault never quotes a value, since everybody may read it.

use super::value::SecretName;

/// Text that is put together when a request leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// In lower case.
    pub name: String,
    pub value: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    Secret(SecretName),
}

/// What belongs to the connection, or says where a request goes.
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
            return Err("that is no name of a header".to_owned());
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(format!("`{name}` is set by the host itself"));
        }
        if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
            return Err(format!("the value of `{name}` has characters other than printable ASCII"));
        }
        let value = pieces(value).map_err(|told| format!("the value of `{name}`: {told}"))?;
        Ok(Self { name, value })
    }
}

/// `Bearer ${secret:API_KEY}`; a dollar sign alone is one.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (inside, behind) = after.split_once('}').ok_or("`${` without `}`")?;
        let name = inside.strip_prefix("secret:").ok_or("of `${...}` only ${secret:NAME} can stand there")?;
        pieces.push(Piece::Text(before.to_owned()));
        pieces.push(Piece::Secret(SecretName::parse(name)?));
        rest = behind;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    pieces.retain(|piece| *piece != Piece::Text(String::new()));
    Ok(pieces)
}
