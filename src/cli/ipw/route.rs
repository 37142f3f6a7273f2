//! `wattspan ipw route`: what routing questions to small models would save.
//!
//! Owns the words for it. What is assumed and not measured is said beside the figures.

use std::io::stdout;
use std::path::PathBuf;

use super::super::ending::{FAILURE, OK, Trouble};
use super::super::table::{Table as Drawn, figures, words};
use super::super::terminal::{Terminal, printable};
use super::super::{Meter, output};
use super::{Wanted, label, named, shown};
use crate::ipw::report::page::{digits, with_interval};
use crate::ipw::route::{Model, Routing, Unlike, route as routing, unlike};
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
    /// Route even what is not comparable (other questions, other grade, other domains)
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
    let reference_model = model(asked, &reference, asked.reference_joules)?;
    let models = locals.iter().map(|run| model(asked, run, None)).collect::<Result<Vec<_>, _>>()?;
    let unlike = unlike(&models, &reference_model, &terms);
    if !unlike.is_empty() && !asked.anyway {
        let wrong = not_comparable("these runs are not comparable (--anyway routes all the same):", &unlike);
        return Err(Trouble::new(FAILURE, wrong));
    }
    let Some(found) = routing(&models, &reference_model, &asked.accuracies, &terms) else {
        return Err(Trouble::new(FAILURE, "no question was answered and scored in all of these runs"));
    };
    if meter.json {
        output::json_pretty(&found)?;
    } else {
        output::text(&text(&found, asked, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

fn not_comparable(what: &str, unlike: &[Unlike]) -> String {
    let lines = unlike.iter().map(|it| shown::differing(&it.first, &it.other, &it.differs));
    what.to_owned() + &lines.collect::<String>()
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
    let assumed = asked.reference_joules.map_or_else(String::new, |joules| {
        format!(
            "  where the reference's energy was not measured, {} J a query were assumed\n",
            digits(joules)
        )
    });
    let unlike = match found.unlike.as_slice() {
        [] => String::new(),
        some => format!(
            "  {}\n",
            not_comparable("these runs are not comparable and were routed all the same:", some)
        ),
    };
    let times = match found.queries {
        queries if queries > found.questions => format!(", asked {queries} times in all"),
        _ => String::new(),
    };
    format!(
        "\nOver {} questions{times}, against {}\n\n{}\n{}\n  {}\n{assumed}  savings against all on the reference, at no loss of \
         quality: misses go to the reference\n{unlike}",
        found.questions,
        printable(&found.reference),
        covered.draw(terminal),
        savings(found).draw(terminal),
        basis(found)
    )
}

fn savings(found: &Routing) -> Drawn {
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
    saved
}

/// What the figures are of, in a line.
fn basis(found: &Routing) -> String {
    let energies = shown::energies(found.scope, found.idle, found.grade, found.simulated);
    let assumed = match found.assumed {
        0 => String::new(),
        count => format!(", {count} of them at an assumed energy of the reference"),
    };
    let error = found.savings.first().and_then(|oracle| oracle.energy_error).map_or_else(
        || "the meter gave no guaranteed error".to_owned(),
        |error| {
            format!(
                "the meter guarantees the oracle's energy saving to \u{b1} {} points",
                digits(error * 100.0)
            )
        },
    );
    format!(
        "{energies}; {} of {} queries covered{assumed}; {error}; brackets: 95 % over the choice of questions",
        found.queries, found.asked
    )
}
