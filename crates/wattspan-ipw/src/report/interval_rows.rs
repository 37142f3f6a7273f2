//! A chart with one row for each subject and a column for each quantity.
//!
//! Each cell shows a figure as a dot on its column's axis, its interval as a line and its value as text. Rows do not
//! cross, whatever the figures are.

use std::fmt::Write;

use wattspan_page::chart::{Axis, escape_xml};

use super::super::metrics::Estimate;
use super::format::format_significant;

const WIDTH: f64 = 480.0;
const MARGIN: f64 = 14.0;
const ROW_HEIGHT: f64 = 34.0;
const AXIS_HEIGHT: f64 = 44.0;
/// The space between the columns.
const COLUMN_GAP: f64 = 30.0;
/// The width of a character of a name on a phone, where text is larger in proportion.
const CHAR_WIDTH: f64 = 7.8;

/// One row: the name of the subject and its figures, one for each column.
#[derive(Debug)]
pub struct IntervalRow {
    pub name: String,
    pub figures: [Option<Estimate>; 2],
}

/// Draws the rows as SVG; `label` describes the chart in a sentence.
pub fn draw_interval_rows(label: &str, columns: [Axis; 2], rows: &[IntervalRow]) -> String {
    let height = MARGIN + rows.len() as f64 * ROW_HEIGHT + AXIS_HEIGHT;
    let mut svg =
        format!("<svg viewBox='0 0 {WIDTH} {height}' role=img aria-label=\"{}\">", escape_xml(label));
    let column_width = (WIDTH - 2.0 * MARGIN - COLUMN_GAP) / 2.0;
    for (nth, axis) in columns.iter().enumerate() {
        let left = MARGIN + nth as f64 * (column_width + COLUMN_GAP);
        draw_axis(&mut svg, axis, (left, column_width), height);
        for (line, row) in rows.iter().enumerate() {
            let middle = MARGIN + line as f64 * ROW_HEIGHT + ROW_HEIGHT * 0.72;
            if let Some(figure) = row.figures[nth] {
                draw_figure(&mut svg, axis, figure, (left, column_width), middle);
            }
        }
    }
    for (line, row) in rows.iter().enumerate() {
        let down = MARGIN + line as f64 * ROW_HEIGHT + 11.0;
        let name = escape_xml(&cut(&row.name, ((WIDTH - 2.0 * MARGIN) / CHAR_WIDTH) as usize));
        write_text(&mut svg, "name", "start", (MARGIN, down), &name);
    }
    svg + "</svg>"
}

fn draw_axis(svg: &mut String, axis: &Axis, (left, width): (f64, f64), height: f64) {
    let bottom = height - AXIS_HEIGHT;
    for tick in axis.tick_values() {
        let across = left + axis.fraction(tick) * width;
        // Writing to a String cannot fail.
        let _ = write!(svg, "<path class=grid d='M{across:.1} {MARGIN}V{bottom:.1}'/>");
        write_text(svg, "", "middle", (across, bottom + 15.0), &axis.tick_label(tick));
    }
    write_text(svg, "", "middle", (left + width / 2.0, height - 8.0), axis.title);
}

fn draw_figure(svg: &mut String, axis: &Axis, figure: Estimate, (left, width): (f64, f64), middle: f64) {
    let across = |value: f64| left + axis.fraction(value) * width;
    let at = across(figure.value);
    let (from, to) = figure.interval.map_or((at, at), |it| (across(it.low), across(it.high)));
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<path class=whisker d='M{from:.1} {middle:.1}H{to:.1}'/><circle class=dot cx={at:.1} cy={middle:.1} r=4 />"
    );
    let text = format_significant(figure.value);
    let text_width = text.len() as f64 * CHAR_WIDTH;
    // The value stands behind its interval, or before it where that leaves no space.
    if to + 6.0 + text_width <= left + width + COLUMN_GAP / 2.0 {
        write_text(svg, "name", "start", (to + 6.0, middle + 4.0), &text);
    } else {
        write_text(svg, "name", "end", (from - 6.0, middle + 4.0), &text);
    }
}

fn write_text(svg: &mut String, class: &str, anchor: &str, (across, down): (f64, f64), text: &str) {
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<text class='tick {class}' x={across:.1} y={down:.1} text-anchor={anchor}>{text}</text>"
    );
}

/// Cuts a name to a number of characters.
fn cut(name: &str, length: usize) -> String {
    if name.chars().count() <= length {
        return name.to_owned();
    }
    name.chars().take(length - 1).chain(['\u{2026}']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::bootstrap::ConfidenceInterval;
    use super::*;

    #[test]
    fn each_figure_lies_at_its_value_in_its_row() {
        let figure =
            |value, low, high| Some(Estimate { value, interval: Some(ConfidenceInterval { low, high }) });
        let rows = [
            IntervalRow {
                name: "sums & <more>".into(),
                figures: [figure(50.0, 25.0, 75.0), figure(100.0, 90.0, 100.0)],
            },
            IntervalRow { name: "x".repeat(200), figures: [None, figure(0.0, 0.0, 10.0)] },
        ];
        let svg =
            draw_interval_rows("test", [Axis::of_percent("accuracy, %"), Axis::of_percent("energy")], &rows);
        // Columns are 211 wide, from 14 and from 255; the rows' lines are at 38.5 and 72.5.
        for wanted in [
            "M66.8 38.5H172.2'/><circle class=dot cx=119.5 cy=38.5",
            "M444.9 38.5H466.0'/><circle class=dot cx=466.0 cy=38.5",
            "M255.0 72.5H276.1'/><circle class=dot cx=255.0 cy=72.5",
            ">sums &amp; &lt;more&gt;<",
            "\u{2026}<",
        ] {
            assert!(svg.contains(wanted), "{wanted} is missing in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("x=438.9 y=42.5 text-anchor=end>100.0<"), "no space behind it: {svg}");
        assert!(svg.contains("x=178.2 y=42.5 text-anchor=start>50.00<"), "{svg}");
    }
}
