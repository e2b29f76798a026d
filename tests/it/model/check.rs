//! Everything in Redis is where the model has it.

use super::settle::{MARKS, mark_of};
use super::world::{Place, SCHEDULES, World, key_of};
use crate::servers::parse_command;
use crate::support::{Entry, text};
use gateway_worker::queue::Source;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// By id, the places where it was found, with the entries there.
type Found = BTreeMap<String, Vec<(String, Entry)>>;

impl World<'_> {
    pub(super) async fn check(&self) {
        let mut found = self.found().await;
        for id in &self.history {
            let places = found.get_mut(id).unwrap_or_else(|| panic!("the history of {id} is gone"));
            let at = places.iter().position(|(place, _)| place == "Normal").unwrap();
            places.remove(at);
        }
        for (id, place) in &self.places {
            let found = found.remove(id).unwrap_or_default();
            let places: Vec<&String> = found.iter().map(|(place, _)| place).collect();
            assert_eq!(places, Vec::from_iter(name_of(place).as_ref()), "{id} {place:?}");
            for (_, entry) in &found {
                // Which of several entries is history, it does not say.
                if !self.history.contains(id) {
                    self.check_entry(id, place, entry);
                }
            }
        }
        found.retain(|_, places| !places.is_empty());
        assert!(found.is_empty(), "{found:?}");
        self.check_pending().await;
        self.check_the_rest().await;
    }

    async fn found(&self) -> Found {
        let mut found = Found::new();
        let mut note = |place: &str, entry: Entry| {
            let body: Value = serde_json::from_str(&text(&entry, "message")).unwrap();
            let body = if body["original_message"].is_null() { &body } else { &body["original_message"] };
            found.entry(body["id"].as_str().unwrap().to_owned()).or_default().push((place.to_owned(), entry));
        };
        let mut streams = vec![
            ("dead", "{mq:t}:dead"),
            ("dead there", "mq:dead-letter:t"),
            ("out", "{mq:t}:out"),
            ("child", "mq:child"),
        ];
        let (high, normal, work, low) = ("High", "Normal", "Work", "Low");
        streams.extend([(high, key_of(Source::High)), (work, key_of(Source::Work)), (low, key_of(Source::Low))]);
        let mut members = vec![("list", "LRANGE {mq:t}:in 0 -1"), ("delayed there", "ZRANGE mq:delay:t 0 -1")];
        if self.is_list() {
            members.push(("list", "LRANGE mq:t 0 -1"))
        } else {
            streams.push((normal, "mq:t"))
        }
        for (place, key) in streams {
            let entries: Vec<(String, Entry)> = self.ask(&format!("XRANGE {key} - +")).await;
            entries.into_iter().for_each(|(_, entry)| note(place, entry));
        }
        for (place, command) in members {
            let bodies: Vec<Vec<u8>> = self.ask(command).await;
            bodies.into_iter().for_each(|body| note(place, vec![("message".to_owned(), body)]));
        }
        let tokens: BTreeSet<String> = self.ask("ZRANGE {mq:t}:later 0 -1").await;
        assert_eq!(self.ask::<BTreeSet<String>>("HKEYS {mq:t}:later:body").await, tokens);
        let mut unpack = parse_command("EVAL");
        unpack.arg("local all = {} for i, one in ipairs(redis.call('HVALS', KEYS[1])) do all[i] = cmsgpack.unpack(one) end return all");
        unpack.arg(1).arg("{mq:t}:later:body");
        let bodies: Vec<Entry> = self.send(&unpack).await.unwrap();
        bodies.into_iter().for_each(|entry| note("delayed", entry));
        found
    }

    /// An entry says what it should, wherever it has been.
    fn check_entry(&self, id: &str, place: &Place, entry: &Entry) {
        let get = |name: &str| entry.iter().any(|(key, _)| key == name).then(|| text(entry, name));
        let body: Value = serde_json::from_str(&text(entry, "message")).unwrap();
        let body = if body["original_message"].is_null() { &body } else { &body["original_message"] };
        assert_eq!(body["data"].as_u64(), Some(self.data.get(id).map_or(1, |data| u64::from(*data))), "{id}");
        assert_eq!(get("gw-attempt"), self.attempts.get(id).map(ToString::to_string), "{id} {entry:?}");
        let is_letter = matches!(place, Place::Dead { is_legacy: false, .. });
        assert_eq!([get("gw-reason").is_some(), get("gw-source").is_some()], [is_letter; 2], "{id} {entry:?}");
    }

    /// In flight are those that the model has there, in the same hands.
    async fn check_pending(&self) {
        let mut expected = BTreeSet::new();
        for place in self.places.values() {
            if let Place::InFlight { entry, owner, deliveries, .. } = place {
                expected.insert((entry.to_string(), format!("worker-{owner}"), *deliveries));
            }
        }
        let mut pending = BTreeSet::new();
        for source in self.sources(0).await.unwrap() {
            let command = format!("XPENDING {} consumer-group-t - + 1000", key_of(source));
            let rows: Vec<(String, String, u64, u32)> = self.ask(&command).await;
            pending.extend(rows.into_iter().map(|(id, owner, _, deliveries)| (source.at(&id), owner, deliveries)));
        }
        assert_eq!(pending, expected);
    }

    /// What is remembered beside the messages.
    async fn check_the_rest(&self) {
        let marks: Vec<String> = (0..MARKS).map(|number| mark_of(&format!("m{number}"))).collect();
        let expected: Vec<bool> = marks.iter().map(|mark| self.marks.contains(mark)).collect();
        assert_eq!(self.queue(0).finished(&marks).await.unwrap(), expected);
        let both = |(entry, (times, by)): (&String, &(u32, usize))| {
            [(entry.clone(), times.to_string()), (format!("{entry}:by"), format!("worker-{by}"))]
        };
        let suspects: BTreeMap<String, String> = self.suspects.iter().flat_map(both).collect();
        assert_eq!(self.ask::<BTreeMap<String, String>>("HGETALL {mq:t}:suspects").await, suspects);
        let mut command = parse_command("HMGET {mq:t}:cron");
        command.arg(&SCHEDULES);
        let fired: Vec<i64> = self.send(&command).await.unwrap();
        assert_eq!(fired, self.fired.map(|at| at.as_millisecond()));
        let mut counted = self.queue(0).details(false).await.unwrap().counters;
        counted.retain(|_, count| *count > 0);
        let mut expected = self.counted.clone();
        expected.retain(|_, count| *count > 0);
        assert_eq!(counted, expected);
    }
}

fn name_of(place: &Place) -> Option<String> {
    let name = match place {
        Place::List => "list",
        Place::Waiting(source) => return Some(format!("{source:?}")),
        Place::InFlight { entry, .. } => return Some(format!("{:?}", entry.source)),
        Place::Later { .. } => "delayed",
        Place::Legacy { .. } => "delayed there",
        Place::Out(_) => "out",
        Place::Sent => "child",
        Place::Dead { is_legacy: false, .. } => "dead",
        Place::Dead { .. } => "dead there",
        Place::Done => return None,
    };
    Some(name.to_owned())
}
