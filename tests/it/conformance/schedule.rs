//! The scenario of schedules.

use super::start;
use crate::servers::Server;
use crate::support::{OK, Plugins, guest, text, until};
use serde_json::Value;

pub(super) async fn a_schedule_fires_each_time_once_over_two_workers(server: &Server) {
    // A paused topic keeps its messages, so that they can be counted.
    server.run::<i64>("HSET {mq:quiet}:state paused 1").await;
    let plugins = Plugins::with("quiet", &guest(OK), "[schedule]\ncron = \"* * * * * *\"\ncatch_up = \"all\"\n");
    let workers = [start(server, &plugins, &[]), start(server, &plugins, &[])];
    for worker in &workers {
        worker.until_loaded("quiet").await;
    }
    let before: usize = server.run("XLEN mq:quiet").await;
    let entries = until("three more have fired", async || {
        let entries = server.entries("mq:quiet").await;
        (entries.len() >= before + 3).then_some(entries)
    })
    .await;
    let second = |entry: &Vec<(String, Vec<u8>)>| {
        let envelope: Value = serde_json::from_str(&text(entry, "message")).unwrap();
        let id = envelope["id"].as_str().unwrap().to_owned();
        id.strip_prefix("cron:quiet:").unwrap().parse::<jiff::Timestamp>().unwrap().as_second()
    };
    let seconds: Vec<i64> = entries.iter().map(second).collect();
    assert!(seconds.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seconds:?}");
}
