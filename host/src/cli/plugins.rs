//! `plugins`: lists and changes the plugins of a running worker.

use super::Failure;
use super::http::WorkerArgs;
use super::output::{print_json, print_line};
use super::table::{self, Column};
use crate::text::{sanitize, short_digest};
use clap::Args;
use hyper::Method;
use serde_json::Value;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Print the changes as a JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerArgs,
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// Name of the plugin's file without .wasm
    name: String,
    #[command(flatten)]
    worker: WorkerArgs,
}

const PLUGINS: [&str; 3] = ["api", "v1", "plugins"];

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let answer = args.worker.request(Method::GET, &PLUGINS).await?;
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
    let (name, state_column, digest_column) = (Column::Name("NAME"), Column::Text("STATE"), Column::Fixed("DIGEST"));
    let columns = [name, state_column, digest_column, Column::Name("TOPICS"), Column::Text("GRANTS")];
    table::print(columns, &plugins.iter().map(row).collect::<Vec<_>>());
    for plugin in plugins {
        let retry = plugin["retry_at"].as_str().map(|at| format!("; retry at {}", sanitize(at)));
        let retry = retry.unwrap_or_default();
        if let Some(reason) = plugin["refusal"]["reason"].as_str() {
            print_line!("\n{}: {}{retry}", text(plugin, "name"), sanitize(reason));
        }
    }
    Ok(())
}

/// Fails if a version was refused, so that a deployment notices it.
pub(super) async fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let answer = args.worker.request(Method::POST, &[&PLUGINS[..], &["reload"]].concat()).await?;
    if answer["changes"].is_null() {
        return Err(Failure::Failed("still loading: `gateway-worker plugins ls` shows the result later".to_owned()));
    }
    let changes = list(&answer, "changes")?;
    if args.json {
        print_json(changes)?;
    } else if changes.is_empty() {
        print_line!("no changes");
    } else {
        changes.iter().for_each(|change| print_line!("{}", format_change(change)));
    }
    let refused = changes.iter().filter(|change| change["result"] == "refused").count();
    if refused > 0 { Err(Failure::Failed(format!("{refused} refused"))) } else { Ok(()) }
}

pub(super) async fn roll_back(args: NameArgs) -> Result<(), Failure> {
    let change = args.worker.request(Method::POST, &[&PLUGINS[..], &[args.name.as_str(), "rollback"]].concat()).await?;
    print_line!("{}", format_change(&change));
    print_line!(
        "{} is blocked until the file changes, or until `gateway-worker plugins unblock {}`",
        digest(&change, "withdrawn"),
        sanitize(&args.name)
    );
    Ok(())
}

pub(super) async fn unblock(args: NameArgs) -> Result<(), Failure> {
    args.worker.request(Method::POST, &[&PLUGINS[..], &[args.name.as_str(), "unblock"]].concat()).await?;
    print_line!("{} unblocked", sanitize(&args.name));
    Ok(())
}

fn format_change(change: &Value) -> String {
    let name = text(change, "plugin");
    let suffix = |text: &str, key: &str| {
        change[key].as_str().map(|_| format!("{text}{}", digest(change, key))).unwrap_or_default()
    };
    match text(change, "result").as_str() {
        "loaded" => format!("{name}: {} is live{}", digest(change, "digest"), suffix(", replaces ", "replaced")),
        "refused" => {
            let retry = change["retry_in_seconds"].as_u64().map(|seconds| format!("; retry in {seconds}s"));
            let (reason, retry) = (text(change, "reason"), retry.unwrap_or_default());
            format!("{name}: refused: {reason}{}{retry}", suffix("; still live: ", "active_digest"))
        }
        "removed" => format!("{name}: removed; messages of its topics wait"),
        "restored" => format!("{name}: the last good version {} is live", digest(change, "digest")),
        "not-restored" => format!("{name}: no previous version can be restored: {}", text(change, "reason")),
        result => format!(
            "{name}: {result}: {} is live again{}",
            digest(change, "restored"),
            suffix(", replaces ", "withdrawn")
        ),
    }
}

fn state(plugin: &Value) -> String {
    let mut state = text(plugin, "state");
    if plugin["degraded"] == true {
        state.push_str(" (degraded)");
    }
    if let (Some(calls), Some(crashes)) =
        (plugin["probation"]["calls"].as_u64(), plugin["probation"]["crashes"].as_u64())
    {
        state.push_str(&format!(" (on probation: {calls} calls, {crashes} crashes)"));
    }
    if plugin["is_loading"] == true && state != "loading" {
        state.push_str(", loading another version");
    }
    state
}

fn list<'a>(answer: &'a Value, key: &str) -> Result<&'a Vec<Value>, Failure> {
    answer[key]
        .as_array()
        .ok_or_else(|| Failure::Failed(format!("the response has no {key}: is it a gateway-worker of this version?")))
}

/// Sanitises the text, because texts of plugins could steer the terminal.
fn text(value: &Value, key: &str) -> String {
    sanitize(value[key].as_str().unwrap_or_default()).into_owned()
}

fn digest(value: &Value, key: &str) -> String {
    sanitize(short_digest(value[key].as_str().unwrap_or("-"))).into_owned()
}
