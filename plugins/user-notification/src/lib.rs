//! Forwards a notification as an email if the data has an email address, else as
//! an SMS if it has a phone number, else as a push message.

use gateway_plugin_sdk::{Failure, Message, bad_data, handler, info, publish};
use serde::Serialize;

#[derive(Serialize)]
struct Push<'a> {
    user_id: &'a str,
    title: &'a str,
    body: &'a str,
}

#[derive(Serialize)]
struct Email<'a> {
    to: &'a str,
    subject: &'a str,
    content: &'a str,
    user_id: &'a str,
}

#[derive(Serialize)]
struct Sms<'a> {
    phone: &'a str,
    content: &'a str,
    user_id: &'a str,
}

fn notify(message: Message) -> Result<(), Failure> {
    let data = message.object()?;
    let user_id = &*data.text("user_id")?;
    let kind = &*data.text("type")?;
    let content = &*data.text("content")?;
    let title = data.optional_text("title")?;
    let title = title.as_deref().unwrap_or(kind);

    if let Some(to) = data.optional_text("email")? {
        if !to.contains('@') {
            return Err(bad_data(format!("data.email: got \"{to}\", allowed: an address with an @")));
        }
        publish("email.send", &Email { to: &to, subject: title, content, user_id })?;
    } else if let Some(phone) = data.optional_text("phone")? {
        publish("sms.send", &Sms { phone: &phone, content, user_id })?;
    } else {
        publish("push.notification", &Push { user_id, title, body: content })?;
    }
    info!("{kind} notification published for user {user_id}");
    Ok(())
}

handler!(notify);
