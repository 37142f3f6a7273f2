//! `wattspan doctor`: what can be measured here, how well, and what would mend the rest.
//!
//! Owns the order: first a little load while somebody watches, so that a counter that can move does, then the
//! question. Asks the meter and shows; examines nothing itself.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::stdout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::domain_tree::{self, indented};
use super::ending::{NO_COUNTER, OK, Trouble};
use super::quantity::{energy, lower_bound, power, time};
use super::reach::{Named, Reach, something_to_measure};
use super::report::quality;
use super::table::{Cell, Table, figures, words};
use super::terminal::{Terminal, Tone, printable, wrap};
use super::tick::Ticks;
use super::{Meter, output};
use crate::config::{Groups, join_commands};
use crate::domain::{Duplicate, Kind, Liveness};
use crate::privileges::Confinement;
use crate::protocol::{Access, DomainStatus, Info, Keeping, SamplerStatus};

/// How long the counters are watched under load.
const EXERCISE: Duration = Duration::from_millis(300);

/// How often, meanwhile.
const TICK: Duration = Duration::from_millis(20);

#[derive(Serialize)]
struct Told<'a> {
    meter: Named,
    #[serde(flatten)]
    info: &'a Info,
}

/// Examines and tells.
pub fn doctor(meter: &Meter) -> Result<u8, Trouble> {
    let (reach, client) = Reach::of(meter)?;
    exercise(&reach, &client.info()?);
    let info = client.info()?;
    if meter.json {
        output::json(&Told { meter: reach.named(), info: &info })?;
    } else {
        output::text(&shown(&reach.named(), &info, Terminal::of(&stdout())))?;
    }
    Ok(if something_to_measure(&info).is_ok() { OK } else { NO_COUNTER })
}

/// Keeps one CPU busy while the domains are watched, so that the samplers run fast and the counters move. A caller who
/// may not watch is told what is known without.
fn exercise(reach: &Reach, info: &Info) {
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut x = 1u64;
            while busy.load(Ordering::Relaxed) {
                for _ in 0..10_000 {
                    x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17));
                }
            }
        });
        let _ = watch(reach, info);
        busy.store(false, Ordering::Relaxed);
    });
}

