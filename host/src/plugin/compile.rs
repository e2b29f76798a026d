//! Compiling apart: in a process of its own, which may be ended when it takes
//! too long or too much, and whose memory is gone afterwards. (It is no wall
//! against a faulty compiler: what it writes runs here.)

use super::cache::{self, ARTIFACT_BYTES_MAX, Cache, Key};
use super::engine;
use super::load_error::{Cause, LoadError};
use super::program::Compiled;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};
use std::io::{self, Read, Write};
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// The hidden command of our own program that compiles.
const COMMAND: &str = "compile-component";
/// Its exit code for what is no component.
const INVALID: u8 = 65;
const TOLD_BYTES_MAX: u64 = 16 << 10;

/// What compiling one component may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct CompileLimits {
    /// Bytes of address space
    #[arg(long)]
    pub memory: u64,
    /// Seconds of CPU time
    #[arg(long)]
    pub cpu: u64,
    #[arg(skip)]
    pub wall: Duration,
}

impl Default for CompileLimits {
    /// Some ten times what a whole Python interpreter takes.
    fn default() -> Self {
        Self { memory: 4 << 30, cpu: 240, wall: Duration::from_secs(300) }
    }
}

/// Why there is no component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("not valid WebAssembly (is it complete?): {0}")]
    Invalid(String),
    #[error("it needs threads, and this host has none: build it for wasm32-wasip2 or wasm32-wasip1, without threads")]
    Threads,
    /// Of CPU time, which is the component's doing.
    #[error("it takes too long to compile: more than {0}; is it built for release, and stripped?")]
    TooLong(String),
    /// By the clock, which is also the doing of what else runs.
    #[error("it takes too long to compile: more than {0}; is it built for release, and stripped?")]
    TooSlow(String),
    #[error("it takes too much memory to compile: more than {0}; is it built for release, and stripped?")]
    TooMuchMemory(String),
    #[error("the compiler crashed on it: {0}")]
    Crashed(String),
    /// It did not get as far as to judge.
    #[error("the compiler crashed on it: {0}")]
    Stopped(String),
    #[error("the compiler can't be started: {0}")]
    NotStarted(String),
}

impl CompileError {
    fn cause(&self) -> Cause {
        match self {
            Self::Invalid(_) | Self::Threads | Self::TooLong(_) | Self::TooMuchMemory(_) | Self::Crashed(_) => {
                Cause::Lasting
            }
            Self::TooSlow(_) | Self::Stopped(_) | Self::NotStarted(_) => Cause::Passing,
        }
    }

    /// What is whole and asks for what the engine is not to have is no broken
    /// file. Wasmtime has only words for it; a test holds them to us.
    fn of_invalid(told: &str) -> Self {
        let is_of_threads = ["threads must be enabled", "threads support is not enabled"].iter();
        if is_of_threads.into_iter().any(|words| told.contains(words)) {
            Self::Threads
        } else {
            Self::Invalid(told.to_owned())
        }
    }
}

impl From<CompileError> for LoadError {
    fn from(error: CompileError) -> Self {
        Self::of(&error.to_string(), error.cause())
    }
}

pub struct Compiler {
    program: PathBuf,
    limits: CompileLimits,
    cache: Option<Arc<Cache>>,
    /// One at a time: each may use all cores.
    room: Semaphore,
}

impl Compiler {
    pub fn new(cache: Option<Cache>) -> Self {
        // Also where the file has been replaced by a newer one since we started.
        Self::of(PathBuf::from("/proc/self/exe"), CompileLimits::default(), cache)
    }

    /// With another program than the one that runs.
    pub fn of(program: PathBuf, limits: CompileLimits, cache: Option<Cache>) -> Self {
        Self { program, limits, cache: cache.map(Arc::new), room: Semaphore::new(1) }
    }

    pub(super) async fn compiled(&self, engine: &wasmtime::Engine, wasm: &Arc<[u8]>) -> Result<Compiled, CompileError> {
        let known = self.kept(engine, wasm).await?;
        if let Some(compiled) = known {
            return Ok(compiled);
        }
        let Ok(_room) = self.room.acquire().await else {
            return Err(CompileError::NotStarted("the worker is ending".to_owned()));
        };
        let started = Instant::now();
        let artifact = self.compile(wasm).await?;
        tracing::debug!(bytes = artifact.len(), took = ?started.elapsed(), "compiled");
        let (engine, wasm, cache) = (engine.clone(), wasm.clone(), self.cache.clone());
        blocking(move || {
            let compiled = cache::compiled(&engine, &artifact).map_err(|error| unusable(&error))?;
            if let Some(cache) = cache {
                cache.put(&Key::of(&engine, &wasm), &artifact);
            }
            Ok(compiled)
        })
        .await
    }

