//! The model of how messages arrive: from publishers, plain clients, legacy
//! publishers, schedules, and from topics in other slots.

use super::settle::dedup_key_of;
use super::world::{HOUR, Kind, Location, SCHEDULES, WORKERS, World, plain};
use crate::servers::parse_command;
use crate::support::topic;
use gateway_worker::publication::{Draft, Priority, Publication};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

/// The interval of a schedule.
const INTERVAL: SignedDuration = SignedDuration::from_secs(10);

#[derive(Debug, Clone)]
pub(super) enum Arrival {
    Publish {
        priority: Priority,
        is_delayed: bool,
    },
    /// With `publish_once`: the id at this position among the earlier ones, or a new
    /// one.
    PublishOnce {
        at: usize,
        is_delayed: bool,
    },
    /// By a plain client, or for a stream by a legacy publisher.
    Push {
        is_left: bool,
    },
    /// A legacy delayed message.
    PushLegacy {
        is_due: bool,
    },
    /// A follow-up for a topic in another slot.
    AddToOutbox {
        priority: Priority,
        is_delayed: bool,
    },
    Fire {
        worker: usize,
        schedule: usize,
        count: usize,
        clock: Clock,
    },
}

/// How the clock of a worker that fires a schedule is set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clock {
    Right,
    /// The worker does not know the last fire time.
    Slow,
    /// Its last fire time is in the future.
    Fast,
}

pub(super) fn priorities() -> impl Strategy<Value = Priority> {
    prop::sample::select(vec![Priority::High, Priority::Normal, Priority::Low])
}

pub(super) fn arrivals() -> impl Strategy<Value = Arrival> {
    let clock = prop_oneof![4 => Just(Clock::Right), 1 => Just(Clock::Slow), 1 => Just(Clock::Fast)];
    prop_oneof![
        6 => (priorities(), any::<bool>()).prop_map(|(priority, is_delayed)| Arrival::Publish { priority, is_delayed }),
        2 => (0..4_usize, any::<bool>()).prop_map(|(at, is_delayed)| Arrival::PublishOnce { at, is_delayed }),
        4 => any::<bool>().prop_map(|is_left| Arrival::Push { is_left }),
        2 => any::<bool>().prop_map(|is_due| Arrival::PushLegacy { is_due }),
        2 => (priorities(), any::<bool>()).prop_map(|(priority, is_delayed)| Arrival::AddToOutbox { priority, is_delayed }),
        2 => (0..WORKERS, 0..SCHEDULES.len(), 1..4_usize, clock)
            .prop_map(|(worker, schedule, count, clock)| Arrival::Fire { worker, schedule, count, clock }),
    ]
}

