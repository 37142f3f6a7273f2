//! `wattspan spans`: other programs' spans, one by name, those of the past that fit, the open ones, or all as they settle.
//!
//! Owns the line for each. A settled account never changes, so a line once printed stays true. Only a daemon knows of
//! other programs' spans: there is no embedded meter for this.

use std::io::stdout;

use serde::Serialize;

use super::ending::{OK, Trouble};
use super::quantity::{energy_or_bound, mean_mw, power_or_bound, time};
use super::reach::Reach;
use super::report::{self, state};
use super::resolution::{TooShort, too_short};
use super::since;
use super::terminal::{Terminal, Tone, padded, padded_before, printable};
use super::{Meter, output};
use crate::attribution::account::{Account, State};
use crate::client::{Client, Failure};
use crate::clock;
use crate::protocol::{ListSpans, Refusal};

/// Which spans.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tell of this one: its name in the protocol, the last column of the list
    #[arg(value_name = "SPAN", conflicts_with_all = ["watch", "count"])]
    span: Option<String>,
    /// Tell of all as they settle, from now on, until interrupted
    #[arg(long, short = 'w')]
    watch: bool,
    /// Of those that fit tell the latest N [default: 20, with --since all]; with --watch, stop after N
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only those opened since: 90s, 15m, 2h, 7d ago, or in UTC 2026-11-22 or 2026-11-22T10:30:00Z
    #[arg(long, value_name = "WHEN", value_parser = since::parse, conflicts_with_all = ["span", "watch"])]
    since: Option<u64>,
    /// Only those of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["span", "watch"])]
    name: Option<String>,
    /// Only those with this attribute; with each of these, where given several times
    #[arg(long = "attribute", short = 'a', value_name = "KEY=VALUE", value_parser = pair,
          conflicts_with_all = ["span", "watch"])]
    attributes: Vec<(String, String)>,
    /// Only those in this state: settled, abandoned, interrupted
    #[arg(long, value_name = "STATE", value_parser = state_named, conflicts_with_all = ["span", "watch"])]
    state: Option<State>,
    /// Those that are open now, with their figures so far; the latest 20 that fit
    #[arg(long, conflicts_with_all = ["span", "watch", "state"])]
    open: bool,
}

fn pair(word: &str) -> Result<(String, String), String> {
    let (key, value) = word.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn state_named(word: &str) -> Result<State, String> {
    let finals = [State::Settled, State::Abandoned, State::Interrupted];
    let found = finals.into_iter().find(|other| state(*other) == word);
    found.ok_or_else(|| "give settled, abandoned or interrupted".to_owned())
}

/// Looks and tells.
pub fn spans(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let client = Reach::daemon(meter)?;
    match &asked.span {
        Some(span) => one(meter, &client, span),
        None if asked.watch => watch(meter, client, asked.count),
        None => past(meter, &client, asked),
    }
}

/// An account as JSON has it, with the counters that its span was too short for.
#[derive(Serialize)]
struct Judged<'a> {
    #[serde(flatten)]
    account: &'a Account,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    too_short: Vec<TooShort>,
}

