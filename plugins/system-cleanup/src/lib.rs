//! Turns a clean-up order into the data synchronisation that carries it out:
//! from what the order names to the target in the manifest's `[config]`.

use gateway_plugin_sdk::{Failure, Message, config, handler, info, publish};
use serde::Serialize;
use serde_json::value::RawValue;

/// Where the manifest's `[config]` has no `target`.
const TARGET: &str = "archive";

#[derive(Serialize)]
struct Sync<'a> {
    sync_type: &'a str,
    source: &'a str,
    target: &'a str,
    params: &'a RawValue,
}

fn clean_up(message: Message) -> Result<(), Failure> {
    let data = message.object()?;
    let source = &*data.text("type")?;
    let params = data.nested("params")?;
    let target = config("target");
    let target = target.as_deref().unwrap_or(TARGET);

    publish("data.sync", &Sync { sync_type: "cleanup", source, target, params })?;
    info!("clean-up of {source} handed to {target}");
    Ok(())
}

handler!(clean_up);
