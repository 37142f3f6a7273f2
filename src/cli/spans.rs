//! `wattspan spans`: other programs' spans, one by name, the recent ones, or all as they settle.
//!
//! Owns the line for each. A settled account never changes, so a line once printed stays true. Only a daemon knows of
//! other programs' spans: there is no embedded meter for this.

use std::io::{Write, stdout};

use super::Meter;
use super::ending::{OK, Trouble};
use super::quantity::{energy, power, time};
use super::reach::Reach;
use super::report::{self, grade, state};
use super::terminal::{Terminal, Tone, printable};
use crate::client::{Client, Failure};
use crate::ledger::account::{Account, State};

/// Which spans.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tell of this one: its name in the protocol, the last column of the list
    #[arg(value_name = "SPAN", conflicts_with_all = ["watch", "count"])]
    span: Option<String>,
    /// Tell of all as they settle, from now on, until interrupted
    #[arg(long, short = 'w')]
    watch: bool,
    /// Of the recent ones tell N (at most 256) [default: 20]; with --watch, stop after N
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Looks and tells.
pub fn spans(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let (_, client) = Reach::daemon(meter)?;
    match &asked.span {
        Some(span) => one(meter, &client, span),
        None if asked.watch => watch(meter, client, asked.count),
        None => recent(meter, &client, asked.count),
    }
}

fn one(meter: &Meter, client: &Client, span: &str) -> Result<u8, Trouble> {
    let account = client.account(span)?;
    let text = if meter.json {
        serde_json::to_string(&account)? + "\n"
    } else {
        let title = format!("Energy of: {}", printable(&account.name));
        report::account(&title, None, &account, Terminal::of(&stdout()))
    };
    stdout().write_all(text.as_bytes())?;
    Ok(OK)
}

fn recent(meter: &Meter, client: &Client, count: Option<u64>) -> Result<u8, Trouble> {
    let accounts = client.recent(count.map(|count| i64::try_from(count).unwrap_or(i64::MAX)))?;
    let terminal = Terminal::of(&stdout());
    let mut out = stdout().lock();
    if accounts.is_empty() && !meter.json {
        writeln!(out, "no span has settled since the daemon started; --watch waits for the next")?;
    }
    for (number, account) in accounts.iter().enumerate() {
        tell(meter, account, number == 0, terminal, &mut out)?;
    }
    Ok(OK)
}

/// One account: a line of JSON, or a line of the table, under its head where it is the first.
fn tell(
    meter: &Meter,
    account: &Account,
    first: bool,
    terminal: Terminal,
    out: &mut impl Write,
) -> Result<(), Trouble> {
    if meter.json {
        writeln!(out, "{}", serde_json::to_string(account)?)?;
        return Ok(());
    }
    if first {
        writeln!(out, "{}", terminal.paint(Tone::Quiet, &heading()))?;
    }
    writeln!(out, "{}", line(account, terminal))?;
    Ok(())
}

fn watch(meter: &Meter, client: Client, count: Option<u64>) -> Result<u8, Trouble> {
    let accounts = client.watch_spans()?;
    accounts.set_timeout(None)?;
    let terminal = Terminal::of(&stdout());
    let mut told = 0;
    for account in accounts {
        let account = account?.account;
        let mut out = stdout().lock();
        tell(meter, &account, told == 0, terminal, &mut out)?;
        out.flush()?;
        told += 1;
        if Some(told) == count {
            return Ok(OK);
        }
    }
    Err(Failure::Gone.into())
}

fn heading() -> String {
    columns("OPENED", "ENERGY", "POWER", "TIME", "GRADE") + "NAME (SPAN)"
}

fn columns(opened: &str, energy: &str, power: &str, time: &str, grade: &str) -> String {
    format!("{opened:9}  {energy:20}  {power:18}  {time:>8}  {grade:10}  ")
}

fn line(account: &Account, terminal: Terminal) -> String {
    let duration_ns = account.closed_ns.map_or(0, |closed| closed.saturating_sub(account.opened_ns));
    let error_mw = account.error_uj.and_then(|uj| super::quantity::mean_mw(uj, duration_ns));
    let fixed = columns(
        &clock(account.opened_unix_ns),
        &account.share_uj.map_or_else(|| "unknown".into(), |uj| energy(uj, account.error_uj)),
        &account.mean_power_mw.map_or_else(|| "unknown".into(), |mw| power(mw, error_mw)),
        &time(duration_ns),
        account.grade.map_or("unknown", grade),
    );
    let end = match account.state {
        State::Settled => String::new(),
        other => terminal.paint(Tone::Doubt, &format!("  {}", state(other))),
    };
    format!("{fixed}{} ({}){end}", printable(&account.name), printable(&account.span))
}

/// The time of day, in UTC.
fn clock(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(clock(1_763_000_000_123_456_789), "02:13:20Z");
    }
}