    /// From the cache, where what is there is as it was put.
    async fn kept(&self, engine: &wasmtime::Engine, wasm: &Arc<[u8]>) -> Result<Option<Compiled>, CompileError> {
        let Some(cache) = self.cache.clone() else { return Ok(None) };
        let (engine, wasm) = (engine.clone(), wasm.clone());
        blocking(move || {
            let Some(artifact) = cache.get(&Key::of(&engine, &wasm)) else { return Ok(None) };
            Ok(cache::compiled(&engine, &artifact)
                .inspect_err(|error| {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "a compiled plugin in the cache can't be used; it is compiled again"
                    )
                })
                .ok())
        })
        .await
    }

    async fn compile(&self, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
        let not_started = |error: io::Error| CompileError::NotStarted(format!("{}: {error}", self.program.display()));
        let mut child = self.command().spawn().map_err(not_started)?;
        let talked = tokio::time::timeout(self.limits.wall, talk(&mut child, wasm)).await;
        let Ok(talked) = talked else {
            // It was asked nothing that it could refuse: this waits, too.
            let _ = child.kill().await;
            return Err(CompileError::TooSlow(humantime::format_duration(self.limits.wall).to_string()));
        };
        let (status, artifact, told) = talked.map_err(not_started)?;
        if status.success() { Ok(artifact) } else { Err(self.failure(status, &told)) }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(COMMAND)
            .args(["--memory", &self.limits.memory.to_string(), "--cpu", &self.limits.cpu.to_string()])
            // No secrets of ours; and little address space that is only reserved.
            .env_clear()
            .envs([("TOKIO_WORKER_THREADS", "1"), ("MALLOC_ARENA_MAX", "2")])
            .current_dir("/")
            // A Ctrl-C in a terminal is for us: we drain.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn failure(&self, status: ExitStatus, told: &str) -> CompileError {
        /// Its own code for a fault of the system's: a pipe, a limit.
        const FAILED: i32 = 1;
        const ABORT: i32 = 6;
        const KILL: i32 = 9;
        /// What people and supervisors end processes with.
        const ENDED: [i32; 3] = [1, 2, 15];
        const CPU: i32 = 24;
        let memory = || CompileError::TooMuchMemory(bytesize::ByteSize(self.limits.memory).to_string());
        let is_out_of_memory =
            ["Cannot allocate memory", "Resource temporarily unavailable"].iter().any(|words| told.contains(words));
        match (status.code(), status.signal()) {
            (_, Some(ABORT)) if told.contains("memory allocation of") => memory(),
            (Some(_), _) if is_out_of_memory => memory(),
            (Some(code), _) if code == i32::from(INVALID) => CompileError::of_invalid(told),
            (_, Some(CPU)) => CompileError::TooLong(format!("{}s of CPU time", self.limits.cpu)),
            (_, Some(KILL)) => {
                CompileError::Stopped("it was killed, as the kernel does when memory is short".to_owned())
            }
            (_, Some(signal)) if ENDED.contains(&signal) => CompileError::Stopped(status.to_string()),
            (Some(FAILED), _) => CompileError::Stopped(format!("{status}: {told}").trim_end_matches(": ").to_owned()),
            _ => CompileError::Crashed(format!("{status}: {told}").trim_end_matches(": ").to_owned()),
        }
    }
}

/// The system may have had no room for it.
fn unusable(error: &wasmtime::Error) -> CompileError {
    let told = format!("what it wrote can't be used: {error:#}");
    let is_of_system = error.chain().any(|cause| cause.is::<io::Error>() || cause.is::<Errno>());
    if is_of_system { CompileError::Stopped(told) } else { CompileError::Crashed(told) }
}

/// Hands it the component, and takes what it has to say.
async fn talk(child: &mut Child, wasm: &[u8]) -> io::Result<(ExitStatus, Vec<u8>, String)> {
    let missing = || io::Error::other("no pipe");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let (mut artifact, mut told) = (Vec::new(), Vec::new());
    let write = async move {
        // One that has ended says by itself why.
        let _ = stdin.write_all(wasm).await;
    };
    let read = async { stdout.take(ARTIFACT_BYTES_MAX).read_to_end(&mut artifact).await };
    let read_told = async { stderr.take(TOLD_BYTES_MAX).read_to_end(&mut told).await };
    let ((), read, read_told) = tokio::join!(write, read, read_told);
    read?;
    read_told?;
    let status = child.wait().await?;
    Ok((status, artifact, String::from_utf8_lossy(&told).trim().to_owned()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompileError> + Send + 'static,
) -> Result<T, CompileError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(CompileError::Crashed(error.to_string())))
}

/// The other side: compiles what comes in on `input` and writes it to
/// `output`, within limits that it sets itself. The number is its exit code.
pub fn compile_here(limits: &CompileLimits, mut input: impl Read, mut output: impl Write) -> Result<(), (u8, String)> {
    let failed = |error: io::Error| (1, error.to_string());
    confine(limits).map_err(failed)?;
    let mut wasm = Vec::new();
    input.read_to_end(&mut wasm).map_err(failed)?;
    let wrong = |error: wasmtime::Error| format!("{error:#}");
    let engine = wasmtime::Engine::new(&engine::config()).map_err(|error| (1, wrong(error)))?;
    let artifact =
        if is_component(&wasm) { engine.precompile_component(&wasm) } else { engine.precompile_module(&wasm) };
    let artifact = artifact.map_err(|error| (INVALID, wrong(error)))?;
    output.write_all(&artifact).and_then(|()| output.flush()).map_err(failed)
}

/// A component's layer is 1, that of a core module 0.
fn is_component(wasm: &[u8]) -> bool {
    wasm.get(6) == Some(&1)
}

fn confine(limits: &CompileLimits) -> io::Result<()> {
    let parent = parent_id();
    // Nobody is left to read it when the worker is gone.
    std::thread::Builder::new().name("parent-watch".to_owned()).spawn(move || {
        while parent_id() == parent {
            std::thread::sleep(Duration::from_secs(1));
        }
        std::process::exit(1);
    })?;
    let limit = |resource, current: u64, maximum: u64| {
        // What the whole service was limited to can't be raised.
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        setrlimit(resource, Rlimit { current: Some(current.min(most)), maximum: Some(maximum.min(most)) })
    };
    limit(Resource::Core, 0, 0)?;
    limit(Resource::As, limits.memory, limits.memory)?;
    limit(Resource::Cpu, limits.cpu, limits.cpu + 1)?;
    // Messages go first, and where memory is short this is what to end. Both
    // are only asked for: a container may not have them.
    let _ = nice(5);
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}
