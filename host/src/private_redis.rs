//! A private Redis server as a child process on a free port, for `dev` and for the
//! tests. It is a real server, so that the results apply to production, and never
//! one that already runs.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server starts in 20 ms, but loading a large append-only file takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

pub struct PrivateRedis {
    child: Child,
    port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum PrivateRedisError {
    #[error("no redis-server or valkey-server on PATH or in {}: install one, for example with `apt-get install redis-server`", .0.display())]
    NotFound(PathBuf),
    #[error("{}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("the Redis server ended during its start; see its log {}", .0.display())]
    Ended(PathBuf),
    #[error("the Redis server was not ready within {START_TIMEOUT:?}; see its log {}", .0.display())]
    Silent(PathBuf),
}

impl PrivateRedis {
    /// Starts a server with its data in `data` and additional options. A server in
    /// `state`, where the setup may have unpacked one, has precedence over PATH.
    pub fn start(state: &Path, data: &Path, options: &[&str]) -> Result<Self, PrivateRedisError> {
        let program = find(state).ok_or_else(|| PrivateRedisError::NotFound(state.to_owned()))?;
        // Another process may take the port before the server does.
        let mut last = Self::start_at(free_port(), &program, data, options);
        for _ in 0..3 {
            if !matches!(last, Err(PrivateRedisError::Ended(_))) {
                break;
            }
            last = Self::start_at(free_port(), &program, data, options);
        }
        last
    }

    /// Starts a server on a fixed port, for example after a crash.
    pub fn start_at(port: u16, program: &Path, data: &Path, options: &[&str]) -> Result<Self, PrivateRedisError> {
        let error = |source| PrivateRedisError::Start { program: program.to_owned(), source };
        std::fs::create_dir_all(data).map_err(error)?;
        let log = data.join("redis.log");
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
        command.arg("--dir").arg(data).arg("--logfile").arg(&log).args(options);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(error)?;
        let mut server = Self { child, port };
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            if server.child.try_wait().map_err(error)?.is_some() {
                return Err(PrivateRedisError::Ended(log));
            }
            if is_ready(port) {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(PrivateRedisError::Silent(log))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the server, to simulate a crash.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    fn stop(&mut self) -> io::Result<()> {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            if started.elapsed() > STOP_TIMEOUT {
                return self.kill();
            }
            kill_process(pid, Signal::TERM)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The server that the setup unpacked, or else the first one on PATH.
pub fn find(state: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path =
        std::env::split_paths(&path).flat_map(|dir| ["redis-server", "valkey-server"].map(|name| dir.join(name)));
    std::iter::once(state.join("redis/redis-server")).chain(on_path).find(|program| program.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).map_or(0, |address| address.port())
}

/// Whether a server is ready for commands. It answers with an error while it loads
/// its data.
fn is_ready(port: u16) -> bool {
    use std::io::{Read, Write};
    let ping = || -> io::Result<bool> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 64];
        let length = stream.read(&mut reply)?;
        // A server with a password is ready too.
        Ok(reply[..length].starts_with(b"+PONG") || reply[..length].starts_with(b"-NOAUTH"))
    };
    ping().map_err(|error| error.kind()).unwrap_or_else(|kind| kind == ErrorKind::Other)
}
