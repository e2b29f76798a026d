//! A walk over the keys of a prefix, on whatever server they are, a page at a
//! time, so that Redis is held up by none.

use super::QueueError;
use super::connection::{Connection, Shared};

const PAGE: usize = 1000;

pub(super) struct Pages {
    /// Each server with each pattern, those that are still to be walked.
    places: Vec<(Shared, String)>,
    cursor: u64,
}

impl Pages {
    pub(super) async fn of(connection: &Connection, prefix: &str) -> Result<Self, QueueError> {
        let patterns = [format!("{prefix}*"), format!("{{{prefix}*")];
        let places = connection.masters().await?.into_iter().flat_map(|master| {
            let place = |pattern: &String| (master.connection.clone(), pattern.clone());
            patterns.iter().map(place).collect::<Vec<_>>()
        });
        Ok(Self { places: places.collect(), cursor: 0 })
    }

    /// The next page, and the server that it is on; some keys may come twice. A
    /// key that is not UTF-8 is somebody else's.
    pub(super) async fn next(&mut self) -> Result<Option<(Shared, Vec<String>)>, QueueError> {
        let Some((server, pattern)) = self.places.last() else { return Ok(None) };
        let mut server = server.clone();
        let mut command = redis::cmd("SCAN");
        command.arg(self.cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(PAGE);
        let (next, keys): (u64, Vec<Vec<u8>>) = command.query_async(&mut server).await?;
        self.cursor = next;
        if next == 0 {
            self.places.pop();
        }
        Ok(Some((server, keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect())))
    }
}
