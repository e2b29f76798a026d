//! Compiles in a child process, so that compiling can be killed when it exceeds
//! its limits, and its memory is freed afterwards. (This is no protection from a
//! compromised compiler, since its output runs in this process.)

use super::cache::{self, ARTIFACT_BYTES_MAX, Cache, Key};
use super::engine;
use super::load_error::{LoadError, LoadErrorKind};
use super::program::Compiled;
use crate::events;
use crate::text::{size, span};
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

/// The first argument with which this program compiles.
pub const COMPILE_COMMAND: &str = "compile-component";
/// Its exit code for invalid WebAssembly.
const INVALID: u8 = 65;
const STDERR_BYTES_MAX: u64 = 16 << 10;

/// Limits for compiling one component.
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
    /// About ten times what a Python interpreter takes.
    fn default() -> Self {
        Self { memory: 4 << 30, cpu: 240, wall: Duration::from_secs(300) }
    }
}

/// Why compiling failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("not valid WebAssembly (is it complete?): {0}")]
    Invalid(String),
    #[error("it needs threads, and this host has none: build it for wasm32-wasip2 or wasm32-wasip1, without threads")]
    Threads,
    /// The limit of CPU time, which depends on the component alone.
    #[error("it takes too long to compile: more than {0}; is it built for release, and stripped?")]
    TooLong(String),
    /// The limit of wall-clock time, which also depends on the machine's load.
    #[error("it takes too long to compile: more than {0}; is it built for release, and stripped?")]
    TooSlow(String),
    #[error("it takes too much memory to compile: more than {0}; is it built for release, and stripped?")]
    TooMuchMemory(String),
    #[error("the compiler crashed on it: {0}")]
    Crashed(String),
    /// The compiler was ended before it had a result.
    #[error("the compiler crashed on it: {0}")]
    Stopped(String),
    #[error("the compiler can't be started: {0}")]
    NotStarted(String),
}

impl CompileError {
    fn kind(&self) -> LoadErrorKind {
        match self {
            Self::Invalid(_) | Self::Threads | Self::TooLong(_) | Self::TooMuchMemory(_) | Self::Crashed(_) => {
                LoadErrorKind::Permanent
            }
            Self::TooSlow(_) | Self::Stopped(_) | Self::NotStarted(_) => LoadErrorKind::Transient,
        }
    }

    /// A valid file that needs threads gets its own error. Wasmtime reports that
    /// only as text, so a test guards the wording.
    fn from_invalid(message: &str) -> Self {
        let needs_threads = ["threads must be enabled", "threads support is not enabled"].iter();
        if needs_threads.into_iter().any(|words| message.contains(words)) {
            Self::Threads
        } else {
            Self::Invalid(message.to_owned())
        }
    }
}

impl From<CompileError> for LoadError {
    fn from(error: CompileError) -> Self {
        Self::new(&error.to_string(), error.kind())
    }
}

pub struct Compiler {
    program: PathBuf,
    limits: CompileLimits,
    cache: Option<Arc<Cache>>,
    /// One compilation at a time, because each may use all cores.
    permit: Semaphore,
}

impl Compiler {
    pub fn new(cache: Option<Cache>) -> Self {
        // This path works even if the executable was replaced since the start.
        Self::with_program(PathBuf::from("/proc/self/exe"), CompileLimits::default(), cache)
    }

    pub fn with_program(program: PathBuf, limits: CompileLimits, cache: Option<Cache>) -> Self {
        Self { program, limits, cache: cache.map(Arc::new), permit: Semaphore::new(1) }
    }

    pub(super) async fn compiled(&self, engine: &wasmtime::Engine, wasm: &Arc<[u8]>) -> Result<Compiled, CompileError> {
        let cached = self.cached(engine, wasm).await?;
        if let Some(compiled) = cached {
            return Ok(compiled);
        }
        let Ok(_permit) = self.permit.acquire().await else {
            return Err(CompileError::NotStarted("the worker is stopping".to_owned()));
        };
        let started = Instant::now();
        let artifact = self.compile(wasm).await?;
        tracing::debug!(bytes = artifact.len(), took = ?started.elapsed(), "{}", events::COMPILED);
        let (engine, wasm, cache) = (engine.clone(), wasm.clone(), self.cache.clone());
        blocking(move || {
            let compiled = cache::compiled(&engine, &artifact).map_err(|error| unusable(&error))?;
            if let Some(cache) = cache {
                cache.put(&Key::new(&engine, &wasm), &artifact);
            }
            Ok(compiled)
        })
        .await
    }

