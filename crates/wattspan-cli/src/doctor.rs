//! `wattspan doctor`: shows available sources, their quality, and how to enable the others.
//!
//! Generates a short load while the domains are watched, so that working counters move, and then queries the meter.
//! Examines no hardware itself.

use std::fmt::Write as _;
use std::io::stdout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use serde::Serialize;
use wattspan::config::{AccessGroups, join_commands};
use wattspan_client::domain::{DomainKind, Duplicate, Liveness};
use wattspan_client::protocol::{
    Access, CeilingStatus, DaemonInfo, DomainStatus, ExceededCeiling, ProcessPrivileges, ReadingSchedule,
    SamplerStatus, StoreStatus,
};

use super::account_report::grade_label;
use super::bundle::{self, BundleArgs};
use super::busy_loop::keep_busy;
use super::characterise::{self, CharacteriseArgs};
use super::connect::{MeterConnector, MeterDescription, MeterOptions, ensure_measurable};
use super::domain_ticks::DomainTicks;
use super::domain_tree::{self, indented_name};
use super::exit_status::{CliError, NO_COUNTER, OK};
use super::mechanism_comparison;
use super::output;
use super::quantity::{format_duration, format_energy, format_lower_bound, format_power};
use super::table::{TableCell, TextTable, number_column, text_column};
use super::terminal::{Terminal, TextStyle, printable, wrap};

const LOAD_DURATION: Duration = Duration::from_millis(300);

/// Interval of the snapshots during the load.
const TICK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Serialize)]
struct DoctorOutput<'a> {
    meter: MeterDescription,
    #[serde(flatten)]
    info: &'a DaemonInfo,
}

/// Options of `wattspan doctor`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("loaded").args(["compare", "characterise"]))]
pub struct DoctorArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Compare the mechanisms that show the same energy, under load, in this process
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["bundle", "characterise"], value_parser = clap::value_parser!(u32).range(1..=600))]
    compare: Option<u32>,
    /// Shell command that loads what is to be measured, such as a GPU, instead of a load of the CPUs; --compare runs it all
    /// the time, --characterise stops and continues it with signals; it is ended afterwards
    #[arg(long, value_name = "COMMAND", requires = "loaded")]
    load: Option<String>,
    #[command(flatten)]
    characterise: CharacteriseArgs,
}

/// Runs `wattspan doctor`.
pub fn doctor(options: &MeterOptions, args: &DoctorArgs) -> Result<u8, CliError> {
    if let Some(path) = &args.bundle.bundle {
        return bundle::write_bundle(options, &args.bundle, path);
    }
    if let Some(seconds) = args.compare {
        return mechanism_comparison::compare(options, seconds, args.load.as_deref());
    }
    if args.characterise.characterise {
        return characterise::characterise(options, &args.characterise, args.load.as_deref());
    }
    let (connector, client) = MeterConnector::open(options)?;
    watch_under_load(&connector, &client.info()?);
    let info = client.info()?;
    if options.json {
        output::print_json(&DoctorOutput { meter: connector.description(), info: &info })?;
    } else {
        output::print_text(&render_doctor(&connector.description(), &info, Terminal::of(&stdout())))?;
    }
    Ok(if ensure_measurable(&info).is_ok() { OK } else { NO_COUNTER })
}

/// Keeps one CPU busy while the domains are watched, so that the samplers run at full rate and the counters move. Without
/// permission to watch, the result shows the state so far.
fn watch_under_load(connector: &MeterConnector, info: &DaemonInfo) {
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| keep_busy(&busy));
        let _ = watch_domains(connector, info);
        busy.store(false, Ordering::Relaxed);
    });
}

