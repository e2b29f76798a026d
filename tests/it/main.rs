//! Whole-process tests: real Redis servers, the real binary, real components.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "the rules apply to the host, not to its tests")]
#![allow(clippy::print_stdout, reason = "output of a failed test")]
#![recursion_limit = "256"]

mod admin;
mod legacy;
mod ledger;
mod batch;
mod predefined;
mod prefixes;
mod certificates;
mod chaos;
mod clock;
mod command;
mod command_line;
mod compile;
mod conformance;
mod poison_messages;
mod dead_letters;
mod dedup;
mod dedup_windows;
mod delivery;
mod failover;
mod flow_control;
mod frozen_redis;
mod plugin_dir;
mod preopens;
mod stalls;
mod golden;
#[path = "../guest.rs"]
mod guest;
mod hostile;
mod house;
mod http;
mod http_limits;
mod http_rig;
mod http_server;
mod http_tls;
mod inspect;
mod key_value;
mod limits;
mod lists;
mod log;
mod compatibility;
mod mail;
mod many_topics;
mod messages;
mod mixed_leases;
mod model;
mod operators;
mod outage;
mod outbox;
mod output;
mod script_batches;
mod plugins;
mod process;
mod proxy;
mod publish_options;
mod readiness;
mod queue;
mod reload;
mod instance_pool;
mod sandbox;
mod schedule;
mod secrets;
mod servers;
mod endpoints;
mod settings;
mod smtp;
mod support;
mod tls_errors;
mod topic_client;
mod topic_names;
mod catch_all;
mod upgrade;
mod versions;
