//! `make bench-reload`: the memory growth of a thousand reloads, and the time from the
//! change of a file until the new version is live.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on ends, and prints")]

#[path = "../guest.rs"]
mod guest;
mod resident;

use gateway_worker::capability::Capabilities;
use gateway_worker::metrics::Metrics;
use gateway_worker::plugin::{Cache, CompileLimits, Compiler, Engine, PluginDir, Registry, VersionStore};
use gateway_worker::reloader::{Reloader, Request};
use gateway_worker::settings::FilePermissionPolicy;
use guest::{OK, guest, guest_with};
use resident::resident_bytes;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Reloads before the first measurement, in which allocators and caches grow.
const WARM_UP: usize = 200;

#[tokio::main]
async fn main() {
    let count: usize = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1000);
    let plugins = tempfile::tempdir().unwrap();
    std::fs::write(plugins.path().join("topic.wasm"), guest(OK)).unwrap();
    let cache = plugins.path().join(".cache");
    let archive = VersionStore::open(Some(&cache), plugins.path());
    let compiler = env!("CARGO_BIN_EXE_gateway-worker").into();
    let compiler = Compiler::with_program(compiler, CompileLimits::default(), Cache::open(&cache).ok());
    let engine = Engine::new(Capabilities::default(), compiler, 2).unwrap();
    let registry = Registry::new(engine, PluginDir::new(plugins.path(), FilePermissionPolicy::Ignore), archive);
    let routes = registry.routes();
    let (requests, received) = mpsc::channel(1);
    let (has_scanned, _) = watch::channel(false);
    let reloader =
        Reloader::new(registry, Arc::new(Metrics::default()), received, has_scanned, watch::Sender::new(None));
    let stop = CancellationToken::new();
    let reloading = reloader.run(stop.clone());
    let replacing = async {
        let mut took = Vec::with_capacity(count);
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let mut before = 0;
        for number in 0..count + WARM_UP {
            if number == WARM_UP {
                before = resident_bytes();
            }
            let new = plugins.path().join(".topic.new");
            std::fs::write(&new, guest_with(&format!("(data (i32.const 600) \"{number:06}\")"), OK)).unwrap();
            std::fs::rename(new, plugins.path().join("topic.wasm")).unwrap();
            let started = Instant::now();
            let (asker, answer) = oneshot::channel();
            requests.send(Request::Scan(Some(asker))).await.ok().unwrap();
            answer.await.unwrap().unwrap();
            if number >= WARM_UP {
                took.push(started.elapsed());
                if took.len() % (count / 10).max(1) == 0 {
                    println!("  {:>6} reloads: {:.2} MiB", took.len(), mib(resident_bytes()));
                }
            }
        }
        took.sort();
        let after = resident_bytes();
        println!("{count} reloads, {} live", routes.borrow().plugins.len());
        println!("resident memory before {:.1} MiB, after {:.1} MiB", mib(before), mib(after));
        let at = |part: usize| took[(took.len() - 1) * part / 100];
        println!(
            "from the change until it is live: p50 {:.0?}, p99 {:.0?}, of which 150 ms wait for stable files",
            at(50),
            at(99)
        );
        stop.cancel();
    };
    tokio::join!(reloading, replacing);
}
