//! Replaces the data of a message and changes no other byte of it.

use super::{Keys, Undecodable, parse, wrong};
use serde_json::value::RawValue;

/// The body with `data` instead of its own data. A body that is not an envelope
/// is replaced completely, because it consists only of data.
pub fn with_data(body: &[u8], data: &str) -> Result<Vec<u8>, Undecodable> {
    let data: &RawValue = parse(data)?;
    let data = data.get();
    let whole = || Ok(data.as_bytes().to_vec());
    let Ok(text) = std::str::from_utf8(body) else { return whole() };
    let Ok(keys) = parse::<Keys<'_>>(text) else { return whole() };
    if keys.spec_version.is_none() && !keys.is_envelope() {
        return whole();
    }
    if let Some(raw) = keys.data_base64 {
        return Err(wrong("data_base64", raw, "data, since base64 can't be edited as JSON"));
    }
    let (before, after) = match keys.data_at {
        Some(raw) => {
            // The raw value borrows from the text, so its address gives its
            // position.
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            (text[..start].to_owned(), &text[start + raw.get().len()..])
        }
        // An envelope has at least one key, so a comma is needed.
        None => {
            let end = text.trim_end().len() - 1;
            (format!("{},\"data\":", text[..end].trim_end()), &text[end..])
        }
    };
    Ok([before.as_bytes(), data.as_bytes(), after.as_bytes()].concat())
}
