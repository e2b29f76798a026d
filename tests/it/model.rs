//! The scripts against a model: after any sequence of operations each message is
//! where the model says, and nowhere else.

mod arrive;
mod check;
mod dead;
mod dedup;
mod lease;
mod operate;
mod transfer;
mod server;
mod settle;
mod world;

use arrive::Arrival;
use dead::DeadLetterStep;
use dedup::DedupStep;
use lease::LeaseStep;
use operate::OperatorStep;
use proptest::prelude::*;
use proptest::test_runner::Config;
use server::Servers;
use settle::SettleStep;
use transfer::TransferStep;
use world::{Kind, World};

#[derive(Debug, Clone)]
enum Step {
    Arrive(Arrival),
    Transfer(TransferStep),
    Lease(LeaseStep),
    Settle(SettleStep),
    Dedup(DedupStep),
    DeadLetter(DeadLetterStep),
    Operate(OperatorStep),
}

/// A step, and whether Redis' memory is full during it.
fn steps() -> impl Strategy<Value = (Step, bool)> {
    let step = prop_oneof![
        14 => arrive::arrivals().prop_map(Step::Arrive),
        10 => transfer::transfer_steps().prop_map(Step::Transfer),
        18 => lease::lease_steps().prop_map(Step::Lease),
        12 => settle::settle_steps().prop_map(Step::Settle),
        8 => dedup::dedup_steps().prop_map(Step::Dedup),
        4 => dead::dead_letter_steps().prop_map(Step::DeadLetter),
        4 => operate::operator_steps().prop_map(Step::Operate),
    ];
    (step, prop::bool::weighted(0.1))
}

#[test]
fn every_message_is_where_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let servers = runtime.block_on(Servers::start());
    // The runner's default reads PROPTEST_CASES.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 96 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let kinds = prop::sample::select(vec![Kind::List, Kind::Stream, Kind::Shared]);
    let setups = (kinds, prop::bool::weighted(0.3));
    proptest!(config, |((kind, is_cluster) in setups, steps in prop::collection::vec(steps(), 1..100))| {
        runtime.block_on(async {
            let mut world = World::new(servers.of(is_cluster), kind).await;
            for (step, is_full) in steps {
                world.fill(is_full).await;
                world.step(step).await;
                world.fill(false).await;
            }
            world.check().await;
        });
    });
}