fn watch_domains(connector: &MeterConnector, info: &DaemonInfo) -> Result<(), CliError> {
    let deadline = Instant::now() + LOAD_DURATION;
    let ticks = DomainTicks::open(connector, connector.connect()?, info, TICK_INTERVAL)?;
    for tick in ticks {
        tick?;
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(())
}

fn render_doctor(meter: &MeterDescription, info: &DaemonInfo, terminal: Terminal) -> String {
    let mut out = String::new();
    let meter_text = match (&meter.socket, &meter.remark) {
        (Some(socket), _) => format!("the daemon at {socket}"),
        (None, Some(remark)) => remark.clone(),
        (None, None) => "measuring in this process".into(),
    };
    let heading = format!("wattspan {}: {meter_text}", info.version);
    for text in [heading, format!("your access: {}", describe_access(info.access))] {
        wrap(&text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if let Some(confinement) = &info.confinement {
        wrap(&describe_confinement(confinement), terminal.width)
            .iter()
            .for_each(|line| out.extend([line, "\n"]));
    }
    out.push('\n');
    if info.domains.is_empty() {
        let _ = writeln!(out, "{}", terminal.paint(TextStyle::Warning, "no domains"));
    } else {
        out.push_str(&render_domains(&info.domains, terminal));
    }
    if !info.samplers.is_empty() {
        out.push('\n');
        out.push_str(&render_samplers(&info.samplers, terminal));
    }
    if let Some(keeping) = &info.keeping {
        out.push('\n');
        wrap(&describe_store(keeping), terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if info.at_least == Some(true) {
        out.push('\n');
        wrap(LOWER_BOUND_NOTICE, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if let Some(text) = compare_with_battery(info) {
        out.push('\n');
        wrap(&text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if !info.absent.is_empty() {
        let _ = writeln!(out, "\n{}", terminal.paint(TextStyle::Heading, "Unavailable sources"));
        for absent in &info.absent {
            let _ = writeln!(out, "  {}", printable(&absent.source));
            for line in wrap(&absent.reason, terminal.width.map(|width| width.saturating_sub(4))) {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
    if let Some(text) = apple_notice(info) {
        out.push('\n');
        wrap(text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    out
}

/// A request for feedback: Apple documents neither interface, and these sources were written from other programs' sources.
fn apple_notice(info: &DaemonInfo) -> Option<&'static str> {
    let is_apple_source = |source: &str| matches!(source, "ioreport" | "smc");
    let has_apple_source = info.domains.iter().any(|domain| is_apple_source(&domain.source))
        || info.absent.iter().any(|absent| is_apple_source(&absent.source));
    has_apple_source.then_some(
        "On a Mac: these sources were written without test hardware, for interfaces that Apple does not document. Please \
         report the results, right or wrong, with the output of `wattspan doctor --json`, of `sysctl \
         hw.model machdep.cpu.brand_string kern.osproductversion sysctl.proc_translated`, and, for comparison, of `sudo \
         powermetrics -n 1 -i 5000 --samplers cpu_power,gpu_power,ane_power` at rest and under load.",
    )
}

/// The samplers' scheduling, with late and missed ticks.
fn render_samplers(samplers: &[SamplerStatus], terminal: Terminal) -> String {
    let mut table = TextTable::new([
        text_column("SAMPLER"),
        text_column("RUNS"),
        number_column("TICKS"),
        number_column("LATE"),
        number_column("MISSED"),
        number_column("LATE P50"),
        number_column("LATE P99"),
        text_column("SCHEDULE"),
        text_column("READS"),
    ]);
    for sampler in samplers {
        let format_lateness = |ns: Option<u64>| ns.map_or_else(|| "unknown".into(), format_duration);
        let scheduling = match (sampler.realtime, sampler.pinned) {
            (true, true) => "real-time, pinned",
            (true, false) => "real-time",
            (false, true) => "pinned",
            (false, false) => "normal",
        };
        let cells = vec![
            sampler.source.clone(),
            scheduling.into(),
            sampler.ticks.to_string(),
            sampler.late.to_string(),
            sampler.missed.to_string(),
            format_lateness(sampler.lateness_p50_ns),
            format_lateness(sampler.lateness_p99_ns),
            match sampler.schedule {
                Some(ReadingSchedule::Edges) => "edges",
                Some(ReadingSchedule::FixedRate) => "fixed rate",
                None => "unknown",
            }
            .into(),
            sampler.domains.join(" "),
        ];
        table.add_row(cells);
    }
    table.render(terminal)
}

/// The state of the store.
fn describe_store(keeping: &StoreStatus) -> String {
    let megabytes = keeping.bytes as f64 / 1e6;
    let mut text = match &keeping.reason {
        reason if keeping.durable => {
            let loss = reason.as_ref().map(|reason| format!(" The store is damaged: {}.", printable(reason)));
            format!(
                "Accounts are on disk before they are answered ({megabytes:.1} MB).{}",
                loss.unwrap_or_default()
            )
        }
        None => "The ledger on disk is being opened.".to_owned(),
        Some(reason) => format!("Accounts are answered and not durable: {reason}."),
    };
    if let Some(keeps_s) = keeping.keeps_s {
        let rate = match (keeping.accounts_per_h, keeping.bytes_per_account) {
            (Some(accounts), Some(bytes)) => format!(" ({accounts} accounts an hour of {bytes} bytes)"),
            _ => String::new(),
        };
        let key = if keeping.limited_by.as_deref() == Some("size") { "megabytes" } else { "days" };
        let length = match keeps_s {
            0..7200 => format!("{} min", keeps_s / 60),
            7200..259_200 => format!("{} h", keeps_s / 3600),
            _ => format!("{} days", keeps_s / 86_400),
        };
        let _ = write!(
            text,
            " At the rate of the last hours{rate} they are kept for {length}; ledger.{key} limits that."
        );
    }
    if keeping.waiting > 0 {
        let _ = write!(text, " {} wait to be written.", keeping.waiting);
    }
    if keeping.not_kept > 0 {
        let _ = write!(text, " {} found no room and are not kept.", keeping.not_kept);
    }
    text
}

/// Compares the power of the batteries with that of the counted domains: an independent check, never part of a total.
fn compare_with_battery(info: &DaemonInfo) -> Option<String> {
    let domains = &info.domains;
    let power_of = |wanted: &dyn Fn(&DomainStatus) -> bool| -> Option<u64> {
        let powers: Vec<u64> =
            domains.iter().filter(|domain| wanted(domain)).filter_map(|domain| domain.power_mw).collect();
        (!powers.is_empty()).then(|| powers.iter().sum())
    };
    let batteries_mw = power_of(&|domain| domain.kind == DomainKind::Battery)?;
    let counted = power_of(&|domain| domain.counted).map_or("unknown".into(), |mw| format_power(mw, None));
    let counted = format_lower_bound(info.at_least, counted);
    Some(format!(
        "The battery delivers {}, the counted domains together {counted}: the display, the board and its regulators \
         use the rest.",
        format_power(batteries_mw, None)
    ))
}

fn render_domains(domains: &[DomainStatus], terminal: Terminal) -> String {
    let mut table = TextTable::new([
        text_column("DOMAIN"),
        text_column("SOURCE"),
        text_column("GRADE"),
        text_column("STATE"),
        text_column("TOTAL"),
        text_column("INSIDE"),
        number_column("UPDATES"),
        number_column("STEP"),
        number_column("READ"),
        number_column("POWER"),
    ]);
    for (depth, domain) in domain_tree::order_rows(domains, |domain| &domain.name, domains) {
        let cell = |text: Option<String>| TableCell::from(text.unwrap_or_else(|| "unknown".into()));
        let cells = vec![
            indented_name(&domain.name, depth),
            domain.source.as_str().into(),
            grade_label(domain.grade, domain.is_simulated()).into(),
            liveness_cell(domain.liveness),
            domain_tree::counted_cell(domain.counted),
            domain.parent.as_deref().unwrap_or_default().into(),
            cell(domain.update_interval_ns.map(format_duration)),
            cell(domain.quantum_uj.map(format_quantum)),
            cell(domain.read_cost_ns.map(format_duration)),
            cell(domain.power_mw.map(|mw| format_power(mw, None))),
        ];
        let notes = [
            domain.reason.clone(),
            describe_duplicate(domain),
            domain.residual.map(describe_residual),
            describe_update_interval(domain),
            describe_assumed_quantum(domain),
            describe_filter(domain),
            describe_averaging(domain),
            describe_sampling(domain),
            describe_lag(domain),
            describe_ceilings(domain),
            describe_exceeded(domain),
        ];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        table.add_row_with_note(cells, notes.join("; "));
    }
    table.render(terminal)
}

/// Explains why totals are lower bounds.
const LOWER_BOUND_NOTICE: &str = "Totals are lower bounds: a domain is not counted while it is undecided whether it is a second name of \
                        a counted one. Load on the machine decides it sooner.";

/// Whether the domain duplicates another one.
fn describe_duplicate(domain: &DomainStatus) -> Option<String> {
    let other = domain.duplicate_of.as_deref()?;
    Some(match domain.duplicate? {
        Duplicate::Same => format!("same counter as {other}: not counted"),
        Duplicate::Independent => format!("independent of {other}"),
        Duplicate::Undecided => {
            format!("undecided: may be a second name of {other}'s counter, so it is not counted yet")
        }
    })
}

/// The update interval that the lag and the settling of accounts assume, if it is not the measured one that the table shows.
fn describe_update_interval(domain: &DomainStatus) -> Option<String> {
    let origin = domain.update_interval_origin.as_deref().filter(|origin| *origin != "measured")?;
    let interval = format_duration(domain.update_interval_ns?);
    Some(format!("assumed update interval of its counter: {interval} ({})", printable(origin)))
}

/// The counter's unit that the guaranteed error assumes.
fn describe_assumed_quantum(domain: &DomainStatus) -> Option<String> {
    let quantum = format_quantum(domain.assumed_quantum_uj? as f64);
    let origin = match domain.quantum_origin.as_deref()? {
        "specification" => "the largest that its specification allows".to_owned(),
        "driver" => format!("as {} shows it", domain.source),
        "assumed" => "no document gives it".into(),
        "rounding" => "rounding of the integral".into(),
        other => printable(other),
    };
    Some(format!("assumed quantum: at most {quantum} ({origin})"))
}

/// The noise that Intel's energy filtering adds to the counter, if any is assumed.
fn describe_filter(domain: &DomainStatus) -> Option<String> {
    let origin = match domain.filter_origin.as_deref()? {
        "driver" => "SGX is enabled".to_owned(),
        other => printable(other),
    };
    let percent = domain.filter_error_ppm.filter(|ppm| *ppm > 0)? as f64 / 1e4;
    Some(format!(
        "energy filtering: its energy may be wrong by {percent:.1} %, which the error includes ({origin})"
    ))
}

/// The averaging time of the power sensor that the guaranteed error assumes.
fn describe_averaging(domain: &DomainStatus) -> Option<String> {
    let origin = match domain.averaging_origin.as_deref()? {
        "driver" => "as its driver shows it".to_owned(),
        other => printable(other),
    };
    Some(format!("its power is a mean over {} ({origin})", format_duration(domain.averaging_ns?)))
}

/// The part of the time that the power sensor observes, if it is not the whole time.
fn describe_sampling(domain: &DomainStatus) -> Option<String> {
    let origin = match domain.sampled_origin.as_deref()? {
        "specification" => "arXiv 2312.02741".to_owned(),
        other => printable(other),
    };
    let percent = domain.sampled_ppm.filter(|ppm| *ppm < 1_000_000)? as f64 / 1e4;
    Some(format!("its power sensor may observe only {percent:.1} % of the time ({origin})"))
}

/// The publishing lag that the guaranteed error assumes, if it is long enough to matter in a span.
fn describe_lag(domain: &DomainStatus) -> Option<String> {
    const MIN_SHOWN_NS: u64 = 1_000_000;
    let lag_ns = domain.lag_ns.filter(|lag_ns| *lag_ns >= MIN_SHOWN_NS)?;
    let origin = match domain.lag_origin.as_deref()? {
        "configured" => "configured".to_owned(),
        "update_interval" => "one update interval, because no document gives it".into(),
        "source" => format!("as {} gives it", domain.source),
        other => other.into(),
    };
    Some(format!("assumed lag of its counter: at most {} ({origin})", format_duration(lag_ns)))
}

/// The limits of the power that the guaranteed error assumes.
fn describe_ceilings(domain: &DomainStatus) -> Option<String> {
    let describe = |ceiling: &CeilingStatus| {
        let window = match ceiling.window_ns {
            0 => String::new(),
            window_ns => format!(" over {}", format_duration(window_ns)),
        };
        format!("{}{window} ({})", format_power(ceiling.limit_mw, None), printable(&ceiling.origin))
    };
    let ceilings: Vec<String> = domain.ceilings.as_ref()?.iter().map(describe).collect();
    Some(format!("assumed ceiling of its power: {}", ceilings.join(", ")))
}

/// The last interval in which a ceiling was too low.
fn describe_exceeded(domain: &DomainStatus) -> Option<String> {
    let ExceededCeiling { from_ns, to_ns, power_mw, limit_mw, .. } = domain.exceeded.as_ref()?.last()?;
    Some(format!(
        "it used at least {} from {from_ns} to {to_ns} ns, above its ceiling of {}: errors of accounts over this interval \
         may be too small",
        format_power(*power_mw, None),
        format_power(*limit_mw, None)
    ))
}

/// The difference between a counter and the power sensor of the same domain.
fn describe_residual(residual: f64) -> String {
    let (percent, direction) = (residual.abs() * 100.0, if residual < 0.0 { "less" } else { "more" });
    format!("its counter shows {percent:.1} % {direction} than its own power readings add up to")
}

/// Small quanta are shown with a fraction of a microjoule, larger ones rounded like energy.
fn format_quantum(uj: f64) -> String {
    if uj < 100.0 { format!("{uj:.1} µJ") } else { format_energy(uj.round() as u64, None) }
}

fn liveness_cell(liveness: Liveness) -> TableCell {
    match liveness {
        Liveness::Live => TableCell::styled(TextStyle::Success, "live"),
        Liveness::Stuck => TableCell::styled(TextStyle::Warning, "stuck"),
        Liveness::Lost => TableCell::styled(TextStyle::Warning, "lost"),
        Liveness::Starting => TableCell::styled(TextStyle::Warning, "starting"),
    }
}

/// The daemon's remaining privileges, which an attacker would get with it.
fn describe_confinement(confinement: &ProcessPrivileges) -> String {
    let capabilities = match confinement.capabilities.as_slice() {
        [] => "no capability".to_owned(),
        kept => kept.join(", "),
    };
    let choose = |condition: bool, yes: &'static str, no: &'static str| if condition { yes } else { no };
    let refused_calls = match confinement.refused_system_calls.as_slice() {
        [] => String::new(),
        calls => format!("; it refuses itself {}", calls.join(", ")),
    };
    format!(
        "the daemon runs as user {} with {capabilities}, {}, {}, {}{refused_calls}",
        confinement.uid,
        choose(
            confinement.no_new_privileges,
            "cannot gain more",
            "could gain more by starting a setuid program"
        ),
        choose(confinement.dumpable, "open to debuggers of its user", "closed to debuggers"),
        choose(confinement.system_calls_filtered, "its system calls filtered", "every system call allowed"),
    )
}

fn describe_access(access: Access) -> String {
    let text = match access {
        Access::None => {
            let join = join_commands(&[&AccessGroups::default().span_group]);
            return format!("none (no energy; members of the group wattspan may measure: {join})");
        }
        Access::Coarse => "coarse (own spans of 100 ms and more, in steps of 1 mJ)",
        Access::Span => "span (own spans at full precision, and the host's totals)",
        Access::Telemetry => "telemetry (everybody's accounts, and the domains' stream)",
        Access::Admin => "admin (everything)",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_assumption_with_its_origin() {
        let domain: DomainStatus = serde_json::from_value(serde_json::json!({
            "name": "package-0", "kind": "package", "source": "powercap", "counted": true, "grade": "measured",
            "liveness": "live", "update_interval_ns": 2_000_000, "update_interval_origin": "configured",
            "assumed_quantum_uj": 62, "quantum_origin": "driver",
            "filter_error_ppm": 500_000, "filter_origin": "driver",
            "averaging_ns": 50_000_000, "averaging_origin": "driver",
            "sampled_ppm": 250_000, "sampled_origin": "specification",
        }))
        .unwrap();
        let notes = |domain: DomainStatus| render_domains(&[domain], Terminal::PLAIN);
        let shown = notes(domain.clone());
        assert!(shown.contains("assumed update interval of its counter: 2.000 ms (configured)"), "{shown}");
        assert!(shown.contains("assumed quantum: at most 62.0 µJ (as powercap shows it)"), "{shown}");
        assert!(shown.contains("wrong by 50.0 %, which the error includes (SGX is enabled)"), "{shown}");
        assert!(shown.contains("its power is a mean over 50.00 ms (as its driver shows it)"), "{shown}");
        assert!(shown.contains("may observe only 25.0 % of the time (arXiv 2312.02741)"), "{shown}");
        let unfiltered =
            DomainStatus { filter_error_ppm: Some(0), sampled_ppm: Some(1_000_000), ..domain.clone() };
        let shown = notes(unfiltered);
        assert!(!shown.contains("filtering") && !shown.contains("observe"), "{shown}");
        // The table has the measured interval.
        let measured = DomainStatus { update_interval_origin: Some("measured".into()), ..domain };
        assert!(!notes(measured).contains("update interval"));
    }

    #[test]
    fn the_store_description_names_losses_and_retention() {
        let sound = StoreStatus {
            durable: true,
            reason: None,
            bytes: 2_000_000,
            waiting: 0,
            not_kept: 0,
            keeps_s: None,
            limited_by: None,
            accounts_per_h: None,
            bytes_per_account: None,
            database: None,
        };
        assert_eq!(describe_store(&sound), "Accounts are on disk before they are answered (2.0 MB).");
        let lossy =
            StoreStatus { reason: Some("accounts 3 to 9 may be lost since T".into()), ..sound.clone() };
        assert!(
            describe_store(&lossy).contains("are on disk")
                && describe_store(&lossy).contains("accounts 3 to 9 may be lost since T")
        );
        let failing = StoreStatus { durable: false, ..lossy.clone() };
        assert!(describe_store(&failing).contains("not durable"));
        let busy = StoreStatus {
            keeps_s: Some(100_000),
            limited_by: Some("size".into()),
            accounts_per_h: Some(360_000),
            bytes_per_account: Some(200),
            ..sound
        };
        let text = describe_store(&busy);
        let rate =
            "At the rate of the last hours (360000 accounts an hour of 200 bytes) they are kept for 27 h";
        assert!(text.contains(rate) && text.contains("ledger.megabytes limits that"), "{text}");
    }
}
