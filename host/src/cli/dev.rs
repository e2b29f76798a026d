//! `dev`: everything on one's own machine with one command. A private Redis,
//! a worker, and the sample messages that lie beside the plugins.

use super::run::{Signals, end, start_log, warn_of_unknown_variables};
use super::{Failure, RunArgs, STATE, topics, with_file};
use crate::app::App;
use crate::message::rfc3339;
use crate::private_redis::PrivateRedis;
use crate::publication::Draft;
use crate::queue::{Connection, Publisher, RedisTarget, TopicHandle, inspect};
use crate::settings::Settings;
use crate::topic::Topic;
use clap::Args;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

pub(super) const URL_FILE: &str = "redis-url";
const SAMPLE: &str = ".sample.json";
const HANDLED_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Publish no sample messages
    #[arg(long)]
    no_samples: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) async fn dev(args: DevArgs) -> Result<(), Failure> {
    let mut typed = with_file(args.run.typed, args.run.config.as_deref())?;
    // What is meant for a real Redis is not for `dev`, which has its own.
    typed.redis = crate::settings::TypedRedis::default();
    typed.plugins.get_or_insert_with(|| "target/plugins".to_owned());
    typed.plugin_files.plugins_cache.get_or_insert_with(|| format!("{STATE}/cache"));
    typed.log_format.get_or_insert_with(|| "pretty".to_owned());
    typed.log_level.get_or_insert_with(|| "info,gateway_worker=debug,handler=debug".to_owned());
    // Nothing is sent from here unless somebody asks for it.
    typed.mail.mail_relay.get_or_insert_with(|| format!("file:{STATE}/mail"));
    let mut settings = typed.check()?;
    start_log(&settings.log)?;
    warn_of_unknown_variables();
    let mut signals = Signals::new()?;

    let state = Path::new(STATE);
    let redis = DevRedis::start(state).await?;
    settings.redis = redis.target()?;
    settings.admin.trusts_this_machine = true;
    let app = App::start(settings.clone()).await?;
    banner(&app, &redis, &settings);

    let mut outcome = Ok(());
    if !args.no_samples {
        tokio::select! {
            handled = show_samples(&app, &settings) => outcome = handled,
            () = signals.wait_for_end(&app) => {}
        }
    }
    // With nobody at the terminal there is nobody to serve.
    if std::io::stdin().is_terminal() {
        if let Err(failure) = std::mem::replace(&mut outcome, Ok(())) {
            println!("{failure}");
        }
        println!("\nserving; Ctrl-C ends");
        signals.wait_for_end(&app).await;
    }
    end(app, signals).await;
    drop(redis);
    outcome
}

fn banner(app: &App, redis: &DevRedis, settings: &Settings) {
    println!("worker   http://{}/metrics", app.address);
    println!("redis    {}", redis.url);
    println!("plugins  {} (drop a .wasm in)", settings.plugins.display());
    println!("publish  gateway-worker publish TOPIC --data '{{...}}'   or, with any Redis client:");
    println!("         redis-cli -u {} XADD mq:TOPIC '*' message '{{...}}'\n", redis.url);
}

/// Publishes each `<topic>.sample.json` and waits until it is handled.
async fn show_samples(app: &App, settings: &Settings) -> Result<(), Failure> {
    let connection = Connection::to(&settings.redis)?;
    let samples = samples(&settings.plugins)?;
    let mut has_scanned = app.has_scanned.clone();
    let _ = tokio::time::timeout(HANDLED_TIMEOUT, has_scanned.wait_for(|done| *done)).await;
    let before = done(app);
    for (topic, data) in &samples {
        let id = Uuid::now_v7().to_string();
        let draft = Draft::new(id, topic, data);
        let publication =
            draft.seal(Timestamp::now()).map_err(|error| Failure::Failed(format!("{topic}{SAMPLE}: {error}")))?;
        let queue = &settings.queue;
        let handle = TopicHandle::new(&connection, &queue.prefix, &queue.group, "", topic);
        Publisher::new(handle).publish(&publication).await?;
        println!("published  {topic}  {}", publication.id);
    }
    let mut open: Vec<&Topic> = samples.keys().collect();
    let started = Instant::now();
    while !open.is_empty() && started.elapsed() < HANDLED_TIMEOUT {
        let now = done(app);
        open.retain(|topic| {
            let is_handled = now.get(topic) > before.get(topic);
            if is_handled {
                println!("handled    {topic}  {}", rfc3339(Timestamp::now()));
            }
            !is_handled
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!();
    topics::print(&connection, &settings.queue).await?;
    let handled = samples.len() - open.len();
    println!("\n{handled} of {} sample messages handled", samples.len());
    if open.is_empty() {
        return Ok(());
    }
    let open: Vec<&str> = open.iter().map(|topic| topic.as_str()).collect();
    Err(Failure::Failed(format!("not handled within {HANDLED_TIMEOUT:?}: {}", open.join(", "))))
}

/// How many messages of each topic are done.
fn done(app: &App) -> BTreeMap<Topic, u64> {
    app.lanes.running().into_iter().map(|(topic, lane)| (topic, lane.metrics().outcome("done").get())).collect()
}

fn samples(plugins: &Path) -> Result<BTreeMap<Topic, String>, Failure> {
    let told = |error| Failure::Failed(format!("{}: {error}; `make build` puts the plugins there", plugins.display()));
    let mut samples = BTreeMap::new();
    for entry in fs::read_dir(plugins).map_err(told)? {
        let path = entry.map_err(told)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SAMPLE));
        if let Some(topic) = name.and_then(|name| Topic::parse(name).ok()) {
            samples.insert(topic, fs::read_to_string(&path).map_err(told)?);
        }
    }
    Ok(samples)
}

/// The private server: started, or found again where an earlier `dev` was
/// killed and left it behind.
struct DevRedis {
    url: String,
    _server: Option<PrivateRedis>,
}

impl DevRedis {
    async fn start(state: &Path) -> Result<Self, Failure> {
        let data = state.join("redis-data");
        let failed = |error: std::io::Error| Failure::Failed(format!("{}: {error}", state.display()));
        fs::create_dir_all(&data).map_err(failed)?;
        let data = data.canonicalize().map_err(failed)?;
        let url_file = state.join(URL_FILE);
        if let Ok(url) = fs::read_to_string(&url_file) {
            let found = Self { url: url.trim().to_owned(), _server: None };
            let connection = Connection::to(&found.target()?)?;
            // Another server may listen there by now.
            if inspect::data_dir(&connection).await.is_ok_and(|folder| Path::new(&folder) == data) {
                return Ok(found);
            }
        }
        let options = ["--appendonly", "yes"];
        let server = tokio::task::block_in_place(|| PrivateRedis::start(state, &data, &options))
            .map_err(|error| Failure::Failed(error.to_string()))?;
        fs::write(&url_file, format!("{}\n", server.url())).map_err(failed)?;
        Ok(Self { url: server.url(), _server: Some(server) })
    }

    fn target(&self) -> Result<RedisTarget, Failure> {
        RedisTarget::at(&self.url).map_err(|error| Failure::Failed(format!("{}: {error}", self.url)))
    }
}
