//! The state of an instance and of its current run, and the linker. All interfaces
//! are always linked, because language runtimes import all of them; a call that the
//! manifest does not grant is denied.

use super::bindings::FullHandler;
use super::call::Job;
use super::command::{self, WASI_P1};
use super::component::PluginContext;
use super::cpu::CpuBudget;
use super::http::{self, Http};
use super::imports::publisher::Buffer;
use super::memory::InstanceLimiter;
use super::open_files::{self, OpenFiles};
use super::output::Output;
use super::preopens;
use super::quotas::PluginQuota;
use crate::publication::Publication;
use crate::run_span::RunSpan;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};

/// CPU time of a load check: other versions wait to be loaded.
const LOAD_CHECK_CPU_MAX: Duration = Duration::from_secs(2);

/// Upper bound for one call of `wasi:random`.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// The data of a store. `run` is replaced for each run; the other fields live as
/// long as the instance.
pub(super) struct Guest {
    // Dropped before the resource table, so that request bodies that are still
    // being sent see the end of the run.
    pub(super) run: RunState,
    pub(super) wasi: WasiP1Ctx,
    pub(super) limit: InstanceLimiter,
    pub(super) files: OpenFiles,
    pub(super) output: Output,
    pub(super) context: Arc<PluginContext>,
}

/// The state of one run.
pub(super) struct RunState {
    pub(super) http: Http,
    pub(super) cpu: Arc<Mutex<CpuBudget>>,
    /// `None` for a load check.
    pub(super) span: Option<RunSpan>,
    pub(super) items: Vec<BatchItem>,
    pub(super) buffer: Buffer,
    /// A hash of the recipients of each mail sent so far.
    pub(super) mails: Vec<String>,
}

/// A message of this run, with the publications that follow it.
pub(super) struct BatchItem {
    pub(super) id: String,
    pub(super) entry: String,
    pub(super) hops: u32,
    pub(super) publications: Vec<Publication>,
}

impl Guest {
    /// Fails if a granted directory is missing or can't be opened.
    pub(super) fn new(context: &Arc<PluginContext>, quota: &Arc<PluginQuota>, jobs: &[Job]) -> Result<Self, String> {
        let limits = &context.manifest.limits;
        let files = OpenFiles::new(quota, context.manifest.grants.folders())?;
        let (output, errors) = Output::pair(context, jobs.first().map(|job| job.span.clone()));
        // Inherits no environment, arguments, files or network.
        let mut wasi = WasiCtx::builder();
        wasi.stdout(output.clone()).stderr(errors).max_random_size(RANDOM_BYTES_MAX);
        preopens::open(&mut wasi, &context.manifest.grants)?;
        if let Some(job) = jobs.first().filter(|_| context.is_command) {
            command::configure(&mut wasi, context, &job.message, job.max_attempts);
        }
        let mut wasi = wasi.build_p1();
        // A resource of the guest may use two table entries of the host: a timer
        // is a pollable and its deadline.
        WasiView::ctx(&mut wasi).table.set_max_capacity(2 * limits.resources as usize);
        Ok(Self {
            run: RunState::new(context, jobs),
            wasi,
            limit: InstanceLimiter::new(limits, quota),
            files,
            output,
            context: context.clone(),
        })
    }

    /// Replaces the state of the previous run in this instance.
    pub(super) fn begin_run(&mut self, jobs: &[Job]) {
        self.run = RunState::new(&self.context, jobs);
        self.output.begin_run(self.run.span.clone());
        self.limit.begin_run();
    }

    /// Takes the publications that follow the message at this index.
    pub(super) fn publications_of(&mut self, index: usize) -> Vec<Publication> {
        self.run.items.get_mut(index).map(|item| std::mem::take(&mut item.publications)).unwrap_or_default()
    }
}

impl RunState {
    fn new(context: &Arc<PluginContext>, jobs: &[Job]) -> Self {
        let is_load_check = jobs.is_empty();
        let cpu_max = if is_load_check { LOAD_CHECK_CPU_MAX } else { Duration::MAX };
        let cpu = CpuBudget::new(context.manifest.limits.cpu.min(cpu_max));
        Self {
            http: Http::new(context, jobs.first().map(|job| job.span.clone())),
            cpu: Arc::new(Mutex::new(cpu)),
            span: jobs.first().map(|job| job.span.clone()),
            items: jobs.iter().map(BatchItem::new).collect(),
            buffer: Buffer::default(),
            mails: Vec::new(),
        }
    }

    pub(super) fn topic_name(&self) -> &str {
        self.span.as_ref().map_or("", |span| span.topic().as_str())
    }

    /// Logs with the fields of the run; a load check has none.
    pub(super) fn in_span<T>(&self, log: impl FnOnce() -> T) -> T {
        match &self.span {
            Some(span) => span.in_scope(log),
            None => log(),
        }
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

/// The linker for core modules.
pub(super) fn module_linker(engine: &wasmtime::Engine) -> wasmtime::Result<wasmtime::Linker<Guest>> {
    let mut linker = wasmtime::Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |guest: &mut Guest| &mut guest.wasi)?;
    // The implementation of the crate traps on exit codes above 125, which
    // programs use.
    linker.allow_shadowing(true);
    linker.func_wrap(WASI_P1, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) })?;
    linker.allow_shadowing(false);
    open_files::add_to_module_linker(&mut linker)?;
    Ok(linker)
}

#[cfg(test)]
impl Guest {
    /// A guest of a load check.
    pub(super) fn for_test(manifest: &str) -> Self {
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

    #[test]
    fn a_load_check_has_little_cpu_time_whatever_the_manifest_allows() {
        for (written, given) in [("1h", LOAD_CHECK_CPU_MAX), ("1s", Duration::from_secs(1))] {
            let guest = Guest::for_test(&format!("limits = {{ cpu = \"{written}\" }}"));
            assert_eq!(guest.run.cpu.lock().unwrap().limit(), given);
        }
    }

    #[test]
    fn a_secret_at_the_end_of_truncated_output_is_redacted() {
        let mut guest = Guest::for_test("");
        guest.context.redactor.add("KEY", &Secret::new("sesame!open".to_owned()));
        guest.output.write(vec![b'x'; (16 << 10) - 6].into()).unwrap();
        guest.output.write("sesame!open".into()).unwrap();
        let output = guest.output.end();
        assert!(output.ends_with("x[secret:KEY]"), "{}", &output[output.len() - 20..]);
    }
}
