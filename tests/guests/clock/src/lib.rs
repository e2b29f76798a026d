//! Measures the delay from publish to start: `data` is the publisher's clock in
//! nanoseconds, and the rejection's reason is the time since then.

use gateway_plugin_sdk::{Failure, Message, bad_data, handler};
use std::time::{SystemTime, UNIX_EPOCH};

fn report_delay(message: Message) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| bad_data(error.to_string()))?;
    let published: u128 = message.json()?;
    Err(Failure::reject("started", now.as_nanos().saturating_sub(published).to_string()))
}

handler!(report_delay);
