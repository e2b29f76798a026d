//! One suite for every Redis there is: each scenario runs unchanged against
//! Redis, Valkey, a server with TLS and users, Sentinel, and a cluster.

mod adoption;
mod batch;
mod dead;
mod flow;
mod losses;
mod messages;
mod schedule;
mod store;

use crate::servers::{Mode, Server};
use crate::support::{Gateway, OK, Plugins, built, guest, said, text, until};
use adoption::{
    the_originals_delayed_messages_are_due_by_redis_clock, the_originals_delayed_messages_come_once_over_two_workers,
    what_another_group_has_still_to_read_is_left_to_it,
    what_the_original_left_stuck_is_handled_and_what_it_had_copied_is_not,
};
use batch::{a_trap_in_a_batch_costs_only_its_own_message, each_message_of_a_batch_has_its_own_end};
use dead::dead_letters_are_listed_shown_edited_replayed_and_purged;
use flow::{
    a_copy_of_what_has_finished_is_not_run, a_list_is_consumed_whoever_comes_first_and_again_after_it_was_drained,
    a_topic_is_set_aside_and_goes_on_by_command, every_priority_is_served, rate_and_total_hold_over_two_workers,
    what_is_published_again_within_its_time_is_there_once,
};
use losses::{
    a_full_memory_holds_up_only_what_needs_more_of_it, follow_ups_that_are_refused_arrive_once_their_topic_is_mended,
    what_kills_its_worker_is_convicted_by_its_own_losses_and_no_bystander_is,
};
use messages::{
    a_message_is_found_wherever_it_is, a_peek_shows_what_waits_and_takes_nothing,
    a_purge_is_confirmed_and_leaves_what_is_delayed_unless_told, a_topic_is_shown_in_true_numbers,
    what_waits_is_cancelled_and_what_does_not_is_said_to_be_elsewhere,
};
use schedule::a_schedule_fires_each_time_once_over_two_workers;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use store::plugins_keep_values_over_two_workers;

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
                    server.refused_nothing().await;
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
    follow_ups_arrive_each_once,
    a_killed_workers_messages_run_again_where_another_lives,
    a_stopped_worker_gives_back_what_has_not_begun,
    the_commands_see_what_the_worker_sees,
    a_lost_group_and_lost_scripts_are_made_again,
    topics_all_over_the_slots_are_consumed_at_once,
    what_the_original_left_stuck_is_handled_and_what_it_had_copied_is_not,
    the_originals_delayed_messages_are_due_by_redis_clock,
    the_originals_delayed_messages_come_once_over_two_workers,
    what_another_group_has_still_to_read_is_left_to_it,
    a_list_is_consumed_whoever_comes_first_and_again_after_it_was_drained,
    every_priority_is_served,
    what_is_published_again_within_its_time_is_there_once,
    a_copy_of_what_has_finished_is_not_run,
    a_topic_is_set_aside_and_goes_on_by_command,
    rate_and_total_hold_over_two_workers,
    each_message_of_a_batch_has_its_own_end,
    a_trap_in_a_batch_costs_only_its_own_message,
    what_kills_its_worker_is_convicted_by_its_own_losses_and_no_bystander_is,
    a_full_memory_holds_up_only_what_needs_more_of_it,
    follow_ups_that_are_refused_arrive_once_their_topic_is_mended,
    a_message_is_found_wherever_it_is,
    what_waits_is_cancelled_and_what_does_not_is_said_to_be_elsewhere,
    a_purge_is_confirmed_and_leaves_what_is_delayed_unless_told,
    a_topic_is_shown_in_true_numbers,
    a_peek_shows_what_waits_and_takes_nothing,
    dead_letters_are_listed_shown_edited_replayed_and_purged,
    a_schedule_fires_each_time_once_over_two_workers,
    plugins_keep_values_over_two_workers,
);

