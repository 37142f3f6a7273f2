//! `wattspan spans`: lists stored, open or settling spans, shows the account of one, or sums those that match.
//!
//! A settled account never changes. Only a daemon has the spans of other programs, so the embedded meter is not used.

use std::io::stdout;

use serde::Serialize;
use wattspan_client::account::{Account, SpanState};
use wattspan_client::clock;
use wattspan_client::protocol::{ListSpans, SumSpans};
use wattspan_client::{Client, ClientError};

use super::account_pages::{AccountPage, AccountPages};
use super::account_report;
use super::connect::{MeterConnector, MeterOptions};
use super::exit_status::{CliError, OK};
use super::output;
use super::quantity::{format_duration, format_energy_or_bound, format_power_or_bound, mean_mw};
use super::resolution::{TooShortDomain, too_short_domains};
use super::span_sums::{self, SumArgs};
use super::terminal::{Terminal, TextStyle, pad_left, pad_right, printable};
use super::utc_time;

/// Arguments of `wattspan spans`.
#[derive(Debug, clap::Args)]
pub struct SpansArgs {
    /// Show the account of this span: its ID in parentheses in the last column of the list
    #[arg(value_name = "SPAN", conflicts_with_all = ["watch", "count"])]
    span: Option<String>,
    /// Print spans as they settle, until interrupted
    #[arg(long, short = 'w')]
    watch: bool,
    /// Show the latest N matching spans [default: 20, with --since all]; with --watch, stop after N
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only spans opened since WHEN: 90s, 15m, 2h, 7d ago, or in UTC 2026-11-22 or 2026-11-22T10:30:00Z
    #[arg(long, value_name = "WHEN", value_parser = utc_time::parse_since, conflicts_with_all = ["span", "watch"])]
    since: Option<u64>,
    /// Only spans with this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["span", "watch"])]
    name: Option<String>,
    /// Only spans with this attribute; repeatable, all must match
    #[arg(long = "attribute", short = 'a', value_name = "KEY=VALUE", value_parser = parse_attribute,
          conflicts_with_all = ["span", "watch"])]
    attributes: Vec<(String, String)>,
    /// Only spans in this state: settled, abandoned, interrupted
    #[arg(long, value_name = "STATE", value_parser = parse_state, conflicts_with_all = ["span", "watch"])]
    state: Option<SpanState>,
    /// Show open spans with their figures so far; the latest 20 that match
    #[arg(long, conflicts_with_all = ["span", "watch", "state"])]
    open: bool,
    #[command(flatten)]
    sums: SumArgs,
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_state(text: &str) -> Result<SpanState, String> {
    let final_states = [SpanState::Settled, SpanState::Abandoned, SpanState::Interrupted];
    let state = final_states.into_iter().find(|other| other.as_str() == text);
    state.ok_or_else(|| "expected settled, abandoned or interrupted".to_owned())
}

/// Runs `wattspan spans`.
pub fn spans(options: &MeterOptions, args: &SpansArgs) -> Result<u8, CliError> {
    let client = MeterConnector::connect_daemon(options)?;
    match &args.span {
        Some(span) => show_span(options, &client, span),
        None if args.sums.sum => span_sums::print_sums(options, &client, &args.sums, sum_filters(args)),
        None if args.watch => watch_spans(options, client, args.count),
        None => list_spans(options, &client, args),
    }
}

/// The filters that a list has too.
fn sum_filters(args: &SpansArgs) -> SumSpans {
    SumSpans {
        since_unix_ns: args.since.map(|ns| i64::try_from(ns).unwrap_or(i64::MAX)),
        name: args.name.clone(),
        attributes: attributes(args),
        state: args.state,
        ..SumSpans::default()
    }
}

fn attributes(args: &SpansArgs) -> Option<std::collections::BTreeMap<String, String>> {
    (!args.attributes.is_empty()).then(|| args.attributes.iter().cloned().collect())
}

/// An account in JSON, with the domains for whose counters its span was too short.
#[derive(Serialize)]
struct AccountOutput<'a> {
    #[serde(flatten)]
    account: &'a Account,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    too_short: Vec<TooShortDomain>,
}

fn show_span(options: &MeterOptions, client: &Client, span: &str) -> Result<u8, CliError> {
    let account = client.span_account(span)?;
    let domains = client.info()?.domains;
    if options.json {
        output::print_json(&AccountOutput {
            account: &account,
            too_short: too_short_domains(&account, &domains),
        })?;
    } else {
        let title = format!("Energy of: {}", account.name);
        output::print_text(&account_report::render_account(
            &title,
            None,
            &account,
            &domains,
            Terminal::of(&stdout()),
        ))?;
    }
    Ok(OK)
}

