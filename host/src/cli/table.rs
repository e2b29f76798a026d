//! Rows in columns, numbers to the right.

pub(super) fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let line = |row: [&str; N]| {
        let cell = |(text, width): (&str, &usize)| {
            if is_number(text) { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        row.into_iter().zip(&widths).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    println!("{}", line(header));
    for row in rows {
        println!("{}", line(std::array::from_fn(|column| row[column].as_str())));
    }
}
