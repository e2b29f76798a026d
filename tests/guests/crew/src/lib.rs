//! Takes messages several at a time; each says how it is to end.

use gateway_plugin_sdk::{Failure, Message, Options, Priority, batch_handler, publish, publish_with};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Act {
    /// Tells how many there were.
    Count,
    /// Names no parent.
    Orphan,
    Fail,
    Panic,
    /// One reply too few.
    Withhold,
}

fn act(messages: Vec<Message>) -> Vec<Result<(), Failure>> {
    let count = messages.len();
    let mut replies: Vec<_> = messages.iter().map(|message| one(message, count)).collect();
    if messages.iter().any(|message| matches!(message.json(), Ok(Act::Withhold))) {
        replies.pop();
    }
    replies
}

fn one(message: &Message, count: usize) -> Result<(), Failure> {
    let options = Options {
        id: None,
        parent: Some(message.id.clone()),
        delay_seconds: 0,
        priority: Priority::Normal,
        headers: Vec::new(),
    };
    match message.json()? {
        Act::Count | Act::Withhold => publish_with("seen", &count, &options).map(drop)?,
        Act::Orphan => publish("seen", &count).map(drop)?,
        Act::Fail => {
            publish_with("seen", &"never", &options)?;
            return Err(Failure::reject("told", "to fail"));
        }
        Act::Panic => panic!("told to"),
    }
    Ok(())
}

batch_handler!(act);
