//! Charts as SVG text.
//!
//! Draws axes with round ticks, points, lines, bars, steps and spans. Colours are CSS classes and variables of the
//! page, so that a chart follows the reader's light or dark theme; every chart has a title and a description for
//! screen readers. Invariant: input is numbers and fixed texts, so nothing needs escaping here.

use std::fmt::Write;

// A little wider than a phone's screen, so that labels stay readable there; a desktop shows two charts side by side.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
const MARGIN_LEFT: f64 = 66.0;
const MARGIN_RIGHT: f64 = 18.0;
const MARGIN_TOP: f64 = 14.0;
const MARGIN_BOTTOM: f64 = 52.0;
/// The height of a line of labels.
const LABEL_HEIGHT: f64 = 15.5;

/// The ticks of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticks {
    /// None: a category axis has names instead.
    Hidden,
    /// At round numbers.
    Numbers,
    /// At whole numbers: the axis of a count.
    Integers,
}

/// One axis with its range.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// The label, with the unit.
    pub title: &'static str,
    /// The lower end of the range.
    pub low: f64,
    /// The upper end of the range.
    pub high: f64,
    /// Where it has ticks.
    pub ticks: Ticks,
}

impl Axis {
    /// Creates an axis from 0 to slightly above the largest value.
    pub fn from_zero(title: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let max = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let half_step = tick_step(if max > 0.0 { max } else { 1.0 }) / 2.0;
        Self {
            title,
            low: 0.0,
            high: ((max / half_step).ceil() * half_step).max(half_step * 2.0),
            ticks: Ticks::Numbers,
        }
    }

    /// Creates the axis of a count, from 0.
    pub fn of_counts(title: &'static str, counts: impl Iterator<Item = u64>) -> Self {
        // Half a step of a small count would be a fraction.
        let max = counts.max().unwrap_or(0).max(2);
        Self { ticks: Ticks::Integers, ..Self::from_zero(title, std::iter::once(max as f64)) }
    }

    /// Creates the axis of a percentage, from 0 to 100.
    pub fn of_percent(title: &'static str) -> Self {
        Self { title, low: 0.0, high: 100.0, ticks: Ticks::Numbers }
    }

    /// Creates an axis that does not start at 0 if all values are far from it.
    pub fn fitted(title: &'static str, min: f64, max: f64) -> Self {
        let over = Self::from_zero(title, [max].into_iter());
        if min < max / 2.0 {
            return over;
        }
        let half_step = tick_step((max - min).max(max / 50.0)) / 2.0;
        let low = (min / half_step).floor() * half_step;
        // Equal values need a range of non-zero width.
        Self { low, high: ((max / half_step).ceil() * half_step).max(low + 2.0 * half_step), ..over }
    }

    /// Adds room below 0 without ticks, as a fraction of the height above.
    pub fn with_room_below(self, part: f64) -> Self {
        Self { low: -self.high * part, ..self }
    }

    /// Round values within the range, about five; of a count only whole ones.
    pub fn tick_values(&self) -> Vec<f64> {
        let from = self.low.max(0.0);
        let step = match self.ticks {
            Ticks::Hidden => return Vec::new(),
            Ticks::Numbers => tick_step(self.high - from),
            Ticks::Integers => tick_step(self.high - from).max(1.0),
        };
        let first = (from / step - 1e-9).ceil();
        let count = (self.high / step + 1e-9).floor() - first;
        (0..=count.max(0.0) as usize).map(|tick| (first + tick as f64) * step).collect()
    }

    /// The number at a tick.
    pub fn tick_label(&self, tick: f64) -> String {
        format_tick(tick, self.high - self.low.max(0.0))
    }

    /// Where a value lies on the axis, from 0 to 1.
    pub fn fraction(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// Returns the round tick step (1, 2 or 5 times a power of ten) that gives about five ticks.
fn tick_step(range: f64) -> f64 {
    let rough = range / 5.0;
    let ten = 10_f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * ten >= rough * 0.999);
    digit.unwrap_or(10.0) * ten
}

/// A chart under construction.
#[derive(Debug)]
pub struct Chart {
    x: Axis,
    y: Axis,
    body: String,
    label: String,
    /// Placed labels: left, right, and line.
    label_boxes: Vec<(f64, f64, f64)>,
    /// The labels, drawn above all points.
    labels_svg: String,
}

impl Chart {
    /// Creates an empty chart. `label` describes it in a sentence.
    pub fn new(label: &str, x: Axis, y: Axis) -> Self {
        let mut chart = Self {
            x,
            y,
            body: String::new(),
            label: escape_xml(label),
            label_boxes: Vec::new(),
            labels_svg: String::new(),
        };
        chart.draw_axes();
        chart
    }

