//! Tables with aligned columns, numbers to the right.

use crate::text::is_control_or_bidi;

/// Sanitises the cells, because they contain texts of publishers and handlers.
pub(super) fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| format_cell(cell))).collect();
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
    for row in &rows {
        println!("{}", line(row.each_ref().map(String::as_str)));
    }
}

/// The text with a space for each character that could steer the terminal.
pub(super) fn format_cell(text: &str) -> String {
    text.replace(|char: char| char.is_control() || is_control_or_bidi(char), " ")
}
