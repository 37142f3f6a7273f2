//! The report of `wattspan run`, and its text for `--repeat`.
//!
//! The guaranteed error of a mean is the mean of the errors. The standard deviation is a separate column: it describes the
//! variation between runs, not the uncertainty of the meter.

use std::collections::BTreeSet;

use serde::Serialize;
use wattspan_client::account::{Account, Share};
use wattspan_client::domain::Grade;
use wattspan_client::protocol::DomainStatus;

use super::account_report::{TOO_SHORT, describe_grade};
use super::connect::MeterDescription;
use super::domain_tree::{self, indented_name};
use super::quantity::{
    format_duration, format_energy_or_bound, format_energy_value, format_percent, format_power_or_bound,
    format_power_value, is_within_error, mean_mw,
};
use super::resolution::{TooShortDomain, format_too_short};
use super::sample_statistics::SampleStatistics;
use super::table::{KeyValueTable, TableCell, TextTable, number_column, text_column};
use super::terminal::{Terminal, TextStyle, printable};

/// One run of the command and its account.
#[derive(Debug, Serialize)]
pub struct MeasuredRun {
    /// As a shell would report it.
    pub exit_status: u8,
    /// The signal that terminated it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    pub duration_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// Why the account is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// The domains for whose counters the run was too short.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub too_short: Vec<TooShortDomain>,
    /// The domains whose counters began to advance after the run's span had opened, and which belong to the host's total:
    /// the account has no part of their energy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_in_account: Vec<String>,
}

/// The report of `wattspan run`, also its JSON output.
#[derive(Debug, Serialize)]
pub struct RunReport {
    pub command: Vec<String>,
    pub meter: MeterDescription,
    /// The first status that is not 0, else 0.
    pub exit_status: u8,
    pub runs: Vec<MeasuredRun>,
    /// Energy; absent if it is unknown for a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<SampleStatistics>,
    /// Mean power; absent if it is unknown for a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_power_mw: Option<SampleStatistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ns: Option<SampleStatistics>,
}

/// Renders the statistics of the runs; `all` is the status of every domain.
pub fn render_runs(title: &str, report: &RunReport, all: &[DomainStatus], terminal: Terminal) -> String {
    let accounts: Vec<&Account> = report.runs.iter().filter_map(|run| run.account.as_ref()).collect();
    let table = statistics_table(report, &accounts, all);
    let mut lines = KeyValueTable::default();
    let grade: Option<Grade> = accounts.iter().filter_map(|account| account.grade).max();
    let simulated = accounts.iter().any(|account| account.simulated == Some(true));
    lines.add_row("grade", [describe_grade(grade, Some(simulated))]);
    let too_short: Vec<TooShortDomain> =
        report.runs.iter().flat_map(|run| run.too_short.iter().cloned()).collect();
    if !too_short.is_empty() {
        lines.add_row(TOO_SHORT, [TableCell::styled(TextStyle::Warning, &format_too_short(&too_short))]);
    }
    add_missing_domains(&report.runs, &mut lines);
    let unknown = report.runs.len() - accounts.len();
    if unknown > 0 {
        lines.add_row("unknown", [format!("the energy of {unknown} runs").into()]);
    }
    let failed = report.runs.iter().filter(|run| run.exit_status != 0).count();
    if failed > 0 {
        lines.add_row("failed", [TableCell::styled(TextStyle::Warning, &format!("{failed} runs"))]);
    }
    format!(
        "{}\n\n{}\n{}",
        terminal.paint(TextStyle::Heading, title),
        table.render(terminal),
        lines.render(terminal)
    )
}

/// Adds the domains that are missing in the accounts.
pub fn add_missing_domains(runs: &[MeasuredRun], lines: &mut KeyValueTable) {
    let names: BTreeSet<&str> = runs.iter().flat_map(|run| &run.not_in_account).map(String::as_str).collect();
    if names.is_empty() {
        return;
    }
    let names: Vec<String> = names.into_iter().map(printable).collect();
    let text = format!("{}: began to advance after the command had started; run it again", names.join(", "));
    lines.add_row("not counted", [TableCell::styled(TextStyle::Warning, &text)]);
}

