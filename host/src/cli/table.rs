//! Tables with aligned columns, numbers to the right. Names and texts in them come
//! from publishers and handlers, so no cell can steer the terminal, widen the table
//! beyond it, or be invisible.

use super::output::print_line;
use crate::text::is_control_or_bidi;
use std::io::IsTerminal;
use unicode_width::UnicodeWidthChar;

/// Between two columns.
const GAP: &str = "  ";
/// A cell is never wider, because a file or a pipe has no width. `--json` has all.
const CELL_WIDTH_MAX: usize = 256;
/// Columns of texts and names are not made narrower, while others can be.
const WIDTH_MIN: usize = 8;
/// A strong character from left to right, which the terminal does not show.
const LEFT_TO_RIGHT: char = '\u{200e}';

/// A column and its header. Texts become narrower first, then names, then the rest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    Text(&'static str),
    /// A name that somebody chose: it is shown so that it can't be mistaken for another.
    Name(&'static str),
    Fixed(&'static str),
}

impl Column {
    fn header(self) -> &'static str {
        let (Self::Text(header) | Self::Name(header) | Self::Fixed(header)) = self;
        header
    }

    fn format(self, text: &str) -> String {
        let cell = if matches!(self, Self::Name(_)) { format_name(text) } else { format_cell(text) };
        truncate(&cell, CELL_WIDTH_MAX)
    }
}

/// What stdout shows.
#[derive(Debug, Clone, Copy)]
struct Screen {
    /// None where it is no terminal.
    width: Option<usize>,
}

impl Screen {
    fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        let size = if stdout.is_terminal() { terminal_size::terminal_size_of(stdout) } else { None };
        // A terminal that does not know its size says 0.
        Self { width: size.map(|(width, _)| usize::from(width.0)).filter(|width| *width > 0) }
    }
}

pub(super) fn print<const N: usize>(columns: [Column; N], rows: &[[String; N]]) {
    print_line!("{}", format(columns, rows));
}

pub(super) fn format<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    format_table(columns, rows, Screen::of_stdout()).join("\n")
}

/// Prints lines of a name and a text.
pub(super) fn print_pairs(pairs: &[(String, String)]) {
    let screen = Screen::of_stdout();
    let pairs: Vec<_> = pairs.iter().map(|(name, text)| [format_cell(name), format_cell(text)]).collect();
    let name_width_max = screen.width.map_or(CELL_WIDTH_MAX, |width| width / 2);
    let names = pairs.iter().map(|[name, _]| width(name)).max().unwrap_or(0).min(name_width_max);
    let texts = screen.width.map_or(CELL_WIDTH_MAX, |width| width.saturating_sub(names + GAP.len()));
    for pair in &pairs {
        print_line!("{}", format_row(pair.each_ref().map(String::as_str), &[names, texts], screen));
    }
}

fn format_table<const N: usize>(columns: [Column; N], rows: &[[String; N]], screen: Screen) -> Vec<String> {
    let format = |row: &[String; N]| std::array::from_fn(|column| columns[column].format(&row[column]));
    let rows: Vec<[String; N]> = rows.iter().map(format).collect();
    let headers = columns.map(Column::header);
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| width(&row[column]));
        cells.chain([headers[column].len()]).max().unwrap_or(0)
    };
    let mut widths: [usize; N] = std::array::from_fn(widest);
    if let Some(width) = screen.width {
        fit(&mut widths, columns, width.saturating_sub(GAP.len() * N.saturating_sub(1)));
    }
    let rows = rows.iter().map(|row| format_row(row.each_ref().map(String::as_str), &widths, screen));
    [format_row(headers, &widths, screen)].into_iter().chain(rows).collect()
}

/// Makes the columns narrower until they fit into `total`, the widest first.
fn fit<const N: usize>(widths: &mut [usize; N], columns: [Column; N], total: usize) {
    shrink(widths, |column| matches!(columns[column], Column::Text(_)), WIDTH_MIN, total);
    shrink(widths, |column| !matches!(columns[column], Column::Fixed(_)), WIDTH_MIN, total);
    shrink(widths, |_| true, 1, total);
}

fn shrink<const N: usize>(widths: &mut [usize; N], may_shrink: impl Fn(usize) -> bool, min: usize, total: usize) {
    while widths.iter().sum::<usize>() > total {
        let wide = (0..N).filter(|column| may_shrink(*column) && widths[*column] > min);
        let Some(widest) = wide.max_by_key(|column| widths[*column]) else { return };
        widths[widest] -= 1;
    }
}

fn format_row<const N: usize>(row: [&str; N], widths: &[usize; N], screen: Screen) -> String {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let cell = |(text, column_width): (&str, &usize)| {
        let cell = truncate(text, *column_width);
        let padding = " ".repeat(column_width.saturating_sub(width(&cell)));
        // A terminal that writes Hebrew from right to left would draw the columns
        // beside it into that direction too.
        let cell = if screen.width.is_some() && cell.contains(is_right_to_left) {
            format!("{LEFT_TO_RIGHT}{cell}{LEFT_TO_RIGHT}")
        } else {
            cell
        };
        if is_number(text) { padding + &cell } else { cell + &padding }
    };
    let line = row.into_iter().zip(widths).map(cell).collect::<Vec<_>>().join(GAP).trim_end().to_owned();
    // More columns than the terminal has cells.
    screen.width.map(|width| truncate(&line, width)).unwrap_or(line)
}

