//! One suite for all Redis setups: each scenario runs unchanged against Redis, Valkey,
//! a server with TLS and ACL users, Sentinel, and a cluster.

mod legacy;
mod batch;
mod dead;
mod flow_control;
mod failures;
mod messages;
mod schedule;
mod key_value;

use crate::servers::{Mode, Server};
use crate::support::{Gateway, OK, Plugins, built, guest, run_command, text, until};
use batch::{a_trap_in_a_batch_costs_only_its_own_message, each_message_of_a_batch_has_its_own_outcome};
use dead::dead_letters_are_listed_shown_edited_replayed_and_purged;
use failures::{
    a_full_redis_blocks_only_settlements_that_need_memory,
    a_poison_message_is_dead_lettered_and_messages_running_with_it_are_not,
    rejected_follow_ups_arrive_once_after_their_topic_is_repaired,
};
use flow_control::{
    a_copy_of_a_finished_message_is_not_run, a_list_is_consumed_and_consumed_again_after_it_was_drained,
    a_message_published_twice_within_its_window_exists_once, a_topic_is_paused_and_resumed_by_command,
    every_priority_is_served, rate_and_global_concurrency_hold_over_two_workers,
};
use gateway_worker::events;
use key_value::plugins_store_values_over_two_workers;
use legacy::{
    legacy_delayed_messages_are_due_by_the_clock_of_redis, legacy_delayed_messages_run_once_over_two_workers,
    messages_unread_by_another_group_are_left_to_it,
    stuck_legacy_messages_are_handled_and_their_copied_sources_are_not,
};
use messages::{
    a_message_is_found_wherever_it_is, a_peek_shows_waiting_messages_and_takes_none,
    a_purge_needs_confirmation_and_keeps_delayed_messages_by_default, a_topic_is_shown_with_exact_counts,
    waiting_messages_are_cancelled_and_others_are_located,
};
use schedule::a_schedule_fires_each_time_once_over_two_workers;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

macro_rules! suite {
    ($($scenario:ident),+ $(,)?) => {
        suite!(@mode redis, Redis, $($scenario),+);
        suite!(@mode valkey, Valkey, $($scenario),+);
        suite!(@mode tls, Tls, $($scenario),+);
        suite!(@mode sentinel, Sentinel, $($scenario),+);
        suite!(@mode cluster, Cluster, $($scenario),+);
    };
    (@mode $module:ident, $mode:ident, $($scenario:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $scenario() {
                    let server = super::Server::start(super::Mode::$mode).await;
                    super::$scenario(&server).await;
                    server.assert_no_acl_denials().await;
                }
            )+
        }
    };
}

suite!(
    what_is_published_is_drained,
    a_delayed_message_is_promoted_when_it_is_due,
    a_failing_handler_is_retried_and_then_dead_with_its_reason,
    a_postponed_message_costs_no_attempt,
    each_follow_up_arrives_once,
    the_messages_of_a_killed_worker_run_on_another,
    a_stopped_worker_requeues_unfinished_messages,
    the_commands_see_what_the_worker_sees,
    a_lost_group_and_lost_scripts_are_restored,
    topics_in_all_slots_are_consumed_at_once,
    stuck_legacy_messages_are_handled_and_their_copied_sources_are_not,
    legacy_delayed_messages_are_due_by_the_clock_of_redis,
    legacy_delayed_messages_run_once_over_two_workers,
    messages_unread_by_another_group_are_left_to_it,
    a_list_is_consumed_and_consumed_again_after_it_was_drained,
    every_priority_is_served,
    a_message_published_twice_within_its_window_exists_once,
    a_copy_of_a_finished_message_is_not_run,
    a_topic_is_paused_and_resumed_by_command,
    rate_and_global_concurrency_hold_over_two_workers,
    each_message_of_a_batch_has_its_own_outcome,
    a_trap_in_a_batch_costs_only_its_own_message,
    a_poison_message_is_dead_lettered_and_messages_running_with_it_are_not,
    a_full_redis_blocks_only_settlements_that_need_memory,
    rejected_follow_ups_arrive_once_after_their_topic_is_repaired,
    a_message_is_found_wherever_it_is,
    waiting_messages_are_cancelled_and_others_are_located,
    a_purge_needs_confirmation_and_keeps_delayed_messages_by_default,
    a_topic_is_shown_with_exact_counts,
    a_peek_shows_waiting_messages_and_takes_none,
    dead_letters_are_listed_shown_edited_replayed_and_purged,
    a_schedule_fires_each_time_once_over_two_workers,
    plugins_store_values_over_two_workers,
);