fn list_spans(options: &MeterOptions, client: &Client, args: &SpansArgs) -> Result<u8, CliError> {
    let accounts = fetch_accounts(client, args)?;
    let terminal = Terminal::of(&stdout());
    if accounts.is_empty() && !options.json {
        let message = match args.open {
            true => "no matching span is open\n",
            false => "no matching span has settled; --watch waits for the next\n",
        };
        output::print_text(message)?;
    }
    for (number, account) in accounts.iter().rev().enumerate() {
        print_account(options, account, number == 0, terminal)?;
    }
    Ok(OK)
}

/// Fetches the matching accounts page by page, latest first, up to the limit.
fn fetch_accounts(client: &Client, args: &SpansArgs) -> Result<Vec<Account>, CliError> {
    const DEFAULT_COUNT: u64 = 20;
    let limit = args.count.unwrap_or(if args.since.is_some() { u64::MAX } else { DEFAULT_COUNT });
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let request = ListSpans {
        since_unix_ns: args.since.map(|ns| i64::try_from(ns).unwrap_or(i64::MAX)),
        name: args.name.clone(),
        attributes: attributes(args),
        state: if args.open { Some(SpanState::Open) } else { args.state },
        ..ListSpans::default()
    };
    let mut pages = AccountPages::new(client, request);
    let mut accounts = Vec::new();
    while accounts.len() < limit
        && let Some(page) = pages.fetch(limit - accounts.len())?
    {
        match page {
            AccountPage::Accounts(page) => accounts.extend(page),
            // Report the missing accounts and list the rest.
            AccountPage::Damaged(reason) => {
                let reason = printable(&reason);
                output::eprint_message(&format!("accounts are missing from this list: {reason}"));
            }
        }
    }
    Ok(accounts)
}

/// Prints an account as a line of JSON or of the table; the first table line gets a header.
fn print_account(
    options: &MeterOptions,
    account: &Account,
    first: bool,
    terminal: Terminal,
) -> Result<(), CliError> {
    if options.json {
        return output::print_json(account);
    }
    let header = if first { terminal.paint(TextStyle::Dim, &header_line()) + "\n" } else { String::new() };
    output::print_text(&format!("{header}{}\n", account_line(account, terminal)))
}

fn watch_spans(options: &MeterOptions, client: Client, count: Option<u64>) -> Result<u8, CliError> {
    let accounts = client.watch_spans()?;
    accounts.set_timeout(None)?;
    let terminal = Terminal::of(&stdout());
    let mut printed = 0;
    for account in accounts {
        print_account(options, &account?.account, printed == 0, terminal)?;
        printed += 1;
        if Some(printed) == count {
            return Ok(OK);
        }
    }
    Err(ClientError::ConnectionClosed.into())
}

fn header_line() -> String {
    format_columns("OPENED", "ENERGY", "POWER", "TIME", "GRADE") + "NAME (SPAN)"
}

fn format_columns(opened: &str, energy: &str, power: &str, time: &str, grade: &str) -> String {
    format!(
        "{}  {}  {}  {}  {}  ",
        pad_right(opened, 10),
        pad_right(energy, 20),
        pad_right(power, 18),
        pad_left(time, 8),
        pad_right(grade, 21)
    )
}

fn account_line(account: &Account, terminal: Terminal) -> String {
    // For an open span, the time up to now on the machine's monotonic clock.
    let closed_ns = account.closed_ns.unwrap_or_else(clock::monotonic_ns);
    let duration_ns = closed_ns.saturating_sub(account.opened_ns);
    let error_mw = account.error_uj.and_then(|uj| mean_mw(uj, duration_ns));
    let unknown = || "unknown".to_owned();
    let fixed = format_columns(
        &format_opened(account.opened_unix_ns),
        &account.share_uj.map_or_else(unknown, |uj| format_energy_or_bound(uj, account.error_uj)),
        &account.mean_power_mw.map_or_else(unknown, |mw| format_power_or_bound(mw, error_mw)),
        &format_duration(duration_ns),
        &account.grade.map_or_else(unknown, |grade| {
            account_report::grade_label(grade, account.simulated == Some(true))
        }),
    );
    let end = match account.state {
        SpanState::Settled => String::new(),
        other => terminal.paint(TextStyle::Warning, &format!("  {}", other.as_str())),
    };
    format!("{fixed}{} ({}){end}", printable(&account.name), printable(&account.span))
}

/// The time of day if the span opened today, else the date; in UTC.
fn format_opened(unix_ns: u64) -> String {
    let day = utc_time::format_date(unix_ns);
    if day == utc_time::format_date(wattspan_client::clock::unix_ns()) {
        format_time_of_day(unix_ns)
    } else {
        day
    }
}

/// The time of day, in UTC.
fn format_time_of_day(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(format_time_of_day(1_763_000_000_123_456_789), "02:13:20Z");
    }
}
