//! The state of one call, and what it is linked to. Everything is always
//! linked, since whole languages import all of it; what the manifest does not
//! grant is denied at the call.

use super::bindings::{FullHandler, logging};
use super::call::Job;
use super::command::{self, WASI_P1};
use super::component::PluginContext;
use super::cpu::CpuBudget;
use super::http::{self, Http};
use super::imports::publisher::Buffer;
use super::memory::InstanceLimiter;
use super::open_files::{self, OpenFiles};
use super::output::{CapturedOutput, Output};
use super::preopens;
use super::quotas::PluginQuota;
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
    pub(super) run: RunState,
    pub(super) wasi: WasiP1Ctx,
    pub(super) limit: InstanceLimiter,
    pub(super) files: OpenFiles,
    pub(super) output: Output,
    pub(super) context: Arc<PluginContext>,
}

/// What one run has, and has used up so far.
pub(super) struct RunState {
    pub(super) http: Http,
    pub(super) cpu: Arc<Mutex<CpuBudget>>,
    /// None where it is only tried out.
    pub(super) topic: Option<Topic>,
    pub(super) items: Vec<BatchItem>,
    /// What it has published so far.
    pub(super) buffer: Buffer,
    /// To whom it has sent mails so far.
    pub(super) mails: Vec<String>,
}

/// A message of this call, and what is to follow it.
pub(super) struct BatchItem {
    pub(super) id: String,
    pub(super) entry: String,
    pub(super) hops: u32,
    pub(super) publications: Vec<Publication>,
}

impl Guest {
    /// Fails where a folder that was granted is gone, or can't be opened now.
    pub(super) fn new(context: &Arc<PluginContext>, quota: &Arc<PluginQuota>, jobs: &[Job]) -> Result<Self, String> {
        let limits = &context.manifest.limits;
        let files = OpenFiles::new(quota, context.manifest.grants.folders())?;
        let (output, errors) = Output::pair();
        // Nothing is inherited: no environment, no arguments, no files, no network.
        let mut wasi = WasiCtx::builder();
        wasi.stdout(output.clone()).stderr(errors).max_random_size(RANDOM_BYTES_MAX);
        preopens::open(&mut wasi, &context.manifest.grants)?;
        if let Some(job) = jobs.first().filter(|_| context.is_command) {
            command::configure(&mut wasi, context, &job.message, job.max_attempts);
        }
        let mut wasi = wasi.build_p1();
        // A handle of the guest's may stand for two things of the host's: a
        // clock's is something to wait for, and the moment that it waits for.
        WasiView::ctx(&mut wasi).table.set_max_capacity(2 * limits.handles as usize);
        Ok(Self {
            run: RunState::new(context, jobs),
            wasi,
            limit: InstanceLimiter::new(limits, quota),
            files,
            output,
            context: context.clone(),
        })
    }

    /// Forgets the run before, for another one in the same instance.
    pub(super) fn begin_run(&mut self, jobs: &[Job]) {
        self.run = RunState::new(&self.context, jobs);
        self.limit.begin_run();
    }

    /// What is to follow the message at this index.
    pub(super) fn publications_of(&mut self, index: usize) -> Vec<Publication> {
        self.run.items.get_mut(index).map(|item| std::mem::take(&mut item.publications)).unwrap_or_default()
    }

    /// Writes what the guest printed to the log. Returns what may say why it
    /// failed: what is on stderr, else on stdout.
    pub(super) fn log_output(&self) -> String {
        let CapturedOutput { text, errors, was_truncated } = self.output.take();
        let safe = |bytes: &[u8]| {
            let printed = String::from_utf8_lossy(bytes);
            if was_truncated {
                self.context.redactor.redact_truncated(&printed)
            } else {
                self.context.redactor.redact(&printed).into_owned()
            }
        };
        let (text, errors) = (safe(&text), safe(&errors));
        for line in text.lines().chain(errors.lines()) {
            self.log_line(logging::Level::Info, line, &[]);
        }
        if was_truncated {
            self.context.log.drop_line();
        }
        self.context.warn_of_dropped(self.context.log.take_dropped_if_due());
        if errors.trim().is_empty() { text } else { errors }
    }
}

impl RunState {
    fn new(context: &Arc<PluginContext>, jobs: &[Job]) -> Self {
        let is_trial = jobs.is_empty();
        let cpu_max = if is_trial { TRIAL_CPU_MAX } else { Duration::MAX };
        let cpu = CpuBudget::new(context.manifest.limits.cpu.min(cpu_max));
        Self {
            http: Http::new(context, is_trial),
            cpu: Arc::new(Mutex::new(cpu)),
            topic: jobs.first().map(|job| job.message.topic.clone()),
            items: jobs.iter().map(BatchItem::new).collect(),
            buffer: Buffer::default(),
            mails: Vec::new(),
        }
    }

    pub(super) fn topic_name(&self) -> &str {
        self.topic.as_ref().map_or("", Topic::as_str)
    }
}

impl BatchItem {
    fn new(job: &Job) -> Self {
        let message = &job.message;
        Self { id: message.id.clone(), entry: job.entry.clone(), hops: message.hops, publications: Vec::new() }
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
        let context = PluginContext {
            name: "a".to_owned(),
            manifest: crate::manifest::Manifest::parse(manifest, "a").unwrap(),
            is_command: false,
            log: super::output::LogBudget::new(1 << 20),
            http: http::Outbound::new(),
            redactor: super::redact::Redactor::default(),
            capabilities: Arc::default(),
        };
        let (memory, files) = (MemoryBudget::new(u64::MAX), FileBudget::for_process(u64::MAX));
        let quota = super::quotas::Quotas::new(1, Arc::new(memory), Arc::new(files)).of_plugin("a");
        Self::new(&Arc::new(context), &quota, &[]).unwrap()
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
        guest.context.redactor.add("KEY", &Secret::new("sesame!open".to_owned()));
        guest.output.write(vec![b'x'; (16 << 10) - 6].into()).unwrap();
        guest.output.write("sesame!open".into()).unwrap();
        let told = guest.log_output();
        assert!(told.ends_with("x[secret:KEY]"), "{}", &told[told.len() - 20..]);
    }
}
