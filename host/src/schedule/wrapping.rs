//! Ranges of a cron that go over the end, such as `FRI-MON` or hours `22-2`. The
//! library takes them for a mistake, so they are written out as lists for it.

/// A field: its lowest value, how many there are, and names for them in order.
struct Field {
    first: u32,
    count: u32,
    names: &'static [&'static str],
}

const fn numbers(first: u32, count: u32) -> Field {
    Field { first, count, names: &[] }
}

const FIELDS: [Field; 6] = [
    numbers(0, 60),
    numbers(0, 60),
    numbers(0, 24),
    numbers(1, 31),
    Field {
        first: 1,
        count: 12,
        names: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    },
    Field { first: 0, count: 7, names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"] },
];

/// The expression without such ranges. What is no range of this kind is kept, for the
/// parser to judge.
pub(super) fn written_out(text: &str) -> String {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let Some(without) = FIELDS.len().checked_sub(fields.len()).filter(|without| *without < 2) else {
        return text.to_owned();
    };
    let fields = fields.iter().zip(&FIELDS[without..]).map(|(text, field)| {
        // A plus before the weekdays means that day and weekday must match.
        let (plus, items) = text.strip_prefix('+').map_or(("", *text), |items| ("+", items));
        let items = items.split(',').map(|item| field.list(item).unwrap_or_else(|| item.to_owned()));
        format!("{plus}{}", items.collect::<Vec<_>>().join(","))
    });
    fields.collect::<Vec<_>>().join(" ")
}

impl Field {
    /// The values of a range that goes over the end.
    fn list(&self, item: &str) -> Option<String> {
        let (range, step) = item.split_once('/').unwrap_or((item, "1"));
        let (from, to) = range.split_once('-')?;
        let (from, to, step) = (self.value(from)?, self.value(to)?, step.parse::<u32>().ok().filter(|step| *step > 0)?);
        if from <= to {
            return None;
        }
        let (from, to) = (from - self.first, to - self.first);
        let steps = (to + self.count - from % self.count) % self.count;
        let values = (0..=steps).step_by(usize::try_from(step).ok()?);
        let values = values.map(|offset| ((from + offset) % self.count + self.first).to_string());
        Some(values.collect::<Vec<_>>().join(","))
    }

    fn value(&self, text: &str) -> Option<u32> {
        let by_name = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let value = match by_name {
            Some(index) => self.first + u32::try_from(index).ok()?,
            None => text.parse().ok()?,
        };
        // Sunday is 0 and 7.
        let last = if self.count == 7 { 7 } else { self.first + self.count - 1 };
        (self.first..=last).contains(&value).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::written_out;

    #[test]
    fn a_range_over_the_end_becomes_a_list_and_others_are_kept() {
        for (text, expected) in [
            ("0 9 * * FRI-MON", "0 9 * * 5,6,0,1"),
            ("0 9 * * fri-mon/2", "0 9 * * 5,0"),
            ("0 9 * * 5-1", "0 9 * * 5,6,0,1"),
            ("0 9 * * 7-2", "0 9 * * 0,1,2"),
            ("0 9 * * SAT-SUN", "0 9 * * 6,0"),
            ("0 9 1 * +FRI-MON", "0 9 1 * +5,6,0,1"),
            ("0 22-2 * * *", "0 22,23,0,1,2 * * *"),
            ("50-10/5 8,22-1/2 28-2 NOV-FEB *", "50,55,0,5,10 8,22,0 28,29,30,31,1,2 11,12,1,2 *"),
            ("58-1 * * * * *", "58,59,0,1 * * * * *"),
            ("0 9 * * MON-FRI", "0 9 * * MON-FRI"),
            ("0 9 * * 5-7", "0 9 * * 5-7"),
            ("0 25-2 L * FRI#2", "0 25-2 L * FRI#2"),
            ("0 22-2/0 * * *", "0 22-2/0 * * *"),
            ("@daily", "@daily"),
        ] {
            assert_eq!(written_out(text), expected, "{text}");
        }
    }
}
