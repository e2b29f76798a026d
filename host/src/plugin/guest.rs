//! The state of one call, and what it is linked to. Everything is always
//! linked, since whole languages import all of it; what the manifest does not
//! grant is denied at the call.

use super::bindings::{FullHandler, logging};
use super::call::Call;
use super::component::Facts;
use super::cpu::CpuBudget;
use super::folders;
use super::http::{self, Http};
use super::imports::publisher::Buffer;
use super::limits::InstanceLimit;
use super::output::Output;
use crate::capability::Capabilities;
use crate::publication::Publication;
use crate::topic::Topic;
use std::sync::{Arc, Mutex};
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// What a guest may draw in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// It lives exactly as long as the call.
pub(super) struct Guest {
    // Before the table, so that what is still on its way learns that it is over.
    pub(super) http: Http,
    wasi: WasiCtx,
    pub(super) table: ResourceTable,
    pub(super) limit: InstanceLimit,
    pub(super) cpu: Arc<Mutex<CpuBudget>>,
    pub(super) output: Output,
    pub(super) facts: Arc<Facts>,
    pub(super) capabilities: Arc<Capabilities>,
    /// None where it is only tried out.
    pub(super) topic: Option<Topic>,
    pub(super) members: Vec<Member>,
    /// What it has published so far.
    pub(super) buffer: Buffer,
    /// To whom it has sent mails so far.
    pub(super) mails: Vec<String>,
}

/// A message of this call, and what is to follow it.
pub(super) struct Member {
    pub(super) id: String,
    pub(super) entry: String,
    pub(super) hops: u32,
    pub(super) publications: Vec<Publication>,
}

impl Guest {
    /// Fails where a folder that was granted is gone.
    pub(super) fn new(facts: &Arc<Facts>, capabilities: &Arc<Capabilities>, calls: &[Call]) -> Result<Self, String> {
        let limits = &facts.manifest.limits;
        let output = Output::default();
        // Nothing is inherited: no environment, no arguments, no files, no network.
        let mut wasi = WasiCtx::builder();
        wasi.stdout(output.clone()).stderr(output.clone()).max_random_size(RANDOM_BYTES_MAX);
        folders::open(&mut wasi, &facts.manifest.grants)?;
        let mut table = ResourceTable::new();
        // A handle of the guest's may stand for two things of the host's: a
        // clock's is something to wait for, and the moment that it waits for.
        table.set_max_capacity(2 * limits.handles as usize);
        Ok(Self {
            http: Http::new(facts, capabilities, calls.is_empty()),
            wasi: wasi.build(),
            table,
            limit: InstanceLimit::of(limits),
            cpu: Arc::new(Mutex::new(CpuBudget::new(limits.cpu))),
            output,
            facts: facts.clone(),
            capabilities: capabilities.clone(),
            topic: calls.first().map(|call| call.message.topic.clone()),
            members: calls.iter().map(Member::of).collect(),
            buffer: Buffer::default(),
            mails: Vec::new(),
        })
    }

    /// What is to follow the message at this place.
    pub(super) fn publications_of(&mut self, place: usize) -> Vec<Publication> {
        self.members.get_mut(place).map(|member| std::mem::take(&mut member.publications)).unwrap_or_default()
    }

    /// Writes what the guest printed to the log.
    pub(super) fn log_output(&self) -> String {
        let (printed, was_cut) = self.output.take();
        let printed = if was_cut {
            self.facts.struck.strike_cut(&printed)
        } else {
            self.facts.struck.strike(&printed).into_owned()
        };
        for line in printed.lines() {
            self.log_line(logging::Level::Info, line, &[]);
        }
        if was_cut {
            self.facts.log.drop_line();
        }
        self.facts.tell_dropped(self.facts.log.dropped_by_now());
        printed
    }
}

impl Member {
    fn of(call: &Call) -> Self {
        let message = &call.message;
        Self { id: message.id.clone(), entry: call.entry.clone(), hops: message.hops, publications: Vec::new() }
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
    http::add_to_linker(&mut linker)?;
    FullHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    Ok(linker)
}
