//! `wattspan ipw compare`: runs side by side.
//!
//! Owns the refusal: what is not comparable is told, and compared only where the user insists.

use std::io::stdout;
use std::path::PathBuf;

use super::super::ending::{FAILURE, OK, Trouble};
use super::super::table::{Table as Drawn, figures, words};
use super::super::terminal::{Terminal, printable};
use super::super::{Meter, output};
use super::{Wanted, label, shown};
use crate::ipw::compare::{Column, compare as side_by_side};
use crate::ipw::report::page::with_interval;
use crate::ipw::table::Table;

/// Which runs.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The runs' directories; the first is the measure of the others
    #[arg(value_name = "RUN", num_args = 2..)]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    wanted: Wanted,
    /// Compare even what is not comparable (other questions, other grade, other domains)
    #[arg(long)]
    anyway: bool,
}

/// Reads and tells.
pub fn compare(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let read = |path: &PathBuf| {
        let table = Table::read(path).map_err(anyhow::Error::from)?;
        Ok((label(path, &table.manifest), table))
    };
    let mut runs = asked.runs.iter().map(read).collect::<Result<Vec<_>, Trouble>>()?;
    // Two runs of the same name are told apart by their directories.
    for at in 0..runs.len() {
        if runs.iter().filter(|(name, _)| *name == runs[at].0).count() > 1 {
            runs[at].0 = asked.runs[at].display().to_string();
        }
    }
    let columns = side_by_side(&runs, &asked.wanted.terms());
    if !asked.anyway && columns.iter().any(|column| !column.differs.is_empty()) {
        return Err(Trouble::new(FAILURE, not_comparable(&columns)));
    }
    if meter.json {
        output::json_pretty(&columns)?;
    } else {
        output::text(&text(&columns, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

fn not_comparable(columns: &[Column]) -> String {
    let first = columns.first().map_or("", |column| column.label.as_str());
    let mut out = String::from("these runs are not comparable (--anyway compares them all the same):");
    for column in columns {
        out += &shown::differing(first, &column.label, &column.differs);
    }
    out
}

fn text(columns: &[Column], terminal: Terminal) -> String {
    let name = |column: &Column| format!("{}{}", column.label, if column.on_frontier { " *" } else { "" });
    let rows: Vec<_> = columns.iter().map(|column| (name(column), &column.figures)).collect();
    let mut out = format!("\n{}", shown::table("RUN", &rows, terminal));
    if let Some(first) = columns.first() {
        out += &format!("\n  {}\n", shown::basis(&first.figures));
    }
    out += "  *: no other run is more accurate at less power (the frontier)\n";
    if columns.iter().any(|column| !column.differs.is_empty()) {
        out += &format!(
            "  {}\n",
            not_comparable(columns)
                .replace("(--anyway compares them all the same)", "and were compared all the same")
        );
    }
    let mut paired = Drawn::new([
        words("AGAINST THE FIRST"),
        figures("QUERIES"),
        figures("ACCURACY"),
        figures("ENERGY"),
        figures("POWER"),
        figures("IPW"),
        figures("IPJ"),
    ]);
    for (column, it) in columns.iter().filter_map(|column| Some((column, column.paired?))) {
        paired.row(vec![
            printable(&column.label),
            it.count.to_string(),
            with_interval(Some(&it.accuracy), 100.0, " points"),
            with_interval(Some(&it.energy_j), 1.0, " J"),
            with_interval(it.power_w.as_ref(), 1.0, " W"),
            with_interval(it.per_watt_ratio.as_ref(), 1.0, " \u{d7}"),
            with_interval(it.per_joule_ratio.as_ref(), 1.0, " \u{d7}"),
        ]);
    }
    out + "\n" + &paired.draw(terminal)
}
