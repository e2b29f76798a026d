//! Schedules at their edge cases.

use super::{CATCH_UP_MAX, CatchUp, Data, Expression, Schedule, Zone};
use crate::topic::Topic;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    cron: Expression,
    timezone: Option<Zone>,
    data: Option<Data>,
    #[serde(default)]
    catch_up: CatchUp,
}

fn parse(table: &str) -> Result<Schedule, String> {
    let table = toml::from_str::<Table>(&format!("\n{table}")).map_err(|error| error.to_string())?;
    Ok(Schedule::new(table.cron, table.timezone, table.data, table.catch_up))
}

fn schedule(cron: &str, zone: &str, catch_up: &str) -> Schedule {
    parse(&format!("cron = \"{cron}\"\ntimezone = \"{zone}\"\ncatch_up = \"{catch_up}\"")).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The next fire times after this one.
fn next(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = schedule(cron, zone, "all");
    let times = std::iter::successors(schedule.next_after(at(after)), |fire| schedule.next_after(*fire));
    times.take(count).map(|fire| fire.to_string()).collect()
}

fn due(catch_up: &str, cron: &str, last: &str, now: &str) -> Vec<String> {
    let due = schedule(cron, "UTC", catch_up).due(at(last), at(now));
    assert!(!due.is_truncated);
    due.fires.iter().map(Timestamp::to_string).collect()
}

#[test]
fn a_schedule_has_fire_times_and_data() {
    let schedule = parse(
        "cron = \" 0 3  * * mon-fri \"\ntimezone = \"europe/berlin\"\ndata = { full = true, n = [1, 2.0], at = 2026-01-02T03:04:05Z, day = 2026-01-02 }",
    )
    .unwrap();
    assert_eq!(schedule.name(), "0 3 * * mon-fri Europe/Berlin");
    let fire = at("2026-07-06T01:00:00Z");
    assert_eq!(schedule.next_after(at("2026-07-03T01:00:00Z")), Some(fire));
    let publication = schedule.publication(&Topic::parse("t").unwrap(), fire).unwrap();
    assert_eq!(publication.id, "cron:t:2026-07-06T01:00:00Z");
    let envelope: serde_json::Value = serde_json::from_slice(&publication.body).unwrap();
    assert_eq!(
        envelope,
        serde_json::json!({
            "id": "cron:t:2026-07-06T01:00:00Z",
            "topic": "t",
            "timestamp": "2026-07-06T01:00:00.000Z",
            "data": { "full": true, "n": [1, 2.0], "at": "2026-01-02T03:04:05Z", "day": "2026-01-02" },
            "retry": 0,
            "max_retry": 3,
        })
    );
    let minimal = parse("cron = \"@daily\"").unwrap();
    assert_eq!((minimal.name(), minimal.data.as_str()), ("@daily UTC", "{}"));
}

#[test]
fn data_may_be_any_value() {
    for (toml, json) in
        [("5", "5"), ("\"a\"", "\"a\""), ("[]", "[]"), ("1e400", ""), ("inf", ""), ("{ a = [nan] }", "")]
    {
        let schedule = parse(&format!("cron = \"@daily\"\ndata = {toml}"));
        if json.is_empty() {
            let error = schedule.unwrap_err();
            assert!(error.contains("line 3, column 8"), "{error}");
        } else {
            assert_eq!(schedule.unwrap().data, json);
        }
    }
}

#[test]
fn a_fault_has_its_position_and_what_is_allowed() {
    for (table, expected) in [
        ("timezone = \"UTC\"", &["line 1", "missing field `cron`"][..]),
        ("cron = \"0 3 * *\"", &["line 2, column 8", "five fields"]),
        ("cron = \"0 3 * * * * 2030\"", &["line 2, column 8", "five fields", "or six"]),
        ("cron = \"60 3 * * *\"", &["line 2, column 8", "minute (0-59)"]),
        ("cron = \"0 24 * * *\"", &["hour (0-23)"]),
        ("cron = \"0 0 0 * *\"", &["day (1-31)"]),
        ("cron = \"0 0 * 13 *\"", &["month (1-12)"]),
        ("cron = \"0 0 * * 8\"", &["weekday (0-7"]),
        ("cron = \"60 * * * * *\"", &["seconds (0-59)"]),
        ("cron = \"\"", &["line 2, column 8", "five fields"]),
        ("cron = \", 25 * ? * *\"", &["line 2, column 8", "an item of a list is empty"]),
        ("cron = \"1, 25 * ? * *\"", &["an item of a list is empty"]),
        ("cron = \"0 1,,2 * * *\"", &["an item of a list is empty"]),
        ("cron = \"@often\"", &["line 2, column 8", "@hourly, @daily"]),
        ("cron = \"0 0 30 2 *\"", &["line 2, column 8", "never fires"]),
        ("cron = \"0 0 31 4,6,9,11 *\"", &["never fires"]),
        ("cron = 5", &["line 2, column 8", "a string"]),
        ("cron = \"@daily\"\ntimezone = \"Europe/Bonn\"", &["line 3, column 12", "IANA", "Europe/Berlin"]),
        ("cron = \"@daily\"\ntimezone = \"\"", &["line 3, column 12", "IANA"]),
        ("cron = \"@daily\"\ntimezone = \"+02:00\"", &["line 3, column 12", "IANA"]),
        ("cron = \"@daily\"\ncatch_up = \"two\"", &["line 3, column 12", "`none`, `one`", "`all`"]),
        ("cron = \"@daily\"\nzone = \"UTC\"", &["line 3, column 1", "unknown field `zone`", "`timezone`"]),
    ] {
        let error = parse(table).unwrap_err();
        for part in expected {
            assert!(error.contains(part), "{table:?}: {error}");
        }
    }
}

#[test]
fn fields_have_values_names_ranges_and_steps() {
    let after = "2026-01-01T00:00:00Z"; // a Thursday
    for (cron, expected) in [
        ("*/20 * * * *", ["2026-01-01T00:20:00Z", "2026-01-01T00:40:00Z"]),
        ("0 0 9 * * *", ["2026-01-01T09:00:00Z", "2026-01-02T09:00:00Z"]),
        ("*/30 * * * * *", ["2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"]),
        ("5,10 8-9 * * *", ["2026-01-01T08:05:00Z", "2026-01-01T08:10:00Z"]),
        ("0 0 * feb,JUN *", ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z"]),
        ("0 0 * * 7", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
        ("0 0 2 * SAT", ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]),
        ("0 0 13 * +FRI", ["2026-02-13T00:00:00Z", "2026-03-13T00:00:00Z"]),
        ("0 0 L * *", ["2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"]),
        ("@weekly", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
        ("@yearly", ["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"]),
        ("0 12 29 2 *", ["2028-02-29T12:00:00Z", "2032-02-29T12:00:00Z"]),
    ] {
        assert_eq!(next(cron, "UTC", after, 2), expected, "{cron}");
    }
    // 2100 is not a leap year.
    assert_eq!(next("0 0 29 2 *", "UTC", "2096-02-29T00:00:00Z", 1), ["2104-02-29T00:00:00Z"]);
}

#[test]
fn a_local_time_that_does_not_exist_is_moved_or_skipped() {
    // Berlin skips 2026-03-29 02:00 to 03:00, at 01:00 UTC.
    let before = "2026-03-28T12:00:00Z";
    let once = next("30 2 * * *", "Europe/Berlin", before, 2);
    assert_eq!(once, ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    let twice = next("30 2,14 * * *", "Europe/Berlin", before, 3);
    assert_eq!(twice, ["2026-03-28T13:30:00Z", "2026-03-29T12:30:00Z", "2026-03-30T00:30:00Z"]);
    let hourly = next("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
    assert_eq!(hourly, ["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"]);
}

#[test]
fn a_local_time_that_occurs_twice_fires_once_unless_every_hour_fires() {
    // Berlin repeats 2026-10-25 02:00 to 03:00, at 00:00 and 01:00 UTC.
    let before = "2026-10-24T12:00:00Z";
    for cron in ["30 2 * * *", "30 2-2 * * *"] {
        assert_eq!(next(cron, "Europe/Berlin", before, 2), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"], "{cron}");
    }
    let twice = next("30 1,2 * * *", "Europe/Berlin", "2026-10-24T23:00:00Z", 3);
    assert_eq!(twice, ["2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T00:30:00Z"]);
    let even = next("0 */2 * * *", "Europe/Berlin", "2026-10-24T23:00:00Z", 2);
    assert_eq!(even, ["2026-10-25T00:00:00Z", "2026-10-25T03:00:00Z"]);
    for cron in ["30 * * * *", "30 0-23 * * *", "30 */1 * * *"] {
        let hourly = next(cron, "Europe/Berlin", "2026-10-25T00:00:00Z", 3);
        assert_eq!(hourly, ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"], "{cron}");
    }
    // From within the second hour, the first occurrence does not fire again.
    assert_eq!(next("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30:00Z"]);
}

#[test]
fn searching_backwards_finds_the_same_fire_times_as_forwards() {
    let crons = [
        "30 2 * * *",
        "0 2 * * *",
        "30 1,2,3 * * *",
        "*/17 * * * *",
        "*/7 2 * * *",
        "0 */2 * * *",
        "5 0 * * 0",
        "0 0 L * *",
        "15 45 1 * * *",
    ];
    // Changes of one hour, half an hour, two hours, at midnight, and none.
    for zone in ["Europe/Berlin", "Australia/Lord_Howe", "Antarctica/Troll", "America/Santiago", "Asia/Tokyo"] {
        for cron in crons {
            for around in
                ["2026-03-29T01:00:00Z", "2026-04-05T03:00:00Z", "2026-09-06T04:00:00Z", "2026-10-25T01:00:00Z"]
            {
                let schedule = schedule(cron, zone, "all");
                let (from, to) =
                    (at(around) - SignedDuration::from_hours(30), at(around) + SignedDuration::from_hours(30));
                let mut back = schedule.missed(from, to, usize::MAX);
                back.reverse();
                assert_eq!(back, schedule.fires(from, to), "{cron} {zone} {around}");
                assert!(back.is_sorted_by(|a, b| a < b), "{cron} {zone} {around}");
            }
        }
    }
}

#[test]
fn fire_times_within_the_grace_period_are_always_sent() {
    for catch_up in ["none", "one", "all"] {
        // The last one is excluded, the current time included.
        assert_eq!(
            due(catch_up, "*/10 * * * * *", "2026-01-01T00:00:10Z", "2026-01-01T00:00:30Z"),
            ["2026-01-01T00:00:20Z", "2026-01-01T00:00:30Z"]
        );
        assert!(due(catch_up, "*/10 * * * * *", "2026-01-01T00:00:30Z", "2026-01-01T00:00:39.999Z").is_empty());
        assert!(due(catch_up, "0 * * * *", "2026-01-01T00:00:00.001Z", "2026-01-01T00:59:59.999Z").is_empty());
        // The clock was set back.
        assert!(due(catch_up, "* * * * * *", "2026-01-01T00:10:00Z", "2026-01-01T00:00:00Z").is_empty());
        // Less than a minute late is not missed.
        let late = due(catch_up, "0 3 * * *", "2025-12-31T03:00:00Z", "2026-01-01T03:00:59.999Z");
        assert_eq!(late, ["2026-01-01T03:00:00Z"]);
    }
}

#[test]
fn missed_fire_times_are_sent_as_catch_up_says() {
    let (last, now) = ("2026-01-01T03:00:00Z", "2026-01-04T03:01:00Z");
    assert!(due("none", "0 3 * * *", last, now).is_empty());
    assert_eq!(due("one", "0 3 * * *", last, now), ["2026-01-04T03:00:00Z"]);
    let all = ["2026-01-02T03:00:00Z", "2026-01-03T03:00:00Z", "2026-01-04T03:00:00Z"];
    assert_eq!(due("all", "0 3 * * *", last, now), all);
    // A fire time within the grace period replaces the missed one.
    let now = "2026-01-04T03:00:30Z";
    assert_eq!(due("none", "0 3 * * *", last, now), all[2..]);
    assert_eq!(due("one", "0 3 * * *", last, now), all[2..]);
    assert_eq!(due("all", "0 3 * * *", last, now), all);
    // Missed fire times are sent once.
    for catch_up in ["none", "one", "all"] {
        assert!(due(catch_up, "0 3 * * *", all[2], "2026-01-05T02:59:59Z").is_empty());
    }
}

#[test]
fn at_most_a_thousand_missed_fire_times_are_sent() {
    let schedule = schedule("* * * * * *", "UTC", "all");
    let now = at("2026-01-02T00:00:00.5Z");
    let last_of = |seconds| at("2026-01-02T00:00:00Z") - SignedDuration::from_secs(seconds);
    let due = schedule.due(last_of(1000), now);
    assert_eq!((due.fires.len(), due.fires[0], due.is_truncated), (CATCH_UP_MAX, last_of(999), false));
    // The oldest is dropped.
    let due = schedule.due(last_of(1001), now);
    assert_eq!((due.fires.len(), due.fires[0], due.is_truncated), (CATCH_UP_MAX, last_of(999), true));
    assert_eq!(due.fires.last(), Some(&last_of(0)));
    assert!(due.fires.is_sorted_by(|a, b| a < b));
    // Also after a very long time.
    assert_eq!(schedule.due(Timestamp::UNIX_EPOCH, now).fires, due.fires);
}

#[test]
fn a_range_may_go_over_the_end() {
    // A Thursday; the days that follow are a Friday to a Monday, and the next Friday.
    let days = next("0 9 * * FRI-MON", "UTC", "2026-07-02T12:00:00Z", 5);
    let expected = ["03", "04", "05", "06", "10"].map(|day| format!("2026-07-{day}T09:00:00Z"));
    assert_eq!(days, expected);
    let hours = next("0 22-2/2 * * *", "UTC", "2026-07-02T12:00:00Z", 4);
    assert_eq!(hours, ["2026-07-02T22:00:00Z", "2026-07-03T00:00:00Z", "2026-07-03T02:00:00Z", "2026-07-03T22:00:00Z"]);
    // It is still the schedule that was written.
    assert_eq!(schedule("0 9 * * FRI-MON", "UTC", "one").name(), "0 9 * * FRI-MON UTC");
}

#[test]
fn last_days_and_nearest_weekdays_fire_and_day_and_weekday_are_alternatives() {
    let from = "2026-07-02T12:00:00Z";
    assert_eq!(next("0 9 L * *", "UTC", from, 1), ["2026-07-31T09:00:00Z"]);
    assert_eq!(next("0 9 15W 8 *", "UTC", from, 1), ["2026-08-14T09:00:00Z"]);
    assert_eq!(next("0 9 * * FRI#2", "UTC", from, 1), ["2026-07-10T09:00:00Z"]);
    assert_eq!(next("0 9 * * FRI#L", "UTC", from, 1), ["2026-07-31T09:00:00Z"]);
    assert_eq!(next("0 9 ? * MON", "UTC", from, 1), ["2026-07-06T09:00:00Z"]);
    assert_eq!(
        next("0 9 13 * FRI", "UTC", from, 3)[..3],
        ["03", "10", "13"].map(|day| format!("2026-07-{day}T09:00:00Z"))
    );
    assert_eq!(next("0 9 13 * +FRI", "UTC", from, 1), ["2026-11-13T09:00:00Z"]);
}
