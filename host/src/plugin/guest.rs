//! The state of one call, and what it is linked to. Everything is always
//! linked, since whole languages import all of it; what the manifest does not
//! grant is denied at the call.

use super::bindings::{FullHandler, logging};
use super::call::Call;
use super::component::Facts;
use super::imports::publisher::Buffer;
use super::limits::{CpuBudget, MemoryLimit};
use super::output::Output;
use crate::capability::Capabilities;
use crate::publication::Publication;
use crate::topic::Topic;
use std::sync::{Arc, Mutex};
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// It lives exactly as long as the call.
pub(super) struct Guest {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(super) memory: MemoryLimit,
    pub(super) cpu: Arc<Mutex<CpuBudget>>,
    pub(super) output: Output,
    pub(super) facts: Arc<Facts>,
    pub(super) capabilities: Arc<Capabilities>,
    /// None where it is only tried out.
    pub(super) topic: Option<Topic>,
    pub(super) members: Vec<Member>,
    /// What it has published so far.
    pub(super) buffer: Buffer,
}

/// A message of this call, and what is to follow it.
pub(super) struct Member {
    pub(super) id: String,
    pub(super) entry: String,
    pub(super) publications: Vec<Publication>,
}

impl Guest {
    pub(super) fn new(facts: &Arc<Facts>, capabilities: &Arc<Capabilities>, calls: &[Call]) -> Self {
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
            capabilities: capabilities.clone(),
            topic: calls.first().map(|call| call.message.topic.clone()),
            members: calls.iter().map(Member::of).collect(),
            buffer: Buffer::default(),
        }
    }

    /// What is to follow the message at this place.
    pub(super) fn publications_of(&mut self, place: usize) -> Vec<Publication> {
        self.members.get_mut(place).map(|member| std::mem::take(&mut member.publications)).unwrap_or_default()
    }

    /// Writes what the guest printed to the log.
    pub(super) fn log_output(&self) -> String {
        let printed = self.output.take();
        for line in printed.lines() {
            self.log_line(logging::Level::Info, line, &[]);
        }
        printed
    }
}

impl Member {
    fn of(call: &Call) -> Self {
        Self { id: call.message.id.clone(), entry: call.entry.clone(), publications: Vec::new() }
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    FullHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    Ok(linker)
}