    fn to_pixels(&self, x: f64, y: f64) -> (f64, f64) {
        let across = MARGIN_LEFT + self.x.fraction(x) * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT);
        let down = HEIGHT - MARGIN_BOTTOM - self.y.fraction(y) * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM);
        (across, down)
    }

    fn write(&mut self, text: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
    }

    fn draw_axes(&mut self) {
        let (x, y) = (self.x, self.y);
        for tick in y.tick_values() {
            let (left, down) = self.to_pixels(x.low, tick);
            let right = WIDTH - MARGIN_RIGHT;
            self.write(format_args!("<path class=grid d='M{left:.1} {down:.1}H{right:.1}'/>"));
            let text = y.tick_label(tick);
            self.write(format_args!(
                "<text class=tick x={:.1} y={:.1} text-anchor=end>{text}</text>",
                left - 6.0,
                down + 4.0
            ));
        }
        for tick in x.tick_values() {
            let (across, down) = self.to_pixels(tick, y.low);
            let text = x.tick_label(tick);
            self.write(format_args!(
                "<text class=tick x={across:.1} y={:.1} text-anchor=middle>{text}</text>",
                down + 19.0
            ));
        }
        if !x.title.is_empty() {
            let (middle, down) = ((MARGIN_LEFT + WIDTH - MARGIN_RIGHT) / 2.0, HEIGHT - 8.0);
            let title = x.title;
            self.write(format_args!(
                "<text class=axis x={middle:.1} y={down:.1} text-anchor=middle>{title}</text>"
            ));
        }
        let middle = (MARGIN_TOP + HEIGHT - MARGIN_BOTTOM) / 2.0;
        self.write(format_args!(
            "<text class=axis transform='translate(14 {middle:.1}) rotate(-90)' text-anchor=middle>{}</text>",
            y.title
        ));
    }

    /// Draws a dot at each point.
    pub fn dots(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        for (x, y) in points.filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let (across, down) = self.to_pixels(x, y);
            self.write(format_args!("<circle class={class} cx={across:.1} cy={down:.1} r=2.6 />"));
        }
    }

    /// Draws a cross at each point: another shape than a dot, for readers who see no difference of colour.
    pub fn crosses(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points.filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let (across, down) = self.to_pixels(x, y);
            // Writing to a String cannot fail.
            let _ = write!(path, "M{:.1} {:.1}l5.2 5.2m0 -5.2l-5.2 5.2", across - 2.6, down - 2.6);
        }
        if !path.is_empty() {
            self.write(format_args!("<path class={class} d='{path}'/>"));
        }
    }

    /// Draws a vertical line at a value, with its name beside the line's upper end.
    pub fn marker_line(&mut self, x: f64, name: &str) {
        let (across, top) = self.to_pixels(x, self.y.high);
        let bottom = HEIGHT - MARGIN_BOTTOM;
        self.write(format_args!("<path class=mark d='M{across:.1} {top:.1}V{bottom:.1}'/>"));
        self.place_label(name, across, top + LABEL_HEIGHT + 6.0);
    }

    /// Names a point.
    pub fn label(&mut self, (x, y): (f64, f64), name: &str) {
        let (across, down) = self.to_pixels(x, y);
        self.place_label(name, across, down);
    }

    /// Names a column in the middle above its upper end.
    pub fn column_label(&mut self, (x, y): (f64, f64), name: &str) {
        let (across, down) = self.to_pixels(x, y);
        let (down, name) = ((down - 5.0).max(MARGIN_TOP), escape_xml(name));
        self.write(format_args!(
            "<text class='tick name' x={across:.1} y={down:.1} text-anchor=middle>{name}</text>"
        ));
    }

    /// Places a label near a point where it overlaps no other label.
    fn place_label(&mut self, name: &str, across: f64, down: f64) {
        // The size on a phone, where text is larger in proportion.
        const CHAR_WIDTH: f64 = 7.8;
        let wide = name.chars().count() as f64 * CHAR_WIDTH;
        let tries = [-6.0, 16.0, -22.0, 32.0, -38.0, 48.0, -54.0, 64.0].into_iter().flat_map(|below| {
            let line = down + below;
            [(across + 8.0, line), (across - 8.0 - wide, line)]
        });
        let fits = |(left, line): &(f64, f64)| {
            let inside = *left > MARGIN_LEFT
                && left + wide < WIDTH
                && (MARGIN_TOP + LABEL_HEIGHT..HEIGHT - MARGIN_BOTTOM - 2.0).contains(line);
            let free = |(from, to, at): &(f64, f64, f64)| {
                *to < *left || left + wide < *from || (at - line).abs() >= LABEL_HEIGHT
            };
            inside && self.label_boxes.iter().all(free)
        };
        // Without free space the point has no label; the tables beside the chart have all names.
        let Some((left, line)) = tries.into_iter().find(fits) else { return };
        self.label_boxes.push((left, left + wide, line));
        let name = escape_xml(name);
        // Writing to a String cannot fail.
        let _ = write!(self.labels_svg, "<text class='tick name' x={left:.1} y={line:.1}>{name}</text>");
    }

    /// Draws a label below the axis.
    pub fn x_label(&mut self, x: f64, name: &str) {
        let (across, down) = self.to_pixels(x, self.y.low);
        let name = escape_xml(name);
        self.write(format_args!(
            "<text class=tick x={across:.1} y={:.1} text-anchor=middle>{name}</text>",
            down + 19.0
        ));
    }

    /// Draws a line through points.
    pub fn polyline(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points {
            let (across, down) = self.to_pixels(x, y);
            let command = if path.is_empty() { 'M' } else { 'L' };
            // Writing to a String cannot fail.
            let _ = write!(path, "{command}{across:.1} {down:.1}");
        }
        if !path.is_empty() {
            self.write(format_args!("<path class={class} d='{path}'/>"));
        }
    }

    /// Fills the area between the lowest and the highest value, as (x, low, high).
    pub fn band(&mut self, class: &str, values: &[(f64, f64, f64)]) {
        let upper = values.iter().map(|(x, _, high)| (*x, *high));
        let lower = values.iter().rev().map(|(x, low, _)| (*x, *low));
        self.polyline(class, upper.chain(lower));
    }

    /// Fills the area from the lower end of the axis to a value that is constant within each interval (from, to, value).
    /// Intervals that do not touch leave a gap. `title` appears at the pointer.
    pub fn step_area(&mut self, class: &str, steps: &[(f64, f64, f64)], title: &str) {
        let mut path = String::new();
        let bottom = self.to_pixels(self.x.low, self.y.low).1;
        let mut end = None;
        for (from, to, value) in steps.iter().filter(|(.., value)| value.is_finite()) {
            let ((left, top), (right, _)) = (self.to_pixels(*from, *value), self.to_pixels(*to, *value));
            // Writing to a String cannot fail.
            let _ = match end {
                Some(end) if end == *from => write!(path, "V{top:.1}H{right:.1}"),
                Some(_) => write!(path, "V{bottom:.1}ZM{left:.1} {bottom:.1}V{top:.1}H{right:.1}"),
                None => write!(path, "M{left:.1} {bottom:.1}V{top:.1}H{right:.1}"),
            };
            end = Some(*to);
        }
        if end.is_some() {
            let title = escape_xml(title);
            self.write(format_args!(
                "<path class={class} d='{path}V{bottom:.1}Z'><title>{title}</title></path>"
            ));
        }
    }

    /// Names a band between two values at its right end, if it is tall enough for the text.
    pub fn band_label(&mut self, x: f64, (low, high): (f64, f64), name: &str) {
        let ((across, bottom), (_, top)) = (self.to_pixels(x, low), self.to_pixels(x, high));
        if bottom - top < LABEL_HEIGHT {
            return;
        }
        let (left, line, name) = (across - 6.0, (bottom + top) / 2.0 + 4.0, escape_xml(name));
        // Writing to a String cannot fail.
        let _ = write!(
            self.labels_svg,
            "<text class='tick name' x={left:.1} y={line:.1} text-anchor=end>{name}</text>"
        );
    }

    /// Draws the part of a straight line that lies within the axes.
    pub fn line_segment(&mut self, class: &str, ends: [(f64, f64); 2]) {
        if let Some(ends) = self.clip_line(ends) {
            self.polyline(class, ends.into_iter());
        }
    }

    /// Clips a line to the axes (Liang and Barsky, ACM TOG 3, 1984); `None` if it lies outside.
    fn clip_line(&self, [(x, y), (to_x, to_y)]: [(f64, f64); 2]) -> Option<[(f64, f64); 2]> {
        let (run, rise) = (to_x - x, to_y - y);
        let (mut enters, mut leaves) = (0.0, 1.0);
        for (step, room) in
            [(-run, x - self.x.low), (run, self.x.high - x), (-rise, y - self.y.low), (rise, self.y.high - y)]
        {
            match step {
                0.0 if room < 0.0 => return None,
                0.0 => {}
                step if step < 0.0 => enters = f64::max(enters, room / step),
                step => leaves = f64::min(leaves, room / step),
            }
        }
        let at = |part: f64| (x + run * part, y + rise * part);
        (enters <= leaves).then(|| [at(enters), at(leaves)])
    }

    /// Draws a box between two corners.
    pub fn rectangle(&mut self, class: &str, low_left: (f64, f64), high_right: (f64, f64)) {
        self.titled_rectangle(class, low_left, high_right, "");
    }

    /// Draws a box between two corners, with a title that appears at the pointer.
    pub fn titled_rectangle(
        &mut self,
        class: &str,
        (left, low): (f64, f64),
        (right, high): (f64, f64),
        title: &str,
    ) {
        let ((left, bottom), (right, top)) = (self.to_pixels(left, low), self.to_pixels(right, high));
        let (wide, tall) = ((right - left).max(0.6), (bottom - top).max(0.0));
        let shape = format!("<rect class={class} x={left:.1} y={top:.1} width={wide:.1} height={tall:.1}");
        match title {
            "" => self.write(format_args!("{shape} />")),
            title => self.write(format_args!("{shape}><title>{}</title></rect>", escape_xml(title))),
        }
    }

    /// Returns the chart as SVG.
    pub fn to_svg(&self) -> String {
        format!(
            "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label=\"{}\">{}{}</svg>",
            self.label, self.body, self.labels_svg
        )
    }
}

