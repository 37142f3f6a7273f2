//! `wattspan read`: every domain's energy and power, now or again and again.
//!
//! Owns the power between two ticks, which is the energy between them over the time between them: what a meter's own
//! needle shows. Total power is that of the counted domains, and unknown where one of them is. Times are UTC.

use std::io::stdout;
use std::time::Duration;

use serde::Serialize;

use super::domain_tree::{self, indented};
use super::ending::{Trouble, USAGE};
use super::quantity::{energy, is_lost_in, lower_bound, mean_mw, power_alone, time, unknown};
use super::reach::{Reach, something_to_measure};
use super::report::{TOO_SHORT, grade, quality};
use super::since::rfc3339;
use super::table::{Cell, Table, figures, words};
use super::terminal::{Terminal, Tone, columns, padded, padded_before, printable};
use super::tick::Ticks;
use super::{Meter, csv, output};
use crate::client::Failure;
use crate::clock;
use crate::domain::{Grade, Liveness};
use crate::protocol::{DomainStatus, DomainTick};

/// How often, and how many times.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Again every SECONDS, until interrupted
    #[arg(long, short = 'I', value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
    /// Stop after N times
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Write comma-separated values, one line for each domain and time, below a header; an unknown value is an empty cell
    #[arg(long)]
    csv: bool,
}

/// Between the two ticks of a single reading: long enough for any counter but a battery's.
const ONCE: Duration = Duration::from_millis(500);

/// Width of a figure in the running view.
const FIGURE: usize = 10;

/// The first line of the comma-separated values.
const CSV_HEAD: &str = "time,domain,power_w,power_error_w,energy_j,grade,liveness,counted,simulated\n";

/// Reads and tells.
pub fn read(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let form = match (meter.json, asked.csv) {
        (true, true) => {
            return Err(Trouble::new(
                USAGE,
                "--json and --csv are two forms of one answer: leave one of them out",
            ));
        }
        (true, false) => Form::Json,
        (false, true) => Form::Csv,
        (false, false) if asked.interval.is_some() || asked.count.is_some() => Form::Lines,
        (false, false) => Form::Table,
    };
    let (reach, client) = Reach::of(meter)?;
    let info = client.info()?;
    something_to_measure(&info)?;
    if form != Form::Json {
        reach.tell();
    }
    let many = asked.interval.is_some() || asked.count.is_some();
    let interval = asked.interval.unwrap_or(if many { Duration::from_secs(1) } else { ONCE });
    let ticks = Ticks::open(&reach, client, &info, interval)?;
    let wanted = if many { asked.count } else { Some(1) };
    let mut view = View { form, terminal: Terminal::of(&stdout()), headed: false };
    let mut before: Option<DomainTick> = None;
    let mut told = 0;
    for tick in ticks {
        let tick = tick?;
        if let Some(before) = &before {
            view.show(before, &tick)?;
            told += 1;
            if Some(told) == wanted {
                return Ok(super::ending::OK);
            }
        }
        before = Some(tick);
    }
    Err(Failure::Gone.into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Lines,
    Csv,
    Json,
}

/// A tick with its wall time, as JSON has it.
#[derive(Serialize)]
struct Timed<'a> {
    unix_ns: u64,
    #[serde(flatten)]
    tick: &'a DomainTick,
}

struct View {
    form: Form,
    terminal: Terminal,
    headed: bool,
}

impl View {
    fn show(&mut self, before: &DomainTick, now: &DomainTick) -> Result<(), Trouble> {
        match self.form {
            Form::Json => output::json(&Timed { unix_ns: wall_ns(now), tick: now }),
            Form::Table => output::text(&self.table(before, now)),
            Form::Lines => output::text(&self.line(before, now)),
            Form::Csv => output::text(&self.csv(before, now)),
        }
    }

    fn table(&self, before: &DomainTick, now: &DomainTick) -> String {
        let heads = [words("DOMAIN"), figures("POWER"), figures("ENERGY"), words("GRADE"), words("TOTAL")];
        let mut table = Table::new(heads);
        for (depth, domain) in domain_tree::rows(&now.domains, |domain| &domain.name, &now.domains) {
            let power = power_between(before, now, domain);
            let updates = power.filter(|power| power.too_short).map(|_| match domain.update_interval_ns {
                Some(ns) => format!("updates every {}: choose a longer --interval", time(ns)),
                None => "its update interval is not known yet: choose a longer --interval".into(),
            });
            let remark = if domain.liveness == Liveness::Live { updates } else { domain.reason.clone() };
            let cells = vec![
                indented(&domain.name, depth),
                shown(power).into(),
                domain.energy_uj.map_or_else(|| "unknown".into(), |uj| Cell::from(energy(uj, None))),
                quality(domain.grade, domain.is_simulated()).into(),
                domain_tree::total(domain.counted),
            ];
            table.noted(cells, remark.unwrap_or_default());
        }
        let (total, worst) = total(before, now);
        let total =
            total.map_or_else(|| unknown("a counted domain gives no reading"), |total| shown(Some(total)));
        let total = lower_bound(now.at_least, total);
        let total = self.terminal.paint(Tone::Figure, &total);
        let worst = worst.map_or_else(String::new, |worst| quality(worst, simulated(now)));
        let at = rfc3339(wall_ns(now));
        format!("{}\n  this machine: {total}   {worst}   {at}\n", table.draw(self.terminal))
    }