// TLS affects Sentinel and Cluster only where addresses are discovered, so a few
// scenarios are enough.
suite!(@mode tls_sentinel, TlsSentinel, what_is_published_is_drained, the_commands_see_what_the_worker_sees);
suite!(
    @mode tls_cluster,
    TlsCluster,
    what_is_published_is_drained,
    a_stopped_worker_requeues_unfinished_messages,
    the_commands_see_what_the_worker_sees,
    topics_in_all_slots_are_consumed_at_once
);

fn options<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    [&server.flags()[..], &["--plugins-cache", server.cache()], more].concat()
}

fn start(server: &Server, plugins: &Plugins, more: &[&str]) -> Gateway {
    Gateway::start_with(&server.url, plugins, &options(server, more))
}

/// Exit code, stdout and stderr of a command.
fn run(server: &Server, args: &[&str]) -> (i32, String, String) {
    run_command(&[args, &["--redis-url", &server.url], &server.flags()].concat())
}

/// The stdout of a command that has to succeed.
fn run_ok(server: &Server, args: &[&str]) -> String {
    let (code, out, error) = run(server, args);
    assert_eq!(code, 0, "{args:?}: {error}");
    out
}

fn json(server: &Server, args: &[&str]) -> Value {
    let (_, out, error) = run(server, &[args, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|bad| panic!("{args:?}: {bad}: {out}{error}"))
}

fn puppet(manifest: &str) -> Plugins {
    Plugins::with("puppet", &built("puppet"), manifest)
}

async fn what_is_published_is_drained(server: &Server) {
    for number in 0..50 {
        server.publish("quiet", &number.to_string(), "{}").await;
    }
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.is("drained", "XLEN mq:quiet", 0).await;
    gateway.until_ready().await;
    let ids: BTreeSet<String> = gateway.outcomes("quiet").into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 50);
    assert_eq!(server.run::<i64>("HGET {mq:quiet}:state done").await, 50);
    // The worker warns about neither the memory policy nor the cluster mode.
    assert!(gateway.logged("maxmemory-policy").is_empty() && gateway.logged("part of a Redis Cluster").is_empty());
}

async fn a_delayed_message_is_promoted_when_it_is_due(server: &Server) {
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.publish_later("quiet", "soon", "{}", Duration::from_millis(300)).await;
    server.publish_later("quiet", "far", "{}", Duration::from_secs(3600)).await;
    gateway.until_outcome("quiet", "soon", "done").await;
    server.is("one is still delayed", "ZCARD {mq:quiet}:delayed", 1).await;
    assert_eq!(gateway.outcomes("quiet").len(), 1);
}

