//! Iterates over all keys of a prefix on all servers, a page at a time, so that
//! no call blocks Redis for long.

use super::connection::Connection;
use super::shared::Shared;
use crate::queue::error::QueueError;

const PAGE: usize = 1000;

pub(crate) struct KeyPages {
    /// The pairs of server and pattern that are still to be scanned.
    pending: Vec<(Shared, String)>,
    cursor: u64,
}

impl KeyPages {
    pub(crate) async fn new(connection: &Connection, prefix: &str) -> Result<Self, QueueError> {
        let prefix = escape(prefix);
        let patterns = [format!("{prefix}*"), format!("{{{prefix}*")];
        let pending = connection.masters().await?.into_iter().flat_map(|master| {
            let scan = |pattern: &String| (master.connection.clone(), pattern.clone());
            patterns.iter().map(scan).collect::<Vec<_>>()
        });
        Ok(Self { pending: pending.collect(), cursor: 0 })
    }

    /// The next page and its server; `None` at the end. A key may come twice.
    pub(crate) async fn next(&mut self) -> Result<Option<(Shared, Vec<Vec<u8>>)>, QueueError> {
        let Some((server, pattern)) = self.pending.last() else { return Ok(None) };
        let mut server = server.clone();
        let mut command = redis::cmd("SCAN");
        command.arg(self.cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(PAGE);
        let (next, keys): (u64, Vec<Vec<u8>>) = command.query_async(&mut server).await?;
        self.cursor = next;
        if next == 0 {
            self.pending.pop();
        }
        Ok(Some((server, keys)))
    }
}

/// The pattern that matches exactly this text.
fn escape(text: &str) -> String {
    let is_special = |char| matches!(char, '*' | '?' | '[' | ']' | '\\');
    let escaped = |char| if is_special(char) { vec!['\\', char] } else { vec![char] };
    text.chars().flat_map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_matches_itself_only() {
        assert_eq!(escape("mq:"), "mq:");
        assert_eq!(escape("m*[q]?\\"), "m\\*\\[q\\]\\?\\\\");
    }
}
