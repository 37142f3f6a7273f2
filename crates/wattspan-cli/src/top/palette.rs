//! The colours of `wattspan top`: 256 colours, or none.

use ratatui::style::{Color, Modifier, Style};

/// The role of a text, which determines its style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopStyle {
    Plain,
    Heading,
    /// The main figure.
    Value,
    /// The sum of a column.
    Total,
    /// Secondary information.
    Dim,
    /// Estimated, stuck or unknown.
    Warning,
    /// Lost or unreachable.
    Alarm,
    Graph,
}

/// Whether colours are used. Without them, bold and reversed text remain.
#[derive(Debug, Clone, Copy)]
pub struct Palette {
    pub colour: bool,
}

impl Palette {
    pub fn style(self, style: TopStyle) -> Style {
        let plain = Style::new();
        let (colour, modifier) = match style {
            TopStyle::Plain => return plain,
            TopStyle::Heading => (None, Modifier::BOLD),
            TopStyle::Value => (Some(81), Modifier::BOLD),
            TopStyle::Total => (None, Modifier::BOLD),
            TopStyle::Dim => (Some(245), Modifier::empty()),
            TopStyle::Warning => (Some(214), Modifier::empty()),
            TopStyle::Alarm => (Some(203), Modifier::REVERSED),
            TopStyle::Graph => (Some(78), Modifier::empty()),
        };
        match colour.filter(|_| self.colour) {
            Some(index) => plain.fg(Color::Indexed(index)).add_modifier(modifier),
            None => plain.add_modifier(modifier),
        }
    }
}
