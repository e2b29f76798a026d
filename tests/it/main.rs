//! Whole-process tests: real Redis servers, the real binary, real components.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests stand outside of the rules of the host")]
#![allow(clippy::print_stdout, reason = "what a failed test has to tell")]
#![recursion_limit = "256"]

mod admin;
mod adoption;
mod batch;
mod business;
mod certificates;
mod chaos;
mod clock;
mod command;
mod command_line;
mod compile;
mod conformance;
mod crash_loop;
mod dead_letters;
mod delivery;
mod failover;
mod flow;
mod folder;
mod folders;
mod frozen;
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
mod load;
mod mail;
mod messages;
mod model;
mod operators;
mod outage;
mod outbox;
mod pieces;
mod plugins;
mod process;
mod proxy;
mod publish_options;
mod queue;
mod reload;
mod reuse;
mod sandbox;
mod schedule;
mod secrets;
mod servers;
mod service;
mod smtp;
mod support;
mod unclaimed;
mod upgrade;
mod versions;