    async fn cached(&self, engine: &wasmtime::Engine, wasm: &Arc<[u8]>) -> Result<Option<Compiled>, CompileError> {
        let Some(cache) = self.cache.clone() else { return Ok(None) };
        let (engine, wasm) = (engine.clone(), wasm.clone());
        blocking(move || {
            let Some(artifact) = cache.get(&Key::new(&engine, &wasm)) else { return Ok(None) };
            Ok(cache::compiled(&engine, &artifact)
                .inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "{}", events::ARTIFACT_DISCARDED))
                .ok())
        })
        .await
    }

    async fn compile(&self, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
        let not_started = |error: io::Error| CompileError::NotStarted(format!("{}: {error}", self.program.display()));
        let mut child = self.command().spawn().map_err(not_started)?;
        let exchanged = tokio::time::timeout(self.limits.wall, exchange(&mut child, wasm)).await;
        let Ok(exchanged) = exchanged else {
            // SIGKILL can't be ignored, so this wait ends.
            let _ = child.kill().await;
            return Err(CompileError::TooSlow(span(self.limits.wall)));
        };
        let (status, artifact, stderr) = exchanged.map_err(not_started)?;
        if status.success() { Ok(artifact) } else { Err(self.failure(status, &stderr)) }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(COMPILE_COMMAND)
            .args(["--memory", &self.limits.memory.to_string(), "--cpu", &self.limits.cpu.to_string()])
            // Hides the host's secrets, and reserves less address space.
            .env_clear()
            .envs([("TOKIO_WORKER_THREADS", "1"), ("MALLOC_ARENA_MAX", "2")])
            .current_dir("/")
            // Ctrl-C in a terminal goes to the worker only, which then shuts down.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn failure(&self, status: ExitStatus, stderr: &str) -> CompileError {
        /// Its exit code for errors of the system, such as a pipe or a limit.
        const FAILED: i32 = 1;
        const ABORT: i32 = 6;
        const KILL: i32 = 9;
        /// SIGHUP, SIGINT and SIGTERM: an operator or a supervisor ended it.
        const ENDED: [i32; 3] = [1, 2, 15];
        const CPU: i32 = 24;
        let memory = || CompileError::TooMuchMemory(size(self.limits.memory));
        let is_out_of_memory =
            ["Cannot allocate memory", "Resource temporarily unavailable"].iter().any(|words| stderr.contains(words));
        match (status.code(), status.signal()) {
            (_, Some(ABORT)) if stderr.contains("memory allocation of") => memory(),
            (Some(_), _) if is_out_of_memory => memory(),
            (Some(code), _) if code == i32::from(INVALID) => CompileError::from_invalid(stderr),
            (_, Some(CPU)) => CompileError::TooLong(format!("{}s of CPU time", self.limits.cpu)),
            (_, Some(KILL)) => {
                CompileError::Stopped("it was killed, as the kernel does when memory is short".to_owned())
            }
            (_, Some(signal)) if ENDED.contains(&signal) => CompileError::Stopped(status.to_string()),
            (Some(FAILED), _) => CompileError::Stopped(format!("{status}: {stderr}").trim_end_matches(": ").to_owned()),
            _ => CompileError::Crashed(format!("{status}: {stderr}").trim_end_matches(": ").to_owned()),
        }
    }
}

/// Errors of the operating system, such as a lack of memory, are transient.
fn unusable(error: &wasmtime::Error) -> CompileError {
    let message = format!("its output can't be used: {error:#}");
    let is_of_system = error.chain().any(|cause| cause.is::<io::Error>() || cause.is::<Errno>());
    if is_of_system { CompileError::Stopped(message) } else { CompileError::Crashed(message) }
}

/// Writes the component to the compiler, and reads its output and errors.
async fn exchange(child: &mut Child, wasm: &[u8]) -> io::Result<(ExitStatus, Vec<u8>, String)> {
    let missing = || io::Error::other("no pipe");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let (mut artifact, mut errors) = (Vec::new(), Vec::new());
    let write = async move {
        // If the compiler has exited, its status says why.
        let _ = stdin.write_all(wasm).await;
    };
    let read = async { stdout.take(ARTIFACT_BYTES_MAX).read_to_end(&mut artifact).await };
    let read_errors = async { stderr.take(STDERR_BYTES_MAX).read_to_end(&mut errors).await };
    let ((), read, read_errors) = tokio::join!(write, read, read_errors);
    read?;
    read_errors?;
    let status = child.wait().await?;
    Ok((status, artifact, String::from_utf8_lossy(&errors).trim().to_owned()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompileError> + Send + 'static,
) -> Result<T, CompileError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(CompileError::Crashed(error.to_string())))
}

/// The child's side: compiles `input` to `output`, within limits that it sets for
/// its own process. An error has the exit code.
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

/// The layer field is 1 in a component and 0 in a core module.
fn is_component(wasm: &[u8]) -> bool {
    wasm.get(6) == Some(&1)
}

fn confine(limits: &CompileLimits) -> io::Result<()> {
    let parent = parent_id();
    // Without its worker, the compiler must not go on.
    std::thread::Builder::new().name("parent-watch".to_owned()).spawn(move || {
        while parent_id() == parent {
            std::thread::sleep(Duration::from_secs(1));
        }
        std::process::exit(1);
    })?;
    let limit = |resource, current: u64, maximum: u64| {
        // A lower limit of the whole service can't be raised.
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        setrlimit(resource, Rlimit { current: Some(current.min(most)), maximum: Some(maximum.min(most)) })
    };
    limit(Resource::Core, 0, 0)?;
    limit(Resource::As, limits.memory, limits.memory)?;
    limit(Resource::Cpu, limits.cpu, limits.cpu + 1)?;
    // Running handlers have priority, and out of memory the kernel should kill the
    // compiler first. A container may forbid both.
    let _ = nice(5);
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}
