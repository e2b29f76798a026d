//! Sends an email to the buyer when the stock of a product is below its
//! threshold.

use gateway_plugin_sdk::{Failure, Message, config, handler, info, publish};
use serde::Serialize;
use serde_json::value::RawValue;

#[derive(Serialize)]
struct Email<'a> {
    to: &'a str,
    subject: String,
    content: String,
    product_id: &'a str,
    current_stock: &'a RawValue,
    threshold: &'a RawValue,
}

fn alert(message: Message) -> Result<(), Failure> {
    let data = message.object()?;
    let product_id = &*data.text("product_id")?;
    let (current_stock, stock) = data.number("current_stock")?;
    let (threshold, limit) = data.number("threshold")?;

    if stock >= limit {
        info!("stock of {product_id} is sufficient: {current_stock}, threshold {threshold}");
        return Ok(());
    }
    // The manifest is at fault, so the message waits until it is fixed.
    let to = config("alert_to").ok_or_else(|| {
        Failure::postpone("[config] alert_to is missing from the manifest: set the address that gets the alerts")
    })?;
    publish(
        "email.send",
        &Email {
            to: &to,
            subject: format!("Low stock: {product_id}"),
            content: format!("{current_stock} left of {product_id}, below the threshold of {threshold}."),
            product_id,
            current_stock,
            threshold,
        },
    )?;
    info!("low stock of {product_id} reported to {to}");
    Ok(())
}

handler!(alert);
