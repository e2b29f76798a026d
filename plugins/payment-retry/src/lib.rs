//! Starts the next attempt of a payment until `max_retries` is reached.

use gateway_plugin_sdk::{Failure, Message, config, handler, info, publish};
use serde::Serialize;

/// The default of `max_retries` in the manifest's `[config]`.
const MAX_RETRIES: u32 = 5;

#[derive(Serialize)]
struct Execute<'a> {
    payment_id: &'a str,
    order_id: &'a str,
    attempt: u32,
}

fn retry(message: Message) -> Result<(), Failure> {
    let data = message.object()?;
    let payment_id = &*data.text("payment_id")?;
    let order_id = &*data.text("order_id")?;
    let retry_count = data.count("retry_count")?;

    let max_retries = match config("max_retries") {
        None => MAX_RETRIES,
        // The manifest is at fault, so the message waits until it is fixed.
        Some(text) => text
            .parse()
            .map_err(|_| Failure::postpone(format!("[config] max_retries: got \"{text}\", allowed: a whole number")))?,
    };
    if retry_count >= max_retries {
        let reason = format!("data.retry_count: got {retry_count}, allowed: below {max_retries}");
        return Err(Failure::reject("retries-exhausted", reason));
    }

    let attempt = retry_count + 1;
    publish("payment.execute", &Execute { payment_id, order_id, attempt })?;
    info!("payment {payment_id} of order {order_id}: attempt {attempt} started");
    Ok(())
}

handler!(retry);
