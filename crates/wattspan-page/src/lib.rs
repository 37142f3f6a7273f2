//! Drawing and style of the pages: the report of `wattspan ipw` and the live page of `wattspan serve`.
//!
//! Charts are SVG text whose colours are classes of [`STYLE`], so that both pages look alike.

#![warn(clippy::unwrap_used)]

pub mod chart;
pub mod timeline;

/// The style sheet of both pages: colours for light and dark, tiles, tables, and the classes of the charts.
pub const STYLE: &str = include_str!("style.css");
