//! Tables without lines: two spaces between columns, the head in bold where there are colours.

use unicode_width::UnicodeWidthStr;

use super::text;

const GAP: usize = 2;

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// At its beginning.
    Left,
    /// At its end, as numbers do.
    Right,
}

/// A colour of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// What the terminal has.
    Plain,
    /// It is well.
    Green,
    /// Look at it.
    Yellow,
    /// It is broken.
    Red,
    /// It is of no concern.
    Grey,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
            Self::Grey => "\x1b[90m",
        }
    }
}

/// One cell.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    /// Text of a colour.
    pub fn new(text: &str, colour: Colour) -> Self {
        Self {
            text: text::line(text).into_owned(),
            colour,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text.as_ref(), Colour::Plain)
    }
}

/// A table.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty one with these columns.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// One more row, a cell for each column.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// As text, which ends with a line's end.
    pub fn text(&self, colours: bool) -> String {
        let widths = self.widths();
        let mut out = String::new();
        let heads: Vec<Cell> = self.columns.iter().map(|(title, _)| Cell::from(title)).collect();
        self.line(&mut out, &heads, &widths, colours.then_some("\x1b[1m"), colours);
        for row in &self.rows {
            self.line(&mut out, row, &widths, None, colours);
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(title, _)| title.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        widths
    }

    fn line(&self, out: &mut String, cells: &[Cell], widths: &[usize], style: Option<&str>, colours: bool) {
        let start = out.len();
        for (((_, side), cell), width) in self.columns.iter().zip(cells).zip(widths) {
            let space = " ".repeat(width.saturating_sub(cell.text.width()));
            let code = style.unwrap_or(if colours { cell.colour.code() } else { "" });
            let (before, after) = match side {
                Side::Left => ("", space.as_str()),
                Side::Right => (space.as_str(), ""),
            };
            out.push_str(before);
            if code.is_empty() || cell.text.is_empty() {
                out.push_str(&cell.text);
            } else {
                out.push_str(&format!("{code}{}\x1b[0m", cell.text));
            }
            out.push_str(after);
            out.push_str(&" ".repeat(GAP));
        }
        let end = start + out.get(start..).unwrap_or_default().trim_end().len();
        out.truncate(end);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("JOB", Side::Left), ("PID", Side::Right), ("LOG", Side::Left)]);
        table.row(vec!["web".into(), "7".into(), "/var/log/web".into()]);
        table.row(vec!["日本".into(), Cell::new("12345", Colour::Green), "".into()]);
        table
    }

    #[test]
    fn columns_stand_under_their_heads_and_lines_end_with_text() {
        assert_eq!(
            table().text(false),
            "JOB     PID  LOG\n\
             web       7  /var/log/web\n\
             日本  12345\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        assert_eq!(
            table().text(true),
            "\x1b[1mJOB\x1b[0m     \x1b[1mPID\x1b[0m  \x1b[1mLOG\x1b[0m\n\
             web       7  /var/log/web\n\
             日本  \x1b[32m12345\x1b[0m\n"
        );
    }

    #[test]
    fn a_name_cannot_forge_a_row() {
        let mut table = Table::new(&[("JOB", Side::Left)]);
        table.row(vec!["a\nb\x1b[1m".into()]);
        assert_eq!(table.text(false), "JOB\na\\nb\\u{1b}[1m\n");
    }
}