fn statistics_table(report: &RunReport, accounts: &[&Account], all: &[DomainStatus]) -> TextTable {
    let mut table = TextTable::new([
        text_column(""),
        text_column("MEAN"),
        text_column("STDDEV"),
        number_column("MIN"),
        number_column("MAX"),
        text_column("TOTAL"),
    ]);
    let mean_error = |errors: &mut dyn Iterator<Item = Option<u64>>| {
        SampleStatistics::if_all_known(errors).map(|all| all.mean)
    };
    let error_uj = mean_error(&mut accounts.iter().map(|account| account.error_uj));
    let error_mw = error_uj.zip(report.duration_ns).and_then(|(uj, duration)| mean_mw(uj, duration.mean));
    let energy =
        QuantityFormat { with_error: format_energy_or_bound, value: format_energy_value, error: error_uj };
    let power =
        QuantityFormat { with_error: format_power_or_bound, value: format_power_value, error: error_mw };
    let duration = QuantityFormat {
        with_error: |ns, _| format_duration(ns),
        value: |ns, _| format_duration(ns),
        error: None,
    };
    table.add_row(statistics_row(
        "energy".into(),
        report.share_uj,
        &energy,
        Some(TextStyle::Value),
        "".into(),
    ));
    table.add_row(statistics_row("mean power".into(), report.mean_power_mw, &power, None, "".into()));
    table.add_row(statistics_row("time".into(), report.duration_ns, &duration, None, "".into()));
    let names = domain_names(accounts);
    for (depth, name) in domain_tree::order_rows(&names, |name| name, all) {
        let statistics_of =
            |value_of: fn(&Share) -> Option<u64>| {
                SampleStatistics::if_all_known(accounts.iter().map(|account| {
                    account.domains.iter().find(|share| share.domain == *name).and_then(value_of)
                }))
            };
        let error = statistics_of(|share| share.error_uj).map(|all| all.mean);
        let status = all.iter().find(|domain| domain.name == *name);
        let total = status.map_or("".into(), |domain| domain_tree::counted_cell(domain.counted));
        table.add_row(statistics_row(
            indented_name(name, depth),
            statistics_of(|share| share.share_uj),
            &QuantityFormat { error, ..energy },
            None,
            total,
        ));
    }
    table
}

/// Formatting functions of a quantity, and the guaranteed error of its mean.
struct QuantityFormat {
    with_error: fn(u64, Option<u64>) -> String,
    value: fn(u64, Option<u64>) -> String,
    error: Option<u64>,
}

fn statistics_row(
    label: TableCell,
    statistics: Option<SampleStatistics>,
    format: &QuantityFormat,
    style: Option<TextStyle>,
    total: TableCell,
) -> Vec<TableCell> {
    let Some(statistics) = statistics else {
        return vec![label, "unknown".into(), "".into(), "".into(), "".into(), total];
    };
    let mean = (format.with_error)(statistics.mean, format.error);
    let mean = style.map_or_else(|| mean.as_str().into(), |tone| TableCell::styled(tone, &mean));
    if format.error.is_some_and(|error| is_within_error(statistics.mean, error)) {
        return vec![label, mean, TOO_SHORT.into(), TOO_SHORT.into(), TOO_SHORT.into(), total];
    }
    let alone = |value| (format.value)(value, format.error);
    let deviation =
        statistics.standard_deviation.map(|deviation| match format_percent(deviation, statistics.mean) {
            Some(percent) => format!("{} ({percent})", alone(deviation)),
            None => alone(deviation),
        });
    let deviation = deviation.unwrap_or_default().into();
    vec![label, mean, deviation, alone(statistics.min).into(), alone(statistics.max).into(), total]
}

fn domain_names<'a>(accounts: &[&'a Account]) -> Vec<&'a str> {
    accounts.first().map_or_else(Vec::new, |first| first.domains.iter().map(|share| &*share.domain).collect())
}
