//! Pictures as SVG text.
//!
//! Owns the drawing: axes with round ticks, points, lines, bars, steps, spans. Colours are the page's (classes and
//! variables), so that a picture is light or dark as its reader is; every picture has a title and a description for those who
//! cannot see it. Takes numbers only: there is nothing in it that could need escaping but the fixed words given by the page.

use std::fmt::Write;

// As wide as a phone's screen and a bit, so that labels stay readable there; a desktop shows two beside each other.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 52.0;
/// The height of a line of names.
const LINE: f64 = 15.5;

/// One axis: what it shows, and from where to where.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// In words, with the unit.
    pub title: &'static str,
    /// The least that is drawn.
    pub low: f64,
    /// The most.
    pub high: f64,
    /// Whether numbers stand along it; names may, instead.
    pub numbers: bool,
}

impl Axis {
    /// An axis from 0 to somewhat above all values.
    pub fn over(title: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let half = step(if most > 0.0 { most } else { 1.0 }) / 2.0;
        Self { title, low: 0.0, high: ((most / half).ceil() * half).max(half * 2.0), numbers: true }
    }

    /// The same, but not from 0 where all values are far from it.
    pub fn around(title: &'static str, least: f64, most: f64) -> Self {
        let over = Self::over(title, [most].into_iter());
        if least < most / 2.0 {
            return over;
        }
        let half = step((most - least).max(most / 50.0)) / 2.0;
        let low = (least / half).floor() * half;
        // Where all are equal there is still something to see.
        Self { low, high: ((most / half).ceil() * half).max(low + 2.0 * half), ..over }
    }

    /// The same with room below 0, in which no ticks stand: a part of the height of what is above.
    pub fn with_room_below(self, part: f64) -> Self {
        Self { low: -self.high * part, ..self }
    }

    fn ticks(&self) -> Vec<f64> {
        let from = self.low.max(0.0);
        let step = step(self.high - from);
        let first = (from / step - 1e-9).ceil();
        let count = (self.high / step + 1e-9).floor() - first;
        (0..=count.max(0.0) as usize).map(|tick| (first + tick as f64) * step).collect()
    }

    fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// The round distance (1, 2 or 5 and zeroes) that gives some five ticks.
fn step(range: f64) -> f64 {
    let rough = range / 5.0;
    let ten = 10_f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * ten >= rough * 0.999);
    digit.unwrap_or(10.0) * ten
}

/// A picture that is being drawn.
#[derive(Debug)]
pub struct Picture {
    x: Axis,
    y: Axis,
    body: String,
    label: String,
    /// Where names stand already: left, right, and their line.
    named: Vec<(f64, f64, f64)>,
    /// The names, drawn over all points.
    names: String,
}

