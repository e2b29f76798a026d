//! Commands: any program built for WASI is a handler, without an SDK. It gets its
//! message on stdin and metadata in environment variables; its exit code is the
//! outcome.

use super::component::PluginContext;
use crate::manifest::{Instances, Manifest};
use crate::message::Message;
use crate::publication::{Publication, envelope};
use crate::text::{truncate_error, with_output};
use crate::verdict::Outcome;
use wasmtime::Module;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;

/// The only module that a core module may import from.
pub(super) const WASI_P1: &str = "wasi_snapshot_preview1";
/// The entry point of a core module.
pub(super) const START: &str = "_start";

const HINT: &str = "build a handler for wasm32-wasip2, or a program for wasm32-wasip1";

/// The exit code that rejects the message: `EX_DATAERR` of sysexits.h.
const EXIT_REJECT: i32 = 65;
/// The prefix of environment variables that the host sets.
const HOST_PREFIX: &str = "GW_";

/// Fails if the manifest has settings that a command does not support.
pub(super) fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.batch.is_some() {
        return Err(
            "[batch] is for components that export gateway:worker/batch-handler@1.0.0, and this is a command: \
                    it takes one message at a time"
                .to_owned(),
        );
    }
    if manifest.instances != Instances::PerMessage {
        return Err("`instances` is \"per-message\" for a command: a program runs once and ends".to_owned());
    }
    let is_variable = |key: &&String| {
        !key.is_empty() && !key.contains(['=', '\0']) && !key.to_ascii_uppercase().starts_with(HOST_PREFIX)
    };
    match manifest.config.keys().find(|key| !is_variable(key)) {
        Some(key) => Err(format!(
            "[config] becomes the environment of a command, and {key:?} is not a valid variable: it must not be empty, \
             contain \"=\", or begin with {HOST_PREFIX}, which is reserved for the host"
        )),
        None => Ok(()),
    }
}

/// Fails unless a core module is a command of WASI preview 1.
pub(super) fn check_module(module: &Module) -> Result<(), String> {
    let foreign = module.imports().find(|import| import.module() != WASI_P1);
    if let Some(import) = foreign {
        let (from, name) = (import.module(), import.name());
        let rule = "a core module may import only from wasi_snapshot_preview1";
        return Err(format!("it imports `{name}` of {from}: {rule}; {HINT}"));
    }
    let start = module.get_export(START).and_then(|found| found.func().cloned());
    let is_start = start.is_some_and(|start| start.params().next().is_none() && start.results().next().is_none());
    match (is_start, module.get_export("_initialize").is_some()) {
        (true, _) if module.get_export("memory").is_none() => {
            Err("it exports no memory, which a command must do".to_owned())
        }
        (true, _) => Ok(()),
        (false, true) => {
            Err(format!("it is a reactor: it exports `_initialize` and no `{START}`, so it has nothing to run; {HINT}"))
        }
        (false, false) => {
            Err(format!("it is a core module without a function `{START}`, so it is not a command; {HINT}"))
        }
    }
}

/// Sets the arguments, environment and stdin of a run.
pub(super) fn configure(wasi: &mut WasiCtxBuilder, context: &PluginContext, message: &Message, max_attempts: u32) {
    let manifest = &context.manifest;
    // NUL would terminate the value for C.
    let text = |text: &str| text.replace('\0', "\u{fffd}");
    wasi.arg(&context.name).args(&manifest.args);
    for (name, value) in &manifest.config {
        wasi.env(name, text(value));
    }
    wasi.env("GW_ID", text(&message.id))
        .env("GW_TOPIC", message.topic.as_str())
        .env("GW_ATTEMPT", message.attempt.to_string())
        .env("GW_MAX_ATTEMPTS", max_attempts.to_string())
        .stdin(MemoryInputPipe::new(envelope(message, max_attempts)));
}

/// The outcome for an exit code.
pub(super) fn outcome(code: i32, printed: &str, publications: Vec<Publication>) -> Outcome {
    let reason = || truncate_error(with_output(&format!("exit code {code}"), printed));
    match code {
        0 => Outcome::Done(publications),
        EXIT_REJECT => Outcome::Reject { code: format!("exit-{EXIT_REJECT}"), reason: reason() },
        _ => Outcome::Retry { reason: reason(), after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(manifest: &str) -> String {
        check(&Manifest::parse(manifest, "topic").unwrap()).err().unwrap_or_default()
    }

    #[test]
    fn settings_that_commands_do_not_support_are_rejected_by_name() {
        assert!(fault("[batch]\nsize = 2\nwait = \"1s\"").contains("[batch]"));
        assert!(fault("instances = { max_calls = 2 }").contains("`instances`"));
        for key in ["GW_ID", "gw_id", "a=b", ""] {
            assert!(fault(&format!("[config]\n\"{key}\" = \"x\"")).contains(&format!("{key:?}")), "{key}");
        }
        assert_eq!(fault("args = [\"-v\"]\nconcurrency = 2\n[config]\nGREETING = \"hello\"\n\"a b\" = \"c\""), "");
    }

    #[test]
    fn the_exit_code_is_the_outcome() {
        assert_eq!(outcome(0, "chatter", Vec::new()), Outcome::Done(Vec::new()));
        let reason = "exit code 65\nno such order".to_owned();
        assert_eq!(outcome(65, "no such order\n", Vec::new()), Outcome::Reject { code: "exit-65".to_owned(), reason });
        for code in [1, 2, 64, 66, 75, 125, 255, -1] {
            let reason = format!("exit code {code}");
            assert_eq!(outcome(code, "", Vec::new()), Outcome::Retry { reason, after: None });
        }
    }
}
