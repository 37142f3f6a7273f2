//! The text report of a span's account.
//!
//! Estimated values are labelled, and unknown values have a reason. All figures come from the daemon; nothing is summed
//! here.

use wattspan_client::account::{Account, Share, SpanState};
use wattspan_client::domain::Grade;
use wattspan_client::protocol::DomainStatus;

use super::domain_tree::{self, indented_name};
use super::quantity::{
    format_duration, format_energy, format_energy_or_bound, format_energy_value, format_lower_bound,
    format_power_or_bound, format_power_value, format_unknown, is_within_error, mean_mw,
};
use super::resolution::{format_too_short, too_short_domains};
use super::table::{KeyValueTable, TableCell, TextTable, number_column, text_column};
use super::terminal::{Terminal, TextStyle};

/// Shown in place of a figure below the counter's resolution.
pub const TOO_SHORT: &str = "too short";

/// Renders an account. `process_label` replaces the ID of the process whose share is shown; `all` is the status of every
/// domain.
pub fn render_account(
    title: &str,
    process_label: Option<&str>,
    account: &Account,
    all: &[DomainStatus],
    terminal: Terminal,
) -> String {
    let duration_ns = account.closed_ns.map(|closed| closed.saturating_sub(account.opened_ns));
    let mut lines = KeyValueTable::default();
    match account.share_uj {
        Some(uj) => {
            let value = format_lower_bound(account.at_least, format_energy_or_bound(uj, account.error_uj));
            let value = TableCell::styled(TextStyle::Value, &value);
            lines.add_row("energy", [value, "   ".into(), describe_grade(account.grade, account.simulated)]);
        }
        None => lines.add_row(
            "energy",
            [TableCell::styled(TextStyle::Warning, &format_unknown(&unknown_reason(account)))],
        ),
    }
    lines.add_row("mean power", [format_mean_power(account, duration_ns).into()]);
    lines.add_row("time", [duration_ns.map_or("still open".into(), format_duration).into()]);
    lines.add_row("idle part", [format_idle(account).into()]);
    if let Some(process_share) = format_process_share(process_label, account) {
        lines.add_row("by CPU time", [process_share.into()]);
    }
    if let Some(concurrency) = format_concurrency(account) {
        lines.add_row("shared", [concurrency.into()]);
    }
    let too_short = too_short_domains(account, all);
    if !too_short.is_empty() {
        lines.add_row(TOO_SHORT, [TableCell::styled(TextStyle::Warning, &format_too_short(&too_short))]);
    }
    add_caveats(account, &mut lines);
    for (key, value) in &account.attributes {
        lines.add_row(key, [value.as_str().into()]);
    }
    let mut out = format!("{}\n\n{}\n", terminal.paint(TextStyle::Heading, title), lines.render(terminal));
    out.push_str(&render_domains(account, duration_ns, all, terminal));
    if !account.phases.is_empty() {
        out.push('\n');
        out.push_str(&render_phases(account, terminal));
    }
    out
}

/// Adds the caveats: missing readings, moved edges, an account that is not settled.
fn add_caveats(account: &Account, lines: &mut KeyValueTable) {
    if let Some(gaps) = format_gaps(account) {
        lines.add_row("no reading", [TableCell::styled(TextStyle::Warning, &gaps)]);
    }
    if account.moved_ns > 0 {
        let moved = format!(
            "edges by {}: their messages were late, or your access is coarse",
            format_duration(account.moved_ns)
        );
        lines.add_row("moved", [TableCell::styled(TextStyle::Warning, &moved)]);
    }
    if let Some(state) = describe_state(account.state) {
        lines.add_row("state", [TableCell::styled(TextStyle::Warning, state)]);
    }
}

/// The grade with an explanation. A simulated machine is mentioned first.
pub fn describe_grade(grade: Option<Grade>, simulated: Option<bool>) -> TableCell {
    let words = match grade {
        None => "",
        Some(Grade::Measured) => "measured",
        Some(Grade::Modelled) => "modelled (a vendor's model behind a counter)",
        Some(Grade::Integrated) => "integrated (from power readings)",
        Some(Grade::Estimated) => "estimated (from CPU load by a model: no counter was read)",
    };
    if simulated == Some(true) {
        TableCell::styled(TextStyle::Warning, &format!("simulated (replayed from a file), {words}"))
    } else if grade == Some(Grade::Estimated) {
        TableCell::styled(TextStyle::Warning, words)
    } else {
        words.into()
    }
}

/// The grade's name for a table, followed by "simulated" for a replayed machine.
pub fn grade_label(grade: Grade, simulated: bool) -> String {
    if simulated { format!("{}, simulated", grade_name(grade)) } else { grade_name(grade).to_owned() }
}

/// The grade's name in the protocol.
pub fn grade_name(grade: Grade) -> &'static str {
    grade.as_str()
}

fn describe_state(state: SpanState) -> Option<&'static str> {
    match state {
        SpanState::Settled => None,
        SpanState::Open => Some("open: figures so far"),
        SpanState::Provisional => Some("provisional: waiting for the last counter update"),
        SpanState::Abandoned => Some("abandoned: its client disconnected"),
        SpanState::Interrupted => Some("interrupted: the daemon stopped while it was open"),
    }
}

