//! Rows of text in columns, or one below the other where the terminal is too narrow for the columns.
//!
//! Owns alignment. Nothing is ever cut off to make it fit: a figure without its last digits is another figure.

use std::fmt::Write;

use super::terminal::{Terminal, Tone, columns, wrap};

/// Space between two columns.
const GAP: usize = 2;

/// A column's heading and the side on which its cells stand.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Shown above, or before each value when stacked.
    pub head: &'static str,
    /// Figures stand on the right.
    pub right: bool,
}

/// A column of words.
pub const fn words(head: &'static str) -> Column {
    Column { head, right: false }
}

/// A column of figures.
pub const fn figures(head: &'static str) -> Column {
    Column { head, right: true }
}

/// Cells, each row with an optional remark below it.
#[derive(Debug)]
pub struct Table {
    heads: Vec<Column>,
    rows: Vec<(Vec<String>, String)>,
}

impl Table {
    /// An empty table.
    pub fn new(heads: impl Into<Vec<Column>>) -> Self {
        Table { heads: heads.into(), rows: Vec::new() }
    }

    /// Adds a row; cells may be painted.
    pub fn row(&mut self, cells: Vec<String>) {
        self.noted(cells, String::new());
    }

    /// Adds a row with a remark that stands below it.
    pub fn noted(&mut self, cells: Vec<String>, remark: String) {
        self.rows.push((cells, remark));
    }

    /// The table as it fits `terminal`, indented by two.
    pub fn draw(&self, terminal: Terminal) -> String {
        let widths = self.widths();
        let needed = widths.iter().map(|width| width + GAP).sum::<usize>();
        match terminal.width {
            Some(width) if needed > width => self.stacked(terminal),
            _ => self.aligned(terminal, &widths),
        }
    }

    fn widths(&self) -> Vec<usize> {
        let cell = |row: &(Vec<String>, String), at: usize| row.0.get(at).map_or(0, |text| columns(text));
        let widest = |(at, head): (usize, &Column)| {
            self.rows.iter().map(|row| cell(row, at)).fold(columns(head.head), usize::max)
        };
        self.heads.iter().enumerate().map(widest).collect()
    }

    fn aligned(&self, terminal: Terminal, widths: &[usize]) -> String {
        let mut out = String::new();
        let heads: Vec<String> =
            self.heads.iter().map(|column| terminal.paint(Tone::Quiet, column.head)).collect();
        self.line(&mut out, &heads, widths);
        for (cells, remark) in &self.rows {
            self.line(&mut out, cells, widths);
            remark_lines(&mut out, remark, terminal);
        }
        out
    }

    fn line(&self, out: &mut String, cells: &[String], widths: &[usize]) {
        let mut line = String::new();
        for ((column, cell), width) in self.heads.iter().zip(cells).zip(widths) {
            let space = " ".repeat(width.saturating_sub(columns(cell)));
            line.push_str(&" ".repeat(GAP));
            if column.right {
                line.push_str(&space);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&space);
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }

    fn stacked(&self, terminal: Terminal) -> String {
        let mut out = String::new();
        let label = self.heads.iter().skip(1).map(|column| columns(column.head)).max().unwrap_or(0);
        for (cells, remark) in &self.rows {
            let mut cells = cells.iter();
            let _ = writeln!(out, "  {}", cells.next().map_or("", String::as_str));
            for (column, cell) in self.heads.iter().skip(1).zip(cells).filter(|(_, cell)| !cell.is_empty()) {
                let head = format!("{:label$}", column.head);
                let _ = writeln!(out, "    {}  {cell}", terminal.paint(Tone::Quiet, &head));
            }
            remark_lines(&mut out, remark, terminal);
        }
        out
    }
}

fn remark_lines(out: &mut String, remark: &str, terminal: Terminal) {
    if remark.is_empty() {
        return;
    }
    for line in wrap(remark, terminal.width.map(|width| width.saturating_sub(4))) {
        let _ = writeln!(out, "    {}", terminal.paint(Tone::Doubt, &line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([words("DOMAIN"), figures("ENERGY")]);
        table.row(vec!["package-0".into(), "1 J".into()]);
        table.noted(vec!["psys".into(), "12 kJ".into()], "stuck: always 0".into());
        table
    }

    #[test]
    fn words_stand_left_and_figures_right() {
        let want = "  DOMAIN     ENERGY\n  package-0     1 J\n  psys        12 kJ\n    stuck: always 0\n";
        assert_eq!(table().draw(Terminal::PLAIN), want);
    }

    #[test]
    fn a_terminal_too_narrow_gets_every_cell_below_the_other() {
        let narrow = Terminal { colour: false, width: Some(18) };
        let want = "  package-0\n    ENERGY  1 J\n  psys\n    ENERGY  12 kJ\n    stuck: always\n    0\n";
        assert_eq!(table().draw(narrow), want);
    }
}
