//! `wattspan ipw route`: what routing questions to small models would save.
//!
//! Owns the words for it. What is assumed and not measured is said beside the figures.

use std::io::{Write, stdout};
use std::path::PathBuf;

use super::super::Meter;
use super::super::ending::{FAILURE, OK, Trouble};
use super::super::table::{Table as Drawn, figures, words};
use super::super::terminal::{Terminal, printable};
use super::{Wanted, label, named};
use crate::ipw::compare::differences;
use crate::ipw::report::page::{digits, with_interval};
use crate::ipw::route::{Model, Routing, route as routing};
use crate::ipw::table::Table;

/// Which runs.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The runs of the local models
    #[arg(value_name = "RUN", required = true)]
    locals: Vec<PathBuf>,
    /// The run of the model that every question could go to
    #[arg(long, value_name = "RUN")]
    reference: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
    /// How often a router takes the right choice; may be given again
    #[arg(long = "accuracy", value_name = "0..1", default_values_t = [0.8], value_parser = part)]
    accuracies: Vec<f64>,
    /// Joules of a query of the reference where its run has none (a model in the cloud): an assumption, and told as one
    #[arg(long, value_name = "J")]
    reference_joules: Option<f64>,
    /// Parameters that work on a token, by the run's name: "small=135e6"; may be given again
    #[arg(long = "parameters", value_name = "NAME=COUNT", value_parser = named::<f64>)]
    parameters: Vec<(String, f64)>,
    /// Money for a million tokens of prompt and answer, by the run's name: "big=0.5:1.5"; may be given again
    #[arg(long = "price", value_name = "NAME=IN:OUT", value_parser = named::<String>)]
    prices: Vec<(String, String)>,
    /// Go on even where the runs are not comparable
    #[arg(long)]
    anyway: bool,
}

fn part(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "write a number between 0 and 1".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("write a number between 0 and 1".into()) }
}

/// Reads and tells.
pub fn route(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let terms = asked.wanted.terms();
    let read = |path: &PathBuf| -> Result<(String, Table), Trouble> {
        let table = Table::read(path).map_err(anyhow::Error::from)?;
        Ok((label(path, &table.manifest), table))
    };
    let locals = asked.locals.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let reference = read(&asked.reference)?;
    for (name, table) in &locals {
        let same = |it: &crate::ipw::compare::Difference| it.what != "questions" && it.what != "times asked";
        if differences(&reference.1, table, &terms).iter().any(|it| !same(it)) && !asked.anyway {
            let wrong = format!(
                "{} was not asked what the reference was asked (--anyway takes the questions they share by name)",
                printable(name)
            );
            return Err(Trouble::new(FAILURE, wrong));
        }
    }
    let reference_model = model(asked, &reference, asked.reference_joules)?;
    let models = locals.iter().map(|run| model(asked, run, None)).collect::<Result<Vec<_>, _>>()?;
    let Some(found) = routing(&models, &reference_model, &asked.accuracies, &terms) else {
        return Err(Trouble::new(FAILURE, "no question was answered and scored in all of these runs"));
    };
    if meter.json {
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        stdout().write_all(text(&found, asked, Terminal::of(&stdout())).as_bytes())?;
    }
    Ok(OK)
}

fn model<'a>(
    asked: &Arguments,
    (label, table): &'a (String, Table),
    assumed_j: Option<f64>,
) -> Result<Model<'a>, Trouble> {
    let price = asked.prices.iter().find(|(name, _)| name == label).map(|(_, price)| {
        let (read, written) = price.split_once(':')?;
        Some((read.parse().ok()?, written.parse().ok()?))
    });
    let wrong = || {
        Trouble::new(2, format!("the price of {label} is written as IN:OUT, money for a million tokens each"))
    };
    Ok(Model {
        label: label.clone(),
        table,
        assumed_j,
        active_parameters: asked.parameters.iter().find(|(name, _)| name == label).map(|(_, count)| *count),
        per_million_tokens: price.map(|price| price.ok_or_else(wrong)).transpose()?,
    })
}

fn text(found: &Routing, asked: &Arguments, terminal: Terminal) -> String {
    let mut covered = Drawn::new([
        words("MODEL"),
        figures("BETTER"),
        figures("AS GOOD"),
        figures("COVERS"),
        figures("ORACLE SENDS"),
    ]);
    let sends = |label: &str| {
        found
            .oracle_sends
            .iter()
            .find(|(name, _)| name == label)
            .map_or(String::new(), |(_, n)| n.to_string())
    };
    for it in found.models.iter().chain([&found.best_of_local]) {
        covered.row(vec![
            printable(&it.label),
            it.wins.to_string(),
            it.ties.to_string(),
            with_interval(Some(&it.covered), 100.0, " %"),
            sends(&it.label),
        ]);
    }
    covered.row(vec![
        printable(&found.reference),
        String::new(),
        String::new(),
        String::new(),
        sends(&found.reference),
    ]);
    let mut saved = Drawn::new([
        words("ROUTER"),
        figures("ENERGY SAVED"),
        figures("COMPUTE SAVED"),
        figures("COST SAVED"),
    ]);
    for it in &found.savings {
        let name = if it.accuracy >= 1.0 {
            "oracle".to_owned()
        } else {
            format!("right {} of the time", digits(it.accuracy))
        };
        let percent =
            |figure: &Option<crate::ipw::metric::Figure>| with_interval(figure.as_ref(), 100.0, " %");
        saved.row(vec![name, percent(&it.energy), percent(&it.compute), percent(&it.cost)]);
    }
    let assumed = asked.reference_joules.map_or_else(String::new, |joules| {
        format!(
            "  where the reference's energy was not measured, {} J a query were assumed\n",
            digits(joules)
        )
    });
    format!(
        "\nOver {} questions, against {}\n\n{}\n{}\n{assumed}  savings against all on the reference, at no loss of quality: misses go to the reference\n",
        found.questions,
        printable(&found.reference),
        covered.draw(terminal),
        saved.draw(terminal)
    )
}
