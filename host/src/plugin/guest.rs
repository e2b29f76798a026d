//! The state of one call, and what it is linked to. Everything is always
//! linked, since whole languages import all of it; what the manifest does not
//! grant is denied at the call.

use super::bindings::{FullHandler, logging};
use super::call::Call;
use super::command::{self, WASI_P1};
use super::component::Facts;
use super::cpu::CpuBudget;
use super::folders;
use super::http::{self, Http};
use super::imports::publisher::Buffer;
use super::limits::InstanceLimit;
use super::open_files::{self, OpenFiles};
use super::output::{Output, Printed};
use super::shares::Share;
use crate::publication::Publication;
use crate::topic::Topic;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};

/// As much CPU time as a version has that is only tried out: others wait to be
/// loaded.
const TRIAL_CPU_MAX: Duration = Duration::from_secs(2);

/// What a guest may draw in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// What is in a store: what lives as long as the instance, and what is new for
/// each run.
pub(super) struct Guest {
    // Before the tables, so that what is still on its way learns that it is over.
    pub(super) run: Run,
    pub(super) wasi: WasiP1Ctx,
    pub(super) limit: InstanceLimit,
    pub(super) files: OpenFiles,
    pub(super) output: Output,
    pub(super) facts: Arc<Facts>,
}

/// What one run has, and has used up so far.
pub(super) struct Run {
    pub(super) http: Http,
    pub(super) cpu: Arc<Mutex<CpuBudget>>,
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
    /// Fails where a folder that was granted is gone, or can't be opened now.
    pub(super) fn new(facts: &Arc<Facts>, share: &Arc<Share>, calls: &[Call]) -> Result<Self, String> {
        let limits = &facts.manifest.limits;
        let files = OpenFiles::with(share, facts.manifest.grants.folders())?;
        let (output, errors) = Output::pair();
        // Nothing is inherited: no environment, no arguments, no files, no network.
        let mut wasi = WasiCtx::builder();
        wasi.stdout(output.clone()).stderr(errors).max_random_size(RANDOM_BYTES_MAX);
        folders::open(&mut wasi, &facts.manifest.grants)?;
        if let Some(call) = calls.first().filter(|_| facts.is_command) {
            command::equip(&mut wasi, facts, &call.message, call.max_attempts);
        }
        let mut wasi = wasi.build_p1();
        // A handle of the guest's may stand for two things of the host's: a
        // clock's is something to wait for, and the moment that it waits for.
        WasiView::ctx(&mut wasi).table.set_max_capacity(2 * limits.resources as usize);
        Ok(Self {
            run: Run::new(facts, calls),
            wasi,
            limit: InstanceLimit::of(limits, share),
            files,
            output,
            facts: facts.clone(),
        })
    }

    /// Forgets the run before, for another one in the same instance.
    pub(super) fn begin(&mut self, calls: &[Call]) {
        self.run = Run::new(&self.facts, calls);
        self.limit.begin();
    }

    /// What is to follow the message at this place.
    pub(super) fn publications_of(&mut self, place: usize) -> Vec<Publication> {
        self.run.members.get_mut(place).map(|member| std::mem::take(&mut member.publications)).unwrap_or_default()
    }

    /// Writes what the guest printed to the log. Returns what may say why it
    /// failed: what is on stderr, else on stdout.
    pub(super) fn log_output(&self) -> String {
        let Printed { text, errors, was_cut } = self.output.take();
        let safe = |bytes: &[u8]| {
            let printed = String::from_utf8_lossy(bytes);
            if was_cut {
                self.facts.struck.strike_cut(&printed)
            } else {
                self.facts.struck.strike(&printed).into_owned()
            }
        };
        let (text, errors) = (safe(&text), safe(&errors));
        for line in text.lines().chain(errors.lines()) {
            self.log_line(logging::Level::Info, line, &[]);
        }
        if was_cut {
            self.facts.log.drop_line();
        }
        self.facts.tell_dropped(self.facts.log.dropped_by_now());
        if errors.trim().is_empty() { text } else { errors }
    }
}

impl Run {
    fn new(facts: &Arc<Facts>, calls: &[Call]) -> Self {
        let is_trial = calls.is_empty();
        let cpu_max = if is_trial { TRIAL_CPU_MAX } else { Duration::MAX };
        let cpu = CpuBudget::new(facts.manifest.limits.cpu.min(cpu_max));
        Self {
            http: Http::new(facts, is_trial),
            cpu: Arc::new(Mutex::new(cpu)),
            topic: calls.first().map(|call| call.message.topic.clone()),
            members: calls.iter().map(Member::of).collect(),
            buffer: Buffer::default(),
            mails: Vec::new(),
        }
    }

    pub(super) fn topic_name(&self) -> &str {
        self.topic.as_ref().map_or("", Topic::as_str)
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
        self.wasi.ctx()
    }
}

pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    http::add_to_linker(&mut linker)?;
    open_files::add_to_linker(&mut linker)?;
    FullHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
    Ok(linker)
}

/// The same for core modules.
pub(super) fn module_linker(engine: &wasmtime::Engine) -> wasmtime::Result<wasmtime::Linker<Guest>> {
    let mut linker = wasmtime::Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |guest: &mut Guest| &mut guest.wasi)?;
    // The crate's own makes a fault of codes from 126 on, which programs do use.
    linker.allow_shadowing(true);
    linker.func_wrap(WASI_P1, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) })?;
    linker.allow_shadowing(false);
    open_files::add_to_module_linker(&mut linker)?;
    Ok(linker)
}

#[cfg(test)]
impl Guest {
    /// One that is only tried out.
    pub(super) fn under(manifest: &str) -> Self {
        use super::budgets::{FileBudget, MemoryBudget};
        let facts = Facts {
            name: "a".to_owned(),
            manifest: crate::manifest::Manifest::parse(manifest, "a").unwrap(),
            is_command: false,
            log: super::output::LogBudget::new(1 << 20),
            http: http::Outbound::new(),
            struck: super::struck::Struck::default(),
            capabilities: Arc::default(),
        };
        let (memory, files) = (MemoryBudget::new(u64::MAX), FileBudget::of(u64::MAX));
        let share = super::shares::Shares::of(1, Arc::new(memory), Arc::new(files)).share("a");
        Self::new(&Arc::new(facts), &share, &[]).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Secret;
    use wasmtime_wasi::p2::OutputStream as _;

    /// Whatever its manifest allows to its messages.
    #[test]
    fn who_is_tried_out_has_little_cpu_time() {
        for (written, given) in [("1h", TRIAL_CPU_MAX), ("1s", Duration::from_secs(1))] {
            let guest = Guest::under(&format!("limits = {{ cpu = \"{written}\" }}"));
            assert_eq!(guest.run.cpu.lock().unwrap().limit(), given);
        }
    }

    #[test]
    fn what_was_printed_may_be_cut_within_a_secret() {
        let mut guest = Guest::under("");
        guest.facts.struck.learn("KEY", &Secret::new("sesame!open".to_owned()));
        guest.output.write(vec![b'x'; (16 << 10) - 6].into()).unwrap();
        guest.output.write("sesame!open".into()).unwrap();
        let told = guest.log_output();
        assert!(told.ends_with("x[secret:KEY]"), "{}", &told[told.len() - 20..]);
    }
}
