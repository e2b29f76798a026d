//! Does nothing, in an instance of its own: what is left is the worker's cost.

use gateway_plugin_sdk::{Failure, Message, handler};

fn noop(_message: Message) -> Result<(), Failure> {
    Ok(())
}

handler!(noop);
