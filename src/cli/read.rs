//! `wattspan read`: every domain's energy and power, now or again and again.
//!
//! Owns the power between two ticks, which is the energy between them over the time between them: what a meter's own
//! needle shows. Total power is that of the counted domains, and unknown where one of them is.

use std::io::{Write, stdout};
use std::time::Duration;

use super::Meter;
use super::ending::Trouble;
use super::quantity::{energy, lower_bound, mean_mw, power_alone, unknown};
use super::reach::{Reach, something_to_measure};
use super::report::grade;
use super::table::{Table, figures, words};
use super::terminal::{Terminal, Tone, columns, printable};
use super::tick::Ticks;
use crate::client::Failure;
use crate::energy::{Grade, Liveness};
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
}

/// Between the two ticks of a single reading: long enough for any counter but a battery's.
const ONCE: Duration = Duration::from_millis(500);

/// Width of a figure in the running view.
const FIGURE: usize = 10;

/// Reads and tells.
pub fn read(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let (reach, client) = Reach::of(meter)?;
    let info = client.info()?;
    something_to_measure(&info)?;
    if !meter.json {
        reach.tell();
    }
    let many = asked.interval.is_some() || asked.count.is_some();
    let interval = asked.interval.unwrap_or(if many { Duration::from_secs(1) } else { ONCE });
    let ticks = Ticks::open(&reach, client, &info, interval)?;
    let wanted = if many { asked.count } else { Some(1) };
    let mut view = View { json: meter.json, running: many, terminal: Terminal::of(&stdout()), headed: false };
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

struct View {
    json: bool,
    running: bool,
    terminal: Terminal,
    headed: bool,
}

impl View {
    fn show(&mut self, before: &DomainTick, now: &DomainTick) -> Result<(), Trouble> {
        let text = match (self.json, self.running) {
            (true, _) => serde_json::to_string(now)? + "\n",
            (false, false) => self.table(before, now),
            (false, true) => self.line(before, now),
        };
        let mut out = stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    fn table(&self, before: &DomainTick, now: &DomainTick) -> String {
        let heads = [words("DOMAIN"), figures("POWER"), figures("ENERGY"), words("GRADE"), words("TOTAL")];
        let mut table = Table::new(heads);
        for domain in &now.domains {
            let remark =
                if domain.liveness == Liveness::Live { "" } else { domain.reason.as_deref().unwrap_or("") };
            let cells = vec![
                printable(&domain.name),
                shown(power_between(before, now, domain)),
                domain.energy_uj.map_or_else(|| "unknown".into(), |uj| energy(uj, None)),
                grade(domain.grade).into(),
                if domain.counted { "counted" } else { "" }.into(),
            ];
            table.noted(cells, printable(remark));
        }
        let (total, worst) = total(before, now);
        let total =
            total.map_or_else(|| unknown("a counted domain gives no reading"), |total| shown(Some(total)));
        let total = lower_bound(now.at_least, total);
        let total = self.terminal.paint(Tone::Figure, &total);
        let worst = worst.map_or("", grade);
        format!("{}\n  this machine: {total}   {worst}\n", table.draw(self.terminal))
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
        let width = |name: &str| columns(name).max(FIGURE);
        let needed: usize = cells.iter().map(|(name, _)| width(name) + 2).sum();
        let mark = if worst == Some(Grade::Estimated) { "  (estimated)" } else { "" };
        if self.terminal.width.is_some_and(|wide| needed + mark.len() > wide) {
            let lines = cells.iter().map(|(name, figure)| format!("{name} {figure}{mark}\n"));
            return lines.chain(["\n".to_owned()]).collect();
        }
        let mut out = String::new();
        if !std::mem::replace(&mut self.headed, true) {
            let heads: String =
                cells.iter().map(|(name, _)| format!("  {name:>w$}", w = width(name))).collect();
            out.push_str(&self.terminal.paint(Tone::Quiet, &heads));
            out.push('\n');
        }
        out.extend(cells.iter().map(|(name, figure)| format!("  {figure:>w$}", w = width(name))));
        out + mark + "\n"
    }
}

fn shown(power: Option<(u64, Option<u64>)>) -> String {
    power.map_or_else(|| "unknown".into(), |(mw, error)| power_alone(mw, error))
}

/// Power between the ticks, with the error that the counter's steps leave.
fn power_between(before: &DomainTick, now: &DomainTick, domain: &DomainStatus) -> Option<(u64, Option<u64>)> {
    if domain.liveness != Liveness::Live {
        return None;
    }
    let earlier = before.domains.iter().find(|other| other.name == domain.name)?;
    let used_uj = domain.energy_uj?.checked_sub(earlier.energy_uj?)?;
    let time_ns = now.now_ns.checked_sub(before.now_ns)?;
    let power_mw = mean_mw(used_uj, time_ns)?;
    // Either edge may lie one update away from where the counter says it is.
    let error = domain.update_interval_ns.and_then(|interval_ns| {
        let error_mw = u128::from(power_mw) * u128::from(interval_ns) / u128::from(time_ns);
        u64::try_from(error_mw).ok()
    });
    Some((power_mw, error))
}

/// The counted domains' power with its error, and the worst of their grades.
fn total(before: &DomainTick, now: &DomainTick) -> (Option<(u64, Option<u64>)>, Option<Grade>) {
    let counted = || now.domains.iter().filter(|domain| domain.counted);
    let powers: Option<Vec<_>> = counted().map(|domain| power_between(before, now, domain)).collect();
    let sum = powers.filter(|powers| !powers.is_empty()).map(|powers| {
        let error = powers.iter().map(|(_, error)| *error).sum();
        (powers.iter().map(|(mw, _)| mw).sum(), error)
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
