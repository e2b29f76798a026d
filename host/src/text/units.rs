//! Sizes and times in the units in which people write them: exact, and without the
//! fractions and long numbers of other units.

use std::time::Duration;

const SIZES: [(u64, &str); 8] = [
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
    (1_000_000_000_000, "TB"),
    (1_000_000_000, "GB"),
    (1_000_000, "MB"),
    (1_000, "KB"),
];

const TIMES: [(u128, &str); 6] = [
    (86_400_000_000_000, "d"),
    (3_600_000_000_000, "h"),
    (60_000_000_000, "m"),
    (1_000_000_000, "s"),
    (1_000_000, "ms"),
    (1_000, "us"),
];

/// A size like `64MiB`, in the unit that needs the smallest number.
pub fn size(bytes: u64) -> String {
    let exact = SIZES.iter().filter(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match exact.min_by_key(|(unit, _)| bytes / unit) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// A time like `30s`, in the largest unit that it is a multiple of.
pub fn span(time: Duration) -> String {
    let nanos = time.as_nanos();
    match TIMES.iter().find(|(unit, _)| nanos >= *unit && nanos.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", nanos / unit),
        None if nanos == 0 => "0s".to_owned(),
        None => format!("{nanos}ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_as_they_are_written() {
        for (bytes, text) in [
            (64 << 20, "64MiB"),
            (1 << 30, "1GiB"),
            (4 << 10, "4KiB"),
            (1536 << 20, "1536MiB"),
            (1_500_000, "1500KB"),
            (500_000_000, "500MB"),
            (2_000_000_000, "2GB"),
            (4097, "4097B"),
            (0, "0B"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_told_as_they_are_written() {
        for (millis, text) in [
            (0, "0s"),
            (50, "50ms"),
            (1500, "1500ms"),
            (30_000, "30s"),
            (90_000, "90s"),
            (300_000, "5m"),
            (3_600_000, "1h"),
            (30 * 86_400_000, "30d"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
        assert_eq!([7, 8000].map(|nanos| span(Duration::from_nanos(nanos))), ["7ns", "8us"]);
    }
}
