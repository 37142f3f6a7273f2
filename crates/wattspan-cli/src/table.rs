//! Text tables, with stacked rows if the terminal is too narrow for the columns.
//!
//! No text is ever truncated.

use std::fmt::Write;

use super::terminal::{Terminal, TextStyle, display_width, pad_left, pad_right, printable, wrap};

/// Space between two columns.
const COLUMN_GAP: usize = 2;

/// A column's heading and alignment.
#[derive(Debug, Clone, Copy)]
pub struct TableColumn {
    /// Printed above the column, or before each value of a stacked row.
    pub header: &'static str,
    pub right_aligned: bool,
}

/// A left-aligned column.
pub const fn text_column(header: &'static str) -> TableColumn {
    TableColumn { header, right_aligned: false }
}

/// A right-aligned column.
pub const fn number_column(header: &'static str) -> TableColumn {
    TableColumn { header, right_aligned: true }
}

/// One cell. Control and format characters of its text are escaped.
#[derive(Debug, Clone)]
pub struct TableCell {
    text: String,
    style: Option<TextStyle>,
}

impl TableCell {
    pub fn styled(style: TextStyle, text: &str) -> Self {
        TableCell { text: printable(text), style: Some(style) }
    }

    pub fn render(&self, terminal: Terminal) -> String {
        self.style.map_or_else(|| self.text.clone(), |tone| terminal.paint(tone, &self.text))
    }
}

impl From<&str> for TableCell {
    fn from(text: &str) -> Self {
        TableCell { text: printable(text), style: None }
    }
}

impl From<String> for TableCell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// Rows of cells, each with an optional note below it.
#[derive(Debug)]
pub struct TextTable {
    columns: Vec<TableColumn>,
    rows: Vec<(Vec<TableCell>, String)>,
}

impl TextTable {
    pub fn new(columns: impl Into<Vec<TableColumn>>) -> Self {
        TextTable { columns: columns.into(), rows: Vec::new() }
    }

    pub fn add_row(&mut self, cells: Vec<impl Into<TableCell>>) {
        self.add_row_with_note(cells, String::new());
    }

    /// Adds a row with a note below it.
    pub fn add_row_with_note(&mut self, cells: Vec<impl Into<TableCell>>, note: String) {
        self.rows.push((cells.into_iter().map(Into::into).collect(), note));
    }

    /// Renders the table for `terminal`, indented by two.
    pub fn render(&self, terminal: Terminal) -> String {
        let widths = self.column_widths();
        let needed = widths.iter().map(|width| width + COLUMN_GAP).sum::<usize>();
        match terminal.width {
            Some(width) if needed > width => self.render_stacked(terminal),
            _ => self.render_aligned(terminal, &widths),
        }
    }

    fn column_widths(&self) -> Vec<usize> {
        let cell_width = |row: &(Vec<TableCell>, String), index: usize| {
            row.0.get(index).map_or(0, |cell| display_width(&cell.text))
        };
        let column_width = |(index, column): (usize, &TableColumn)| {
            self.rows.iter().map(|row| cell_width(row, index)).fold(display_width(column.header), usize::max)
        };
        self.columns.iter().enumerate().map(column_width).collect()
    }

    fn render_aligned(&self, terminal: Terminal, widths: &[usize]) -> String {
        let mut out = String::new();
        let headers: Vec<TableCell> =
            self.columns.iter().map(|column| TableCell::styled(TextStyle::Dim, column.header)).collect();
        self.write_line(&mut out, &headers, widths, terminal);
        for (cells, note) in &self.rows {
            self.write_line(&mut out, cells, widths, terminal);
            write_note(&mut out, note, terminal);
        }
        out
    }

