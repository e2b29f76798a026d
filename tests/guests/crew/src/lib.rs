//! A batch handler: each message's data says how its run ends.

use gateway_plugin_sdk::{Failure, Message, PublishOptions, batch_handler, publish, publish_with};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Act {
    /// Publishes the number of messages in the batch.
    Count,
    /// Publishes without naming a parent.
    Orphan,
    Fail,
    Panic,
    /// Makes the handler return one result too few.
    Withhold,
}

fn act(messages: Vec<Message>) -> Vec<Result<(), Failure>> {
    let count = messages.len();
    let mut results: Vec<_> = messages.iter().map(|message| one(message, count)).collect();
    if messages.iter().any(|message| matches!(message.json(), Ok(Act::Withhold))) {
        results.pop();
    }
    results
}

fn one(message: &Message, count: usize) -> Result<(), Failure> {
    let options = PublishOptions { parent: Some(message.id.clone()), ..PublishOptions::default() };
    match message.json()? {
        Act::Count | Act::Withhold => publish_with("seen", &count, &options).map(drop)?,
        Act::Orphan => publish("seen", &count).map(drop)?,
        Act::Fail => {
            publish_with("seen", &"never", &options)?;
            return Err(Failure::reject("requested", "by the message"));
        }
        Act::Panic => panic!("requested by the message"),
    }
    Ok(())
}

batch_handler!(act);
