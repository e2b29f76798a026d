//! Runs a deployment through random events, and compares the live versions with a
//! simple model.

use super::retry::RETRY_MAX;
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeSet, VecDeque};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Can't be read: truncated, or with an invalid manifest.
    Corrupt,
    /// Can be read and does not load.
    Unloadable,
    /// Does not load while the machine lacks resources.
    Heavy,
}

/// The contents of a plugin's files.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    kind: Kind,
    /// Bits 0 to 2 claim the topics t0 to t2; no bit claims the catch-all.
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
        let catch_all = (self.claims & 7 == 0).then_some(Claim::CatchAll);
        Version { digest: self.digest(), claims: topics.chain(catch_all).collect() }
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// A copy in place, a rename or a part of a slow copy: other bytes, another
    /// fingerprint.
    Put(usize, Content),
    Touch(usize),
    Delete(usize),
    /// Kubernetes swaps its link: all files change at once.
    Swap(Vec<Content>),
    /// The directory vanishes, or comes back.
    Vanish,
    Scan(u64),
    /// A read or load ends.
    Finish(Index),
    Withdraw(usize),
    /// The live version passes its probation.
    Prove(usize),
    Unblock(usize),
    /// The machine starts or stops lacking resources.
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
        1 => name.prop_map(Event::Unblock),
        2 => Just(Event::Strain),
        1 => Just(Event::Restart),
    ]
}

