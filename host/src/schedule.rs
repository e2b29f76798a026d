//! The table `[schedule]` of a manifest, which publishes a message to a topic at
//! fixed times, and which of its fire times are due.
//!
//! A cron has five fields (minute, hour, day of month, month, day of week) or
//! six, with seconds first; `@hourly`, `@daily`, `@weekly`, `@monthly` and
//! `@yearly` are supported. A range may go over the end, as in `FRI-MON`. If both day of month and day of week are given, one
//! of them must match; with `+` before the weekday both must match.
//!
//! **Late and missed.** A fire time that was not sent within [`GRACE`] is missed;
//! before that it is late, and still sent. `catch_up` decides about the missed
//! ones: `none` drops them; `one`, the default, sends the last one unless a later
//! fire time is sent anyway; `all` sends the last [`CATCH_UP_MAX`], oldest first. A
//! schedule that is seen for the first time has missed nothing.
//!
//! **When clocks go forward**, some local times don't exist. A schedule with one
//! time of day then fires at the first existing moment; one with several skips the
//! missing ones. **When clocks go back**, some local times occur twice. A schedule
//! fires at the first occurrence only, unless it fires in every hour of the day:
//! then it fires at both, so that no hour is skipped.

mod wrapping;

use crate::publication::{Draft, InvalidDraft, Publication};
use crate::topic::Topic;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::Deserialize;
use wrapping::written_out;

/// A fire time that was not sent is missed from this age on.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// At most this many missed fire times are sent.
pub const CATCH_UP_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
    name: String,
    data: String,
    catch_up: CatchUp,
}

/// Which missed fire times are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    None,
    #[default]
    One,
    All,
}

/// The fire times to send now, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    pub fires: Vec<Timestamp>,
    /// Whether more fire times were missed than are sent.
    pub is_truncated: bool,
}

impl Schedule {
    pub fn new(expression: Expression, zone: Option<Zone>, data: Option<Data>, catch_up: CatchUp) -> Self {
        let zone = zone.map_or(TimeZone::UTC, |zone| zone.0);
        let name = format!("{} {}", expression.text, zone.iana_name().unwrap_or("UTC"));
        let data = data.map_or_else(|| "{}".to_owned(), |data| data.0);
        Self { cron: expression.cron, zone, name, data, catch_up }
    }

    /// The expression and the time zone, which identify it within its topic.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fire times after `last` and up to `now` that are to be sent.
    pub fn due(&self, last: Timestamp, now: Timestamp) -> Due {
        // The subtraction fails only at the minimum timestamp.
        let on_time = now.checked_sub(GRACE).unwrap_or(Timestamp::MIN);
        let mut fires = self.fires(last.max(on_time), now);
        let mut is_truncated = false;
        match self.catch_up {
            CatchUp::None => {}
            CatchUp::One if !fires.is_empty() => {}
            CatchUp::One => fires.extend(self.last_until(now).filter(|fire| *fire > last)),
            CatchUp::All => {
                let mut missed = self.missed(last, on_time, CATCH_UP_MAX + 1 - fires.len());
                is_truncated = missed.len() + fires.len() > CATCH_UP_MAX;
                missed.truncate(CATCH_UP_MAX - fires.len());
                missed.reverse();
                fires.splice(0..0, missed);
            }
        }
        Due { fires, is_truncated }
    }

