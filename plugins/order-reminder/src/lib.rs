//! Reminds a user of an order that waits for payment or has timed out.

use gateway_plugin_sdk::{Failure, Message, handler, info, publish};
use serde::Serialize;

#[derive(Serialize)]
struct Push<'a> {
    user_id: &'a str,
    title: &'a str,
    body: String,
    order_id: &'a str,
    r#type: &'a str,
}

fn remind(message: Message) -> Result<(), Failure> {
    let data = message.object()?;
    let order_id = data.text("order_id")?;
    let user_id = data.text("user_id")?;
    let kind = data.one_of("type", &["payment_reminder", "order_timeout"])?;

    let (title, default_body) = match kind.as_ref() {
        "payment_reminder" => ("Payment reminder", format!("Order {order_id} is waiting for your payment.")),
        _ => ("Order timed out", format!("Order {order_id} was not paid in time.")),
    };
    let body = data.optional_text("message")?.map_or(default_body, |text| text.into_owned());

    publish("push.notification", &Push { user_id: &user_id, title, body, order_id: &order_id, r#type: &kind })?;
    info!("{kind} for order {order_id} published for user {user_id}");
    Ok(())
}

handler!(remind);
