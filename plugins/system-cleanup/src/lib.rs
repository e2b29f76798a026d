//! Publishes the data synchronisation that performs a clean-up: from the source
//! that the message names to the target in the manifest's `[config]`.

use gateway_plugin_sdk::{Failure, Message, config, handler, info, publish};
use serde::Serialize;
use serde_json::value::RawValue;

/// The default of `target` in the manifest's `[config]`.
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
    info!("clean-up of {source} published, target {target}");
    Ok(())
}

handler!(clean_up);