    fn write_line(&self, out: &mut String, cells: &[TableCell], widths: &[usize], terminal: Terminal) {
        let mut line = String::new();
        for ((column, cell), width) in self.columns.iter().zip(cells).zip(widths) {
            let cell = cell.render(terminal);
            line.push_str(&" ".repeat(COLUMN_GAP));
            line += &if column.right_aligned { pad_left(&cell, *width) } else { pad_right(&cell, *width) };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }

    fn render_stacked(&self, terminal: Terminal) -> String {
        let mut out = String::new();
        let label_width =
            self.columns.iter().skip(1).map(|column| display_width(column.header)).max().unwrap_or(0);
        for (cells, note) in &self.rows {
            let mut cells = cells.iter();
            let _ = writeln!(out, "  {}", cells.next().map_or(String::new(), |cell| cell.render(terminal)));
            let filled = self.columns.iter().skip(1).zip(cells).filter(|(_, cell)| !cell.text.is_empty());
            for (column, cell) in filled {
                let header = terminal.paint(TextStyle::Dim, &pad_right(column.header, label_width));
                let _ = writeln!(out, "    {header}  {}", cell.render(terminal));
            }
            write_note(&mut out, note, terminal);
        }
        out
    }
}

/// A list of labels and values.
#[derive(Debug, Default)]
pub struct KeyValueTable {
    rows: Vec<(String, Vec<TableCell>)>,
}

impl KeyValueTable {
    /// Adds a line; its parts are concatenated.
    pub fn add_row(&mut self, label: &str, parts: impl IntoIterator<Item = TableCell>) {
        self.rows.push((printable(label), parts.into_iter().collect()));
    }

    /// Renders the lines, with the values aligned.
    pub fn render(&self, terminal: Terminal) -> String {
        /// Width of the longest fixed label.
        const MIN_LABEL_WIDTH: usize = 12;
        let label_width =
            self.rows.iter().map(|(label, _)| display_width(label)).fold(MIN_LABEL_WIDTH, usize::max);
        let mut out = String::new();
        for (name, parts) in &self.rows {
            let text: String = parts.iter().map(|part| part.render(terminal)).collect();
            let _ =
                writeln!(out, "  {} {text}", terminal.paint(TextStyle::Dim, &pad_right(name, label_width)));
        }
        out
    }
}

fn write_note(out: &mut String, note: &str, terminal: Terminal) {
    if note.is_empty() {
        return;
    }
    for line in wrap(note, terminal.width.map(|width| width.saturating_sub(4))) {
        let _ = writeln!(out, "    {}", terminal.paint(TextStyle::Warning, &line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_table() -> TextTable {
        let mut table = TextTable::new([text_column("DOMAIN"), number_column("ENERGY")]);
        table.add_row(vec!["package-0", "1 J"]);
        table.add_row_with_note(vec!["psys", "12 kJ"], "stuck: always 0".into());
        table
    }

    #[test]
    fn text_is_left_aligned_and_numbers_are_right_aligned() {
        let want = "  DOMAIN     ENERGY\n  package-0     1 J\n  psys        12 kJ\n    stuck: always 0\n";
        assert_eq!(sample_table().render(Terminal::PLAIN), want);
    }

    #[test]
    fn a_narrow_terminal_gets_stacked_cells() {
        let narrow = Terminal { colour: false, width: Some(18) };
        let want = "  package-0\n    ENERGY  1 J\n  psys\n    ENERGY  12 kJ\n    stuck: always\n    0\n";
        assert_eq!(sample_table().render(narrow), want);
    }

    #[test]
    fn a_cell_of_wide_characters_and_a_long_label_move_no_column() {
        let mut table = TextTable::new([text_column("NAME"), number_column("ENERGY")]);
        table.add_row(vec!["熱量", "1 J"]);
        table.add_row(vec!["abcdef", "12 J"]);
        assert_eq!(table.render(Terminal::PLAIN), "  NAME    ENERGY\n  熱量       1 J\n  abcdef    12 J\n");
        let mut lines = KeyValueTable::default();
        lines.add_row("energy", ["1 J".into()]);
        lines.add_row("gen_ai.request.model", ["small".into()]);
        lines.add_row("模型", ["large".into()]);
        let want = "  energy               1 J\n  gen_ai.request.model small\n  模型                 large\n";
        assert_eq!(lines.render(Terminal::PLAIN), want);
    }

    #[test]
    fn control_characters_in_cells_and_notes_are_escaped() {
        let colour_terminal = Terminal { colour: true, width: None };
        let mut table = TextTable::new([text_column("NAME")]);
        table.add_row_with_note(
            vec![TableCell::styled(TextStyle::Warning, "a\u{202e}\nb")],
            "c\x1b[2J\u{2066}\n".into(),
        );
        let rendered = table.render(colour_terminal);
        assert!(rendered.contains("\x1b[33ma\\u{202e}\\nb\x1b[0m"), "{rendered:?}");
        assert!(rendered.contains("c\\u{1b}[2J\\u{2066}\\n"), "{rendered:?}");
    }
}