impl World<'_> {
    pub(super) async fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Publish { priority, is_delayed } => self.publish(priority, is_delayed).await,
            Arrival::PublishOnce { at, is_delayed } => self.publish_once(at, is_delayed).await,
            Arrival::Push { is_left } => self.push(is_left).await,
            Arrival::PushLegacy { is_due } => self.push_legacy(is_due).await,
            Arrival::AddToOutbox { priority, is_delayed } => self.add_to_outbox(priority, is_delayed).await,
            Arrival::Fire { worker, schedule, count, clock } => self.fire(worker, schedule, count, clock).await,
        }
    }

    async fn publish(&mut self, priority: Priority, is_delayed: bool) {
        let id = self.next_id();
        let publication = publication("t", &id, priority, is_delayed);
        if self.unless_refused(self.queue(0).publisher.publish(&publication).await).is_some() {
            self.put(&id, self.location_of(priority, is_delayed));
        }
    }

    async fn publish_once(&mut self, at: usize, is_delayed: bool) {
        let id = self.once.get(at).cloned().unwrap_or_else(|| self.next_id());
        let publication = publication("t", &id, Priority::Normal, is_delayed);
        let Some(is_new) = self.unless_refused(self.queue(0).publisher.publish_once(&publication, HOUR).await) else {
            return;
        };
        assert_eq!(is_new, !self.once.contains(&id), "{id}");
        if is_new {
            self.put(&id, self.location_of(Priority::Normal, is_delayed));
            self.once.push(id);
        }
    }

    async fn push(&mut self, is_left: bool) {
        let id = self.next_id();
        let command = match self.kind {
            Kind::List if is_left => "LPUSH mq:t",
            Kind::List => "RPUSH mq:t",
            Kind::Stream | Kind::Shared => "XADD mq:t * message",
        };
        if self.client::<redis::Value>(&format!("{command} {}", plain(&id, 1))).await.is_some() {
            self.put(&id, if self.is_list() { Location::List } else { Location::Waiting(self.main()) });
        }
    }

    async fn push_legacy(&mut self, is_due: bool) {
        let id = self.next_id();
        let second = if is_due { 1 } else { Timestamp::now().as_second() + 3600 };
        if self.client::<i64>(&format!("ZADD mq:delay:t {second} {}", plain(&id, 1))).await.is_some() {
            self.put(&id, Location::LegacyDelayed { is_due });
        }
    }

    async fn add_to_outbox(&mut self, priority: Priority, is_delayed: bool) {
        let id = self.next_id();
        let due = if is_delayed { Timestamp::now().as_millisecond() + 3_600_000 } else { 0 };
        let class = publication("t", &id, priority, false).class();
        let mut command = parse_command(&format!("XADD {{mq:t}}:outbox * topic t due {due} priority"));
        command.arg(class).arg("message").arg(plain(&id, 1));
        if self.send::<String>(&command).await.is_some() {
            self.put(&id, Location::Outbox(Box::new(self.location_of(priority, is_delayed))));
        }
    }

    /// Sets the last fire times long ago, so that there are enough fire times since.
    pub(super) async fn begin_schedules(&mut self) {
        let begin = Timestamp::from_second(Timestamp::now().as_second() - 1_000_000).unwrap();
        for name in SCHEDULES {
            self.queue(0).schedules.last_fire(name).await.unwrap();
            self.ask::<i64>(&format!("HSET {{mq:t}}:cron {name} {}", begin.as_millisecond())).await;
        }
        self.fired = [begin; SCHEDULES.len()];
    }

    /// Publishes a message for each fire time, unless another worker was faster, the
    /// time is in the future, or the other schedule has just fired at the same time.
    async fn fire(&mut self, worker: usize, schedule: usize, count: usize, clock: Clock) {
        let known = self.fired[schedule];
        let last = if matches!(clock, Clock::Slow) { known - INTERVAL } else { known };
        let mut times: Vec<Timestamp> = (1..).map(|number| last + INTERVAL * number).take(count).collect();
        if matches!(clock, Clock::Fast) {
            times.push(Timestamp::from_second(Timestamp::now().as_second() + 3600).unwrap());
        }
        let fires: Vec<(Timestamp, Publication)> =
            times.iter().map(|at| (*at, publication("t", &self.next_id(), Priority::Normal, false))).collect();
        let fired = self.queue(worker).schedules.fire(SCHEDULES[schedule], last, &fires).await;
        let Some(fired) = self.unless_refused(fired) else { return };
        let mut published = 0;
        if matches!(clock, Clock::Right) {
            let other = self.fired[1 - schedule];
            for (_, publication) in fires.iter().filter(|(at, _)| *at != other) {
                self.put(&publication.id, Location::Waiting(self.main()));
                published += 1;
            }
            self.fired[schedule] = times[count - 1];
        }
        assert_eq!((fired.published, fired.last), (published, self.fired[schedule]));
    }
}

pub(super) fn publication(to: &str, id: &str, priority: Priority, is_delayed: bool) -> Publication {
    let topic = topic(to);
    let delay = if is_delayed { HOUR } else { Duration::ZERO };
    let dedup_key = dedup_key_of(id);
    let draft = Draft { priority, delay, dedup_key: Some(&dedup_key), ..Draft::new(id.to_owned(), &topic, "1") };
    draft.encode(Timestamp::now()).unwrap()
}