impl Picture {
    /// An empty one. `label` says in a sentence what it shows.
    pub fn new(label: &str, x: Axis, y: Axis) -> Self {
        let mut picture = Self {
            x,
            y,
            body: String::new(),
            label: escaped(label),
            named: Vec::new(),
            names: String::new(),
        };
        picture.axes();
        picture
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT);
        let down = HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM);
        (across, down)
    }

    fn put(&mut self, text: std::fmt::Arguments) {
        // Writing into a String cannot fail.
        let _ = self.body.write_fmt(text);
    }

    fn axes(&mut self) {
        let (x, y) = (self.x, self.y);
        for tick in y.ticks() {
            let (left, down) = self.at(x.low, tick);
            let right = WIDTH - RIGHT;
            self.put(format_args!("<path class=grid d='M{left:.1} {down:.1}H{right:.1}'/>"));
            let text = tick_text(tick, y.high - y.low.max(0.0));
            self.put(format_args!(
                "<text class=tick x={:.1} y={:.1} text-anchor=end>{text}</text>",
                left - 6.0,
                down + 4.0
            ));
        }
        for tick in x.ticks().into_iter().filter(|_| x.numbers) {
            let (across, down) = self.at(tick, y.low);
            let text = tick_text(tick, x.high - x.low.max(0.0));
            self.put(format_args!(
                "<text class=tick x={across:.1} y={:.1} text-anchor=middle>{text}</text>",
                down + 19.0
            ));
        }
        if !x.title.is_empty() {
            let (middle, down) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0);
            let title = x.title;
            self.put(format_args!(
                "<text class=axis x={middle:.1} y={down:.1} text-anchor=middle>{title}</text>"
            ));
        }
        let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
        self.put(format_args!(
            "<text class=axis transform='translate(14 {middle:.1}) rotate(-90)' text-anchor=middle>{}</text>",
            y.title
        ));
    }

    /// Points of one kind.
    pub fn points(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        for (x, y) in points.filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let (across, down) = self.at(x, y);
            self.put(format_args!("<circle class={class} cx={across:.1} cy={down:.1} r=2.6 />"));
        }
    }

    /// A point with the intervals around it, and a name beside it.
    pub fn cross(
        &mut self,
        class: &str,
        name: &str,
        (x, y): (f64, f64),
        x_range: (f64, f64),
        y_range: (f64, f64),
    ) {
        let (across, down) = self.at(x, y);
        let ((left, low), (right, high)) = (self.at(x_range.0, y_range.0), self.at(x_range.1, y_range.1));
        self.put(format_args!(
            "<path class='{class} whisker' d='M{left:.1} {down:.1}H{right:.1}M{across:.1} {low:.1}V{high:.1}'/>\
             <circle class={class} cx={across:.1} cy={down:.1} r=4 />"
        ));
        self.name(name, across, down);
    }

    /// A name beside a place, where no other name stands.
    fn name(&mut self, name: &str, across: f64, down: f64) {
        // As a phone shows them, which is larger in proportion.
        const LETTER: f64 = 7.8;
        let wide = name.chars().count() as f64 * LETTER;
        let tries = [-6.0, 16.0, -22.0, 32.0, -38.0, 48.0, -54.0, 64.0].into_iter().flat_map(|below| {
            let line = down + below;
            [(across + 8.0, line), (across - 8.0 - wide, line)]
        });
        let fits = |(left, line): &(f64, f64)| {
            let inside =
                *left > LEFT && left + wide < WIDTH && (TOP + LINE..HEIGHT - BOTTOM - 2.0).contains(line);
            let free = |(from, to, at): &(f64, f64, f64)| {
                *to < *left || left + wide < *from || (at - line).abs() >= LINE
            };
            inside && self.named.iter().all(free)
        };
        // With no room for it the point goes without; the table beside the picture has every name.
        let Some((left, line)) = tries.into_iter().find(fits) else { return };
        self.named.push((left, left + wide, line));
        let name = escaped(name);
        // Writing into a String cannot fail.
        let _ = write!(self.names, "<text class='tick name' x={left:.1} y={line:.1}>{name}</text>");
    }

    /// A name below the axis.
    pub fn below(&mut self, x: f64, name: &str) {
        let (across, down) = self.at(x, self.y.low);
        let name = escaped(name);
        self.put(format_args!(
            "<text class=tick x={across:.1} y={:.1} text-anchor=middle>{name}</text>",
            down + 19.0
        ));
    }

    /// A line through points.
    pub fn path(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points {
            let (across, down) = self.at(x, y);
            let command = if path.is_empty() { 'M' } else { 'L' };
            // Writing into a String cannot fail.
            let _ = write!(path, "{command}{across:.1} {down:.1}");
        }
        if !path.is_empty() {
            self.put(format_args!("<path class={class} d='{path}'/>"));
        }
    }

    /// A straight line, as far as it lies within the axes.
    pub fn line(&mut self, class: &str, ends: [(f64, f64); 2]) {
        if let Some(ends) = self.clipped(ends) {
            self.path(class, ends.into_iter());
        }
    }

    /// The part of a line within the axes (Liang and Barsky, ACM TOG 3, 1984); none where it passes them by.
    fn clipped(&self, [(x, y), (to_x, to_y)]: [(f64, f64); 2]) -> Option<[(f64, f64); 2]> {
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

    /// A box between two corners.
    pub fn block(&mut self, class: &str, (left, low): (f64, f64), (right, high): (f64, f64)) {
        let ((left, bottom), (right, top)) = (self.at(left, low), self.at(right, high));
        let (wide, tall) = ((right - left).max(0.6), (bottom - top).max(0.0));
        self.put(format_args!(
            "<rect class={class} x={left:.1} y={top:.1} width={wide:.1} height={tall:.1} />"
        ));
    }

    /// The picture's text.
    pub fn svg(&self) -> String {
        format!(
            "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label=\"{}\">{}{}</svg>",
            self.label, self.body, self.names
        )
    }
}

