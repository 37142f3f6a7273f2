//! One span's account, as a person reads it.
//!
//! Owns the wording: what is estimated says so in words, what is unknown says why, what was shared says with how many.
//! Every figure is the daemon's; nothing is added up here.

use std::fmt::Write;

use super::quantity::{energy, energy_alone, lower_bound, mean_mw, power, power_alone, time, unknown};
use super::table::{Table, figures, words};
use super::terminal::{Terminal, Tone, printable};
use crate::energy::Grade;
use crate::ledger::account::{Account, Share, State};

/// Width of the labels.
const LABEL: usize = 12;

/// The account below `title`; `whose`: what the process is called whose part is told beside the whole, if not its number.
pub fn account(title: &str, whose: Option<&str>, account: &Account, terminal: Terminal) -> String {
    let mut out = format!("{}\n\n", terminal.paint(Tone::Head, title));
    let duration_ns = account.closed_ns.map(|closed| closed.saturating_sub(account.opened_ns));
    let whole = match account.share_uj {
        Some(uj) => {
            let figure = lower_bound(account.at_least, energy(uj, account.error_uj));
            let figure = terminal.paint(Tone::Figure, &figure);
            figure + &graded(account.grade, terminal)
        }
        None => terminal.paint(Tone::Doubt, &unknown(&silent(account))),
    };
    line(&mut out, "energy", &whole, terminal);
    line(&mut out, "mean power", &mean_power(account, duration_ns), terminal);
    line(&mut out, "time", &duration_ns.map_or("still open".into(), time), terminal);
    line(&mut out, "idle part", &idle(account), terminal);
    if let Some(part) = part(whose, account) {
        line(&mut out, "by CPU time", &part, terminal);
    }
    if let Some(shared) = shared(account) {
        line(&mut out, "shared", &shared, terminal);
    }
    if let Some(gaps) = gaps(account) {
        line(&mut out, "no reading", &terminal.paint(Tone::Doubt, &gaps), terminal);
    }
    if account.moved_ns > 0 {
        let moved = format!(
            "edges by {}: their messages came late, or your access is coarse",
            time(account.moved_ns)
        );
        line(&mut out, "moved", &terminal.paint(Tone::Doubt, &moved), terminal);
    }
    if let Some(state) = unusual(account.state) {
        line(&mut out, "state", &terminal.paint(Tone::Doubt, state), terminal);
    }
    for (key, value) in &account.attributes {
        line(&mut out, &printable(key), &printable(value), terminal);
    }
    out.push('\n');
    out.push_str(&domains(account, duration_ns, terminal));
    if !account.phases.is_empty() {
        out.push('\n');
        out.push_str(&phases(account, terminal));
    }
    out
}

/// A labelled line.
pub fn line(out: &mut String, label: &str, text: &str, terminal: Terminal) {
    let label = terminal.paint(Tone::Quiet, &format!("{label:LABEL$}"));
    let _ = writeln!(out, "  {label} {text}");
}

/// How far a figure can be trusted, in words; a measured one needs no more than the word.
pub fn graded(grade: Option<Grade>, terminal: Terminal) -> String {
    match grade {
        None => String::new(),
        Some(Grade::Measured) => "   measured".into(),
        Some(Grade::Modelled) => "   modelled (a vendor's model behind a counter)".into(),
        Some(Grade::Integrated) => "   integrated (from power readings)".into(),
        Some(Grade::Estimated) => {
            let words = "   estimated (from CPU load by a model: no counter was read)";
            terminal.paint(Tone::Doubt, words)
        }
    }
}

/// The grade's name, as in the contract.
pub fn grade(grade: Grade) -> &'static str {
    match grade {
        Grade::Measured => "measured",
        Grade::Modelled => "modelled",
        Grade::Integrated => "integrated",
        Grade::Estimated => "estimated",
    }
}

/// The state's name, as in the contract.
pub fn state(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Provisional => "provisional",
        State::Settled => "settled",
        State::Abandoned => "abandoned",
        State::Interrupted => "interrupted",
    }
}

fn unusual(state: State) -> Option<&'static str> {
    match state {
        State::Settled => None,
        State::Open => Some("open: the figures are those so far"),
        State::Provisional => Some("provisional: the last counter update has not come yet"),
        State::Abandoned => Some("abandoned: its client went away"),
        State::Interrupted => Some("interrupted: the daemon went away while it was open"),
    }
}

fn mean_power(account: &Account, duration_ns: Option<u64>) -> String {
    let error = account.error_uj.zip(duration_ns).and_then(|(uj, ns)| mean_mw(uj, ns));
    match account.mean_power_mw {
        Some(mw) => lower_bound(account.at_least, power(mw, error)),
        None => unknown(""),
    }
}

