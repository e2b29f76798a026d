//! Tells when it was started: `data` is the publisher's clock in nanoseconds,
//! and the rejection's reason is how much later it is now.

use gateway_plugin_sdk::{Failure, Message, bad_data, handler};
use std::time::{SystemTime, UNIX_EPOCH};

fn tell(message: Message) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| bad_data(error.to_string()))?;
    let sent: u128 = message.json()?;
    Err(Failure::reject("started", now.as_nanos().saturating_sub(sent).to_string()))
}

handler!(tell);