fn one(meter: &Meter, client: &Client, span: &str) -> Result<u8, Trouble> {
    let account = client.account(span)?;
    let domains = client.info()?.domains;
    if meter.json {
        output::json(&Judged { account: &account, too_short: too_short(&account, &domains) })?;
    } else {
        let title = format!("Energy of: {}", account.name);
        output::text(&report::account(&title, None, &account, &domains, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

fn past(meter: &Meter, client: &Client, asked: &Arguments) -> Result<u8, Trouble> {
    let accounts = found(client, asked)?;
    let terminal = Terminal::of(&stdout());
    if accounts.is_empty() && !meter.json {
        let none = match asked.open {
            true => "no span that fits is open\n",
            false => "no span that fits has settled; --watch waits for the next\n",
        };
        output::text(none)?;
    }
    for (number, account) in accounts.iter().rev().enumerate() {
        tell(meter, account, number == 0, terminal)?;
    }
    Ok(OK)
}

/// The accounts that fit, the latest first: asked for part by part, until there are enough or no more.
fn found(client: &Client, asked: &Arguments) -> Result<Vec<Account>, Trouble> {
    const USUAL: u64 = 20;
    let enough = asked.count.unwrap_or(if asked.since.is_some() { u64::MAX } else { USUAL });
    let enough = usize::try_from(enough).unwrap_or(usize::MAX);
    let attributes = (!asked.attributes.is_empty()).then(|| asked.attributes.iter().cloned().collect());
    let mut question = ListSpans {
        since_unix_ns: asked.since.map(|ns| i64::try_from(ns).unwrap_or(i64::MAX)),
        name: asked.name.clone(),
        attributes,
        state: if asked.open { Some(State::Open) } else { asked.state },
        ..ListSpans::default()
    };
    let mut found = Vec::new();
    loop {
        let rest = enough - found.len();
        question.limit = Some(i64::try_from(rest).unwrap_or(i64::MAX));
        let part = match client.call(question.clone()) {
            // The rest is listed all the same; what is missing is never left out in silence.
            Err(Failure::Refused(Refusal::StoreDamaged { reason, before: Some(before) })) => {
                super::say(&format!("accounts are missing from this list: {}", printable(&reason)));
                question.before = Some(i64::try_from(before).unwrap_or(i64::MAX));
                continue;
            }
            part => part?,
        };
        found.extend(part.accounts.into_iter().rev());
        match part.before {
            Some(before) if found.len() < enough => {
                question.before = Some(i64::try_from(before).unwrap_or(i64::MAX));
            }
            _ => return Ok(found),
        }
    }
}

/// One account: a line of JSON, or a line of the table, under its head where it is the first.
fn tell(meter: &Meter, account: &Account, first: bool, terminal: Terminal) -> Result<(), Trouble> {
    if meter.json {
        return output::json(account);
    }
    let head = if first { terminal.paint(Tone::Quiet, &heading()) + "\n" } else { String::new() };
    output::text(&format!("{head}{}\n", line(account, terminal)))
}

fn watch(meter: &Meter, client: Client, count: Option<u64>) -> Result<u8, Trouble> {
    let accounts = client.watch_spans()?;
    accounts.set_timeout(None)?;
    let terminal = Terminal::of(&stdout());
    let mut told = 0;
    for account in accounts {
        tell(meter, &account?.account, told == 0, terminal)?;
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
    format!(
        "{}  {}  {}  {}  {}  ",
        padded(opened, 10),
        padded(energy, 20),
        padded(power, 18),
        padded_before(time, 8),
        padded(grade, 21)
    )
}

fn line(account: &Account, terminal: Terminal) -> String {
    // An open span's time is that up to now, on the clock that this machine has once.
    let closed_ns = account.closed_ns.unwrap_or_else(clock::monotonic_ns);
    let duration_ns = closed_ns.saturating_sub(account.opened_ns);
    let error_mw = account.error_uj.and_then(|uj| mean_mw(uj, duration_ns));
    let unknown = || "unknown".to_owned();
    let fixed = columns(
        &opened(account.opened_unix_ns),
        &account.share_uj.map_or_else(unknown, |uj| energy_or_bound(uj, account.error_uj)),
        &account.mean_power_mw.map_or_else(unknown, |mw| power_or_bound(mw, error_mw)),
        &time(duration_ns),
        &account.grade.map_or_else(unknown, |grade| report::quality(grade, account.simulated == Some(true))),
    );
    let end = match account.state {
        State::Settled => String::new(),
        other => terminal.paint(Tone::Doubt, &format!("  {}", state(other))),
    };
    format!("{fixed}{} ({}){end}", printable(&account.name), printable(&account.span))
}

/// The time of day where that is today, else the day; in UTC.
fn opened(unix_ns: u64) -> String {
    let day = since::day(unix_ns);
    if day == since::day(crate::clock::unix_ns()) { clock(unix_ns) } else { day }
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
