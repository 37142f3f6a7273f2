//! One span's account, as a person reads it.
//!
//! Owns the wording: what is estimated says so in words, what is unknown says why, what was shared says with how many.
//! Every figure is the daemon's; nothing is added up here.

use super::domain_tree::{self, indented};
use super::quantity::{
    energy, energy_alone, energy_or_bound, is_lost_in, lower_bound, mean_mw, power_alone, power_or_bound,
    time, unknown,
};
use super::resolution::{counters, too_short};
use super::table::{Cell, Labelled, Table, figures, words};
use super::terminal::{Terminal, Tone};
use crate::attribution::account::{Account, Share, State};
use crate::domain::Grade;
use crate::protocol::DomainStatus;

/// What stands where a figure would say nothing.
pub const TOO_SHORT: &str = "too short";

/// The account below `title`; `whose`: what the process is called whose part is told beside the whole, if not its number;
/// `all`: what the meter says of its domains.
pub fn account(
    title: &str,
    whose: Option<&str>,
    account: &Account,
    all: &[DomainStatus],
    terminal: Terminal,
) -> String {
    let duration_ns = account.closed_ns.map(|closed| closed.saturating_sub(account.opened_ns));
    let mut lines = Labelled::default();
    match account.share_uj {
        Some(uj) => {
            let figure = lower_bound(account.at_least, energy_or_bound(uj, account.error_uj));
            let figure = Cell::toned(Tone::Figure, &figure);
            lines.line("energy", [figure, "   ".into(), graded(account.grade, account.simulated)]);
        }
        None => lines.line("energy", [Cell::toned(Tone::Doubt, &unknown(&silent(account)))]),
    }
    lines.line("mean power", [mean_power(account, duration_ns).into()]);
    lines.line("time", [duration_ns.map_or("still open".into(), time).into()]);
    lines.line("idle part", [idle(account).into()]);
    if let Some(part) = part(whose, account) {
        lines.line("by CPU time", [part.into()]);
    }
    if let Some(shared) = shared(account) {
        lines.line("shared", [shared.into()]);
    }
    let short = too_short(account, all);
    if !short.is_empty() {
        lines.line(TOO_SHORT, [Cell::toned(Tone::Doubt, &counters(&short))]);
    }
    doubts(account, &mut lines);
    for (key, value) in &account.attributes {
        lines.line(key, [value.as_str().into()]);
    }
    let mut out = format!("{}\n\n{}\n", terminal.paint(Tone::Head, title), lines.draw(terminal));
    out.push_str(&domains(account, duration_ns, all, terminal));
    if !account.phases.is_empty() {
        out.push('\n');
        out.push_str(&phases(account, terminal));
    }
    out
}

/// What limits the figures: missing readings, moved edges, an account that is not settled.
fn doubts(account: &Account, lines: &mut Labelled) {
    if let Some(gaps) = gaps(account) {
        lines.line("no reading", [Cell::toned(Tone::Doubt, &gaps)]);
    }
    if account.moved_ns > 0 {
        let moved = format!(
            "edges by {}: their messages came late, or your access is coarse",
            time(account.moved_ns)
        );
        lines.line("moved", [Cell::toned(Tone::Doubt, &moved)]);
    }
    if let Some(state) = unusual(account.state) {
        lines.line("state", [Cell::toned(Tone::Doubt, state)]);
    }
}

/// How far a figure can be trusted, in words; a measured one needs no more than the word. That the machine was replayed is
/// said first, since no grade is worth anything without it.
pub fn graded(grade: Option<Grade>, simulated: Option<bool>) -> Cell {
    let words = match grade {
        None => "",
        Some(Grade::Measured) => "measured",
        Some(Grade::Modelled) => "modelled (a vendor's model behind a counter)",
        Some(Grade::Integrated) => "integrated (from power readings)",
        Some(Grade::Estimated) => "estimated (from CPU load by a model: no counter was read)",
    };
    if simulated == Some(true) {
        Cell::toned(Tone::Doubt, &format!("simulated (replayed from a file), {words}"))
    } else if grade == Some(Grade::Estimated) {
        Cell::toned(Tone::Doubt, words)
    } else {
        words.into()
    }
}

