//! A handler that does nothing, to measure the worker's own cost.

use gateway_plugin_sdk::{Failure, Message, handler};

fn noop(_message: Message) -> Result<(), Failure> {
    Ok(())
}

handler!(noop);