    /// The next fire time after this one.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        let mut at = at.to_zoned(self.zone.clone());
        loop {
            let next = self.cron.find_next_occurrence(&at, false).ok().filter(|next| *next > at)?;
            if self.fires_at(&next) {
                return Some(next.timestamp());
            }
            at = next;
        }
    }

    /// The message of a fire time. Its id contains the time, so that duplicates are
    /// recognized.
    pub fn publication(&self, topic: &Topic, fire: Timestamp) -> Result<Publication, InvalidDraft> {
        Draft::new(format!("cron:{topic}:{fire}"), topic, &self.data).encode(fire)
    }

    /// The last fire time that is not after this one.
    fn last_until(&self, at: Timestamp) -> Option<Timestamp> {
        let mut at = at.to_zoned(self.zone.clone());
        let mut found = self.cron.find_previous_occurrence(&at, true).ok()?;
        while !self.fires_at(&found) {
            at = found;
            found = self.cron.find_previous_occurrence(&at, false).ok().filter(|found| *found < at)?;
        }
        Some(found.timestamp())
    }

    /// The fire times after `from` and up to `to`.
    fn fires(&self, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
        std::iter::successors(self.next_after(from), |fire| self.next_after(*fire))
            .take_while(|fire| *fire <= to)
            .collect()
    }

    /// The last `count` fire times after `last` and up to `until`, latest first.
    fn missed(&self, last: Timestamp, until: Timestamp, count: usize) -> Vec<Timestamp> {
        let before = |fire: &Timestamp| self.last_until(fire.checked_sub(SignedDuration::from_secs(1)).ok()?);
        std::iter::successors(self.last_until(until), before).take_while(|fire| *fire > last).take(count).collect()
    }

    /// Whether this fires: false for the second occurrence of a local time, unless
    /// the schedule fires in every hour.
    fn fires_at(&self, fire: &Zoned) -> bool {
        match self.zone.to_ambiguous_zoned(fire.datetime()).offset() {
            AmbiguousOffset::Fold { after, .. } if fire.offset() == after => {
                (0..24).all(|hour| matches!(self.cron.pattern.hour_match(hour), Ok(true)))
            }
            _ => true,
        }
    }
}

/// A valid cron expression that fires.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub struct Expression {
    cron: Cron,
    text: String,
}

/// A name of the IANA database.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub struct Zone(TimeZone);

/// JSON text.
#[derive(Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct Data(String);

impl TryFrom<String> for Expression {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const ALLOWED: &str = "a cron has five fields, minute (0-59) hour (0-23) day (1-31) month (1-12) weekday (0-7, \
            Sunday is 0 and 7), or six with seconds (0-59) first, each *, a number, a name, a range a-b (FRI-MON too), a step */n or \
            a list of such; or it is @hourly, @daily, @weekly, @monthly or @yearly";
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(&written_out(&text)).map_err(|error| format!("\"{text}\": {error}; {ALLOWED}"))?;
        // An empty list item can leave a field without any value; searching for a
        // fire time would then take minutes.
        if text.split_whitespace().any(|field| field.split(',').any(str::is_empty)) {
            return Err(format!("\"{text}\": an item of a list is empty; {ALLOWED}"));
        }
        // Dates repeat every 400 years, and the time zone does not matter here.
        if cron.find_next_occurrence(&Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC), true).is_err() {
            return Err(format!("\"{text}\" never fires: there is no such day in any year"));
        }
        Ok(Self { cron, text: text.split_whitespace().collect::<Vec<_>>().join(" ") })
    }
}

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        // The bundled database, so that all replicas use the same rules, even in a
        // container without one.
        let zone = TimeZoneDatabase::bundled().get(&name).ok().filter(|zone| !zone.is_unknown());
        zone.map(Self).ok_or_else(|| {
            format!(
                "\"{name}\" is not a time zone: use a name of the IANA database, such as \"Europe/Berlin\" or \"UTC\""
            )
        })
    }
}

impl TryFrom<toml::Value> for Data {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        json(value).map(|json| Self(json.to_string()))
    }
}

fn json(value: toml::Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .ok_or_else(|| format!("{number} can't be sent as JSON, which has finite numbers only"))?
            .into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(list) => serde_json::Value::Array(list.into_iter().map(json).collect::<Result<_, _>>()?),
        toml::Value::Table(table) => serde_json::Value::Object(
            table.into_iter().map(|(key, value)| Ok((key, json(value)?))).collect::<Result<_, String>>()?,
        ),
    })
}

#[cfg(test)]
mod tests;
