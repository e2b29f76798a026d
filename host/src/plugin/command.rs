//! Commands: any program built for WASI is a handler, with no SDK. It reads
//! its message on stdin, finds what it needs to know of it in its environment,
//! and says with its exit code how it ended.

use super::component::Facts;
use super::words::{cut, with_output};
use crate::manifest::{Instances, Manifest};
use crate::message::Message;
use crate::publication::{Publication, envelope};
use crate::verdict::Outcome;
use wasmtime::Module;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;

/// The one module that a core module may import from.
pub(super) const WASI_P1: &str = "wasi_snapshot_preview1";
/// Where it begins.
pub(super) const START: &str = "_start";

const MEND: &str = "build a handler for wasm32-wasip2, or a program for wasm32-wasip1";

/// The exit code that says that it will never work: `EX_DATAERR`.
const REJECT: i32 = 65;
/// Variables that begin so are the host's.
const HOST_PREFIX: &str = "GW_";

/// What of a manifest makes no sense for a command.
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
            "[config] becomes the environment of a command, and {key:?} can be no variable there: without \"=\", and \
             not {HOST_PREFIX}*, which are the host's own"
        )),
        None => Ok(()),
    }
}

/// Whether a core module is a command of WASI preview 1; if not, what it is.
pub(super) fn check_module(module: &Module) -> Result<(), String> {
    let foreign = module.imports().find(|import| import.module() != WASI_P1);
    if let Some(import) = foreign {
        let (from, name) = (import.module(), import.name());
        let told = "a core module may import from wasi_snapshot_preview1 alone";
        return Err(format!("it imports `{name}` of {from}: {told}; {MEND}"));
    }
    let start = module.get_export(START).and_then(|found| found.func().cloned());
    let is_start = start.is_some_and(|start| start.params().next().is_none() && start.results().next().is_none());
    match (is_start, module.get_export("_initialize").is_some()) {
        (true, _) if module.get_export("memory").is_none() => Err("it exports no memory: a program must".to_owned()),
        (true, _) => Ok(()),
        (false, true) => {
            Err(format!("it is a reactor: it exports `_initialize` and no `{START}`, so it has nothing to run; {MEND}"))
        }
        (false, false) => Err(format!("it is a core module without a function `{START}`, so it is no program; {MEND}")),
    }
}

/// What one run of it gets to see.
pub(super) fn equip(wasi: &mut WasiCtxBuilder, facts: &Facts, message: &Message, max_attempts: u32) {
    let manifest = &facts.manifest;
    // What C would take for the end of the text.
    let text = |text: &str| text.replace('\0', "\u{fffd}");
    wasi.arg(&facts.name).args(&manifest.args);
    for (name, value) in &manifest.config {
        wasi.env(name, text(value));
    }
    wasi.env("GW_ID", text(&message.id))
        .env("GW_TOPIC", message.topic.as_str())
        .env("GW_ATTEMPT", message.attempt.to_string())
        .env("GW_MAX_ATTEMPTS", max_attempts.to_string())
        .stdin(MemoryInputPipe::new(envelope(message, max_attempts)));
}

/// How a run ended that returned with this code, after it had printed this and
/// published those.
pub(super) fn outcome(code: i32, printed: &str, publications: Vec<Publication>) -> Outcome {
    let reason = || cut(with_output(&format!("exit code {code}"), printed));
    match code {
        0 => Outcome::Done(publications),
        REJECT => Outcome::Reject { code: format!("exit-{REJECT}"), reason: reason() },
        _ => Outcome::Retry { reason: reason(), after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(manifest: &str) -> String {
        check(&Manifest::parse(manifest, "topic").unwrap()).err().unwrap_or_default()
    }

    #[test]
    fn what_is_for_handlers_is_refused_by_name() {
        assert!(told("[batch]\nsize = 2\nwait = \"1s\"").contains("[batch]"));
        assert!(told("instances = { max_calls = 2 }").contains("`instances`"));
        for key in ["GW_ID", "gw_id", "a=b", ""] {
            assert!(told(&format!("[config]\n\"{key}\" = \"x\"")).contains(&format!("{key:?}")), "{key}");
        }
        assert_eq!(told("args = [\"-v\"]\nconcurrency = 2\n[config]\nGREETING = \"hello\"\n\"a b\" = \"c\""), "");
    }

    #[test]
    fn an_exit_code_says_how_it_ended() {
        assert_eq!(outcome(0, "chatter", Vec::new()), Outcome::Done(Vec::new()));
        let reason = "exit code 65\nno such order".to_owned();
        assert_eq!(outcome(65, "no such order\n", Vec::new()), Outcome::Reject { code: "exit-65".to_owned(), reason });
        for code in [1, 2, 64, 66, 75, 125, 255, -1] {
            let reason = format!("exit code {code}");
            assert_eq!(outcome(code, "", Vec::new()), Outcome::Retry { reason, after: None });
        }
    }
}
