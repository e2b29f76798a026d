//! Compares everything in Redis with the model.

use super::settle::{DEDUP_KEYS, dedup_key_of};
use super::world::{Location, SCHEDULES, World, key_of};
use crate::servers::parse_command;
use crate::support::{Entry, text};
use gateway_worker::queue::StreamKind;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// By message id, the locations where it was found, and the entries there.
type Found = BTreeMap<String, Vec<(String, Entry)>>;

impl World<'_> {
    pub(super) async fn check(&self) {
        let mut found = self.found().await;
        for id in &self.history {
            let locations = found.get_mut(id).unwrap_or_else(|| panic!("the history has no {id}"));
            let at = locations.iter().position(|(location, _)| location == "Normal").unwrap();
            locations.remove(at);
        }
        for (id, location) in &self.locations {
            let found = found.remove(id).unwrap_or_default();
            let locations: Vec<&String> = found.iter().map(|(location, _)| location).collect();
            assert_eq!(locations, Vec::from_iter(name_of(location).as_ref()), "{id} {location:?}");
            for (_, entry) in &found {
                // Several entries have this id, and which of them is history is unknown.
                if !self.history.contains(id) {
                    self.check_entry(id, location, entry);
                }
            }
        }
        found.retain(|_, locations| !locations.is_empty());
        assert!(found.is_empty(), "{found:?}");
        self.check_pending().await;
        self.check_bookkeeping().await;
    }

    async fn found(&self) -> Found {
        let mut found = Found::new();
        let mut note = |location: &str, entry: Entry| {
            let body: Value = serde_json::from_str(&text(&entry, "message")).unwrap();
            let body = if body["original_message"].is_null() { &body } else { &body["original_message"] };
            found.entry(body["id"].as_str().unwrap().to_owned()).or_default().push((location.to_owned(), entry));
        };
        let mut streams = vec![
            ("dead", "{mq:t}:dead"),
            ("legacy dead", "mq:dead-letter:t"),
            ("outbox", "{mq:t}:outbox"),
            ("child", "mq:child"),
        ];
        let (high, normal, work, low) = ("High", "Normal", "Work", "Low");
        streams.extend([
            (high, key_of(StreamKind::High)),
            (work, key_of(StreamKind::Work)),
            (low, key_of(StreamKind::Low)),
        ]);
        let mut members = vec![("list", "LRANGE {mq:t}:in 0 -1"), ("legacy delayed", "ZRANGE mq:delay:t 0 -1")];
        if self.is_list() {
            members.push(("list", "LRANGE mq:t 0 -1"))
        } else {
            streams.push((normal, "mq:t"))
        }
        for (location, key) in streams {
            let entries: Vec<(String, Entry)> = self.ask(&format!("XRANGE {key} - +")).await;
            entries.into_iter().for_each(|(_, entry)| note(location, entry));
        }
        for (location, command) in members {
            let bodies: Vec<Vec<u8>> = self.ask(command).await;
            bodies.into_iter().for_each(|body| note(location, vec![("message".to_owned(), body)]));
        }
        let tokens: BTreeSet<String> = self.ask("ZRANGE {mq:t}:delayed 0 -1").await;
        assert_eq!(self.ask::<BTreeSet<String>>("HKEYS {mq:t}:delayed:body").await, tokens);
        let mut unpack = parse_command("EVAL");
        unpack.arg("local all = {} for i, one in ipairs(redis.call('HVALS', KEYS[1])) do all[i] = cmsgpack.unpack(one) end return all");
        unpack.arg(1).arg("{mq:t}:delayed:body");
        let bodies: Vec<Entry> = self.send(&unpack).await.unwrap();
        bodies.into_iter().for_each(|entry| note("delayed", entry));
        found
    }

    /// Checks the fields of an entry.
    fn check_entry(&self, id: &str, location: &Location, entry: &Entry) {
        let get = |name: &str| entry.iter().any(|(key, _)| key == name).then(|| text(entry, name));
        let body: Value = serde_json::from_str(&text(entry, "message")).unwrap();
        let body = if body["original_message"].is_null() { &body } else { &body["original_message"] };
        assert_eq!(body["data"].as_u64(), Some(self.data.get(id).map_or(1, |data| u64::from(*data))), "{id}");
        assert_eq!(get("gw-attempt"), self.attempts.get(id).map(ToString::to_string), "{id} {entry:?}");
        let is_letter = matches!(location, Location::Dead { is_legacy: false, .. });
        assert_eq!([get("gw-reason").is_some(), get("gw-source").is_some()], [is_letter; 2], "{id} {entry:?}");
    }

    /// Checks that the pending entries are those of the model, with the same consumers.
    async fn check_pending(&self) {
        let mut expected = BTreeSet::new();
        for location in self.locations.values() {
            if let Location::InFlight { entry, owner, delivery_count, .. } = location {
                expected.insert((entry.to_string(), format!("worker-{owner}"), *delivery_count));
            }
        }
        let mut pending = BTreeSet::new();
        for stream in self.streams(0).await.unwrap() {
            let command = format!("XPENDING {} consumer-group-t - + 1000", key_of(stream));
            let rows: Vec<(String, String, u64, u32)> = self.ask(&command).await;
            pending
                .extend(rows.into_iter().map(|(id, owner, _, delivery_count)| (stream.at(&id), owner, delivery_count)));
        }
        assert_eq!(pending, expected);
    }

    /// Checks the keys besides those of messages.
    async fn check_bookkeeping(&self) {
        let finished_keys: Vec<String> = (0..DEDUP_KEYS).map(|number| dedup_key_of(&format!("m{number}"))).collect();
        let expected: Vec<bool> =
            finished_keys.iter().map(|dedup_key| self.finished_keys.contains(dedup_key)).collect();
        assert_eq!(self.queue(0).dedup.finished(&finished_keys).await.unwrap(), expected);
        self.check_claims().await;
        let both = |(entry, (times, by)): (&String, &(u32, usize))| {
            [(entry.clone(), times.to_string()), (format!("{entry}:by"), format!("worker-{by}"))]
        };
        let isolated: BTreeMap<String, String> = self.isolated.iter().flat_map(both).collect();
        assert_eq!(self.ask::<BTreeMap<String, String>>("HGETALL {mq:t}:isolated").await, isolated);
        let mut command = parse_command("HMGET {mq:t}:cron");
        command.arg(&SCHEDULES);
        let fired: Vec<i64> = self.send(&command).await.unwrap();
        assert_eq!(fired, self.fired.map(|at| at.as_millisecond()));
        let mut counted = self.queue(0).details(false).await.unwrap().counters;
        counted.retain(|name, count| *count > 0 && !matches!(name.as_str(), "swept" | "restored"));
        let mut expected = self.counted.clone();
        expected.retain(|_, count| *count > 0);
        assert_eq!(counted, expected);
    }
}

fn name_of(location: &Location) -> Option<String> {
    let name = match location {
        Location::List => "list",
        Location::Waiting(stream) => return Some(format!("{stream:?}")),
        Location::InFlight { entry, .. } => return Some(format!("{:?}", entry.stream)),
        Location::Delayed { .. } => "delayed",
        Location::LegacyDelayed { .. } => "legacy delayed",
        Location::Outbox(_) => "outbox",
        Location::Sent => "child",
        Location::Dead { is_legacy: false, .. } => "dead",
        Location::Dead { .. } => "legacy dead",
        Location::Done => return None,
    };
    Some(name.to_owned())
}