/// Formats a tick's number with as few digits as needed.
fn format_tick(value: f64, max: f64) -> String {
    if max >= 1e5 && value.abs() >= 500.0 {
        return format!("{:.0}k", value / 1e3);
    }
    let digits = if max >= 20.0 {
        0
    } else if max >= 2.0 {
        1
    } else if max >= 0.2 {
        2
    } else {
        4
    };
    let text = format!("{value:.digits$}");
    // Avoids "-0" after rounding.
    let text = if text.trim_matches(['-', '0', '.']).is_empty() { text.replace('-', "") } else { text };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Escapes text for an element or an attribute in quotes.
pub fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        for max in [0.0, 0.003, 0.9, 1.0, 7.3, 99.0, 123_456.0] {
            let axis = Axis::from_zero("x", [max].into_iter());
            let ticks = axis.tick_values();
            assert!((3..=11).contains(&ticks.len()), "{max}: {ticks:?}");
            assert!(axis.high >= max && axis.high <= (max * 1.34).max(1.0), "{max}: {}", axis.high);
            assert!(*ticks.last().unwrap() <= axis.high * 1.000_001, "{max}: {ticks:?}");
        }
        assert_eq!(format_tick(0.25, 1.0), "0.25");
        assert_eq!(format_tick(40.0, 200.0), "40");
        assert_eq!(format_tick(150_000.0, 200_000.0), "150k");
        for max in [1e6, 100.0, 10.0, 1.0, 0.1] {
            assert_eq!((format_tick(-0.0, max), format_tick(-1e-9, max)), ("0".into(), "0".into()), "{max}");
        }
    }

    #[test]
    fn points_are_placed_by_value() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, ticks: Ticks::Numbers };
        let mut chart = Chart::new("a <test>", axis("x"), axis("y"));
        chart.dots("dot", [(0.0, 0.0), (10.0, 10.0), (f64::NAN, 1.0)].into_iter());
        let svg = chart.to_svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("cx=66.0 cy=228.0") && svg.contains("cx=462.0 cy=14.0"), "{svg}");
        assert!(svg.contains("a &lt;test&gt;"));
    }

    #[test]
    fn counts_have_whole_ticks() {
        for max in [0, 1, 2, 3, 7, 49, 1_000] {
            let axis = Axis::of_counts("queries", [max].into_iter());
            assert!(axis.high >= max as f64);
            let labels: Vec<String> =
                axis.tick_values().into_iter().map(|tick| axis.tick_label(tick)).collect();
            assert!(labels.len() >= 3, "{max}: {labels:?}");
            assert!(labels.iter().all(|label| label.parse::<u64>().is_ok()), "{max}: {labels:?}");
        }
    }

    #[test]
    fn a_cross_and_a_band_lie_at_their_values() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, ticks: Ticks::Numbers };
        let mut chart = Chart::new("shapes", axis("x"), axis("y"));
        chart.crosses("wrong", [(0.0, 0.0), (f64::NAN, 1.0)].into_iter());
        chart.band("band", &[(0.0, 0.0, 10.0), (10.0, 5.0, 5.0)]);
        let svg = chart.to_svg();
        assert!(svg.contains("<path class=wrong d='M63.4 225.4l5.2 5.2m0 -5.2l-5.2 5.2'/>"), "{svg}");
        assert!(
            svg.contains("<path class=band d='M66.0 14.0L462.0 121.0L462.0 121.0L66.0 228.0'/>"),
            "{svg}"
        );
    }

    #[test]
    fn a_step_area_has_its_gaps_and_escapes_its_title() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, ticks: Ticks::Hidden };
        let mut chart = Chart::new("steps", axis("x"), axis("y"));
        chart.step_area("s", &[], "empty");
        chart.step_area("s", &[(0.0, 1.0, 10.0), (1.0, 2.0, 5.0), (5.0, 10.0, 0.0)], "<b>");
        let svg = chart.to_svg();
        let path = "M66.0 228.0V14.0H105.6V121.0H145.2V228.0ZM264.0 228.0V228.0H462.0V228.0Z";
        assert!(svg.contains(&format!("<path class=s d='{path}'><title>&lt;b&gt;</title></path>")), "{svg}");
        assert!(!svg.contains("empty"));
    }

    #[test]
    fn a_band_has_its_name_if_it_is_tall_enough() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, ticks: Ticks::Hidden };
        let mut chart = Chart::new("bands", axis("x"), axis("y"));
        chart.band_label(10.0, (0.0, 5.0), "tall");
        chart.band_label(10.0, (5.0, 5.2), "thin");
        let svg = chart.to_svg();
        assert!(svg.contains(">tall</text>") && !svg.contains("thin"), "{svg}");
    }

    #[test]
    fn lines_are_clipped_to_the_axes() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, ticks: Ticks::Numbers };
        let chart = Chart::new("line", axis("x"), axis("y"));
        for (ends, within) in [
            ([(0.0, -5.0), (10.0, 5.0)], Some([(5.0, 0.0), (10.0, 5.0)])),
            ([(0.0, 5.0), (10.0, 25.0)], Some([(0.0, 5.0), (2.5, 10.0)])),
            ([(0.0, 15.0), (10.0, -5.0)], Some([(2.5, 10.0), (7.5, 0.0)])),
            ([(0.0, 4.0), (10.0, 4.0)], Some([(0.0, 4.0), (10.0, 4.0)])),
            ([(0.0, -1.0), (10.0, -1.0)], None),
            ([(0.0, 11.0), (10.0, 30.0)], None),
        ] {
            assert_eq!(chart.clip_line(ends), within, "{ends:?}");
        }
    }

    #[test]
    fn a_fitted_axis_does_not_start_at_zero() {
        let power = Axis::fitted("W", 32.0, 37.5);
        assert_eq!((power.low, power.high), (32.0, 38.0));
        assert!(
            power.tick_values().first().is_some_and(|tick| (32.0..34.0).contains(tick)),
            "{:?}",
            power.tick_values()
        );
        assert_eq!(Axis::fitted("J", 3.0, 37.5).low, 0.0);
        let one = Axis::fitted("W", 5.0, 5.0);
        assert!(one.low <= 5.0 && one.high >= 5.0 && one.high > one.low, "{one:?}");
    }

    #[test]
    fn labels_do_not_overlap() {
        let axis = |title| Axis { title, low: 0.0, high: 1.0, ticks: Ticks::Numbers };
        let mut chart = Chart::new("names", axis("x"), axis("y"));
        for at in 0..6 {
            let place = (0.5 + f64::from(at) * 0.01, 0.5);
            chart.label(place, "a name of some length");
        }
        assert!(chart.label_boxes.len() >= 4);
        for (at, one) in chart.label_boxes.iter().enumerate() {
            for other in &chart.label_boxes[at + 1..] {
                let apart = one.1 < other.0 || other.1 < one.0 || (one.2 - other.2).abs() >= LABEL_HEIGHT;
                assert!(apart, "{one:?} {other:?}");
            }
        }
    }
}