fn idle(account: &Account) -> String {
    match account.idle_uj {
        Some(uj) => format!("{} of it would have been used anyway", energy_alone(uj, account.error_uj)),
        None => unknown("no idle power is configured or learnt yet"),
    }
}

/// The part of the account's process or control group, and that it is a model.
fn part(whose: Option<&str>, account: &Account) -> Option<String> {
    let named = match (whose, account.process, &account.cgroup) {
        (_, _, Some(group)) => format!("the control group {}", printable(group)),
        (Some(whose), _, None) => whose.to_owned(),
        (None, Some(pid), None) => format!("process {pid} with its children"),
        (None, None, None) => "the process that asked".to_owned(),
    };
    match (account.process_uj, &account.process_reason) {
        (Some(uj), _) => Some(format!("{} of it fell to {named} (a model)", energy(uj, None))),
        (None, Some(reason)) => Some(format!("{}: {named}", unknown(&printable(reason)))),
        (None, None) => None,
    }
}

fn shared(account: &Account) -> Option<String> {
    let others = account.peak_concurrency.checked_sub(1).filter(|&others| others > 0)?;
    let spans = if others == 1 { "span" } else { "spans" };
    let whole = account
        .window_uj
        .map_or_else(|| unknown(""), |uj| lower_bound(account.at_least, energy_alone(uj, account.error_uj)));
    Some(format!("with up to {others} other {spans}; all of them and the rest together used {whole}"))
}

fn gaps(account: &Account) -> Option<String> {
    let gap = |share: &Share| {
        (share.unknown_ns > 0).then(|| format!("{} of {}", time(share.unknown_ns), share.domain))
    };
    let gaps: Vec<String> = account.domains.iter().filter_map(gap).collect();
    (!gaps.is_empty()).then(|| format!("for {}", gaps.join(", ")))
}

/// Why the sum is not known.
fn silent(account: &Account) -> String {
    let without = |missing: fn(&Share) -> bool| {
        let names = account.domains.iter().filter(|share| missing(share)).map(|share| &*share.domain);
        Some(names.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty())
    };
    if let Some(names) = without(|share| share.share_uj.is_none()) {
        return format!("no reading of {names}");
    }
    match without(|share| share.unknown_ns > 0) {
        Some(names) => format!("readings of {names} are missing for a part of the time"),
        None => "no live domain is counted".into(),
    }
}

/// A share with its error; without one it is a lower bound where readings are missing.
fn share_of(share: &Share) -> String {
    match (share.share_uj, share.error_uj) {
        (None, _) => "unknown".into(),
        (Some(uj), None) if share.unknown_ns > 0 => format!("{} at least", energy(uj, None)),
        (Some(uj), error) => energy(uj, error),
    }
}

fn domains(account: &Account, duration_ns: Option<u64>, terminal: Terminal) -> String {
    let mut table = Table::new([
        words("DOMAIN"),
        words("ENERGY"),
        figures("POWER"),
        figures("IDLE"),
        figures("BY USE"),
        figures("WINDOW"),
        words("GRADE"),
    ]);
    for share in &account.domains {
        let mean = |uj: Option<u64>| uj.zip(duration_ns).and_then(|(uj, ns)| mean_mw(uj, ns));
        let alone =
            |uj: Option<u64>| uj.map_or_else(|| "unknown".into(), |uj| energy_alone(uj, share.error_uj));
        let error_mw = mean(share.error_uj);
        table.row(vec![
            printable(&share.domain),
            share_of(share),
            mean(share.share_uj).map_or_else(|| "unknown".into(), |mw| power_alone(mw, error_mw)),
            alone(share.idle_uj),
            share.process_uj.map_or_else(|| "unknown".into(), |uj| energy_alone(uj, None)),
            alone(share.window_uj),
            grade(share.grade).into(),
        ]);
    }
    table.draw(terminal)
}

fn phases(account: &Account, terminal: Terminal) -> String {
    let mut table = Table::new([words("PHASE"), words("ENERGY"), figures("TIME")]);
    for phase in &account.phases {
        let name = if phase.name.is_empty() { "(before the first mark)" } else { &phase.name };
        table.row(vec![
            printable(name),
            phase.share_uj.map_or_else(|| "unknown".into(), |uj| energy(uj, phase.error_uj)),
            phase.closed_ns.map_or("open".into(), |closed| time(closed.saturating_sub(phase.opened_ns))),
        ]);
    }
    table.draw(terminal)
}