/// The grade's name for a table, with "simulated" after it where the machine was replayed from a file.
pub fn quality(of: Grade, simulated: bool) -> String {
    if simulated { format!("{}, simulated", grade(of)) } else { grade(of).to_owned() }
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
        Some(mw) => lower_bound(account.at_least, power_or_bound(mw, error)),
        None => unknown(""),
    }
}

fn idle(account: &Account) -> String {
    if account.share_uj.zip(account.error_uj).is_some_and(|(uj, error_uj)| is_lost_in(uj, error_uj)) {
        return unknown("the span was too short");
    }
    match account.idle_uj {
        Some(uj) => format!("{} of it would have been used anyway", energy_alone(uj, account.error_uj)),
        None => unknown("no idle power is configured or learnt yet"),
    }
}

/// The part of the account's process or control group, and that it is a model.
fn part(whose: Option<&str>, account: &Account) -> Option<String> {
    let named = match (whose, account.process, &account.cgroup) {
        (_, _, Some(group)) => format!("the control group {}", group),
        (Some(whose), _, None) => whose.to_owned(),
        (None, Some(pid), None) => format!("process {pid} with its children"),
        (None, None, None) => "the process that asked".to_owned(),
    };
    match (account.process_uj, &account.process_reason) {
        (Some(uj), _) => Some(format!("{} of it fell to {named} (a model)", energy(uj, None))),
        (None, Some(reason)) => Some(format!("{}: {named}", unknown(reason))),
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
        (Some(uj), error) => energy_or_bound(uj, error),
    }
}

fn domains(account: &Account, duration_ns: Option<u64>, all: &[DomainStatus], terminal: Terminal) -> String {
    let mut table = Table::new([
        words("DOMAIN"),
        words("ENERGY"),
        figures("POWER"),
        figures("IDLE"),
        figures("BY USE"),
        figures("WINDOW"),
        words("GRADE"),
        words("TOTAL"),
    ]);
    for (depth, share) in domain_tree::rows(&account.domains, |share| &share.domain, all) {
        let lost = share.share_uj.zip(share.error_uj).is_some_and(|(uj, error_uj)| is_lost_in(uj, error_uj));
        let figure = |text: Option<String>| match text {
            Some(_) if lost => TOO_SHORT.into(),
            text => Cell::from(text.unwrap_or_else(|| "unknown".into())),
        };
        let mean = |uj: Option<u64>| uj.zip(duration_ns).and_then(|(uj, ns)| mean_mw(uj, ns));
        let alone = |uj: Option<u64>| uj.map(|uj| energy_alone(uj, share.error_uj));
        let status = all.iter().find(|domain| domain.name == share.domain);
        table.row(vec![
            indented(&share.domain, depth),
            share_of(share).into(),
            figure(mean(share.share_uj).map(|mw| power_alone(mw, mean(share.error_uj)))),
            figure(alone(share.idle_uj)),
            figure(share.process_uj.map(|uj| energy_alone(uj, None))),
            figure(alone(share.window_uj)),
            quality(share.grade, account.simulated == Some(true)).into(),
            status.map_or("".into(), |domain| domain_tree::total(domain.counted)),
        ]);
    }
    table.draw(terminal)
}

fn phases(account: &Account, terminal: Terminal) -> String {
    let mut table = Table::new([words("PHASE"), words("ENERGY"), figures("TIME")]);
    for phase in &account.phases {
        let name = if phase.name.is_empty() { "(before the first mark)" } else { &phase.name };
        table.row(vec![
            name.to_owned(),
            phase.share_uj.map_or_else(|| "unknown".into(), |uj| energy_or_bound(uj, phase.error_uj)),
            phase.closed_ns.map_or("open".into(), |closed| time(closed.saturating_sub(phase.opened_ns))),
        ]);
    }
    table.draw(terminal)
}