/// The environment of a deployment, and the expected state.
struct World {
    deployment: Deployment<u64>,
    now: Duration,
    stamps: u64,
    files: BTreeMap<String, (u64, Content)>,
    is_there: bool,
    lacks_resources: bool,
    reads: VecDeque<(Command, Option<u64>)>,
    loads: VecDeque<(Command, Content)>,
    /// All contents so far, by digest.
    known: BTreeMap<String, Content>,
    /// By name, the last version that went live; none once it is removed.
    last_good: BTreeMap<String, String>,
    /// Names and digests that passed their probation or needed none.
    proven: BTreeSet<(String, String)>,
    /// By name, the time of the first scan that did not find it.
    missing: BTreeMap<String, Duration>,
    /// Names that could not be restored, because others have their topics.
    not_restored: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        Self {
            deployment: Deployment::new(BTreeMap::new()),
            now: Duration::ZERO,
            stamps: 0,
            files: BTreeMap::new(),
            is_there: true,
            lacks_resources: false,
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
                if let Some((_, content)) = self.files.get(NAMES[name]).cloned() {
                    self.put(NAMES[name], content);
                }
            }
            Event::Delete(name) => drop(self.files.remove(NAMES[name])),
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
                if let Ok(command) = self.deployment.withdraw(NAMES[name], None, BlockReason::RolledBack) {
                    self.reads.push_back((command, None));
                }
            }
            Event::Prove(name) => self.prove(NAMES[name]),
            Event::Unblock(name) => drop(self.deployment.unblock(NAMES[name])),
            Event::Strain => self.lacks_resources = !self.lacks_resources,
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
        self.files.insert(name.to_owned(), (self.stamps, content));
    }

    fn scan(&mut self) -> bool {
        if !self.is_there {
            return false;
        }
        let found = self.files.iter().map(|(name, (fingerprint, _))| (name.clone(), *fingerprint)).collect();
        let live: BTreeSet<String> =
            NAMES.iter().filter(|name| self.live(name).is_some()).map(ToString::to_string).collect();
        let scanned = self.deployment.on_scan(&found, self.now, |_| QUIET, |_| false);
        for name in NAMES {
            if found.contains_key(name) {
                self.missing.remove(name);
            } else {
                let since = *self.missing.entry(name.to_owned()).or_insert(self.now);
                let is_gone = live.contains(name) && self.live(name).is_none();
                assert!(!is_gone || self.now - since >= QUIET, "{name} is removed although its file may reappear");
                assert_eq!(is_gone, scanned.removed.iter().any(|gone| gone == name));
                if is_gone {
                    self.last_good.remove(name);
                }
            }
        }
        for command in scanned.commands {
            let expected = self.deployment.expected(&command);
            assert_eq!(expected.is_some(), command.target == Target::File);
            self.reads.push_back((command, expected));
        }
        self.deployment.is_unstable()
    }

    fn finish(&mut self, which: usize) {
        if which < self.reads.len() {
            let (command, expected) = self.reads.remove(which).unwrap();
            let transition = self.read(&command, expected);
            self.follow(&command, transition);
        } else {
            let (command, content) = self.loads.remove(which - self.reads.len()).unwrap();
            let result = match content.kind {
                Kind::Good => Ok(()),
                Kind::Heavy if !self.lacks_resources => Ok(()),
                Kind::Heavy => Err(LoadError::transient("out of memory")),
                Kind::Corrupt | Kind::Unloadable => Err(LoadError::permanent("it does not load")),
            };
            let transition = self.deployment.on_loaded(&command, result);
            if let Transition::Live { is_proven, .. } = transition {
                if self.deployment.entry(&command.name).unwrap().previous.is_none() {
                    assert!(is_proven, "it has no previous version");
                    self.proven.insert((command.name.clone(), content.digest()));
                }
                let is_known = self.proven.contains(&(command.name.clone(), content.digest()));
                assert!(!is_proven || is_known, "{command:?} needs a probation");
                assert!(matches!(content.kind, Kind::Good | Kind::Heavy));
                self.last_good.insert(command.name.clone(), content.digest());
            }
            self.follow(&command, transition);
        }
    }

    fn read(&mut self, command: &Command, expected: Option<u64>) -> Transition {
        let content = match &command.target {
            Target::File => match self.files.get(&command.name) {
                Some((fingerprint, content)) if Some(*fingerprint) == expected => content.clone(),
                _ => return self.deployment.on_changed(command),
            },
            Target::Restore { digest, .. } => self.known[digest].clone(),
        };
        if content.kind == Kind::Corrupt {
            return self.deployment.on_read(command, Err(LoadError::permanent("it is corrupt")));
        }
        let transition = self.deployment.on_read(command, Ok(content.version()));
        if transition == Transition::Load {
            self.loads.push_back((command.clone(), content));
        }
        transition
    }

    fn follow(&mut self, command: &Command, transition: Transition) {
        match transition {
            Transition::Refused { restore: Some(restore), .. } => self.reads.push_back((restore, None)),
            Transition::NotRestored { .. } => drop(self.not_restored.insert(command.name.clone())),
            Transition::Live { .. } => drop(self.not_restored.remove(&command.name)),
            _ => {}
        }
    }

    fn live(&self, name: &str) -> Option<&Version> {
        self.deployment.entry(name)?.live.as_ref()
    }

    /// Checks the invariants.
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
            let is_free = |live: &Version| entry.block_reason(&live.digest).is_none();
            assert!(entry.live.as_ref().is_none_or(is_free), "{entry:?}");
            let is_proven = |digest: &String| self.proven.contains(&(name.to_owned(), digest.clone()));
            assert!(entry.previous.as_ref().is_none_or(is_proven), "{entry:?}");
            assert!(
                entry.previous.is_none() || entry.previous.as_ref() != entry.live.as_ref().map(|live| &live.digest)
            );
        }
    }

    /// Runs until nothing changes any more, on a machine with enough resources, and
    /// checks the result.
    fn finish_all(&mut self) {
        self.is_there = true;
        self.lacks_resources = false;
        for round in 0.. {
            assert!(round < 60, "it never becomes idle: {:#?}", self.deployment);
            self.now += QUIET;
            let is_unstable = self.scan();
            let is_idle = self.reads.is_empty() && self.loads.is_empty();
            while !self.reads.is_empty() || !self.loads.is_empty() {
                self.finish(0);
                self.check();
            }
            if is_unstable || !is_idle {
                continue;
            }
            let retry = NAMES.iter().filter_map(|name| self.deployment.entry(name)?.retry_at()).min();
            let Some(at) = retry else { break };
            assert!(at <= self.now + RETRY_MAX, "no retry waits longer");
            self.now = self.now.max(at);
        }
        for name in NAMES {
            self.check_idle(name);
        }
    }

    fn check_idle(&self, name: &str) {
        let live = self.live(name).map(|live| live.digest.clone());
        let Some((_, content)) = self.files.get(name) else {
            assert_eq!(live, None, "{name} has no file");
            return;
        };
        let entry = self.deployment.entry(name).unwrap();
        let refused = entry.refusal.as_ref().map(|refusal| refusal.kind);
        let is_last_good = live == self.last_good.get(name).cloned() || self.not_restored.contains(name);
        let context = format!("{name}: {content:?}: {entry:#?}");
        if live == Some(content.digest()) {
            assert_eq!(refused, None, "{context}");
        } else if content.kind == Kind::Corrupt {
            assert!(refused == Some(RefusalKind::Invalid) && is_last_good, "{context}");
        } else if entry.block_reason(&content.digest()).is_some() {
            assert_eq!(refused, Some(RefusalKind::Blocked), "{context}");
            assert!(is_last_good, "{context}");
        } else if self.deployment.conflict(name, &content.version()).is_some() {
            // The conflict may have arisen after the version failed to load.
            assert!(refused == Some(RefusalKind::Conflict) || content.kind == Kind::Unloadable, "{context}");
        } else {
            assert!(content.kind == Kind::Unloadable, "{context}");
            assert!(refused == Some(RefusalKind::Invalid) && is_last_good, "{context}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_live_version_is_the_last_good_one_of_a_stable_file(events in prop::collection::vec(event(), 0..60)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        world.finish_all();
    }
}

fn good(claims: u8, variant: u8) -> Content {
    Content { kind: Kind::Good, claims, variant }
}

fn idle_with(files: &[(&str, Content)]) -> World {
    let mut world = World::new();
    for (name, content) in files {
        world.put(name, content.clone());
    }
    world.finish_all();
    world
}

#[test]
fn a_file_is_read_once_it_is_unchanged_for_long_enough() {
    let mut world = World::new();
    world.put("a", good(1, 0));
    world.scan();
    world.now = QUIET - Duration::from_millis(1);
    assert!(world.scan() && world.reads.is_empty());
    world.now = QUIET;
    assert!(!world.scan() && world.reads.len() == 1);
    // Another scan gives no second command for the same file.
    world.scan();
    assert_eq!(world.reads.len(), 1);
}

#[test]
fn the_quiet_time_is_per_file() {
    let mut deployment = Deployment::new(BTreeMap::new());
    let found = BTreeMap::from([("a".to_owned(), 1_u64), ("b".to_owned(), 2)]);
    let quiet = |fingerprint: &u64| if *fingerprint == 1 { SHORT_QUIET } else { QUIET };
    let mut commands = |now: Duration| {
        let scanned = deployment.on_scan(&found, now, quiet, |_| false);
        scanned.commands.into_iter().map(|command| command.name).collect::<String>()
    };
    let times = [Duration::ZERO, SHORT_QUIET - Duration::from_millis(1), SHORT_QUIET, QUIET];
    assert_eq!(times.map(&mut commands), ["", "", "a", "b"]);
}

#[test]
fn old_files_are_read_at_once_at_the_first_scan_only() {
    let mut deployment = Deployment::new(BTreeMap::new());
    let found = BTreeMap::from([("a".to_owned(), 1_u64), ("b".to_owned(), 2)]);
    let scanned = deployment.on_scan(&found, Duration::ZERO, |_| QUIET, |fingerprint| *fingerprint == 1);
    assert_eq!(scanned.commands.iter().map(|command| command.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let more = BTreeMap::from([("c".to_owned(), 1_u64)]);
    assert!(deployment.on_scan(&more, Duration::ZERO, |_| QUIET, |_| true).commands.is_empty());
}

#[test]
fn a_slow_load_delays_neither_other_loads_nor_removals() {
    let mut world = idle_with(&[("a", good(1, 0)), ("b", good(2, 0))]);
    world.put("a", good(1, 1));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    world.finish(0);
    assert_eq!(world.loads.len(), 1);
    world.files.remove("b");
    world.put("c", good(4, 0));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    assert!(world.live("b").is_none() && world.live("a").is_some());
    world.finish(0);
    world.finish(1);
    assert!(world.live("c").is_some());
    // A newer file replaces the slow load, whose result is ignored.
    world.put("a", good(1, 2));
    world.now += QUIET;
    world.scan();
    world.finish(0);
    assert_eq!(world.live("a").unwrap().digest, good(1, 0).digest());
    world.finish_all();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
}

#[test]
fn a_plugin_that_is_removed_while_it_loads_does_not_go_live() {
    let mut world = World::new();
    world.put("a", good(1, 0));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    world.finish(0);
    assert_eq!(world.loads.len(), 1);
    world.files.remove("a");
    world.scan();
    world.finish(0);
    assert!(world.live("a").is_none());
    world.finish_all();
}

#[test]
fn a_freed_topic_goes_to_the_plugin_that_was_refused_for_it() {
    let mut world = idle_with(&[("a", good(3, 0)), ("b", good(2, 0))]);
    assert!(world.live("b").is_none());
    world.put("a", good(1, 0));
    world.finish_all();
    assert!(world.live("b").is_some());
}

#[test]
fn a_withdrawn_version_is_blocked_until_its_files_change_or_it_is_unblocked() {
    let mut world = idle_with(&[("a", good(1, 0))]);
    assert!(world.deployment.withdraw("a", None, BlockReason::RolledBack).is_err(), "there is no previous version");
    world.put("a", good(1, 1));
    world.finish_all();
    world.happen(Event::Withdraw(0));
    world.finish_all();
    let live = |world: &World| world.live("a").unwrap().digest.clone();
    assert_eq!(live(&world), good(1, 0).digest());
    for event in [Event::Touch(0), Event::Restart] {
        world.happen(event);
        world.finish_all();
        assert_eq!(live(&world), good(1, 0).digest());
    }
    let mut unblocked = world;
    unblocked.happen(Event::Unblock(0));
    unblocked.finish_all();
    assert_eq!(live(&unblocked), good(1, 1).digest());
    assert!(unblocked.deployment.unblock("a").is_err(), "nothing is blocked any more");
    unblocked.put("a", good(1, 2));
    unblocked.finish_all();
    assert_eq!(live(&unblocked), good(1, 2).digest());
}

#[test]
fn only_a_proven_version_is_previous_and_it_needs_no_second_probation() {
    for (is_proven, previous) in [(false, good(1, 0)), (true, good(1, 1))] {
        let mut world = idle_with(&[("a", good(1, 0))]);
        world.put("a", good(1, 1));
        world.finish_all();
        if is_proven {
            world.happen(Event::Prove(0));
        }
        // With and without a restart.
        for event in [None, Some(Event::Restart)] {
            event.into_iter().for_each(|event| world.happen(event));
            world.put("a", good(1, 2));
            world.finish_all();
            let entry = world.deployment.entry("a").unwrap();
            assert_eq!((&entry.previous, entry.is_proven), (&Some(previous.digest()), false));
        }
        world.put("a", previous);
        world.finish_all();
        assert!(world.deployment.entry("a").unwrap().is_proven);
    }
}

#[test]
fn a_proven_version_stays_proven_over_a_restart() {
    for is_proven in [false, true] {
        let mut world = idle_with(&[("a", good(1, 0))]);
        world.put("a", good(1, 1));
        world.finish_all();
        if is_proven {
            world.happen(Event::Prove(0));
        }
        world.happen(Event::Restart);
        world.finish_all();
        let entry = world.deployment.entry("a").unwrap();
        assert_eq!((entry.is_proven, &entry.previous), (is_proven, &Some(good(1, 0).digest())));
        // Also if its file is corrupt after the restart.
        world.put("a", Content { kind: Kind::Corrupt, ..good(1, 2) });
        world.happen(Event::Restart);
        world.finish_all();
        let entry = world.deployment.entry("a").unwrap();
        assert_eq!((entry.is_live(&good(1, 1).digest()), entry.is_proven), (true, is_proven));
    }
}

#[test]
fn a_version_that_is_not_active_can_not_be_withdrawn() {
    let mut world = idle_with(&[("a", good(1, 0))]);
    world.put("a", good(1, 1));
    world.finish_all();
    let (old, new) = (good(1, 0).digest(), good(1, 1).digest());
    assert!(world.deployment.is_active("a", &new) && !world.deployment.is_active("a", &old));
    assert!(world.deployment.withdraw("a", Some(&old), BlockReason::Quarantined).is_err(), "it is not live");
    world.happen(Event::Withdraw(0));
    assert!(!world.deployment.is_active("a", &new), "it is being withdrawn");
    assert!(world.deployment.withdraw("a", None, BlockReason::RolledBack).is_err(), "it is withdrawn once");
    assert!(!world.deployment.is_active("b", &new));
}

#[test]
fn a_file_that_keeps_changing_does_not_delay_readiness() {
    let mut world = idle_with(&[("b", good(2, 0))]);
    let step = Duration::from_millis(100);
    let write = |world: &mut World, variant: u8| {
        world.put("a", good(1, variant));
        world.now += step;
        assert!(world.scan() && world.reads.is_empty(), "it is scanned again and not read");
    };
    write(&mut world, 0);
    let began = world.now;
    while world.now - began < UNSTABLE_WAIT_MAX {
        assert!(!world.deployment.is_idle(), "{:?}", world.now - began);
        write(&mut world, 1);
    }
    assert!(world.deployment.is_idle());
    assert!(
        world.deployment.reserved_topics().contains_key(&Topic::parse("a").unwrap()),
        "it may be about to claim it"
    );
    // Other files still delay readiness, and so does this one once it is stable.
    world.put("b", good(2, 1));
    write(&mut world, 2);
    assert!(!world.deployment.is_idle());
    world.finish_all();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
    write(&mut world, 0);
    assert!(!world.deployment.is_idle());
}

#[test]
fn an_invalid_version_is_read_again_on_request() {
    let mut world = idle_with(&[("a", Content { kind: Kind::Unloadable, ..good(1, 0) }), ("b", good(2, 0))]);
    world.now += QUIET;
    assert!(!world.scan() && world.reads.is_empty());
    world.deployment.reread_refused();
    world.now += QUIET;
    world.scan();
    assert_eq!(world.reads.iter().map(|(command, _)| command.name.as_str()).collect::<Vec<_>>(), ["a"]);
    // A second request changes nothing while it is read.
    world.deployment.reread_refused();
    world.now += QUIET;
    assert!(!world.scan() && world.reads.len() == 1);
}

/// Scans until a file is read, and finishes all reads and loads. Returns the delay.
fn next_try(world: &mut World) -> Duration {
    let before = world.now;
    while world.reads.is_empty() {
        assert!(world.now - before <= RETRY_MAX, "nothing is retried");
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
fn a_load_that_failed_for_lack_of_resources_is_retried() {
    let heavy = Content { kind: Kind::Heavy, ..good(1, 1) };
    let mut world = idle_with(&[("a", good(1, 0))]);
    world.put("a", heavy.clone());
    world.lacks_resources = true;
    let waits: Vec<u64> = (0..5).map(|_| next_try(&mut world).as_secs()).collect();
    assert_eq!(waits[1..], [5, 10, 20, 40], "the first is the scan of the new file");
    let entry = world.deployment.entry("a").unwrap();
    assert_eq!(entry.refusal.as_ref().unwrap().kind, RefusalKind::Transient);
    assert!(entry.is_live(&good(1, 0).digest()) && entry.retry_at().is_some());
    // Another file resets the backoff, and an invalid one is not retried.
    world.put("a", Content { variant: 2, ..heavy.clone() });
    assert!(next_try(&mut world) <= Duration::from_secs(2));
    assert_eq!(next_try(&mut world), Duration::from_secs(5));
    world.put("a", Content { kind: Kind::Unloadable, ..heavy.clone() });
    next_try(&mut world);
    assert_eq!(world.deployment.entry("a").unwrap().retry_at(), None);
    world.put("a", heavy.clone());
    next_try(&mut world);
    world.lacks_resources = false;
    next_try(&mut world);
    let entry = world.deployment.entry("a").unwrap();
    assert!(entry.is_live(&heavy.digest()) && entry.refusal.is_none() && entry.retry_at().is_none());
}

#[test]
fn a_restore_that_failed_for_lack_of_resources_is_retried() {
    let heavy = Content { kind: Kind::Heavy, ..good(1, 0) };
    for is_restart in [true, false] {
        let mut world = idle_with(&[("a", heavy.clone())]);
        let invalid = Content { kind: Kind::Unloadable, ..good(1, 1) };
        world.put("a", if is_restart { invalid } else { good(1, 1) });
        if is_restart {
            world.happen(Event::Restart);
            world.lacks_resources = true;
            next_try(&mut world);
            assert!(world.live("a").is_none());
        } else {
            world.finish_all();
            world.lacks_resources = true;
            let command = world.deployment.withdraw("a", None, BlockReason::Quarantined).unwrap();
            world.reads.push_back((command, None));
            next_try(&mut world);
            assert_eq!(world.live("a").unwrap().digest, good(1, 1).digest());
        }
        assert_eq!(next_try(&mut world), Duration::from_secs(5));
        world.lacks_resources = false;
        assert_eq!(next_try(&mut world), Duration::from_secs(10));
        assert_eq!(world.live("a").unwrap().digest, heavy.digest());
        assert_eq!(world.deployment.entry("a").unwrap().retry_at(), None);
    }
}

#[test]
fn a_restore_is_dropped_when_the_withdrawn_version_is_no_longer_live() {
    let mut world = idle_with(&[("a", Content { kind: Kind::Heavy, ..good(1, 0) })]);
    world.put("a", good(1, 1));
    world.finish_all();
    world.lacks_resources = true;
    let command = world.deployment.withdraw("a", None, BlockReason::Quarantined).unwrap();
    world.reads.push_back((command, None));
    next_try(&mut world);
    world.put("a", good(1, 2));
    world.finish_all();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
}

#[test]
fn if_both_fail_for_now_the_file_is_retried_and_not_the_restore() {
    let heavy = |variant: u8| Content { kind: Kind::Heavy, ..good(1, variant) };
    let mut world = idle_with(&[("a", heavy(0))]);
    world.put("a", heavy(1));
    world.happen(Event::Restart);
    world.lacks_resources = true;
    next_try(&mut world);
    assert!(world.live("a").is_none());
    world.lacks_resources = false;
    next_try(&mut world);
    assert_eq!(world.live("a").unwrap().digest, heavy(1).digest());
}

#[test]
fn nothing_is_retried_during_a_restore() {
    let mut world = idle_with(&[("a", good(1, 0))]);
    world.put("a", good(1, 1));
    world.finish_all();
    world.put("a", Content { kind: Kind::Heavy, ..good(1, 2) });
    world.lacks_resources = true;
    next_try(&mut world);
    world.happen(Event::Withdraw(0));
    world.now += RETRY_MAX;
    world.scan();
    assert_eq!(world.reads.len(), 1);
    world.finish_all();
    assert!(world.deployment.entry("a").unwrap().block_reason(&good(1, 1).digest()).is_some());
}

#[test]
fn topics_of_a_refused_file_are_reserved_while_it_exists() {
    let mut world = idle_with(&[("a", Content { kind: Kind::Unloadable, ..good(2, 0) })]);
    let topic = Topic::parse("t1").unwrap();
    assert_eq!(world.deployment.reserved_topics().get(&topic).map(String::as_str), Some("a"));
    world.happen(Event::Delete(0));
    world.finish_all();
    assert!(!world.deployment.reserved_topics().contains_key(&topic));
}

#[test]
fn a_failed_rollback_is_not_retried() {
    let heavy = Content { kind: Kind::Heavy, ..good(1, 0) };
    let mut world = idle_with(&[("a", heavy)]);
    world.put("a", good(1, 1));
    world.finish_all();
    world.lacks_resources = true;
    world.happen(Event::Withdraw(0));
    while !world.reads.is_empty() || !world.loads.is_empty() {
        world.finish(0);
    }
    assert_eq!(world.deployment.entry("a").unwrap().retry_at(), None);
}

#[test]
fn a_topic_is_reserved_until_its_plugin_is_unblocked() {
    let topic = Topic::parse("t0").unwrap();
    let mut world = idle_with(&[("a", good(1, 0)), ("b", good(0, 0))]);
    world.happen(Event::Delete(0));
    world.finish_all();
    assert!(world.live("a").is_none() && world.deployment.reserved_topics().contains_key(&topic));
    world.happen(Event::Restart);
    world.finish_all();
    assert!(world.deployment.reserved_topics().contains_key(&topic));
    world.deployment.unblock("a").unwrap();
    assert!(!world.deployment.reserved_topics().contains_key(&topic));
    // The topic is then free for another plugin.
    world.put("c", good(1, 0));
    world.finish_all();
    world.put("a", good(2, 0));
    world.finish_all();
    assert_eq!(world.deployment.entry("a").unwrap().previous_topics.len(), 1);
}

#[test]
fn a_topic_that_another_plugin_gets_is_no_longer_reserved() {
    let mut world = idle_with(&[("a", good(1, 0))]);
    world.happen(Event::Delete(0));
    world.finish_all();
    world.put("c", good(1, 0));
    world.finish_all();
    assert!(world.deployment.entry("a").unwrap().previous_topics.is_empty());
    let reserved = world.deployment.reserved_topics();
    assert_eq!(reserved.values().collect::<BTreeSet<_>>(), BTreeSet::from([&"c".to_owned()]));
}

/// Another worker that shares the version store may have blocked it.
#[test]
fn a_blocked_version_is_not_restored_after_a_restart() {
    let (live, is_proven) = (Some(good(1, 0).digest()), true);
    let blocked = vec![(good(1, 0).digest(), BlockReason::Quarantined)];
    for (blocked, is_restored) in [(Vec::new(), true), (blocked, false)] {
        let record = Record { live: live.clone(), is_proven, blocked, ..Record::default() };
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

/// The file may have been missing only for a moment.
#[test]
fn a_file_that_changed_while_it_was_read_is_read_again() {
    let mut world = World::new();
    world.put("a", good(1, 0));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    let (command, _) = world.reads.pop_front().unwrap();
    assert_eq!(world.deployment.on_changed(&command), Transition::Stale);
    world.now += QUIET;
    world.scan();
    assert_eq!(world.reads.len(), 1);
}

#[test]
fn the_oldest_blocked_version_is_dropped_first() {
    let mut entry = Entry::<u64>::new();
    for number in 0..=32 {
        entry.block(number.to_string(), BlockReason::RolledBack);
    }
    assert_eq!(entry.blocked.len(), 32);
    assert!(entry.block_reason("0").is_none() && entry.block_reason("32").is_some());
}

#[test]
fn a_load_that_a_withdrawal_interrupted_is_done_afterwards() {
    let mut world = idle_with(&[("a", good(1, 0))]);
    world.put("a", good(1, 1));
    world.finish_all();
    world.put("a", good(1, 2));
    for _ in 0..2 {
        world.now += QUIET;
        world.scan();
    }
    world.finish(0);
    assert_eq!(world.loads.len(), 1);
    world.happen(Event::Withdraw(0));
    world.finish_all();
    assert_eq!(world.live("a").unwrap().digest, good(1, 2).digest());
    assert_eq!(world.deployment.entry("a").unwrap().blocked, [(good(1, 1).digest(), BlockReason::RolledBack)]);
}
