//! `plugins`: what a running worker has loaded, and changing it.

use super::http::WorkerArgs;
use super::print::print_json;
use super::{Failure, table};
use crate::text::{sanitize, short_digest};
use clap::Args;
use hyper::Method;
use serde_json::Value;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// The changes as one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerArgs,
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// The file's name without .wasm
    name: String,
    #[command(flatten)]
    worker: WorkerArgs,
}

const PLUGINS: [&str; 3] = ["api", "v1", "plugins"];

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let answer = args.worker.ask(Method::GET, &PLUGINS).await?;
    let plugins = list(&answer, "plugins")?;
    if args.json {
        return print_json(plugins);
    }
    let row = |plugin: &Value| {
        let grants = plugin["grants"].as_object().map(|grants| grants.keys().cloned().collect::<Vec<_>>().join(", "));
        let topics: Vec<&str> = plugin["topics"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let (topics, grants) =
            (sanitize(&topics.join(", ")).into_owned(), sanitize(&grants.unwrap_or_default()).into_owned());
        [text(plugin, "name"), state(plugin), digest(plugin, "digest"), topics, grants]
    };
    table::print(["NAME", "STATE", "DIGEST", "TOPICS", "GRANTS"], &plugins.iter().map(row).collect::<Vec<_>>());
    for plugin in plugins {
        let again = plugin["again_at"].as_str().map(|at| format!("; tried again at {}", sanitize(at)));
        let again = again.unwrap_or_default();
        if let Some(reason) = plugin["refusal"]["reason"].as_str() {
            println!("\n{}: {}{again}", text(plugin, "name"), sanitize(reason));
        }
    }
    Ok(())
}

/// Fails where something is refused, so that a deployment notices.
pub(super) async fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let answer = args.worker.ask(Method::POST, &[&PLUGINS[..], &["reload"]].concat()).await?;
    if answer["changes"].is_null() {
        return Err(Failure::Failed(
            "it is still being loaded: `gateway-worker plugins ls` shows what became of it".to_owned(),
        ));
    }
    let changes = list(&answer, "changes")?;
    if args.json {
        print_json(changes)?;
    } else if changes.is_empty() {
        println!("nothing has changed");
    } else {
        changes.iter().for_each(|change| println!("{}", told(change)));
    }
    let refused = changes.iter().filter(|change| change["result"] == "refused").count();
    if refused > 0 { Err(Failure::Failed(format!("{refused} refused"))) } else { Ok(()) }
}

pub(super) async fn roll_back(args: NameArgs) -> Result<(), Failure> {
    let change = args.worker.ask(Method::POST, &[&PLUGINS[..], &[args.name.as_str(), "rollback"]].concat()).await?;
    println!("{}", told(&change));
    println!(
        "{} stays out until its bytes change, or `gateway-worker plugins release {}`",
        digest(&change, "withdrawn"),
        sanitize(&args.name)
    );
    Ok(())
}

pub(super) async fn release(args: NameArgs) -> Result<(), Failure> {
    args.worker.ask(Method::POST, &[&PLUGINS[..], &[args.name.as_str(), "release"]].concat()).await?;
    println!("nothing is held against {} any longer", sanitize(&args.name));
    Ok(())
}

fn told(change: &Value) -> String {
    let name = text(change, "plugin");
    let after = |word: &str, key: &str| {
        change[key].as_str().map(|_| format!("{word}{}", digest(change, key))).unwrap_or_default()
    };
    match text(change, "result").as_str() {
        "loaded" => format!("{name}: {} is live{}", digest(change, "digest"), after(", in place of ", "replaced")),
        "refused" => {
            let again = change["again_in_seconds"].as_u64().map(|seconds| format!("; tried again in {seconds}s"));
            let (reason, again) = (text(change, "reason"), again.unwrap_or_default());
            format!("{name}: refused: {reason}{}{again}", after("; keeps ", "keeps"))
        }
        "removed" => format!("{name}: removed; messages of its topics wait"),
        "restored" => format!("{name}: {}, the last good version, is live", digest(change, "digest")),
        "not-restored" => format!("{name}: no earlier version can be restored: {}", text(change, "reason")),
        result => format!(
            "{name}: {result}: {} is live again{}",
            digest(change, "restored"),
            after(", in place of ", "withdrawn")
        ),
    }
}

fn state(plugin: &Value) -> String {
    let mut state = text(plugin, "state");
    if let (Some(calls), Some(crashes)) =
        (plugin["probation"]["calls"].as_u64(), plugin["probation"]["crashes"].as_u64())
    {
        state.push_str(&format!(" (on probation: {calls} calls, {crashes} crashes)"));
    }
    if plugin["is_loading"] == true && state != "loading" {
        state.push_str(", loading another");
    }
    state
}

fn list<'a>(answer: &'a Value, key: &str) -> Result<&'a Vec<Value>, Failure> {
    answer[key]
        .as_array()
        .ok_or_else(|| Failure::Failed(format!("the answer has no {key}: is it a gateway-worker of this version?")))
}

/// What comes from plugins must not steer the terminal.
fn text(value: &Value, key: &str) -> String {
    sanitize(value[key].as_str().unwrap_or_default()).into_owned()
}

fn digest(value: &Value, key: &str) -> String {
    sanitize(short_digest(value[key].as_str().unwrap_or("-"))).into_owned()
}
