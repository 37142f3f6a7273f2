//! Several runs of one command, as a person reads them.
//!
//! Owns the table of mean and spread. The guaranteed error of a mean is the mean of the errors; the spread is beside
//! it, since what differs from run to run is another thing than what the meter does not know.

use super::domain_tree::{self, indented};
use super::quantity::{
    energy_alone, energy_or_bound, is_lost_in, mean_mw, percent, power_alone, power_or_bound, time,
};
use super::report::{TOO_SHORT, graded};
use super::resolution::{TooShort, counters};
use super::run::Told;
use super::spread::Spread;
use super::table::{Cell, Labelled, Table, figures, words};
use super::terminal::{Terminal, Tone};
use crate::attribution::account::{Account, Share};
use crate::domain::Grade;
use crate::protocol::DomainStatus;

/// The runs below `title`; `all`: what the meter says of its domains.
pub fn runs(title: &str, told: &Told, all: &[DomainStatus], terminal: Terminal) -> String {
    let accounts: Vec<&Account> = told.runs.iter().filter_map(|run| run.account.as_ref()).collect();
    let table = table(told, &accounts, all);
    let mut lines = Labelled::default();
    let grade: Option<Grade> = accounts.iter().filter_map(|account| account.grade).max();
    let simulated = accounts.iter().any(|account| account.simulated == Some(true));
    lines.line("grade", [graded(grade, Some(simulated))]);
    let short: Vec<TooShort> = told.runs.iter().flat_map(|run| run.too_short.iter().cloned()).collect();
    if !short.is_empty() {
        lines.line(TOO_SHORT, [Cell::toned(Tone::Doubt, &counters(&short))]);
    }
    let lost = told.runs.len() - accounts.len();
    if lost > 0 {
        lines.line("unknown", [format!("the energy of {lost} runs").into()]);
    }
    let failed = told.runs.iter().filter(|run| run.exit_status != 0).count();
    if failed > 0 {
        lines.line("failed", [Cell::toned(Tone::Doubt, &format!("{failed} runs"))]);
    }
    format!("{}\n\n{}\n{}", terminal.paint(Tone::Head, title), table.draw(terminal), lines.draw(terminal))
}

fn table(told: &Told, accounts: &[&Account], all: &[DomainStatus]) -> Table {
    let mut table = Table::new([
        words(""),
        words("MEAN"),
        words("DEVIATION"),
        figures("LEAST"),
        figures("MOST"),
        words("TOTAL"),
    ]);
    let mean_error =
        |errors: &mut dyn Iterator<Item = Option<u64>>| Spread::of_all_known(errors).map(|all| all.mean);
    let error_uj = mean_error(&mut accounts.iter().map(|account| account.error_uj));
    let error_mw = error_uj.zip(told.duration_ns).and_then(|(uj, duration)| mean_mw(uj, duration.mean));
    let energy = Quantity { with_error: energy_or_bound, alone: energy_alone, error: error_uj };
    let power = Quantity { with_error: power_or_bound, alone: power_alone, error: error_mw };
    let duration = Quantity { with_error: |ns, _| time(ns), alone: |ns, _| time(ns), error: None };
    table.row(row("energy".into(), told.share_uj, &energy, Some(Tone::Figure), "".into()));
    table.row(row("mean power".into(), told.mean_power_mw, &power, None, "".into()));
    table.row(row("time".into(), told.duration_ns, &duration, None, "".into()));
    let names = domain_names(accounts);
    for (depth, name) in domain_tree::rows(&names, |name| name, all) {
        let of =
            |figure: fn(&Share) -> Option<u64>| {
                Spread::of_all_known(accounts.iter().map(|account| {
                    account.domains.iter().find(|share| share.domain == *name).and_then(figure)
                }))
            };
        let error = of(|share| share.error_uj).map(|all| all.mean);
        let status = all.iter().find(|domain| domain.name == *name);
        let total = status.map_or("".into(), |domain| domain_tree::total(domain.counted));
        table.row(row(
            indented(name, depth),
            of(|share| share.share_uj),
            &Quantity { error, ..energy },
            None,
            total,
        ));
    }
    table
}

/// How a quantity is written, and the guaranteed error of its mean.
struct Quantity {
    with_error: fn(u64, Option<u64>) -> String,
    alone: fn(u64, Option<u64>) -> String,
    error: Option<u64>,
}

fn row(label: Cell, spread: Option<Spread>, of: &Quantity, tone: Option<Tone>, total: Cell) -> Vec<Cell> {
    let Some(spread) = spread else {
        return vec![label, "unknown".into(), "".into(), "".into(), "".into(), total];
    };
    let mean = (of.with_error)(spread.mean, of.error);
    let mean = tone.map_or_else(|| mean.as_str().into(), |tone| Cell::toned(tone, &mean));
    if of.error.is_some_and(|error| is_lost_in(spread.mean, error)) {
        return vec![label, mean, TOO_SHORT.into(), TOO_SHORT.into(), TOO_SHORT.into(), total];
    }
    let alone = |value| (of.alone)(value, of.error);
    let deviation = spread.standard_deviation.map(|deviation| match percent(deviation, spread.mean) {
        Some(percent) => format!("{} ({percent})", alone(deviation)),
        None => alone(deviation),
    });
    let deviation = deviation.unwrap_or_default().into();
    vec![label, mean, deviation, alone(spread.min).into(), alone(spread.max).into(), total]
}

fn domain_names<'a>(accounts: &[&'a Account]) -> Vec<&'a str> {
    accounts.first().map_or_else(Vec::new, |first| first.domains.iter().map(|share| &*share.domain).collect())
}
