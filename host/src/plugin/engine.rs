//! Wasmtime's engine, one per process, with the linkers and the epoch ticker.

use super::budgets::{FileBudget, MemoryBudget};
use super::call_permits::{CALLS_MAX, CallPermit, CallPermits, LOAD_CHECKS_MAX, PLUGIN_CALLS_MAX};
use super::compile::{CompileError, Compiler};
use super::cpu::{self, TICK};
use super::guest::{self, Guest};
use super::program::Compiled;
use super::quotas::{PluginQuota, Quotas};
use crate::capability::Capabilities;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{
    Config, Enabled, InstancePre as ModulePre, Linker as ModuleLinker, Module, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

/// The ticker parks after this many ticks without a call, so that an idle worker
/// does not wake the CPU.
const IDLE_TICKS: u32 = 20;

/// Idle pooled instances of all plugins. They are counted in addition to running
/// ones, so that they take no capacity from them.
const IDLE_INSTANCES_MAX: u32 = 256;

const INSTANCES_MAX: u32 = CALLS_MAX + IDLE_INSTANCES_MAX + LOAD_CHECKS_MAX;

/// Core instances in one component: a Rust handler has three or four. The pool
/// reserves no memory for them, so every component may have this many.
const CORE_INSTANCES_MAX: u32 = 64;

/// The memories and tables that one permit covers; a call that needs more takes several.
const MEMORIES_PER_CALL: u32 = 2;
const TABLES_PER_CALL: u32 = 4;

/// Memory that a pool slot keeps resident between instances: returning it to the
/// kernel is the largest cost of a fresh instance.
const KEEP_RESIDENT_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the WebAssembly engine can't be created: {0}")]
    Engine(String),
    #[error("the thread that interrupts handlers can't be started: {0}")]
    Ticker(#[from] io::Error),
}

impl From<wasmtime::Error> for EngineError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Engine(format!("{error:#}"))
    }
}

/// The resources that handlers may use.
pub struct EngineResources {
    /// Threads of the runtime that runs handlers.
    pub threads: usize,
    /// Bytes for the memories of all handlers together.
    pub memory: u64,
    /// Files that the whole process may have open.
    pub open_files: u64,
    /// Runs load checks; without it they run on the runtime that loads plugins.
    pub runtime: Option<Handle>,
}

/// Clones share one engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<Guest>,
    module_linker: ModuleLinker<Guest>,
    compiler: Compiler,
    capabilities: Arc<Capabilities>,
    call_permits: CallPermits,
    idle_instance_permits: Arc<Semaphore>,
    cpu_permits: Arc<Semaphore>,
    /// Separate, so that running handlers do not fail a load check.
    load_check_cpu_permits: Arc<Semaphore>,
    quotas: Quotas,
    runtime: Option<Handle>,
    /// Whether there was a call since the last tick. Every thread reads it for each
    /// call, so it is written only once per tick.
    was_called: AtomicBool,
    ticker: OnceLock<Thread>,
    is_parked: AtomicBool,
}

impl Engine {
    /// `threads` is the number of threads that run handlers.
    pub fn new(capabilities: Capabilities, compiler: Compiler, threads: usize) -> Result<Self, EngineError> {
        Self::with_resources(
            capabilities,
            compiler,
            EngineResources { threads, memory: u64::MAX, open_files: u64::MAX, runtime: None },
        )
    }

    pub fn with_resources(
        capabilities: Capabilities,
        compiler: Compiler,
        resources: EngineResources,
    ) -> Result<Self, EngineError> {
        let engine = wasmtime::Engine::new(config().allocation_strategy(pool()))?;
        let inner = Arc::new(Inner {
            linker: guest::linker(&engine)?,
            module_linker: guest::module_linker(&engine)?,
            engine,
            compiler,
            capabilities: Arc::new(capabilities),
            call_permits: CallPermits::new(),
            idle_instance_permits: Arc::new(Semaphore::new(IDLE_INSTANCES_MAX as usize)),
            cpu_permits: cpu::permits(resources.threads),
            load_check_cpu_permits: cpu::permits(1),
            quotas: Quotas::new(
                PLUGIN_CALLS_MAX,
                Arc::new(MemoryBudget::new(resources.memory)),
                Arc::new(FileBudget::for_process(resources.open_files)),
            ),
            runtime: resources.runtime,
            was_called: AtomicBool::new(false),
            ticker: OnceLock::new(),
            is_parked: AtomicBool::new(false),
        });
        // A thread, not a task: while all threads of a runtime are busy in guests, no
        // task could make them yield.
        let weak = Arc::downgrade(&inner);
        let thread = thread::Builder::new().name("epoch-ticker".to_owned()).spawn(move || tick(&weak))?;
        let _ = inner.ticker.set(thread.thread().clone());
        Ok(Self(inner))
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    /// Permits for guests that have used their first time slice.
    pub(super) fn cpu_permits(&self, is_load_check: bool) -> &Arc<Semaphore> {
        if is_load_check { &self.0.load_check_cpu_permits } else { &self.0.cpu_permits }
    }

    /// The runtime that runs handlers, if it is a separate one.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.0.runtime.as_ref()
    }

