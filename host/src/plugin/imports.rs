//! What a guest can reach: the interfaces of `wit/gateway.wit`, and a WASI
//! that gives clocks and random numbers and denies the rest. Everything is
//! always linked, since whole languages import all of it; what the manifest
//! does not grant is denied at the call.

use super::bindings::publisher::{Options, Priority as WitPriority};
use super::bindings::{Fault, MessageHandler, config, logging, publisher, types};
use super::component::{Call, Facts};
use super::limits::{CpuBudget, MemoryLimit};
use super::output::Output;
use crate::publication::{Draft, Priority, Publication};
use crate::topic::Topic;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// What one run may publish.
const PUBLICATIONS_MAX: usize = 1000;
const PUBLISHED_BYTES_MAX: usize = 16 << 20;

/// The state of one call. It lives exactly as long.
pub(super) struct Guest {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(super) memory: MemoryLimit,
    pub(super) cpu: Arc<Mutex<CpuBudget>>,
    pub(super) output: Output,
    facts: Arc<Facts>,
    topic: Topic,
    members: Vec<Member>,
    published: usize,
    published_bytes: usize,
}

/// A message of this call, and what is to follow it.
struct Member {
    id: String,
    entry: String,
    publications: Vec<Publication>,
}

impl Guest {
    pub(super) fn new(facts: &Arc<Facts>, topic: &Topic, calls: &[Call]) -> Self {
        let limits = &facts.manifest.limits;
        let output = Output::default();
        // Nothing is inherited: no environment, no arguments, no files, no network.
        let wasi = WasiCtx::builder().stdout(output.clone()).stderr(output.clone()).build();
        Self {
            wasi,
            table: ResourceTable::new(),
            memory: MemoryLimit::new(limits.memory),
            cpu: Arc::new(Mutex::new(CpuBudget::new(limits.cpu))),
            output,
            facts: facts.clone(),
            topic: topic.clone(),
            members: calls.iter().map(Member::of).collect(),
            published: 0,
            published_bytes: 0,
        }
    }

    /// What is to follow the message at this place.
    pub(super) fn publications_of(&mut self, place: usize) -> Vec<Publication> {
        self.members.get_mut(place).map(|member| std::mem::take(&mut member.publications)).unwrap_or_default()
    }

    /// The message that a publish follows. One alone need not be named.
    fn parent(&mut self, named: Option<&str>) -> Result<&mut Member, Fault> {
        let told = if self.members.len() > 1 {
            "name the parent: one of the messages of this batch"
        } else {
            "parent is not the id of the message at hand"
        };
        let parent = match (named, self.members.as_mut_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(named), members) => members.iter_mut().find(|member| member.id == named),
        };
        parent.ok_or_else(|| fault("invalid", told))
    }

    /// Writes what the guest printed to the log.
    pub(super) fn log_output(&self) -> String {
        let printed = self.output.take();
        for line in printed.lines() {
            self.log_line(logging::Level::Info, line, &[]);
        }
        printed
    }

    fn log_line(&self, level: logging::Level, text: &str, fields: &[(String, String)]) {
        let length = text.len() + fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let Some(dropped) = self.facts.log.admit(length) else { return };
        // Of a batch, the line may be any one's.
        let id = if let [only] = self.members.as_slice() { only.id.as_str() } else { "" };
        let (plugin, topic) = (self.facts.name.as_str(), self.topic.as_str());
        if dropped > 0 {
            tracing::warn!(plugin, dropped, "log lines dropped: more than limits.log");
        }
        let text = printable(text);
        let fields: Option<String> = (!fields.is_empty()).then(|| {
            fields
                .iter()
                .map(|(name, value)| format!("{}={}", printable(name), printable(value)))
                .collect::<Vec<_>>()
                .join(" ")
        });
        match level {
            logging::Level::Debug => tracing::debug!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Info => tracing::info!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Warn => tracing::warn!(target: "handler", plugin, topic, id, fields, "{text}"),
            logging::Level::Error => tracing::error!(target: "handler", plugin, topic, id, fields, "{text}"),
        }
    }
}

/// Text that can't draw on a terminal or forge a line.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\t' { '\u{fffd}' } else { char }).collect()
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    MessageHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    Ok(linker)
}

impl types::Host for Guest {}

impl logging::Host for Guest {
    fn log(&mut self, level: logging::Level, text: String) {
        self.log_line(level, &text, &[]);
    }

    fn log_with(&mut self, level: logging::Level, text: String, fields: Vec<(String, String)>) {
        self.log_line(level, &text, &fields);
    }
}

impl config::Host for Guest {
    fn get(&mut self, key: String) -> Option<String> {
        self.facts.manifest.config.get(&key).cloned()
    }

    fn get_all(&mut self) -> Vec<(String, String)> {
        self.facts.manifest.config.clone().into_iter().collect()
    }
}

impl publisher::Host for Guest {
    fn publish(&mut self, topic: String, data: Vec<u8>) -> Result<String, Fault> {
        let options =
            Options { id: None, parent: None, delay_seconds: 0, priority: WitPriority::Normal, headers: Vec::new() };
        self.publish_with(topic, data, options)
    }

    fn publish_with(&mut self, topic: String, data: Vec<u8>, options: Options) -> Result<String, Fault> {
        let topic = Topic::parse(&topic).map_err(|error| fault("invalid", error))?;
        if !self.facts.manifest.grants.publish.contains(&topic) {
            let mend =
                format!("{}.toml does not grant it: under [grants], write publish = [\"{topic}\"]", self.facts.name);
            tracing::warn!(plugin = self.facts.name, %topic, "publish denied: {mend}");
            return Err(fault("denied", format!("publishing to {topic}: {mend}")));
        }
        if self.published >= PUBLICATIONS_MAX {
            return Err(fault("too-many", format!("a run publishes at most {PUBLICATIONS_MAX} messages")));
        }
        if self.published_bytes + data.len() > PUBLISHED_BYTES_MAX {
            return Err(fault("too-large", format!("a run publishes at most {PUBLISHED_BYTES_MAX} bytes")));
        }
        let data =
            std::str::from_utf8(&data).map_err(|error| fault("invalid", format!("data is not UTF-8: {error}")))?;
        let priority = match options.priority {
            WitPriority::High => Priority::High,
            WitPriority::Normal => Priority::Normal,
            WitPriority::Low => Priority::Low,
        };
        let delay = Duration::from_secs(options.delay_seconds.into());
        let from = self.topic.clone();
        let parent = self.parent(options.parent.as_deref())?;
        // The same run of the same entry makes the same ids again.
        let derived = || format!("{from}/{}/{}", parent.entry, parent.publications.len() + 1);
        let draft = Draft::new(options.id.unwrap_or_else(derived), &topic, data);
        let draft = Draft { headers: &options.headers, priority, delay, ..draft };
        let publication = draft.seal(Timestamp::now()).map_err(|error| fault("invalid", error))?;
        let (id, bytes) = (publication.id.clone(), publication.body.len());
        parent.publications.push(publication);
        self.published += 1;
        self.published_bytes += bytes;
        Ok(id)
    }
}

impl Member {
    fn of(call: &Call) -> Self {
        Self { id: call.message.id.clone(), entry: call.entry.clone(), publications: Vec::new() }
    }
}

fn fault(code: &str, reason: impl ToString) -> Fault {
    Fault { code: code.to_owned(), reason: reason.to_string() }
}