// TLS and the ways of finding a server are each other's business in a few
// places only: those where an address is learned.
suite!(@mode tls_sentinel, TlsSentinel, what_is_published_is_drained, the_commands_see_what_the_worker_sees);
suite!(
    @mode tls_cluster,
    TlsCluster,
    what_is_published_is_drained,
    a_stopped_worker_gives_back_what_has_not_begun,
    the_commands_see_what_the_worker_sees,
    topics_all_over_the_slots_are_consumed_at_once
);

fn options<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    [&server.flags()[..], &["--plugins-cache", server.cache()], more].concat()
}

fn start(server: &Server, plugins: &Plugins, more: &[&str]) -> Gateway {
    Gateway::start_with(&server.url, plugins, &options(server, more))
}

/// Exit code, stdout and stderr of a command.
fn run(server: &Server, args: &[&str]) -> (i32, String, String) {
    said(&[args, &["--redis-url", &server.url], &server.flags()].concat())
}

/// What a command says that succeeds.
fn told(server: &Server, args: &[&str]) -> String {
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
    // Nothing is out of order with the servers themselves.
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
    until("each run is told", async || (gateway.outcomes("puppet") == retried).then_some(())).await;
    assert_eq!((text(&dead, "gw-reason"), text(&dead, "gw-error")), ("retry".to_owned(), "not today".to_owned()));
    server.is("nothing waits", "ZCARD {mq:puppet}:delayed", 0).await;
    server.is("nothing is left", "XLEN mq:puppet", 0).await;
}

async fn a_postponed_message_costs_no_attempt(server: &Server) {
    let plugins = puppet("[retry]\nattempts = 1\nbase = \"1ms\"\n");
    let gateway = start(server, &plugins, &[]);
    server.publish("puppet", "p", r#"{"do":"postpone","reason":"closed","after_ms":1}"#).await;
    until("postponed often", async || (gateway.outcomes("puppet").len() > 3).then_some(())).await;
    server.is("none is dead", "XLEN {mq:puppet}:dead", 0).await;
}

/// In a cluster they go to topics of other slots.
async fn follow_ups_arrive_each_once(server: &Server) {
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

async fn a_killed_workers_messages_run_again_where_another_lives(server: &Server) {
    let plugins = puppet("");
    let options = ["--queue-lease", "1s"];
    let first = start(server, &plugins, &options);
    for number in 0..10 {
        server.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":600000}"#).await;
    }
    server.until_in_flight("puppet", 10).await;
    // The other one's handler has more sense.
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let second = start(server, &plugins, &options);
    second.until_ready().await;
    first.kill();
    server.is("all are done", "XLEN mq:puppet", 0).await;
    let done: BTreeSet<String> = second.outcomes("puppet").into_iter().map(|(id, _)| id).collect();
    assert_eq!(done.len(), 10);
}

async fn a_stopped_worker_gives_back_what_has_not_begun(server: &Server) {
    let plugins = puppet("");
    let gateway = start(server, &plugins, &["--drain", "100ms"]);
    for number in 0..4 {
        server.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":600000}"#).await;
    }
    server.until_in_flight("puppet", 4).await;
    assert!(gateway.stop().await.success());
    // With a lease of an hour, only what was given back can be had this soon.
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let second = start(server, &plugins, &["--queue-lease", "1h"]);
    server.is("all are done", "XLEN mq:puppet", 0).await;
    assert!(second.logged("taken over").is_empty(), "a message given back counts as lost");
}

async fn the_commands_see_what_the_worker_sees(server: &Server) {
    let run = |args: &[&str]| told(server, args);
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

async fn a_lost_group_and_lost_scripts_are_made_again(server: &Server) {
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

async fn topics_all_over_the_slots_are_consumed_at_once(server: &Server) {
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
        let mut holding = 0;
        for node in &server.nodes {
            let mut connection = crate::support::patient_connection(&node.url()).await;
            let keys: i64 = ::redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
            holding += i64::from(keys > 0);
        }
        assert_eq!(holding, 3, "the topics lie on every master");
    }
}