fn format_mean_power(account: &Account, duration_ns: Option<u64>) -> String {
    let error = account.error_uj.zip(duration_ns).and_then(|(uj, ns)| mean_mw(uj, ns));
    match account.mean_power_mw {
        Some(mw) => format_lower_bound(account.at_least, format_power_or_bound(mw, error)),
        None => format_unknown(""),
    }
}

fn format_idle(account: &Account) -> String {
    if account.share_uj.zip(account.error_uj).is_some_and(|(uj, error_uj)| is_within_error(uj, error_uj)) {
        return format_unknown("the span was too short");
    }
    match account.idle_uj {
        Some(uj) => {
            format!("{} (idle baseline)", format_energy_value(uj, account.error_uj))
        }
        None => format_unknown("no idle power is configured or learned yet"),
    }
}

/// The process share of the account, marked as a model.
fn format_process_share(process_label: Option<&str>, account: &Account) -> Option<String> {
    let process = match (process_label, account.process, &account.cgroup) {
        (_, _, Some(group)) => format!("the control group {}", group),
        (Some(label), _, None) => label.to_owned(),
        (None, Some(pid), None) => format!("process {pid} with its children"),
        (None, None, None) => "the requesting process".to_owned(),
    };
    match (account.process_uj, &account.process_reason) {
        (Some(uj), _) => Some(format!("{} attributed to {process} (a model)", format_energy(uj, None))),
        (None, Some(reason)) => Some(format!("{}: {process}", format_unknown(reason))),
        (None, None) => None,
    }
}

fn format_concurrency(account: &Account) -> Option<String> {
    let others = account.peak_concurrency.checked_sub(1).filter(|&others| others > 0)?;
    let spans = if others == 1 { "span" } else { "spans" };
    let whole = account.window_uj.map_or_else(
        || format_unknown(""),
        |uj| format_lower_bound(account.at_least, format_energy_value(uj, account.error_uj)),
    );
    Some(format!("with up to {others} other {spans}; all spans and the unattributed rest used {whole}"))
}

fn format_gaps(account: &Account) -> Option<String> {
    let gap = |share: &Share| {
        (share.unknown_ns > 0).then(|| format!("{} of {}", format_duration(share.unknown_ns), share.domain))
    };
    let gaps: Vec<String> = account.domains.iter().filter_map(gap).collect();
    (!gaps.is_empty()).then(|| format!("for {}", gaps.join(", ")))
}

/// Why the total is unknown.
fn unknown_reason(account: &Account) -> String {
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

/// A share with its error. Without an error it is a lower bound if readings are missing.
fn format_share(share: &Share) -> String {
    match (share.share_uj, share.error_uj) {
        (None, _) => "unknown".into(),
        (Some(uj), None) if share.unknown_ns > 0 => format!("{} at least", format_energy(uj, None)),
        (Some(uj), error) => format_energy_or_bound(uj, error),
    }
}

fn render_domains(
    account: &Account,
    duration_ns: Option<u64>,
    all: &[DomainStatus],
    terminal: Terminal,
) -> String {
    let mut table = TextTable::new([
        text_column("DOMAIN"),
        text_column("ENERGY"),
        number_column("POWER"),
        number_column("IDLE"),
        number_column("BY USE"),
        number_column("WINDOW"),
        text_column("GRADE"),
        text_column("TOTAL"),
    ]);
    for (depth, share) in domain_tree::order_rows(&account.domains, |share| &share.domain, all) {
        let within_error =
            share.share_uj.zip(share.error_uj).is_some_and(|(uj, error_uj)| is_within_error(uj, error_uj));
        let cell = |text: Option<String>| match text {
            Some(_) if within_error => TOO_SHORT.into(),
            text => TableCell::from(text.unwrap_or_else(|| "unknown".into())),
        };
        let mean = |uj: Option<u64>| uj.zip(duration_ns).and_then(|(uj, ns)| mean_mw(uj, ns));
        let value = |uj: Option<u64>| uj.map(|uj| format_energy_value(uj, share.error_uj));
        let status = all.iter().find(|domain| domain.name == share.domain);
        table.add_row(vec![
            indented_name(&share.domain, depth),
            format_share(share).into(),
            cell(mean(share.share_uj).map(|mw| format_power_value(mw, mean(share.error_uj)))),
            cell(value(share.idle_uj)),
            cell(share.process_uj.map(|uj| format_energy_value(uj, None))),
            cell(value(share.window_uj)),
            grade_label(share.grade, account.simulated == Some(true)).into(),
            status.map_or("".into(), |domain| domain_tree::counted_cell(domain.counted)),
        ]);
    }
    table.render(terminal)
}

fn render_phases(account: &Account, terminal: Terminal) -> String {
    let mut table = TextTable::new([text_column("PHASE"), text_column("ENERGY"), number_column("TIME")]);
    for phase in &account.phases {
        let name = if phase.name.is_empty() { "(before the first mark)" } else { &phase.name };
        table.add_row(vec![
            name.to_owned(),
            phase.share_uj.map_or_else(|| "unknown".into(), |uj| format_energy_or_bound(uj, phase.error_uj)),
            phase
                .closed_ns
                .map_or("open".into(), |closed| format_duration(closed.saturating_sub(phase.opened_ns))),
        ]);
    }
    table.render(terminal)
}
