//! A deployment under any order of events, compared with a simple model of
//! what has to be live.

use super::again::LONGEST;
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeSet, VecDeque};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Can't be read as a plugin: cut off, or its manifest is wrong.
    Corrupt,
    /// Reads well and does not load.
    Unloadable,
    /// Does not load while the machine is short of something.
    Heavy,
}

/// What a file holds. Equal contents have equal digests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    kind: Kind,
    /// Bits: the topics t0, t1, t2, and the rest.
    claims: u8,
    variant: u8,
}

impl Content {
    fn digest(&self) -> String {
        format!("{:?}-{}-{}", self.kind, self.claims, self.variant)
    }

    fn version(&self) -> Version {
        let topic = |bit: u8| Claim::Topic(Topic::parse(&format!("t{bit}")).unwrap());
        let topics = (0..3).filter(|bit| self.claims >> bit & 1 == 1).map(topic);
        let rest = (self.claims & 7 == 0).then_some(Claim::Rest);
        Version { digest: self.digest(), claims: topics.chain(rest).collect() }
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// A copy in place, a rename, a piece of a slow copy: other bytes, another stamp.
    Put(usize, Content),
    Touch(usize),
    Delete(usize),
    /// The links of Kubernetes: all at once.
    Swap(Vec<Content>),
    /// The directory vanishes until the next one of these.
    Vanish,
    Scan(u64),
    /// One of the reads or loads under way ends.
    Finish(Index),
    Withdraw(usize),
    /// What is live of it has stood its probation.
    Prove(usize),
    Release(usize),
    /// The machine becomes short of something, or no longer is.
    Strain,
    Restart,
}

fn content() -> impl Strategy<Value = Content> {
    let kind = prop_oneof![4 => Just(Kind::Good), 1 => Just(Kind::Corrupt), 1 => Just(Kind::Unloadable), 2 => Just(Kind::Heavy)];
    (kind, prop_oneof![8 => 1..8_u8, 1 => Just(0)], 0..3_u8).prop_map(|(kind, claims, variant)| Content {
        kind,
        claims,
        variant,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0..NAMES.len();
    prop_oneof![
        6 => (name.clone(), content()).prop_map(|(name, content)| Event::Put(name, content)),
        1 => name.clone().prop_map(Event::Touch),
        2 => name.clone().prop_map(Event::Delete),
        1 => prop::collection::vec(content(), NAMES.len()).prop_map(Event::Swap),
        1 => Just(Event::Vanish),
        8 => (0..400_u64).prop_map(Event::Scan),
        8 => any::<Index>().prop_map(Event::Finish),
        1 => name.clone().prop_map(Event::Withdraw),
        1 => name.clone().prop_map(Event::Prove),
        1 => name.prop_map(Event::Release),
        2 => Just(Event::Strain),
        1 => Just(Event::Restart),
    ]
}

/// The world around a deployment, and what it has to come to.
struct World {
    deployment: Deployment<u64>,
    now: Duration,
    stamps: u64,
    folder: BTreeMap<String, (u64, Content)>,
    is_there: bool,
    is_short: bool,
    reads: VecDeque<(Order, Option<u64>)>,
    loads: VecDeque<(Order, Content)>,
    /// Every content that ever was, by digest.
    known: BTreeMap<String, Content>,
    /// By name, what went live last, since it was not removed.
    last_good: BTreeMap<String, String>,
    /// Names and digests that stood their probation, or had none.
    proven: BTreeSet<(String, String)>,
    /// By name, since which scan it has not been found.
    missing: BTreeMap<String, Duration>,
    /// What could not be gone back to, because others have its topics.
    not_restored: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        Self {
            deployment: Deployment::new(BTreeMap::new()),
            now: Duration::ZERO,
            stamps: 0,
            folder: BTreeMap::new(),
            is_there: true,
            is_short: false,
            reads: VecDeque::new(),
            loads: VecDeque::new(),
            known: BTreeMap::new(),
            last_good: BTreeMap::new(),
            proven: BTreeSet::new(),
            missing: BTreeMap::new(),
            not_restored: BTreeSet::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Put(name, content) => self.put(NAMES[name], content),
            Event::Touch(name) => {
                if let Some((_, content)) = self.folder.get(NAMES[name]).cloned() {
                    self.put(NAMES[name], content);
                }
            }
            Event::Delete(name) => drop(self.folder.remove(NAMES[name])),
            Event::Swap(contents) => {
                for (name, content) in NAMES.iter().zip(contents) {
                    self.put(name, content);
                }
            }
            Event::Vanish => self.is_there = !self.is_there,
            Event::Scan(after) => {
                self.now += Duration::from_millis(after);
                self.scan();
            }
            Event::Finish(which) => {
                let under_way = self.reads.len() + self.loads.len();
                if under_way > 0 {
                    self.finish(which.index(under_way));
                }
            }
            Event::Withdraw(name) => {
                if let Ok(order) = self.deployment.withdraw(NAMES[name], None, Held::RolledBack) {
                    self.reads.push_back((order, None));
                }
            }
            Event::Prove(name) => self.prove(NAMES[name]),
            Event::Release(name) => drop(self.deployment.release(NAMES[name])),
            Event::Strain => self.is_short = !self.is_short,
            Event::Restart => {
                let record = |(name, entry): (&String, &Entry<u64>)| (name.clone(), entry.record());
                let records: BTreeMap<_, _> = self.deployment.entries().iter().map(record).collect();
                self.last_good =
                    records.iter().filter_map(|(name, record)| Some((name.clone(), record.live.clone()?))).collect();
                self.deployment = Deployment::new(records);
                self.reads.clear();
                self.loads.clear();
                self.missing.clear();
                self.not_restored.clear();
                return;
            }
        }
        self.check();
    }

    fn prove(&mut self, name: &str) {
        if let Some(live) = self.live(name).map(|live| live.digest.clone()) {
            self.deployment.prove(name, &live);
            self.proven.insert((name.to_owned(), live));
        }
    }

    fn put(&mut self, name: &str, content: Content) {
        self.stamps += 1;
        self.known.insert(content.digest(), content.clone());
        self.folder.insert(name.to_owned(), (self.stamps, content));
    }

    fn scan(&mut self) -> bool {
        if !self.is_there {
            return false;
        }
        let found = self.folder.iter().map(|(name, (stamp, _))| (name.clone(), *stamp)).collect();
        let live: BTreeSet<String> =
            NAMES.iter().filter(|name| self.live(name).is_some()).map(ToString::to_string).collect();
        let scanned = self.deployment.scanned(&found, self.now, |_| QUIET, |_| false);
        for name in NAMES {
            if found.contains_key(name) {
                self.missing.remove(name);
            } else {
                let since = *self.missing.entry(name.to_owned()).or_insert(self.now);
                let is_gone = live.contains(name) && self.live(name).is_none();
                assert!(!is_gone || self.now - since >= QUIET, "{name} is withdrawn while its file may come back");
                assert_eq!(is_gone, scanned.gone.iter().any(|gone| gone == name));
                if is_gone {
                    self.last_good.remove(name);
                }
            }
        }
        for order in scanned.orders {
            let expected = self.deployment.expected(&order);
            assert_eq!(expected.is_some(), order.goal == Goal::File);
            self.reads.push_back((order, expected));
        }
        self.deployment.is_moving()
    }

    fn finish(&mut self, which: usize) {
        if which < self.reads.len() {
            let (order, expected) = self.reads.remove(which).unwrap();
            let step = self.read(&order, expected);
            self.follow(&order, step);
        } else {
            let (order, content) = self.loads.remove(which - self.reads.len()).unwrap();
            let result = match content.kind {
                Kind::Good => Ok(()),
                Kind::Heavy if !self.is_short => Ok(()),
                Kind::Heavy => Err(LoadError::passing("there is no memory")),
                Kind::Corrupt | Kind::Unloadable => Err(LoadError::lasting("it does not load")),
            };
            let step = self.deployment.loaded(&order, result);
            if let Step::Live { is_proven, .. } = step {
                if self.deployment.entry(&order.name).unwrap().previous.is_none() {
                    assert!(is_proven, "it has nothing to go back to");
                    self.proven.insert((order.name.clone(), content.digest()));
                }
                let is_known = self.proven.contains(&(order.name.clone(), content.digest()));
                assert!(!is_proven || is_known, "{order:?} has a probation to stand");
                assert!(matches!(content.kind, Kind::Good | Kind::Heavy));
                self.last_good.insert(order.name.clone(), content.digest());
            }
            self.follow(&order, step);
        }
    }

    fn read(&mut self, order: &Order, expected: Option<u64>) -> Step {
        let content = match &order.goal {
            Goal::File => match self.folder.get(&order.name) {
                Some((stamp, content)) if Some(*stamp) == expected => content.clone(),
                _ => return self.deployment.moved(order),
            },
            Goal::Restore { digest, .. } => self.known[digest].clone(),
        };
        if content.kind == Kind::Corrupt {
            return self.deployment.read(order, Err(LoadError::lasting("it is corrupt")));
        }
        let step = self.deployment.read(order, Ok(content.version()));
        if step == Step::Load {
            self.loads.push_back((order.clone(), content));
        }
        step
    }

    fn follow(&mut self, order: &Order, step: Step) {
        match step {
            Step::Refused { restore: Some(restore), .. } => self.reads.push_back((restore, None)),
            Step::NotRestored { .. } => drop(self.not_restored.insert(order.name.clone())),
            Step::Live { .. } => drop(self.not_restored.remove(&order.name)),
            _ => {}
        }
    }

    fn live(&self, name: &str) -> Option<&Version> {
        self.deployment.entry(name)?.live.as_ref()
    }

    /// What holds at every moment.
    fn check(&self) {
        let mut claimed = BTreeMap::new();
        for name in NAMES {
            let live = self.live(name);
            assert!(live.is_none() || live.map(|live| &live.digest) == self.last_good.get(name), "{name}: {live:?}");
            for claim in live.iter().flat_map(|live| &live.claims) {
                let other = claimed.insert(claim.clone(), name);
                assert!(other.is_none(), "{claim:?} is handled by {other:?} and {name}");
            }
        }
        for name in NAMES {
            let Some(entry) = self.deployment.entry(name) else { continue };
            let is_free = |live: &Version| entry.held_because(&live.digest).is_none();
            assert!(entry.live.as_ref().is_none_or(is_free), "{entry:?}");
            let is_proven = |digest: &String| self.proven.contains(&(name.to_owned(), digest.clone()));
            assert!(entry.previous.as_ref().is_none_or(is_proven), "{entry:?}");
            assert!(
                entry.previous.is_none() || entry.previous.as_ref() != entry.live.as_ref().map(|live| &live.digest)
            );
        }
    }

    /// Lets everything come to rest, on a machine that is short of nothing any
    /// longer, and looks at what it came to.
    fn come_to_rest(&mut self) {
        self.is_there = true;
        self.is_short = false;
        for round in 0.. {
            assert!(round < 60, "it does not come to rest: {:#?}", self.deployment);
            self.now += QUIET;
            let is_moving = self.scan();
            let is_idle = self.reads.is_empty() && self.loads.is_empty();
            while !self.reads.is_empty() || !self.loads.is_empty() {
                self.finish(0);
                self.check();
            }
            if is_moving || !is_idle {
                continue;
            }
            let again = NAMES.iter().filter_map(|name| self.deployment.entry(name)?.again_at()).min();
            let Some(at) = again else { break };
            assert!(at <= self.now + LONGEST, "nothing waits longer");
            self.now = self.now.max(at);
        }
        for name in NAMES {
            self.check_rest(name);
        }
    }

    fn check_rest(&self, name: &str) {
        let live = self.live(name).map(|live| live.digest.clone());
        let Some((_, content)) = self.folder.get(name) else {
            assert_eq!(live, None, "{name} is not there");
            return;
        };
        let entry = self.deployment.entry(name).unwrap();
        let refused = entry.refusal.as_ref().map(|refusal| refusal.kind);
        let is_last_good = live == self.last_good.get(name).cloned() || self.not_restored.contains(name);
        let told = format!("{name}: {content:?}: {entry:#?}");
        if live == Some(content.digest()) {
            assert_eq!(refused, None, "{told}");
        } else if content.kind == Kind::Corrupt {
            assert!(refused == Some(RefusalKind::Faulty) && is_last_good, "{told}");
        } else if entry.held_because(&content.digest()).is_some() {
            assert_eq!(refused, Some(RefusalKind::Held), "{told}");
            assert!(is_last_good, "{told}");
        } else if self.deployment.conflict(name, &content.version()).is_some() {
            // At the time of its load, or at another's.
            assert!(refused == Some(RefusalKind::Conflict) || content.kind == Kind::Unloadable, "{told}");
        } else {
            assert!(content.kind == Kind::Unloadable, "{told}");
            assert!(refused == Some(RefusalKind::Faulty) && is_last_good, "{told}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_live_is_the_last_good_version_of_what_was_quiet(events in prop::collection::vec(event(), 0..60)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        world.come_to_rest();
    }
}

fn good(claims: u8, variant: u8) -> Content {
    Content { kind: Kind::Good, claims, variant }
}

fn at_rest(files: &[(&str, Content)]) -> World {
    let mut world = World::new();
    for (name, content) in files {
        world.put(name, content.clone());
    }
    world.come_to_rest();
    world
}

#[test]
fn a_file_is_read_once_it_has_been_quiet_for_long_enough() {
    let mut world = World::new();
    world.put("a", good(1, 0));
    world.scan();
    world.now = QUIET - Duration::from_millis(1);
    assert!(world.scan() && world.reads.is_empty());
    world.now = QUIET;
    assert!(!world.scan() && world.reads.len() == 1);
    // A scan later it is still the same: no second order.
    world.scan();
    assert_eq!(world.reads.len(), 1);
}

#[test]
fn each_file_has_a_quiet_of_its_own() {
    let mut deployment = Deployment::new(BTreeMap::new());
    let found = BTreeMap::from([("a".to_owned(), 1_u64), ("b".to_owned(), 2)]);
    let quiet = |stamp: &u64| if *stamp == 1 { SHORT_QUIET } else { QUIET };
    let mut orders = |now: Duration| {
        let scanned = deployment.scanned(&found, now, quiet, |_| false);
        scanned.orders.into_iter().map(|order| order.name).collect::<String>()
    };
    let looks = [Duration::ZERO, SHORT_QUIET - Duration::from_millis(1), SHORT_QUIET, QUIET];
    assert_eq!(looks.map(&mut orders), ["", "", "a", "b"]);
}

#[test]
fn what_is_old_at_the_first_scan_is_read_at_once_and_never_later() {
    let mut deployment = Deployment::new(BTreeMap::new());
    let found = BTreeMap::from([("a".to_owned(), 1_u64), ("b".to_owned(), 2)]);
    let scanned = deployment.scanned(&found, Duration::ZERO, |_| QUIET, |stamp| *stamp == 1);
    assert_eq!(scanned.orders.iter().map(|order| order.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let more = BTreeMap::from([("c".to_owned(), 1_u64)]);
    assert!(deployment.scanned(&more, Duration::ZERO, |_| QUIET, |_| true).orders.is_empty());
}

#[test]
fn a_slow_load_holds_up_neither_others_nor_their_removal() {
    let mut world = at_rest(&[("a", good(1, 0)), ("b", good(2, 0))]);
    world.put("a", good(1, 1));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    world.finish(0);
    assert_eq!(world.loads.len(), 1);
    world.folder.remove("b");
    world.put("c", good(4, 0));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    assert!(world.live("b").is_none() && world.live("a").is_some());
    world.finish(0);
    world.finish(1);
    assert!(world.live("c").is_some());
    // The slow one is overtaken by a newer file, and its answer is nobody's.
    world.put("a", good(1, 2));
    world.now += QUIET;
    world.scan();
    world.finish(0);
    assert_eq!(world.live("a").unwrap().digest, good(1, 0).digest());
    world.come_to_rest();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
}

#[test]
fn what_is_removed_while_it_is_loaded_does_not_go_live() {
    let mut world = World::new();
    world.put("a", good(1, 0));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    world.finish(0);
    assert_eq!(world.loads.len(), 1);
    world.folder.remove("a");
    world.scan();
    world.finish(0);
    assert!(world.live("a").is_none());
    world.come_to_rest();
}

#[test]
fn a_topic_freed_by_a_new_version_goes_to_who_was_refused_for_it() {
    let mut world = at_rest(&[("a", good(3, 0)), ("b", good(2, 0))]);
    assert!(world.live("b").is_none());
    world.put("a", good(1, 0));
    world.come_to_rest();
    assert!(world.live("b").is_some());
}

#[test]
fn a_version_that_is_withdrawn_stays_out_until_its_bytes_change_or_it_is_released() {
    let mut world = at_rest(&[("a", good(1, 0))]);
    assert!(world.deployment.withdraw("a", None, Held::RolledBack).is_err(), "there is no way back");
    world.put("a", good(1, 1));
    world.come_to_rest();
    world.happen(Event::Withdraw(0));
    world.come_to_rest();
    let live = |world: &World| world.live("a").unwrap().digest.clone();
    assert_eq!(live(&world), good(1, 0).digest());
    for event in [Event::Touch(0), Event::Restart] {
        world.happen(event);
        world.come_to_rest();
        assert_eq!(live(&world), good(1, 0).digest());
    }
    let mut released = world;
    released.happen(Event::Release(0));
    released.come_to_rest();
    assert_eq!(live(&released), good(1, 1).digest());
    assert!(released.deployment.release("a").is_err(), "nothing is held any more");
    released.put("a", good(1, 2));
    released.come_to_rest();
    assert_eq!(live(&released), good(1, 2).digest());
}

#[test]
fn only_what_is_proven_is_a_way_back_and_it_needs_no_second_probation() {
    for (is_proven, previous) in [(false, good(1, 0)), (true, good(1, 1))] {
        let mut world = at_rest(&[("a", good(1, 0))]);
        world.put("a", good(1, 1));
        world.come_to_rest();
        if is_proven {
            world.happen(Event::Prove(0));
        }
        // Over a restart as without one.
        for event in [None, Some(Event::Restart)] {
            event.into_iter().for_each(|event| world.happen(event));
            world.put("a", good(1, 2));
            world.come_to_rest();
            let entry = world.deployment.entry("a").unwrap();
            assert_eq!((&entry.previous, entry.is_proven), (&Some(previous.digest()), false));
        }
        world.put("a", previous);
        world.come_to_rest();
        assert!(world.deployment.entry("a").unwrap().is_proven);
    }
}

#[test]
fn what_was_proven_before_a_restart_stays_so() {
    for is_proven in [false, true] {
        let mut world = at_rest(&[("a", good(1, 0))]);
        world.put("a", good(1, 1));
        world.come_to_rest();
        if is_proven {
            world.happen(Event::Prove(0));
        }
        world.happen(Event::Restart);
        world.come_to_rest();
        let entry = world.deployment.entry("a").unwrap();
        assert_eq!((entry.is_proven, &entry.previous), (is_proven, &Some(good(1, 0).digest())));
        // Also where its file is broken by then.
        world.put("a", Content { kind: Kind::Corrupt, ..good(1, 2) });
        world.happen(Event::Restart);
        world.come_to_rest();
        let entry = world.deployment.entry("a").unwrap();
        assert_eq!((entry.is_live(&good(1, 1).digest()), entry.is_proven), (true, is_proven));
    }
}

#[test]
fn a_judgement_that_comes_late_is_about_nothing_that_stays() {
    let mut world = at_rest(&[("a", good(1, 0))]);
    world.put("a", good(1, 1));
    world.come_to_rest();
    let (old, new) = (good(1, 0).digest(), good(1, 1).digest());
    assert!(world.deployment.stays("a", &new) && !world.deployment.stays("a", &old));
    assert!(world.deployment.withdraw("a", Some(&old), Held::Quarantined).is_err(), "it is not live");
    world.happen(Event::Withdraw(0));
    assert!(!world.deployment.stays("a", &new), "the way back from it is under way");
    assert!(world.deployment.withdraw("a", None, Held::RolledBack).is_err(), "and is gone once");
    assert!(!world.deployment.stays("b", &new));
}

#[test]
fn nobody_waits_for_a_file_that_never_rests() {
    let mut world = at_rest(&[("b", good(2, 0))]);
    let step = Duration::from_millis(100);
    let write = |world: &mut World, variant: u8| {
        world.put("a", good(1, variant));
        world.now += step;
        assert!(world.scan() && world.reads.is_empty(), "it is looked at again, and not read");
    };
    write(&mut world, 0);
    let began = world.now;
    while world.now - began < PATIENCE {
        assert!(!world.deployment.is_at_rest(), "{:?}", world.now - began);
        write(&mut world, 1);
    }
    assert!(world.deployment.is_at_rest());
    assert!(world.deployment.kept().contains_key(&Topic::parse("a").unwrap()), "it may be about to ask for it");
    // Others are waited for as ever, and so is this one once it rests.
    world.put("b", good(2, 1));
    write(&mut world, 2);
    assert!(!world.deployment.is_at_rest());
    world.come_to_rest();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
    write(&mut world, 0);
    assert!(!world.deployment.is_at_rest());
}

#[test]
fn what_is_faulty_is_read_again_when_somebody_asks() {
    let mut world = at_rest(&[("a", Content { kind: Kind::Unloadable, ..good(1, 0) }), ("b", good(2, 0))]);
    world.now += QUIET;
    assert!(!world.scan() && world.reads.is_empty());
    world.deployment.reconsider();
    world.now += QUIET;
    world.scan();
    assert_eq!(world.reads.iter().map(|(order, _)| order.name.as_str()).collect::<Vec<_>>(), ["a"]);
    // Not a second time beside it.
    world.deployment.reconsider();
    world.now += QUIET;
    assert!(!world.scan() && world.reads.len() == 1);
}

/// Scans until something is read, and lets that fail or succeed.
fn tried_again(world: &mut World) -> Duration {
    let before = world.now;
    while world.reads.is_empty() {
        assert!(world.now - before <= LONGEST, "nothing is tried again");
        world.now += Duration::from_secs(1);
        world.scan();
    }
    let waited = world.now - before;
    while !world.reads.is_empty() || !world.loads.is_empty() {
        world.finish(0);
        world.check();
    }
    waited
}

#[test]
fn what_the_machine_was_short_of_something_for_is_tried_again_by_itself() {
    let heavy = Content { kind: Kind::Heavy, ..good(1, 1) };
    let mut world = at_rest(&[("a", good(1, 0))]);
    world.put("a", heavy.clone());
    world.is_short = true;
    let waits: Vec<u64> = (0..5).map(|_| tried_again(&mut world).as_secs()).collect();
    assert_eq!(waits[1..], [5, 10, 20, 40], "the first is the new file's");
    let entry = world.deployment.entry("a").unwrap();
    assert_eq!(entry.refusal.as_ref().unwrap().kind, RefusalKind::Passing);
    assert!(entry.is_live(&good(1, 0).digest()) && entry.again_at().is_some());
    // Another file begins anew, and one that is faulty for good waits for another.
    world.put("a", Content { variant: 2, ..heavy.clone() });
    assert!(tried_again(&mut world) <= Duration::from_secs(2));
    assert_eq!(tried_again(&mut world), Duration::from_secs(5));
    world.put("a", Content { kind: Kind::Unloadable, ..heavy.clone() });
    tried_again(&mut world);
    assert_eq!(world.deployment.entry("a").unwrap().again_at(), None);
    world.put("a", heavy.clone());
    tried_again(&mut world);
    world.is_short = false;
    tried_again(&mut world);
    let entry = world.deployment.entry("a").unwrap();
    assert!(entry.is_live(&heavy.digest()) && entry.refusal.is_none() && entry.again_at().is_none());
}

#[test]
fn a_way_back_that_the_machine_was_short_of_something_for_is_tried_again_too() {
    let heavy = Content { kind: Kind::Heavy, ..good(1, 0) };
    for is_restart in [true, false] {
        let mut world = at_rest(&[("a", heavy.clone())]);
        let faulty = Content { kind: Kind::Unloadable, ..good(1, 1) };
        world.put("a", if is_restart { faulty } else { good(1, 1) });
        if is_restart {
            world.happen(Event::Restart);
            world.is_short = true;
            tried_again(&mut world);
            assert!(world.live("a").is_none());
        } else {
            world.come_to_rest();
            world.is_short = true;
            let order = world.deployment.withdraw("a", None, Held::Quarantined).unwrap();
            world.reads.push_back((order, None));
            tried_again(&mut world);
            assert_eq!(world.live("a").unwrap().digest, good(1, 1).digest());
        }
        assert_eq!(tried_again(&mut world), Duration::from_secs(5));
        world.is_short = false;
        assert_eq!(tried_again(&mut world), Duration::from_secs(10));
        assert_eq!(world.live("a").unwrap().digest, heavy.digest());
        assert_eq!(world.deployment.entry("a").unwrap().again_at(), None);
    }
}

#[test]
fn a_way_back_from_what_is_no_longer_live_is_not_gone() {
    let mut world = at_rest(&[("a", Content { kind: Kind::Heavy, ..good(1, 0) })]);
    world.put("a", good(1, 1));
    world.come_to_rest();
    world.is_short = true;
    let order = world.deployment.withdraw("a", None, Held::Quarantined).unwrap();
    world.reads.push_back((order, None));
    tried_again(&mut world);
    world.put("a", good(1, 2));
    world.come_to_rest();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
}

#[test]
fn where_both_fail_for_now_the_file_is_tried_again_and_not_what_was_before() {
    let heavy = |variant: u8| Content { kind: Kind::Heavy, ..good(1, variant) };
    let mut world = at_rest(&[("a", heavy(0))]);
    world.put("a", heavy(1));
    world.happen(Event::Restart);
    world.is_short = true;
    tried_again(&mut world);
    assert!(world.live("a").is_none());
    world.is_short = false;
    tried_again(&mut world);
    assert_eq!(world.live("a").unwrap().digest, heavy(1).digest());
}

#[test]
fn nothing_is_tried_again_beside_a_way_back() {
    let mut world = at_rest(&[("a", good(1, 0))]);
    world.put("a", good(1, 1));
    world.come_to_rest();
    world.put("a", Content { kind: Kind::Heavy, ..good(1, 2) });
    world.is_short = true;
    tried_again(&mut world);
    world.happen(Event::Withdraw(0));
    world.now += LONGEST;
    world.scan();
    assert_eq!(world.reads.len(), 1);
    world.come_to_rest();
    assert!(world.deployment.entry("a").unwrap().held_because(&good(1, 1).digest()).is_some());
}

#[test]
fn what_a_refused_file_asks_for_is_kept_while_it_is_there() {
    let mut world = at_rest(&[("a", Content { kind: Kind::Unloadable, ..good(2, 0) })]);
    let topic = Topic::parse("t1").unwrap();
    assert_eq!(world.deployment.kept().get(&topic).map(String::as_str), Some("a"));
    world.happen(Event::Delete(0));
    world.come_to_rest();
    assert!(!world.deployment.kept().contains_key(&topic));
}

#[test]
fn a_rollback_that_could_not_be_done_is_not_done_later() {
    let heavy = Content { kind: Kind::Heavy, ..good(1, 0) };
    let mut world = at_rest(&[("a", heavy)]);
    world.put("a", good(1, 1));
    world.come_to_rest();
    world.is_short = true;
    world.happen(Event::Withdraw(0));
    while !world.reads.is_empty() || !world.loads.is_empty() {
        world.finish(0);
    }
    assert_eq!(world.deployment.entry("a").unwrap().again_at(), None);
}

#[test]
fn a_topic_is_kept_from_the_rest_until_its_plugin_is_released() {
    let topic = Topic::parse("t0").unwrap();
    let mut world = at_rest(&[("a", good(1, 0)), ("b", good(0, 0))]);
    world.happen(Event::Delete(0));
    world.come_to_rest();
    assert!(world.live("a").is_none() && world.deployment.kept().contains_key(&topic));
    world.happen(Event::Restart);
    world.come_to_rest();
    assert!(world.deployment.kept().contains_key(&topic));
    world.deployment.release("a").unwrap();
    assert!(!world.deployment.kept().contains_key(&topic));
    // Whoever has it then is asked, and nobody before.
    world.put("c", good(1, 0));
    world.come_to_rest();
    world.put("a", good(2, 0));
    world.come_to_rest();
    assert_eq!(world.deployment.entry("a").unwrap().had.len(), 1);
}

#[test]
fn a_topic_that_another_gets_is_no_longer_kept_for_who_had_it() {
    let mut world = at_rest(&[("a", good(1, 0))]);
    world.happen(Event::Delete(0));
    world.come_to_rest();
    world.put("c", good(1, 0));
    world.come_to_rest();
    assert!(world.deployment.entry("a").unwrap().had.is_empty());
    let kept = world.deployment.kept();
    assert_eq!(kept.values().collect::<BTreeSet<_>>(), BTreeSet::from([&"c".to_owned()]));
}

/// Another worker that shares the archive may have found it out.
#[test]
fn what_is_held_is_not_what_runs_after_a_restart() {
    let (live, is_proven) = (Some(good(1, 0).digest()), true);
    let held = vec![(good(1, 0).digest(), Held::Quarantined)];
    for (held, is_restored) in [(Vec::new(), true), (held, false)] {
        let record = Record { live: live.clone(), is_proven, held, ..Record::default() };
        let mut world = World::new();
        world.deployment = Deployment::new(BTreeMap::from([("a".to_owned(), record)]));
        world.put("a", Content { kind: Kind::Corrupt, ..good(1, 1) });
        for _ in 0..2 {
            world.now += QUIET;
            world.scan();
        }
        world.finish(0);
        assert_eq!(!world.reads.is_empty(), is_restored);
    }
}

/// It may have been away for just that moment, and be the same as before.
#[test]
fn what_could_not_be_read_as_it_was_found_is_read_again() {
    let mut world = World::new();
    world.put("a", good(1, 0));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    let (order, _) = world.reads.pop_front().unwrap();
    assert_eq!(world.deployment.moved(&order), Step::Stale);
    world.now += QUIET;
    world.scan();
    assert_eq!(world.reads.len(), 1);
}

#[test]
fn of_what_is_held_the_oldest_goes_first() {
    let mut entry = Entry::<u64>::new();
    for number in 0..=32 {
        entry.hold(number.to_string(), Held::RolledBack);
    }
    assert_eq!(entry.held.len(), 32);
    assert!(entry.held_because("0").is_none() && entry.held_because("32").is_some());
}

#[test]
fn what_was_being_loaded_when_another_was_withdrawn_has_its_turn_afterwards() {
    let mut world = at_rest(&[("a", good(1, 0))]);
    world.put("a", good(1, 1));
    world.come_to_rest();
    world.put("a", good(1, 2));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    world.finish(0);
    assert_eq!(world.loads.len(), 1);
    world.happen(Event::Withdraw(0));
    world.come_to_rest();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
    assert_eq!(world.deployment.entry("a").unwrap().held, [(good(1, 1).digest(), Held::RolledBack)]);
}