async fn a_failing_handler_is_retried_and_then_dead_with_its_reason(server: &Server) {
    let plugins = puppet("[retry]\nbase = \"1ms\"\n");
    let gateway = start(server, &plugins, &[]);
    server.publish("puppet", "m-1", r#"{"do":"retry","reason":"not today","after_ms":null}"#).await;
    let dead = server.dead("puppet").await;
    let retried = vec![("m-1".to_owned(), "retry".to_owned()); 3];
    until("each run is logged", async || (gateway.outcomes("puppet") == retried).then_some(())).await;
    assert_eq!((text(&dead, "gw-reason"), text(&dead, "gw-error")), ("retry".to_owned(), "not today".to_owned()));
    server.is("nothing is delayed", "ZCARD {mq:puppet}:delayed", 0).await;
    server.is("all are settled", "XLEN mq:puppet", 0).await;
}

async fn a_postponed_message_costs_no_attempt(server: &Server) {
    let plugins = puppet("[retry]\nattempts = 1\nbase = \"1ms\"\n");
    let gateway = start(server, &plugins, &[]);
    server.publish("puppet", "p", r#"{"do":"postpone","reason":"closed","after_ms":1}"#).await;
    until("postponed often", async || (gateway.outcomes("puppet").len() > 3).then_some(())).await;
    server.is("none is dead", "XLEN {mq:puppet}:dead", 0).await;
}

/// In a cluster the follow-ups go to topics in other slots.
async fn each_follow_up_arrives_once(server: &Server) {
    let plugins = puppet("[grants]\npublish = [\"one\", \"two\", \"three\"]\n");
    let _gateway = start(server, &plugins, &[]);
    for to in ["one", "two", "three"] {
        let data = format!(r#"{{"do":"publish","to":"{to}","times":5,"then":null}}"#);
        server.publish("puppet", to, &data).await;
    }
    for to in ["one", "two", "three"] {
        server.is("its follow-ups", &format!("XLEN mq:{to}"), 5).await;
    }
    server.is("settled", "XLEN mq:puppet", 0).await;
    for to in ["one", "two", "three"] {
        assert_eq!(server.run::<i64>(&format!("XLEN mq:{to}")).await, 5);
    }
}

async fn the_messages_of_a_killed_worker_run_on_another(server: &Server) {
    let plugins = puppet("");
    let options = ["--queue-lease", "1s"];
    let first = start(server, &plugins, &options);
    for number in 0..10 {
        server.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":600000}"#).await;
    }
    server.until_in_flight("puppet", 10).await;
    // The handler of the second worker ends at once.
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let second = start(server, &plugins, &options);
    second.until_ready().await;
    first.kill();
    server.is("all are done", "XLEN mq:puppet", 0).await;
    let done: BTreeSet<String> = second.outcomes("puppet").into_iter().map(|(id, _)| id).collect();
    assert_eq!(done.len(), 10);
}

async fn a_stopped_worker_requeues_unfinished_messages(server: &Server) {
    let plugins = puppet("");
    let gateway = start(server, &plugins, &["--shutdown-timeout", "100ms"]);
    for number in 0..4 {
        server.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":600000}"#).await;
    }
    server.until_in_flight("puppet", 4).await;
    assert!(gateway.stop().await.success());
    // With a lease of an hour only requeued messages are available at once.
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let second = start(server, &plugins, &["--queue-lease", "1h"]);
    server.is("all are done", "XLEN mq:puppet", 0).await;
    assert!(second.logged(events::RECLAIMED).is_empty(), "a requeued message is counted as lost");
}

async fn the_commands_see_what_the_worker_sees(server: &Server) {
    let run = |args: &[&str]| run_ok(server, args);
    assert_eq!(run(&["publish", "alpha", "--id", "mine"]), "mine\n");
    run(&["publish", "alpha", "--count", "700"]);
    run(&["publish", "beta", "--delay", "1h"]);
    server.run::<String>("XADD {mq:gamma}:dead * message {} gw-reason trap").await;
    server.run::<i64>("ZADD mq:delay:delta 99999999999 {}").await;
    let topics = json(server, &["topics", "ls"]);
    let seen = |one: &Value| {
        let number = |name: &str| one[name].as_u64().unwrap();
        (one["topic"].as_str().unwrap().to_owned(), number("waiting"), number("delayed"), number("dead"))
    };
    let expected = [("alpha", 701, 0, 0), ("beta", 0, 1, 0), ("delta", 0, 1, 0), ("gamma", 0, 0, 1)];
    assert_eq!(
        topics["topics"].as_array().unwrap().iter().map(seen).collect::<Vec<_>>(),
        expected.map(|(name, waiting, delayed, dead)| (name.to_owned(), waiting, delayed, dead))
    );
    let dead = json(server, &["dead", "ls"]);
    assert_eq!((dead[0]["topic"].as_str(), dead[0]["reason"].as_str()), (Some("gamma"), Some("trap")));
}

async fn a_lost_group_and_lost_scripts_are_restored(server: &Server) {
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.publish("quiet", "a", "{}").await;
    gateway.until_outcome("quiet", "a", "done").await;
    server.is("settled", "XLEN mq:quiet", 0).await;
    server.run_everywhere::<()>("SCRIPT FLUSH").await;
    server.run::<i64>("XGROUP DESTROY mq:quiet consumer-group-quiet").await;
    server.publish("quiet", "b", "{}").await;
    gateway.until_outcome("quiet", "b", "done").await;
    server.run_everywhere::<()>("FLUSHALL").await;
    server.publish("quiet", "c", "{}").await;
    gateway.until_outcome("quiet", "c", "done").await;
    server.is("settled", "XLEN mq:quiet", 0).await;
    assert_eq!(gateway.outcomes("quiet").len(), 3);
}

async fn topics_in_all_slots_are_consumed_at_once(server: &Server) {
    let topics: Vec<String> = (0..20).map(|number| format!("topic-{number}")).collect();
    let plugins = Plugins::with("many", &guest(OK), &format!("topics = {topics:?}\n"));
    let gateway = start(server, &plugins, &[]);
    for topic in &topics {
        for number in 0..3 {
            server.publish(topic, &format!("{topic}/{number}"), "{}").await;
        }
    }
    for topic in &topics {
        server.is("settled", &format!("XLEN mq:{topic}"), 0).await;
        assert_eq!(server.run::<i64>(&format!("HGET {{mq:{topic}}}:state done")).await, 3);
        assert_eq!(gateway.outcomes(topic).len(), 3);
    }
    if server.is_cluster() {
        let mut nodes_with_keys = 0;
        for node in &server.nodes {
            let mut connection = crate::support::connect_without_timeout(&node.url()).await;
            let keys: i64 = ::redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
            nodes_with_keys += i64::from(keys > 0);
        }
        assert_eq!(nodes_with_keys, 3, "every master has topics");
    }
}
