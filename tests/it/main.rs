//! Whole-process tests: real Redis servers, the real binary, real components.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests stand outside of the rules of the host")]
#![allow(clippy::print_stdout, reason = "what a failed test has to tell")]
#![recursion_limit = "256"]

mod adoption;
mod batch;
mod business;
mod certificates;
mod chaos;
mod clock;
mod command_line;
mod conformance;
mod crash_loop;
mod dead_letters;
mod delivery;
mod flow;
mod frozen;
#[path = "../guest.rs"]
mod guest;
mod house;
mod lists;
mod messages;
mod model;
mod operators;
mod outage;
mod outbox;
mod plugins;
mod process;
mod proxy;
mod queue;
mod sandbox;
mod schedule;
mod servers;
mod service;
mod support;