    /// One line for each tick, one column for each domain, or a line for each where they do not fit.
    fn line(&mut self, before: &DomainTick, now: &DomainTick) -> String {
        let mut cells: Vec<(String, String)> = now
            .domains
            .iter()
            .map(|domain| (printable(&domain.name), shown(power_between(before, now, domain))))
            .collect();
        let (total, worst) = total(before, now);
        let name = if now.at_least == Some(true) { "total (at least)" } else { "total" };
        cells.push((name.into(), shown(total)));
        let at = rfc3339(wall_ns(now));
        let width = |name: &str| columns(name).max(FIGURE);
        let needed: usize = at.len() + cells.iter().map(|(name, _)| width(name) + 2).sum::<usize>();
        let mark = match (simulated(now), worst) {
            (true, _) => "  (simulated)",
            (false, Some(Grade::Estimated)) => "  (estimated)",
            (false, _) => "",
        };
        if self.terminal.width.is_some_and(|wide| needed + mark.len() > wide) {
            let lines = cells.iter().map(|(name, figure)| format!("{name} {figure}{mark}\n"));
            return std::iter::once(format!("{at}\n")).chain(lines).chain(["\n".to_owned()]).collect();
        }
        let mut out = String::new();
        if !std::mem::replace(&mut self.headed, true) {
            let mut heads = padded("TIME", at.len());
            heads.extend(cells.iter().map(|(name, _)| format!("  {}", padded_before(name, width(name)))));
            out.push_str(&self.terminal.paint(Tone::Quiet, &heads));
            out.push('\n');
        }
        out += &at;
        out.extend(cells.iter().map(|(name, figure)| format!("  {}", padded_before(figure, width(name)))));
        out + mark + "\n"
    }

    /// A line for each domain.
    fn csv(&mut self, before: &DomainTick, now: &DomainTick) -> String {
        let head = if std::mem::replace(&mut self.headed, true) { "" } else { CSV_HEAD };
        let mut out = head.to_owned();
        let at = rfc3339(wall_ns(now));
        for domain in &now.domains {
            let power = power_between(before, now, domain).filter(|power| !power.too_short);
            let cells = [
                at.clone(),
                csv::cell(&domain.name),
                power.map_or_else(String::new, |power| csv::thousandths(power.mw)),
                power.and_then(|power| power.error_mw).map_or_else(String::new, csv::thousandths),
                domain.energy_uj.map_or_else(String::new, csv::millionths),
                grade(domain.grade).into(),
                liveness(domain.liveness).into(),
                domain.counted.to_string(),
                domain.is_simulated().to_string(),
            ];
            out += &(cells.join(",") + "\n");
        }
        out
    }
}

/// The liveness's name, as in the contract.
fn liveness(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Live => "live",
        Liveness::Stuck => "stuck",
        Liveness::Lost => "lost",
        Liveness::Starting => "starting",
    }
}

/// When a tick was, on the wall's clock; the meter's clock is this machine's.
fn wall_ns(tick: &DomainTick) -> u64 {
    clock::unix_ns().saturating_sub(clock::monotonic_ns().saturating_sub(tick.now_ns))
}

/// The power of a domain between two ticks.
#[derive(Debug, Clone, Copy)]
struct Power {
    mw: u64,
    error_mw: Option<u64>,
    /// The time between the ticks is too short for the counter.
    too_short: bool,
}

fn shown(power: Option<Power>) -> String {
    match power {
        None => "unknown".into(),
        Some(power) if power.too_short => TOO_SHORT.into(),
        Some(power) => power_alone(power.mw, power.error_mw),
    }
}

/// Power between the ticks, with the error that the counter's steps leave.
fn power_between(before: &DomainTick, now: &DomainTick, domain: &DomainStatus) -> Option<Power> {
    if domain.liveness != Liveness::Live {
        return None;
    }
    let earlier = before.domains.iter().find(|other| other.name == domain.name)?;
    let used_uj = domain.energy_uj?.checked_sub(earlier.energy_uj?)?;
    let time_ns = now.now_ns.checked_sub(before.now_ns)?;
    let mw = mean_mw(used_uj, time_ns)?;
    // Either edge may lie one update away from where the counter says it is.
    let error_mw = domain.update_interval_ns.and_then(|interval_ns| {
        let error_mw = u128::from(mw) * u128::from(interval_ns) / u128::from(time_ns);
        u64::try_from(error_mw).ok()
    });
    // A counter that has not moved shows no power of 0 while it is not known how often it moves.
    let too_short = domain.update_interval_ns.map_or(used_uj == 0, |interval_ns| time_ns < interval_ns);
    Some(Power { mw, error_mw, too_short })
}

/// Whether a domain is replayed from a file.
fn simulated(tick: &DomainTick) -> bool {
    tick.domains.iter().any(DomainStatus::is_simulated)
}

/// The counted domains' power with its error, and the worst of their grades.
fn total(before: &DomainTick, now: &DomainTick) -> (Option<Power>, Option<Grade>) {
    let counted = || now.domains.iter().filter(|domain| domain.counted);
    let powers: Option<Vec<Power>> = counted().map(|domain| power_between(before, now, domain)).collect();
    let sum = powers.filter(|powers| !powers.is_empty()).map(|powers| {
        let mw = powers.iter().map(|power| power.mw).sum();
        let error_mw: Option<u64> = powers.iter().map(|power| power.error_mw).sum();
        let lost = error_mw.is_some_and(|error_mw| is_lost_in(mw, error_mw));
        Power { mw, error_mw, too_short: lost || powers.iter().all(|power| power.too_short) }
    });
    (sum, counted().map(|domain| domain.grade).max())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if !(0.01..=86_400.0).contains(&seconds) {
        return Err("choose from 0.01 to 86400 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
