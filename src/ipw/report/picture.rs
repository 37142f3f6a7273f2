//! Pictures as SVG text.
//!
//! Owns the drawing: axes with round ticks, points, lines, bars, steps, spans. Colours are the page's (classes and
//! variables), so that a picture is light or dark as its reader is; every picture has a title and a description for those who
//! cannot see it. Takes numbers only: there is nothing in it that could need escaping but the fixed words given by the page.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;

/// One axis: what it shows, and from where to where.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// In words, with the unit.
    pub title: &'static str,
    /// The least that is drawn.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Axis {
    /// An axis from 0 to a round number above all values.
    pub fn over(title: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let step = step(if most > 0.0 { most } else { 1.0 });
        Self { title, low: 0.0, high: ((most / step).ceil() * step).max(step) }
    }

    fn ticks(&self) -> Vec<f64> {
        let step = step(self.high - self.low);
        let count = ((self.high - self.low) / step).round() as usize;
        (0..=count).map(|tick| self.low + tick as f64 * step).collect()
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
}

impl Picture {
    /// An empty one. `label` says in a sentence what it shows.
    pub fn new(label: &str, x: Axis, y: Axis) -> Self {
        let mut picture = Self { x, y, body: String::new(), label: escaped(label) };
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
            let text = tick_text(tick, y.high);
            self.put(format_args!(
                "<text class=tick x={:.1} y={:.1} text-anchor=end>{text}</text>",
                left - 6.0,
                down + 4.0
            ));
        }
        for tick in x.ticks() {
            let (across, down) = self.at(tick, y.low);
            let text = tick_text(tick, x.high);
            self.put(format_args!(
                "<text class=tick x={across:.1} y={:.1} text-anchor=middle>{text}</text>",
                down + 16.0
            ));
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        self.put(format_args!(
            "<text class=axis x={middle:.1} y={:.1} text-anchor=middle>{}</text>",
            HEIGHT - 8.0,
            x.title
        ));
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
        let (anchor, gap) = if across > WIDTH * 0.7 { ("end", -8.0) } else { ("start", 8.0) };
        let name = escaped(name);
        self.put(format_args!(
            "<text class=tick x={:.1} y={:.1} text-anchor={anchor}>{name}</text>",
            across + gap,
            down - 7.0
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
            "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label=\"{}\">{}</svg>",
            self.label, self.body
        )
    }
}

/// A tick's number in as few digits as it needs.
fn tick_text(value: f64, most: f64) -> String {
    if most >= 1e5 {
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
            assert!((2..=11).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(axis.high >= most && *ticks.last().unwrap() >= axis.high * 0.999, "{most}: {ticks:?}");
        }
        assert_eq!(tick_text(0.25, 1.0), "0.25");
        assert_eq!(tick_text(40.0, 200.0), "40");
        assert_eq!(tick_text(150_000.0, 200_000.0), "150k");
    }

    #[test]
    fn a_value_is_drawn_where_it_belongs() {
        let axis = |title| Axis { title, low: 0.0, high: 10.0 };
        let mut picture = Picture::new("a <test>", axis("x"), axis("y"));
        picture.points("dot", [(0.0, 0.0), (10.0, 10.0), (f64::NAN, 1.0)].into_iter());
        let svg = picture.svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("cx=62.0 cy=256.0") && svg.contains("cx=626.0 cy=14.0"), "{svg}");
        assert!(svg.contains("a &lt;test&gt;"));
    }
}
