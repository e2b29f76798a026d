//! The legacy format of dead letters: an entry whose field `message` is
//! `{"error","failed_at","original_message"}`.

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
pub(crate) struct LegacyDeadLetter<'a> {
    #[serde(default)]
    pub(crate) error: serde_json::Value,
    #[serde(default)]
    pub(crate) failed_at: serde_json::Value,
    /// The envelope of the message that died.
    #[serde(borrow, default)]
    original_message: Option<&'a RawValue>,
}

impl<'a> LegacyDeadLetter<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The bytes of the envelope, exactly as they were written.
    pub(crate) fn envelope(&self) -> Option<&'a [u8]> {
        self.original_message.map(|json| json.get().as_bytes())
    }
}
