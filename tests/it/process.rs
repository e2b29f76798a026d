//! A server process (Redis, Valkey, a sentinel or a cluster node) that is killed
//! when it is dropped.

use redis::{Client, ConnectionLike, IntoConnectionInfo};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(40);

pub(crate) struct Process {
    child: Child,
    pub(crate) port: u16,
    /// Credentials with all rights, for the test itself.
    login: &'static str,
    pub(crate) folder: TempDir,
    program: PathBuf,
    flags: Vec<String>,
}

impl Process {
    /// Starts a server. `config` returns the lines of its configuration for a port
    /// and a directory; `--sentinel` in `flags` makes it a sentinel.
    pub(crate) fn start(
        program: &Path,
        flags: &[&str],
        login: &'static str,
        config: impl Fn(u16, &Path) -> String,
    ) -> Self {
        let started = Instant::now();
        loop {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port();
            let file = folder.path().join("server.conf");
            let common = format!("port {port}\nbind 127.0.0.1\ndir {}\n", folder.path().display());
            std::fs::write(&file, common + &config(port, folder.path())).unwrap();
            let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
            let child = spawn(program, folder.path(), &flags);
            let mut process = Self { child, port, login, folder, program: program.to_owned(), flags };
            if process.comes_up() {
                return process;
            }
            // Another process had the port: retry with another one.
            let log = std::fs::read_to_string(process.folder.path().join("log")).unwrap();
            assert!(started.elapsed() < TIMEOUT, "{}: {log}", program.display());
        }
    }

    /// Whether this process, and no other, answers on the port.
    fn comes_up(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < TIMEOUT {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let mut info = redis::cmd("INFO");
            let answer =
                self.client().get_connection_with_timeout(Duration::from_secs(2)).and_then(|mut connection| {
                    connection
                        .req_command(info.arg("server"))
                        .and_then(|value| Ok(redis::from_redis_value::<String>(value.extract_error()?)?))
                });
            if let Ok(info) = answer {
                return info.contains(&format!("process_id:{}\r", self.child.id()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// A value of its configuration file.
    pub(crate) fn setting(&self, name: &str) -> String {
        let config = std::fs::read_to_string(self.folder.path().join("server.conf")).unwrap();
        let found = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {name} in {config}")).to_owned()
    }

    fn client(&self) -> Client {
        Client::open(self.url().into_connection_info().unwrap()).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}127.0.0.1:{}", self.login, self.port)
    }

    /// Restarts it on the same port with its data on disk.
    pub(crate) fn restart(&mut self) {
        let started = Instant::now();
        loop {
            self.child = spawn(&self.program, self.folder.path(), &self.flags);
            if self.comes_up() {
                return;
            }
            // An outgoing connection may use the port for a moment.
            assert!(started.elapsed() < TIMEOUT, "{} does not restart", self.program.display());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills it, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, folder: &Path, flags: &[String]) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut command = Command::new(program);
    command.arg(folder.join("server.conf")).args(flags).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// A port that no other test of this process got.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// The Valkey that `make setup` installed, or the one on `PATH`.
pub(crate) fn valkey() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("valkey-server"));
    std::iter::once(crate::support::state().join("valkey/valkey-server"))
        .chain(on_path)
        .find(|program| program.is_file())
        .expect("no valkey-server: `make setup` fetches one")
}

pub(crate) fn redis() -> PathBuf {
    gateway_worker::private_redis::find(&crate::support::state()).expect("no redis-server: `make setup` fetches one")
}