/// A tick's number in as few digits as it needs.
fn tick_text(value: f64, most: f64) -> String {
    if most >= 1e5 && value.abs() >= 500.0 {
        return format!("{:.0}k", value / 1e3);
    }
    let digits = if most >= 20.0 {
        0
    } else if most >= 2.0 {
        1
    } else if most >= 0.2 {
        2
    } else {
        4
    };
    let text = format!("{value:.digits$}");
    // What rounds to nothing has no sign.
    let text = if text.trim_matches(['-', '0', '.']).is_empty() { text.replace('-', "") } else { text };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn escaped(text: &str) -> String {
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
    fn ticks_are_round_and_hold_every_value() {
        for most in [0.0, 0.003, 0.9, 1.0, 7.3, 99.0, 123_456.0] {
            let axis = Axis::over("x", [most].into_iter());
            let ticks = axis.ticks();
            assert!((3..=11).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(axis.high >= most && axis.high <= (most * 1.34).max(1.0), "{most}: {}", axis.high);
            assert!(*ticks.last().unwrap() <= axis.high * 1.000_001, "{most}: {ticks:?}");
        }
        assert_eq!(tick_text(0.25, 1.0), "0.25");
        assert_eq!(tick_text(40.0, 200.0), "40");
        assert_eq!(tick_text(150_000.0, 200_000.0), "150k");
        for most in [1e6, 100.0, 10.0, 1.0, 0.1] {
            assert_eq!((tick_text(-0.0, most), tick_text(-1e-9, most)), ("0".into(), "0".into()), "{most}");
        }
    }

    #[test]
    fn a_value_is_drawn_where_it_belongs() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, numbers: true };
        let mut picture = Picture::new("a <test>", axis("x"), axis("y"));
        picture.points("dot", [(0.0, 0.0), (10.0, 10.0), (f64::NAN, 1.0)].into_iter());
        let svg = picture.svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("cx=66.0 cy=228.0") && svg.contains("cx=462.0 cy=14.0"), "{svg}");
        assert!(svg.contains("a &lt;test&gt;"));
    }

    #[test]
    fn a_line_is_cut_at_the_axes_and_keeps_its_slope() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0, numbers: true };
        let picture = Picture::new("line", axis("x"), axis("y"));
        for (ends, within) in [
            ([(0.0, -5.0), (10.0, 5.0)], Some([(5.0, 0.0), (10.0, 5.0)])),
            ([(0.0, 5.0), (10.0, 25.0)], Some([(0.0, 5.0), (2.5, 10.0)])),
            ([(0.0, 15.0), (10.0, -5.0)], Some([(2.5, 10.0), (7.5, 0.0)])),
            ([(0.0, 4.0), (10.0, 4.0)], Some([(0.0, 4.0), (10.0, 4.0)])),
            ([(0.0, -1.0), (10.0, -1.0)], None),
            ([(0.0, 11.0), (10.0, 30.0)], None),
        ] {
            assert_eq!(picture.clipped(ends), within, "{ends:?}");
        }
    }

    #[test]
    fn an_axis_far_from_nothing_does_not_begin_there() {
        let power = Axis::around("W", 32.0, 37.5);
        assert_eq!((power.low, power.high), (32.0, 38.0));
        assert!(power.ticks().first().is_some_and(|tick| (32.0..34.0).contains(tick)), "{:?}", power.ticks());
        assert_eq!(Axis::around("J", 3.0, 37.5).low, 0.0);
        let one = Axis::around("W", 5.0, 5.0);
        assert!(one.low <= 5.0 && one.high >= 5.0 && one.high > one.low, "{one:?}");
    }

    #[test]
    fn names_of_points_that_lie_close_do_not_lie_on_each_other() {
        let axis = |title| Axis { title, low: 0.0, high: 1.0, numbers: true };
        let mut picture = Picture::new("names", axis("x"), axis("y"));
        for at in 0..6 {
            let place = (0.5 + f64::from(at) * 0.01, 0.5);
            picture.cross("dot", "a name of some length", place, (0.4, 0.6), (0.4, 0.6));
        }
        assert!(picture.named.len() >= 4);
        for (at, one) in picture.named.iter().enumerate() {
            for other in &picture.named[at + 1..] {
                let apart = one.1 < other.0 || other.1 < one.0 || (one.2 - other.2).abs() >= LINE;
                assert!(apart, "{one:?} {other:?}");
            }
        }
    }
}
