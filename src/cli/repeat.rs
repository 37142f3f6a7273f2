//! Several runs of one command, as a person reads them.
//!
//! Owns the table of mean and spread. The guaranteed error of a mean is the mean of the errors; the spread is beside
//! it, since what differs from run to run is another thing than what the meter does not know.

use super::quantity::{energy, energy_alone, mean_mw, percent, power, power_alone, time};
use super::report::{graded, line};
use super::run::Told;
use super::spread::Spread;
use super::table::{Table, figures, words};
use super::terminal::{Terminal, Tone};
use crate::energy::Grade;
use crate::ledger::account::Account;

/// The runs below `title`.
pub fn runs(title: &str, told: &Told, terminal: Terminal) -> String {
    let mut out = format!("{}\n\n", terminal.paint(Tone::Head, title));
    let accounts: Vec<&Account> = told.runs.iter().filter_map(|run| run.account.as_ref()).collect();
    let grade: Option<Grade> = accounts.iter().filter_map(|account| account.grade).max();
    let error_uj = Spread::of_all_known(accounts.iter().map(|account| account.error_uj)).map(|all| all.mean);
    let error_mw = error_uj.zip(told.duration_ns).and_then(|(uj, duration)| mean_mw(uj, duration.mean));
    let mut table =
        Table::new([words(""), words("MEAN"), words("DEVIATION"), figures("LEAST"), figures("MOST")]);
    let (joules, watts) = (|uj| energy_alone(uj, error_uj), |mw| power_alone(mw, error_mw));
    table.row(row(
        "energy",
        told.share_uj,
        |uj| terminal.paint(Tone::Figure, &energy(uj, error_uj)),
        &joules,
    ));
    table.row(row("mean power", told.mean_power_mw, |mw| power(mw, error_mw), &watts));
    table.row(row("time", told.duration_ns, time, &time));
    for name in domain_names(&accounts) {
        let shares =
            |figure: fn(&crate::ledger::account::Share) -> Option<u64>| {
                Spread::of_all_known(accounts.iter().map(|account| {
                    account.domains.iter().find(|share| share.domain == name).and_then(figure)
                }))
            };
        let error_uj = shares(|share| share.error_uj).map(|all| all.mean);
        let alone = |uj| energy_alone(uj, error_uj);
        table.row(row(name, shares(|share| share.share_uj), |uj| energy(uj, error_uj), &alone));
    }
    out.push_str(&table.draw(terminal));
    out.push('\n');
    line(&mut out, "grade", graded(grade, terminal).trim_start(), terminal);
    let lost = told.runs.len() - accounts.len();
    if lost > 0 {
        line(&mut out, "unknown", &format!("the energy of {lost} runs"), terminal);
    }
    let failed = told.runs.iter().filter(|run| run.exit_status != 0).count();
    if failed > 0 {
        line(&mut out, "failed", &terminal.paint(Tone::Doubt, &format!("{failed} runs")), terminal);
    }
    out
}

fn row(
    label: &str,
    spread: Option<Spread>,
    mean: impl Fn(u64) -> String,
    alone: &impl Fn(u64) -> String,
) -> Vec<String> {
    let Some(spread) = spread else {
        return vec![label.into(), "unknown".into(), String::new(), String::new(), String::new()];
    };
    let deviation = spread.standard_deviation.map(|deviation| match percent(deviation, spread.mean) {
        Some(percent) => format!("{} ({percent})", alone(deviation)),
        None => alone(deviation),
    });
    let deviation = deviation.unwrap_or_default();
    vec![label.into(), mean(spread.mean), deviation, alone(spread.min), alone(spread.max)]
}

fn domain_names<'a>(accounts: &[&'a Account]) -> Vec<&'a str> {
    accounts.first().map_or_else(Vec::new, |first| first.domains.iter().map(|share| &*share.domain).collect())
}