fn watch(reach: &Reach, info: &Info) -> Result<(), Trouble> {
    let until = Instant::now() + EXERCISE;
    let ticks = Ticks::open(reach, reach.again()?, info, TICK)?;
    for tick in ticks {
        tick?;
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}

fn shown(meter: &Named, info: &Info, terminal: Terminal) -> String {
    let mut out = String::new();
    let where_from = match (&meter.socket, &meter.remark) {
        (Some(socket), _) => format!("the daemon at {socket}"),
        (None, Some(remark)) => remark.clone(),
        (None, None) => "measuring in this process".into(),
    };
    let heading = format!("wattspan {}: {where_from}", info.version);
    for text in [heading, format!("your access: {}", allowed(info.access))] {
        wrap(&text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if let Some(confinement) = &info.confinement {
        wrap(&confined(confinement), terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    out.push('\n');
    if info.domains.is_empty() {
        let _ = writeln!(out, "{}", terminal.paint(Tone::Doubt, "no domains"));
    } else {
        out.push_str(&domains(&info.domains, terminal));
    }
    if !info.samplers.is_empty() {
        out.push('\n');
        out.push_str(&samplers(&info.samplers, terminal));
    }
    if let Some(keeping) = &info.keeping {
        out.push('\n');
        wrap(&kept(keeping), terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if info.at_least == Some(true) {
        out.push('\n');
        wrap(AT_LEAST, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if let Some(text) = beside_the_battery(info) {
        out.push('\n');
        wrap(&text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    if !info.absent.is_empty() {
        let _ = writeln!(out, "\n{}", terminal.paint(Tone::Head, "Not there"));
        for absent in &info.absent {
            let _ = writeln!(out, "  {}", printable(&absent.source));
            for line in wrap(&absent.reason, terminal.width.map(|width| width.saturating_sub(4))) {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
    if let Some(text) = from_a_mac(info) {
        out.push('\n');
        wrap(text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    }
    out
}

/// What the user of a Mac can do for those who have none: Apple documents neither interface, and what is known of them
/// comes from other programs.
fn from_a_mac(info: &Info) -> Option<&'static str> {
    let of_apple = |source: &str| matches!(source, "ioreport" | "smc");
    let concerned = info.domains.iter().any(|domain| of_apple(&domain.source))
        || info.absent.iter().any(|absent| of_apple(&absent.source));
    concerned.then_some(
        "On a Mac: these sources were built without one, from what other programs say of interfaces that Apple does not \
         document. Please report what you see, right or wrong, with the output of `wattspan doctor --json`, of `sysctl \
         hw.model machdep.cpu.brand_string kern.osproductversion sysctl.proc_translated`, and, for comparison, of `sudo \
         powermetrics -n 1 -i 5000 --samplers cpu_power,gpu_power,ane_power` at rest and under load.",
    )
}

/// How the samplers kept their time: late and missed ticks are shown, never hidden.
fn samplers(samplers: &[SamplerStatus], terminal: Terminal) -> String {
    let mut table = Table::new([
        words("SAMPLER"),
        words("RUNS"),
        figures("TICKS"),
        figures("LATE"),
        figures("MISSED"),
        figures("HALF WITHIN"),
        figures("99 % WITHIN"),
        words("READS"),
    ]);
    for sampler in samplers {
        let lateness = |ns: Option<u64>| ns.map_or_else(|| "unknown".into(), time);
        let runs = match (sampler.realtime, sampler.pinned) {
            (true, true) => "real-time, pinned",
            (true, false) => "real-time",
            (false, true) => "pinned",
            (false, false) => "as others do",
        };
        let cells = vec![
            sampler.source.clone(),
            runs.into(),
            sampler.ticks.to_string(),
            sampler.late.to_string(),
            sampler.missed.to_string(),
            lateness(sampler.lateness_p50_ns),
            lateness(sampler.lateness_p99_ns),
            sampler.domains.join(" "),
        ];
        table.row(cells);
    }
    table.draw(terminal)
}

/// How the ledger on disk is.
fn kept(keeping: &Keeping) -> String {
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

/// What the batteries deliver beside the sum of what is counted: a slow check from outside, never part of any sum.
fn beside_the_battery(info: &Info) -> Option<String> {
    let domains = &info.domains;
    let of = |wanted: &dyn Fn(&DomainStatus) -> bool| -> Option<u64> {
        let powers: Vec<u64> =
            domains.iter().filter(|domain| wanted(domain)).filter_map(|domain| domain.power_mw).collect();
        (!powers.is_empty()).then(|| powers.iter().sum())
    };
    let batteries_mw = of(&|domain| domain.kind == Kind::Battery)?;
    let counted = of(&|domain| domain.counted).map_or("unknown".into(), |mw| power(mw, None));
    let counted = lower_bound(info.at_least, counted);
    Some(format!(
        "The battery delivers {}, the counted domains together {counted}: the display, the board and its regulators \
         use the rest.",
        power(batteries_mw, None)
    ))
}

fn domains(domains: &[DomainStatus], terminal: Terminal) -> String {
    let mut table = Table::new([
        words("DOMAIN"),
        words("SOURCE"),
        words("GRADE"),
        words("STATE"),
        words("TOTAL"),
        words("INSIDE"),
        figures("UPDATES"),
        figures("STEP"),
        figures("READ"),
        figures("POWER"),
    ]);
    for (depth, domain) in domain_tree::rows(domains, |domain| &domain.name, domains) {
        let figure = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "unknown".into()));
        let cells = vec![
            indented(&domain.name, depth),
            domain.source.as_str().into(),
            quality(domain.grade, domain.is_simulated()).into(),
            state(domain.liveness),
            domain_tree::total(domain.counted),
            domain.parent.as_deref().unwrap_or_default().into(),
            figure(domain.update_interval_ns.map(time)),
            figure(domain.quantum_uj.map(step)),
            figure(domain.read_cost_ns.map(time)),
            figure(domain.power_mw.map(|mw| power(mw, None))),
        ];
        let notes = [domain.reason.clone(), duplicate(domain), domain.residual.map(disagreement)];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        table.noted(cells, notes.join("; "));
    }
    table.draw(terminal)
}

/// Why totals are lower bounds.
const AT_LEAST: &str = "Totals are lower bounds: a domain is not counted while it is undecided whether it is a second name of \
                        a counted one. Load on the machine decides it sooner.";

/// Whether the domain is a second name of another.
fn duplicate(domain: &DomainStatus) -> Option<String> {
    let other = domain.duplicate_of.as_deref()?;
    Some(match domain.duplicate? {
        Duplicate::Same => format!("same counter as {other}: not counted"),
        Duplicate::Independent => format!("independent of {other}"),
        Duplicate::Undecided => {
            format!("undecided: may be a second name of {other}'s counter, so it is not counted yet")
        }
    })
}

/// A counter and the sensor of power beside it, which need not agree.
fn disagreement(residual: f64) -> String {
    let (percent, way) = (residual.abs() * 100.0, if residual < 0.0 { "less" } else { "more" });
    format!("its counter shows {percent:.1} % {way} than its own power readings add up to")
}

/// Fractions of a microjoule are told as they are; steps above are rounded as energy is.
fn step(uj: f64) -> String {
    if uj < 100.0 { format!("{uj:.1} µJ") } else { energy(uj.round() as u64, None) }
}

fn state(liveness: Liveness) -> Cell {
    match liveness {
        Liveness::Live => Cell::toned(Tone::Good, "live"),
        Liveness::Stuck => Cell::toned(Tone::Doubt, "stuck"),
        Liveness::Lost => Cell::toned(Tone::Doubt, "lost"),
        Liveness::Starting => Cell::toned(Tone::Doubt, "starting"),
    }
}

/// What the daemon could do with its privilege, had somebody taken it over.
fn confined(to: &Confinement) -> String {
    let capabilities = match to.capabilities.as_slice() {
        [] => "no capability".to_owned(),
        kept => kept.join(", "),
    };
    let says = |so: bool, yes: &'static str, no: &'static str| if so { yes } else { no };
    let refuses = match to.refused_system_calls.as_slice() {
        [] => String::new(),
        calls => format!("; it refuses itself {}", calls.join(", ")),
    };
    format!(
        "the daemon runs as user {} with {capabilities}, {}, {}, {}{refuses}",
        to.uid,
        says(to.no_new_privileges, "cannot gain more", "could gain more by starting a setuid program"),
        says(to.dumpable, "open to debuggers of its user", "closed to debuggers"),
        says(to.system_calls_filtered, "its system calls filtered", "every system call allowed"),
    )
}

fn allowed(access: Access) -> String {
    let what = match access {
        Access::None => {
            let join = join_commands(&[&Groups::default().span_group]);
            return format!("none (no energy; members of the group wattspan may measure: {join})");
        }
        Access::Coarse => "coarse (own spans of 100 ms and more, in steps of 1 mJ)",
        Access::Span => "span (own spans at full precision, and the host's totals)",
        Access::Telemetry => "telemetry (everybody's accounts, and the domains' stream)",
        Access::Admin => "admin (everything)",
    };
    what.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_described_with_what_may_be_lost_and_how_long_accounts_are_kept() {
        let sound = Keeping {
            durable: true,
            reason: None,
            bytes: 2_000_000,
            waiting: 0,
            not_kept: 0,
            keeps_s: None,
            limited_by: None,
            accounts_per_h: None,
            bytes_per_account: None,
        };
        assert_eq!(kept(&sound), "Accounts are on disk before they are answered (2.0 MB).");
        let lossy = Keeping { reason: Some("accounts 3 to 9 may be lost since T".into()), ..sound.clone() };
        assert!(
            kept(&lossy).contains("are on disk")
                && kept(&lossy).contains("accounts 3 to 9 may be lost since T")
        );
        let failing = Keeping { durable: false, ..lossy.clone() };
        assert!(kept(&failing).contains("not durable"));
        let busy = Keeping {
            keeps_s: Some(100_000),
            limited_by: Some("size".into()),
            accounts_per_h: Some(360_000),
            bytes_per_account: Some(200),
            ..sound
        };
        let text = kept(&busy);
        let rate =
            "At the rate of the last hours (360000 accounts an hour of 200 bytes) they are kept for 27 h";
        assert!(text.contains(rate) && text.contains("ledger.megabytes limits that"), "{text}");
    }
}
