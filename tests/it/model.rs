//! The scripts against a plain model: whatever is done in whatever order, each
//! message is where the model says, and nowhere else.

mod arrive;
mod check;
mod dead;
mod hold;
mod operate;
mod pass;
mod server;
mod settle;
mod world;

use arrive::Arrival;
use dead::Rite;
use hold::Grip;
use operate::Order;
use pass::Passage;
use proptest::prelude::*;
use proptest::test_runner::Config;
use server::Servers;
use settle::Verdict;
use world::{Kind, World};

#[derive(Debug, Clone)]
enum Step {
    Arrive(Arrival),
    Pass(Passage),
    Hold(Grip),
    Settle(Verdict),
    Bury(Rite),
    Operate(Order),
}

/// What is done, and whether Redis' memory is full meanwhile.
fn steps() -> impl Strategy<Value = (Step, bool)> {
    let step = prop_oneof![
        14 => arrive::arrivals().prop_map(Step::Arrive),
        10 => pass::passages().prop_map(Step::Pass),
        18 => hold::grips().prop_map(Step::Hold),
        12 => settle::verdicts().prop_map(Step::Settle),
        4 => dead::rites().prop_map(Step::Bury),
        4 => operate::orders().prop_map(Step::Operate),
    ];
    (step, prop::bool::weighted(0.1))
}

#[test]
fn every_message_is_where_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let servers = runtime.block_on(Servers::start());
    // As many as PROPTEST_CASES says, which the runner's default heeds.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 96 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let kinds = prop::sample::select(vec![Kind::List, Kind::Stream, Kind::Shared]);
    let places = (kinds, prop::bool::weighted(0.3));
    proptest!(config, |((kind, is_cluster) in places, steps in prop::collection::vec(steps(), 1..100))| {
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
