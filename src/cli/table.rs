//! Rows of text in columns, or one below the other where the terminal is too narrow for the columns.
//!
//! Owns alignment. Nothing is ever cut off to make it fit: a figure without its last digits is another figure.

use std::fmt::Write;

use super::terminal::{Terminal, Tone, columns, padded, padded_before, printable, wrap};

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

/// One cell. Hidden characters of its text are made visible, so that no caller has to think of it.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A text in a colour.
    pub fn toned(tone: Tone, text: &str) -> Self {
        Cell { text: printable(text), tone: Some(tone) }
    }

    /// As it is written to `terminal`.
    pub fn drawn(&self, terminal: Terminal) -> String {
        self.tone.map_or_else(|| self.text.clone(), |tone| terminal.paint(tone, &self.text))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell { text: printable(text), tone: None }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// Cells, each row with an optional remark below it.
#[derive(Debug)]
pub struct Table {
    heads: Vec<Column>,
    rows: Vec<(Vec<Cell>, String)>,
}

impl Table {
    /// An empty table.
    pub fn new(heads: impl Into<Vec<Column>>) -> Self {
        Table { heads: heads.into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<impl Into<Cell>>) {
        self.noted(cells, String::new());
    }

    /// Adds a row with a remark that stands below it.
    pub fn noted(&mut self, cells: Vec<impl Into<Cell>>, remark: String) {
        self.rows.push((cells.into_iter().map(Into::into).collect(), remark));
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
        let cell = |row: &(Vec<Cell>, String), at: usize| row.0.get(at).map_or(0, |cell| columns(&cell.text));
        let widest = |(at, head): (usize, &Column)| {
            self.rows.iter().map(|row| cell(row, at)).fold(columns(head.head), usize::max)
        };
        self.heads.iter().enumerate().map(widest).collect()
    }

    fn aligned(&self, terminal: Terminal, widths: &[usize]) -> String {
        let mut out = String::new();
        let heads: Vec<Cell> =
            self.heads.iter().map(|column| Cell::toned(Tone::Quiet, column.head)).collect();
        self.line(&mut out, &heads, widths, terminal);
        for (cells, remark) in &self.rows {
            self.line(&mut out, cells, widths, terminal);
            remark_lines(&mut out, remark, terminal);
        }
        out
    }

    fn line(&self, out: &mut String, cells: &[Cell], widths: &[usize], terminal: Terminal) {
        let mut line = String::new();
        for ((column, cell), width) in self.heads.iter().zip(cells).zip(widths) {
            let cell = cell.drawn(terminal);
            line.push_str(&" ".repeat(GAP));
            line += &if column.right { padded_before(&cell, *width) } else { padded(&cell, *width) };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }

    fn stacked(&self, terminal: Terminal) -> String {
        let mut out = String::new();
        let label = self.heads.iter().skip(1).map(|column| columns(column.head)).max().unwrap_or(0);
        for (cells, remark) in &self.rows {
            let mut cells = cells.iter();
            let _ = writeln!(out, "  {}", cells.next().map_or(String::new(), |cell| cell.drawn(terminal)));
            let filled = self.heads.iter().skip(1).zip(cells).filter(|(_, cell)| !cell.text.is_empty());
            for (column, cell) in filled {
                let head = terminal.paint(Tone::Quiet, &padded(column.head, label));
                let _ = writeln!(out, "    {head}  {}", cell.drawn(terminal));
            }
            remark_lines(&mut out, remark, terminal);
        }
        out
    }
}

/// Labels with what they name, one below the other.
#[derive(Debug, Default)]
pub struct Labelled {
    lines: Vec<(String, Vec<Cell>)>,
}

impl Labelled {
    /// Adds a line; its parts follow each other.
    pub fn line(&mut self, label: &str, parts: impl IntoIterator<Item = Cell>) {
        self.lines.push((printable(label), parts.into_iter().collect()));
    }

    /// The lines, with their parts in one column.
    pub fn draw(&self, terminal: Terminal) -> String {
        /// The widest label of our own.
        const LABEL: usize = 12;
        let label = self.lines.iter().map(|(label, _)| columns(label)).fold(LABEL, usize::max);
        let mut out = String::new();
        for (name, parts) in &self.lines {
            let text: String = parts.iter().map(|part| part.drawn(terminal)).collect();
            let _ = writeln!(out, "  {} {text}", terminal.paint(Tone::Quiet, &padded(name, label)));
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
        table.row(vec!["package-0", "1 J"]);
        table.noted(vec!["psys", "12 kJ"], "stuck: always 0".into());
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

    #[test]
    fn a_cell_of_wide_characters_and_a_long_label_move_no_column() {
        let mut table = Table::new([words("NAME"), figures("ENERGY")]);
        table.row(vec!["熱量", "1 J"]);
        table.row(vec!["abcdef", "12 J"]);
        assert_eq!(table.draw(Terminal::PLAIN), "  NAME    ENERGY\n  熱量       1 J\n  abcdef    12 J\n");
        let mut lines = Labelled::default();
        lines.line("energy", ["1 J".into()]);
        lines.line("gen_ai.request.model", ["small".into()]);
        lines.line("模型", ["large".into()]);
        let want = "  energy               1 J\n  gen_ai.request.model small\n  模型                 large\n";
        assert_eq!(lines.draw(Terminal::PLAIN), want);
    }

    #[test]
    fn a_cell_and_a_remark_hold_no_control_character_but_ours() {
        let bright = Terminal { colour: true, width: None };
        let mut table = Table::new([words("NAME")]);
        table.noted(vec![Cell::toned(Tone::Doubt, "a\u{202e}\nb")], "c\x1b[2J\u{2066}\n".into());
        let drawn = table.draw(bright);
        assert!(drawn.contains("\x1b[33ma\\u{202e}\\nb\x1b[0m"), "{drawn:?}");
        assert!(drawn.contains("c\\u{1b}[2J\\u{2066}\\n"), "{drawn:?}");
    }
}
