//! `topics show`: the state and counts of one topic.

use super::output::print_json;
use super::table::{format_name, print_pairs};
use super::topic_check::ensure_topic_exists;
use super::{Failure, RedisArgs};
use crate::message::rfc3339;
use crate::queue::{TopicDetails, TopicHandle, handled_topics, topic_details};
use crate::topic::Topic;
use clap::Args;
use jiff::Timestamp;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    topic: Topic,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(super) async fn show(args: ShowArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let is_handled = handled_topics(&connection, &settings.prefix).await?.contains(&args.topic);
    let details = topic_details(&handle, is_handled).await?;
    if args.json {
        return print_json(&details);
    }
    print_pairs(&format_lines(&details, connection.read_clock().await?));
    Ok(())
}

fn format_lines(details: &TopicDetails, now: Timestamp) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push((name.to_owned(), text));
    let state = match (details.is_paused, details.has_handler) {
        (true, _) => "paused",
        (false, true) => "handled",
        (false, false) => "no handler: waits",
    };
    line("topic", format_name(&details.topic));
    line("kind", details.kind.clone());
    line("state", state.to_owned());
    line("handler", if details.has_handler { "an active worker has one" } else { "none" }.to_owned());
    line("waiting", details.waiting.values().sum::<u64>().to_string());
    for (source, count) in details.waiting.iter().filter(|(_, count)| **count > 0) {
        line(&format!("  {source}"), count.to_string());
    }
    if let Some(oldest) = details.oldest_waiting {
        line("  oldest", format!("{} ago, {}", format_span(oldest, now), rfc3339(oldest)));
    }
    line("delayed", (details.delayed + details.legacy_delayed).to_string());
    if details.legacy_delayed > 0 {
        line("  legacy", details.legacy_delayed.to_string());
    }
    if details.legacy_due_far > 0 {
        let hint = "due after the year 9999: their scores are probably milliseconds; add them again with seconds";
        line("  too late", format!("{}, {hint}", details.legacy_due_far));
    }
    if let Some(due) = details.next_due {
        let when = if due > now { format!("in {}", format_span(now, due)) } else { "overdue".to_owned() };
        line("  next", format!("{when}, {}", rfc3339(due)));
    }
    line("in flight", details.in_flight.iter().map(|one| one.in_flight).sum::<u64>().to_string());
    for one in &details.in_flight {
        let idle = humantime::format_duration(Duration::from_millis(one.idle_ms));
        line(&format!("  {}", format_name(&one.name)), format!("{}, idle for up to {idle}", one.in_flight));
    }
    for one in &details.passed_over {
        let (key, group) = (quoted(&one.key), quoted(&one.group));
        line("passed over", format!("{} in {key}, before a worker first read it; they are kept", one.count));
        line("  to run them", format!("redis-cli XGROUP SETID {key} {group} 0"));
        line("  to delete", format!("gateway-worker topics purge {} (also what waits)", quoted(&details.topic)));
    }
    line("dead", (details.dead + details.legacy_dead).to_string());
    if details.legacy_dead > 0 {
        line("  legacy", details.legacy_dead.to_string());
    }
    line("outbox", details.outbox.to_string());
    line("total", String::new());
    for (name, count) in details.counters.iter().filter(|(_, count)| **count > 0) {
        line(&format!("  {name}"), count.to_string());
    }
    lines
}

/// As a word of a shell, since names may contain spaces and quotes.
fn quoted(name: &str) -> String {
    format!("'{}'", name.replace('\'', r"'\''"))
}

/// The time between two timestamps, in whole seconds.
fn format_span(from: Timestamp, to: Timestamp) -> humantime::FormattedDuration {
    let seconds = u64::try_from(to.as_second() - from.as_second()).unwrap_or(0);
    humantime::format_duration(Duration::from_secs(seconds))
}