    /// The quota that all versions of a plugin share.
    pub(super) fn quota(&self, plugin: &str) -> Arc<PluginQuota> {
        self.0.quotas.of_plugin(plugin)
    }

    pub(super) fn capabilities(&self) -> &Arc<Capabilities> {
        &self.0.capabilities
    }

    /// Takes a millisecond if the result is cached, and up to minutes otherwise.
    pub(super) async fn compile(&self, wasm: &Arc<[u8]>) -> Result<Compiled, CompileError> {
        self.0.compiler.compiled(&self.0.engine, wasm).await
    }

    pub(super) fn link(&self, component: &Component) -> wasmtime::Result<InstancePre<Guest>> {
        self.0.linker.instantiate_pre(component)
    }

    pub(super) fn link_module(&self, module: &Module) -> wasmtime::Result<ModulePre<Guest>> {
        self.0.module_linker.instantiate_pre(module)
    }

    /// Permits for idle pooled instances.
    pub(super) fn idle_instance_permits(&self) -> &Arc<Semaphore> {
        &self.0.idle_instance_permits
    }

    /// A permit for a call, or without a quota for a load check. The epoch ticks
    /// while it exists. `None` after a timeout.
    pub(super) async fn acquire_call_permit<'a>(
        &'a self,
        quota: Option<&'a PluginQuota>,
        weight: u32,
    ) -> Option<CallPermit<'a>> {
        let permit = match quota {
            Some(quota) => self.0.call_permits.acquire(quota, weight).await?,
            None => self.0.call_permits.acquire_for_load_check(weight).await?,
        };
        if !self.0.was_called.load(Ordering::SeqCst) {
            self.0.was_called.store(true, Ordering::SeqCst);
        }
        if self.0.is_parked.load(Ordering::SeqCst)
            && let Some(ticker) = self.0.ticker.get()
        {
            ticker.unpark();
        }
        Some(permit)
    }
}

/// How many permits a call of this program takes.
pub(super) fn weight(compiled: &Compiled) -> u32 {
    let needed = match compiled {
        Compiled::Component(component) => component.resources_required(),
        Compiled::Module(module) => Some(module.resources_required()),
    };
    needed.map_or(1, |needed| {
        let (memories, tables) = (needed.num_memories, needed.num_tables);
        memories.div_ceil(MEMORIES_PER_CALL).max(tables.div_ceil(TABLES_PER_CALL)).max(1)
    })
}

/// The configuration that affects compiled code. The compiler process uses it too,
/// without the pool.
pub(super) fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // Guests use WASI 0.2; support for 0.3 would double the cost of a call.
        .concurrency_support(false)
        // Copying a 64-bit memory could take longer than any limit.
        .wasm_memory64(false)
        // The resource limiter does not see shared memories.
        .shared_memory(false)
        // No guest can read its stack. Zeroing it would make a call a third more
        // expensive and cause contention in the kernel. Therefore pages that deep
        // calls have touched stay resident, up to half a MiB per stack.
        .async_stack_zeroing(false)
        // Otherwise an environment variable decides.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16));
    config
}

/// The allocation of instances in the worker.
fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES_MAX)
        .total_core_instances(INSTANCES_MAX * CORE_INSTANCES_MAX)
        .total_memories(INSTANCES_MAX * MEMORIES_PER_CALL)
        .total_tables(INSTANCES_MAX * TABLES_PER_CALL)
        .total_stacks(INSTANCES_MAX)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(16)
        .max_tables_per_component(32)
        .max_memories_per_module(2)
        .max_tables_per_module(4)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .table_elements(100_000)
        .max_unused_warm_slots(INSTANCES_MAX)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto);
    pool
}

fn tick(engine: &Weak<Inner>) {
    let mut idle = 0;
    loop {
        thread::sleep(TICK);
        let Some(inner) = engine.upgrade() else { return };
        inner.engine.increment_epoch();
        let is_idle = !inner.was_called.swap(false, Ordering::SeqCst) && inner.call_permits.is_idle();
        idle = if is_idle { idle + 1 } else { 0 };
        if idle < IDLE_TICKS {
            continue;
        }
        idle = 0;
        inner.is_parked.store(true, Ordering::SeqCst);
        // A call that read this flag before it was set does not unpark the ticker;
        // the loop sees that call in `was_called`.
        while !inner.was_called.load(Ordering::SeqCst) && Arc::strong_count(&inner) > 1 {
            thread::park_timeout(Duration::from_secs(1));
        }
        inner.is_parked.store(false, Ordering::SeqCst);
    }
}
