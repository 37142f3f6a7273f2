//! Lines of columns that fit a width: the least important columns are left out first, then the first one is cut.

use ratatui::text::{Line, Span};

use super::palette::{Palette, TopStyle};
use super::power_history::braille;
use crate::terminal::{display_width, pad_left, pad_right};

/// Columns between two columns.
const GAP: usize = 2;

/// The width of a history that still shows something.
const MIN_GRAPH_WIDTH: usize = 8;

/// The least width to which the first column is cut.
const MIN_FIRST_WIDTH: usize = 8;

#[derive(Debug, Clone)]
pub struct TextColumn {
    pub title: String,
    pub is_number: bool,
    /// Columns with a higher number are left out first; those with 0 never.
    pub drop_order: u8,
}

#[derive(Debug, Clone)]
pub enum TopCell {
    Text(String, TopStyle),
    /// A history, drawn in the width that is left: the dots and the greatest value of the scale.
    Graph(Vec<Option<u64>>, u64),
}

impl TopCell {
    /// A cell without a style.
    pub fn plain(text: impl Into<String>) -> Self {
        TopCell::Text(text.into(), TopStyle::Plain)
    }

    fn width(&self) -> usize {
        match self {
            TopCell::Text(text, _) => display_width(text),
            TopCell::Graph(..) => MIN_GRAPH_WIDTH,
        }
    }
}

/// The header and the rows as lines of at most `width` columns. A graph takes the columns that are left.
pub fn table_lines(
    columns: &[TextColumn],
    rows: &[Vec<TopCell>],
    width: usize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let mut widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(TopCell::width);
            cells.chain([display_width(&column.title)]).max().unwrap_or(0)
        })
        .collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize], widths: &[usize]| {
        shown.iter().map(|&at| widths[at] + GAP).sum::<usize>().saturating_sub(GAP)
    };
    // A long name does not push figures out.
    let first_limit = (width / 3).max(MIN_FIRST_WIDTH);
    if let Some(first) = widths.first_mut() {
        *first = (*first).min(first_limit);
    }
    while needed(&shown, &widths) > width {
        let last = shown.iter().copied().max_by_key(|&at| columns[at].drop_order);
        match last.filter(|&at| columns[at].drop_order > 0) {
            Some(dropped) => shown.retain(|&at| at != dropped),
            None => break,
        }
    }
    let excess = needed(&shown, &widths).saturating_sub(width);
    if let Some(first) = widths.first_mut() {
        *first = first.saturating_sub(excess).max(MIN_FIRST_WIDTH.min(*first));
    }
    let is_graph = |at: usize| rows.iter().any(|row| matches!(row.get(at), Some(TopCell::Graph(..))));
    if let Some(&graph) = shown.iter().find(|&&at| is_graph(at)) {
        widths[graph] += width.saturating_sub(needed(&shown, &widths));
    }
    let header =
        columns.iter().map(|column| TopCell::Text(column.title.clone(), TopStyle::Heading)).collect();
    let line = |row: &Vec<TopCell>| table_line(columns, row, &shown, &widths, palette);
    std::iter::once(&header).chain(rows).map(line).collect()
}

fn table_line(
    columns: &[TextColumn],
    row: &[TopCell],
    shown: &[usize],
    widths: &[usize],
    palette: Palette,
) -> Line<'static> {
    let mut spans = Vec::new();
    for &at in shown {
        let Some(cell) = row.get(at) else { continue };
        if !spans.is_empty() {
            spans.push(Span::raw(" ".repeat(GAP)));
        }
        let (text, style) = match cell {
            TopCell::Graph(dots, max) => (braille(dots, *max, widths[at]), TopStyle::Graph),
            TopCell::Text(text, style) if columns[at].is_number => {
                (pad_left(&cut(text, widths[at]), widths[at]), *style)
            }
            TopCell::Text(text, style) => (pad_right(&cut(text, widths[at]), widths[at]), *style),
        };
        spans.push(Span::styled(text, palette.style(style)));
    }
    Line::from(spans)
}

/// The text, cut to `width` columns with an ellipsis.
pub fn cut(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    for c in text.chars() {
        if display_width(&cut) + display_width(c.encode_utf8(&mut [0; 4])) + 1 > width {
            break;
        }
        cut.push(c);
    }
    cut + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(title: &str, drop_order: u8) -> TextColumn {
        TextColumn { title: title.into(), is_number: drop_order > 0, drop_order }
    }

    fn text(columns: &[TextColumn], rows: &[Vec<TopCell>], width: usize) -> Vec<String> {
        table_lines(columns, rows, width, Palette { colour: false }).iter().map(Line::to_string).collect()
    }

    #[test]
    fn columns_are_left_out_by_importance_and_the_first_is_cut() {
        let columns = [column("NAME", 0), column("ENERGY", 1), column("TOKENS", 2)];
        let row = ["a name of many words", "12.5", "7"].map(TopCell::plain).to_vec();
        assert_eq!(
            text(&columns, std::slice::from_ref(&row), 40),
            ["NAME           ENERGY  TOKENS", "a name of ma…    12.5       7"]
        );
        assert_eq!(text(&columns, std::slice::from_ref(&row), 20), ["NAME      ENERGY", "a name …    12.5"]);
        assert_eq!(text(&columns, &[row], 9), ["NAME    ", "a name …"]);
    }

    #[test]
    fn a_graph_takes_the_rest_of_the_line() {
        let columns = [column("NAME", 0), column("HISTORY", 0), column("ENERGY", 1)];
        let row = vec![TopCell::plain("a"), TopCell::Graph(vec![Some(4); 99], 4), TopCell::plain("1")];
        let lines = text(&columns, &[row], 30);
        assert_eq!(lines, ["NAME  HISTORY           ENERGY", "a     ⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿       1"]);
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!((cut("日本語", 6), cut("日本語", 5)), ("日本語".to_owned(), "日本…".to_owned()));
    }
}
