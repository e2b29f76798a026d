//! `dev`: a development environment with one command. Starts a private Redis and
//! a worker, and publishes the sample messages of the plugins directory.

use super::run::{Base, Signals, end, log_variables};
use super::{Failure, RunArgs, STATE, topics, with_file};
use crate::app::App;
use crate::log::Log;
use crate::message::rfc3339;
use crate::private_redis::PrivateRedis;
use crate::publication::Draft;
use crate::queue::{Connection, Publisher, RedisTarget, TopicHandle, inspect};
use crate::settings::{Settings, set_default};
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
    /// Don't publish the sample messages
    #[arg(long)]
    no_samples: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) async fn dev(args: DevArgs) -> Result<(), Failure> {
    let mut settings = with_file(args.run.settings, args.run.config.as_deref())?;
    // Settings for another Redis don't apply, because `dev` has a private one.
    settings.redis = crate::settings::RawRedis::default();
    set_default(&mut settings.plugins, || "target/plugins".to_owned());
    set_default(&mut settings.plugin_files.plugins_cache, || format!("{STATE}/cache"));
    set_default(&mut settings.log_format, || "pretty".to_owned());
    set_default(&mut settings.log_level, || "info,gateway_worker=debug,handler=debug".to_owned());
    // `dev` sends mails only where a mail server is set.
    set_default(&mut settings.mail.mail_relay, || format!("file:{STATE}/mail"));
    let mut settings = settings.check()?;
    let base = Base::start(&settings.log)?;
    log_variables();
    let signals = Signals::new()?;

    let state = Path::new(STATE);
    let redis = DevRedis::start(state).await?;
    settings.redis = redis.target()?;
    settings.admin.trusts_loopback = true;
    base.supervise(Box::pin(serve(&base, signals, &redis, &settings, args.no_samples))).await
}

async fn serve(
    base: &Base,
    mut signals: Signals,
    redis: &DevRedis,
    settings: &Settings,
    no_samples: bool,
) -> Result<(), Failure> {
    let app = App::start(settings.clone(), base.metrics.clone(), base.supervisor.clone()).await?;
    let log = &base.log;
    banner(log, &app, redis, settings);
    let mut outcome = Ok(());
    if !no_samples {
        tokio::select! {
            handled = show_samples(log, &app, settings) => outcome = handled,
            () = signals.wait_for_end(&app) => {}
        }
    }
    if std::io::stdin().is_terminal() {
        if let Err(failure) = std::mem::replace(&mut outcome, Ok(())) {
            log.print(&failure.to_string());
        }
        log.print("\nserving; Ctrl-C stops");
        signals.wait_for_end(&app).await;
    } else {
        log.print("the input is no terminal, so dev ends here; in a terminal it serves until Ctrl-C, and `run` always");
    }
    end(app, signals).await;
    outcome
}

fn banner(log: &Log, app: &App, redis: &DevRedis, settings: &Settings) {
    log.print(&format!("worker   http://{}/metrics", app.address));
    log.print(&format!("redis    {}", redis.url));
    log.print(&format!("plugins  {} (add .wasm files here)", settings.plugins.display()));
    log.print("publish  gateway-worker publish TOPIC --data '{...}'   or, with any Redis client:");
    log.print(&format!("         redis-cli -u {} XADD mq:TOPIC '*' message '{{...}}'\n", redis.url));
}

/// Publishes each `<topic>.sample.json` and waits until it is handled.
async fn show_samples(log: &Log, app: &App, settings: &Settings) -> Result<(), Failure> {
    let connection = Connection::to(&settings.redis)?;
    let samples = samples(&settings.plugins)?;
    let mut has_scanned = app.has_scanned.clone();
    let _ = tokio::time::timeout(HANDLED_TIMEOUT, has_scanned.wait_for(|done| *done)).await;
    let before = done(app);
    for (topic, data) in &samples {
        let id = Uuid::now_v7().to_string();
        let draft = Draft::new(id, topic, data);
        let publication =
            draft.encode(Timestamp::now()).map_err(|error| Failure::Failed(format!("{topic}{SAMPLE}: {error}")))?;
        let queue = &settings.queue;
        let handle = TopicHandle::new(&connection, &queue.prefix, &queue.group, "", topic);
        Publisher::new(handle).publish(&publication).await?;
        log.print(&format!("published  {topic}  {}", publication.id));
    }
    let mut open: Vec<&Topic> = samples.keys().collect();
    let started = Instant::now();
    while !open.is_empty() && started.elapsed() < HANDLED_TIMEOUT {
        let now = done(app);
        open.retain(|topic| {
            let is_handled = now.get(topic) > before.get(topic);
            if is_handled {
                log.print(&format!("handled    {topic}  {}", rfc3339(Timestamp::now())));
            }
            !is_handled
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    log.print("");
    let (table, notes) = topics::table_of_all(&connection, &settings.queue).await?;
    [table].iter().chain(&notes).for_each(|text| log.print(text));
    let handled = samples.len() - open.len();
    log.print(&format!("\n{handled} of {} sample messages handled", samples.len()));
    if open.is_empty() {
        return Ok(());
    }
    let open: Vec<&str> = open.iter().map(|topic| topic.as_str()).collect();
    Err(Failure::Failed(format!("not handled within {HANDLED_TIMEOUT:?}: {}", open.join(", "))))
}

/// The number of handled messages of each topic.
fn done(app: &App) -> BTreeMap<Topic, u64> {
    let count = |counts: BTreeMap<&str, u64>| counts.get("done").copied().unwrap_or(0);
    app.worker.topics().into_iter().map(|(topic, state)| (topic, count(state.metrics().counts()))).collect()
}

fn samples(plugins: &Path) -> Result<BTreeMap<Topic, String>, Failure> {
    let failure = |error| Failure::Failed(format!("{}: {error}; `make build` builds the plugins", plugins.display()));
    let mut samples = BTreeMap::new();
    for entry in fs::read_dir(plugins).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SAMPLE));
        if let Some(topic) = name.and_then(|name| Topic::from_file_name(name).ok()) {
            samples.insert(topic, fs::read_to_string(&path).map_err(failure)?);
        }
    }
    Ok(samples)
}

/// The private server: a new one, or the one that a killed `dev` left running.
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
            // Another server may listen on the port by now.
            if inspect::data_dir(&connection).await.is_ok_and(|dir| Path::new(&dir) == data) {
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