/// The text as one line: with spaces for line breaks, and with escapes for the other
/// characters that could steer the terminal.
pub(super) fn format_cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' | '\r' | '\t' => cell.push(' '),
            char if is_control_or_bidi(char) => cell.extend(char.escape_unicode()),
            char => cell.push(char),
        }
    }
    cell
}

/// A name that can't be mistaken for another: quoted where it has a space at an end,
/// with escapes for characters that have no picture.
pub(super) fn format_name(name: &str) -> String {
    let mut cell = String::with_capacity(name.len());
    for char in name.chars() {
        if is_control_or_bidi(char) || is_invisible(char) {
            cell.extend(char.escape_unicode());
        } else {
            cell.push(char);
        }
    }
    if cell.starts_with(' ') || cell.ends_with(' ') { format!("\"{cell}\"") } else { cell }
}

/// Spaces that look like another, and characters without a width. Marks that
/// combine with a letter have none either, and are visible.
fn is_invisible(char: char) -> bool {
    (char.is_whitespace() && char != ' ')
        || matches!(char, '\t' | '\u{ad}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2064}')
        || matches!(char, '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_right_to_left(char: char) -> bool {
    matches!(char, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}')
        || matches!(char, '\u{10800}'..='\u{10fff}' | '\u{1e800}'..='\u{1efff}')
}

/// The terminal's cells that the text takes: two for a Chinese character.
fn width(text: &str) -> usize {
    text.chars().map(|char| char.width().unwrap_or(0)).sum()
}

/// The text, or as much of it as fits with a mark that something is missing.
pub(super) fn truncate(text: &str, width_max: usize) -> String {
    if width(text) <= width_max {
        return text.to_owned();
    }
    let mut left = width_max.saturating_sub(1);
    let fits = |char: &char| {
        let width = char.width().unwrap_or(0);
        let fits = width <= left;
        left = if fits { left - width } else { 0 };
        fits
    };
    let mut truncated: String = text.chars().take_while(fits).collect();
    if width_max > 0 {
        truncated.push('…');
    }
    truncated
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::Name("TOPIC"), Column::Fixed("ENTRY"), Column::Name("ID"), Column::Text("ERROR")];

    fn table(rows: &[[&str; 4]], width: Option<usize>) -> Vec<String> {
        let rows: Vec<_> = rows.iter().map(|row| row.map(str::to_owned)).collect();
        format_table(COLUMNS, &rows, Screen { width })
    }

    #[test]
    fn every_row_fits_into_the_terminal_whatever_its_cells_are() {
        let long = "x".repeat(5000);
        let chinese = "\u{8ba2}\u{5355}".repeat(2000);
        let marks = format!("e{}", "\u{301}".repeat(3000));
        for id in [&long, &chinese, &marks] {
            for width_max in [1, 7, 20, 40, 80, 200, 500] {
                for line in table(&[["orders", "1764565000000-0", id, id], [id, "5-0", "b", ""]], Some(width_max)) {
                    assert!(width(&line) <= width_max, "{width_max}: {} {line}", width(&line));
                }
            }
        }
        let lines = table(&[["orders", "1764565000000-0", &long, &long]], Some(60));
        assert!(lines[1].contains("  1764565000000-0  "), "an entry is what the next command needs: {}", lines[1]);
    }

    #[test]
    fn without_a_terminal_only_hostile_lengths_are_truncated() {
        let (long, error) = ("x".repeat(5000), "y".repeat(200));
        let lines = table(&[["orders", "1-0", &long, &error]], None);
        assert!(lines[1].ends_with(&format!("{}…  {error}", "x".repeat(255))), "{}", lines[1]);
    }

    #[test]
    fn columns_are_aligned_by_what_a_character_takes() {
        let rows = [["\u{8ba2}\u{5355}", "1-0", "a", ""], ["abc", "22-0", "b", ""], ["e\u{301}", "333-0", "c", ""]];
        let lines = table(&rows, None);
        assert_eq!(lines[0], "TOPIC  ENTRY  ID  ERROR");
        assert_eq!(lines[1], "\u{8ba2}\u{5355}   1-0    a");
        assert_eq!(lines[2], "abc    22-0   b");
        assert_eq!(lines[3], "e\u{301}      333-0  c");
    }

    #[test]
    fn no_name_is_invisible_and_no_text_steers_the_terminal() {
        for (name, shown) in [
            ("orders", "orders"),
            ("a b", "a b"),
            (" ", "\" \""),
            ("a ", "\"a \""),
            ("\u{202e}", "\\u{202e}"),
            ("a\u{200b}b", "a\\u{200b}b"),
            ("a\u{a0}b", "a\\u{a0}b"),
            ("\u{feff}", "\\u{feff}"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{8ba2}", "\u{8ba2}"),
        ] {
            assert_eq!(format_name(name), shown, "{name:?}");
        }
        assert_eq!(format_cell("a\nb\t\u{1b}[31m\u{9b}"), "a b \\u{1b}[31m\\u{9b}");
    }

    #[test]
    fn a_name_from_right_to_left_does_not_turn_its_row() {
        let row = ["\u{5d0}\u{5d1}", "1-0", "a", ""];
        assert!(table(&[row], Some(80))[1].starts_with("\u{200e}\u{5d0}\u{5d1}\u{200e} "));
        assert!(table(&[row], None)[1].starts_with("\u{5d0}\u{5d1} "), "a script needs the name as it is");
    }
}
