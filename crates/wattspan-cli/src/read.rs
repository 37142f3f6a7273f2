//! `wattspan read`: shows each domain's energy and power, once or periodically.
//!
//! Power is the energy between two snapshots divided by the time between them. Total power is the sum over the counted
//! domains, and unknown if one of them is unknown. Times are UTC.

use std::io::stdout;
use std::time::Duration;

use serde::Serialize;
use wattspan_client::domain::{Grade, Liveness};
use wattspan_client::protocol::{DomainSnapshot, DomainStatus};
use wattspan_client::{ClientError, clock};

use super::account_report::{TOO_SHORT, grade_label, grade_name};
use super::connect::{MeterConnector, MeterOptions, ensure_measurable};
use super::domain_ticks::DomainTicks;
use super::domain_tree::{self, indented_name};
use super::exit_status::{CliError, USAGE};
use super::quantity::{
    format_duration, format_energy, format_lower_bound, format_power_value, format_unknown, is_within_error,
    mean_mw,
};
use super::table::{TableCell, TextTable, number_column, text_column};
use super::terminal::{Terminal, TextStyle, display_width, pad_left, pad_right, printable};
use super::utc_time::format_rfc3339;
use super::{csv, output};

/// Arguments of `wattspan read`.
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    /// Repeat every SECONDS until interrupted
    #[arg(long, short = 'I', value_name = "SECONDS", value_parser = parse_interval)]
    interval: Option<Duration>,
    /// Stop after N readings
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print comma-separated values with a header, one line per domain and time; unknown values are empty
    #[arg(long)]
    csv: bool,
}

/// Interval of a single reading: longer than the update interval of every counter except a battery's.
const SINGLE_READ_INTERVAL: Duration = Duration::from_millis(500);

/// Minimum column width of the periodic output.
const VALUE_WIDTH: usize = 10;

const CSV_HEADER: &str = "time,domain,power_w,power_error_w,energy_j,grade,liveness,counted,simulated\n";

/// Runs `wattspan read`.
pub fn read(options: &MeterOptions, args: &ReadArgs) -> Result<u8, CliError> {
    let format = match (options.json, args.csv) {
        (true, true) => {
            return Err(CliError::new(USAGE, "--json and --csv are mutually exclusive: remove one of them"));
        }
        (true, false) => ReadFormat::Json,
        (false, true) => ReadFormat::Csv,
        (false, false) if args.interval.is_some() || args.count.is_some() => ReadFormat::Lines,
        (false, false) => ReadFormat::Table,
    };
    let (connector, client) = MeterConnector::open(options)?;
    let info = client.info()?;
    ensure_measurable(&info)?;
    if format != ReadFormat::Json {
        connector.print_fallback_notice();
    }
    let repeats = args.interval.is_some() || args.count.is_some();
    let interval =
        args.interval.unwrap_or(if repeats { Duration::from_secs(1) } else { SINGLE_READ_INTERVAL });
    let ticks = DomainTicks::open(&connector, client, &info, interval)?;
    let limit = if repeats { args.count } else { Some(1) };
    let mut view = ReadView { format, terminal: Terminal::of(&stdout()), header_printed: false };
    let mut before: Option<DomainSnapshot> = None;
    let mut printed = 0;
    for tick in ticks {
        let tick = tick?;
        if let Some(before) = &before {
            view.print(before, &tick)?;
            printed += 1;
            if Some(printed) == limit {
                return Ok(super::exit_status::OK);
            }
        }
        before = Some(tick);
    }
    Err(ClientError::ConnectionClosed.into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadFormat {
    Table,
    Lines,
    Csv,
    Json,
}

/// A snapshot with its wall-clock time, for JSON output.
#[derive(Serialize)]
struct TimestampedTick<'a> {
    unix_ns: u64,
    #[serde(flatten)]
    tick: &'a DomainSnapshot,
}

struct ReadView {
    format: ReadFormat,
    terminal: Terminal,
    header_printed: bool,
}

impl ReadView {
    fn print(&mut self, before: &DomainSnapshot, now: &DomainSnapshot) -> Result<(), CliError> {
        match self.format {
            ReadFormat::Json => {
                output::print_json(&TimestampedTick { unix_ns: wall_clock_ns(now), tick: now })
            }
            ReadFormat::Table => output::print_text(&self.render_table(before, now)),
            ReadFormat::Lines => output::print_text(&self.render_line(before, now)),
            ReadFormat::Csv => output::print_text(&self.render_csv(before, now)),
        }
    }

    fn render_table(&self, before: &DomainSnapshot, now: &DomainSnapshot) -> String {
        let columns = [
            text_column("DOMAIN"),
            number_column("POWER"),
            number_column("ENERGY"),
            text_column("GRADE"),
            text_column("TOTAL"),
        ];
        let mut table = TextTable::new(columns);
        for (depth, domain) in domain_tree::order_rows(&now.domains, |domain| &domain.name, &now.domains) {
            let power = power_between(before, now, domain);
            let updates = power.filter(|power| power.too_short).map(|_| match domain.update_interval_ns {
                Some(ns) => format!("updates every {}: choose a longer --interval", format_duration(ns)),
                None => "its update interval is not known yet: choose a longer --interval".into(),
            });
            let note = if domain.liveness == Liveness::Live { updates } else { domain.reason.clone() };
            let cells = vec![
                indented_name(&domain.name, depth),
                format_interval_power(power).into(),
                domain
                    .energy_uj
                    .map_or_else(|| "unknown".into(), |uj| TableCell::from(format_energy(uj, None))),
                grade_label(domain.grade, domain.is_simulated()).into(),
                domain_tree::counted_cell(domain.counted),
            ];
            table.add_row_with_note(cells, note.unwrap_or_default());
        }
        let (total, worst) = total_power(before, now);
        let total = total.map_or_else(
            || format_unknown("a counted domain has no reading"),
            |total| format_interval_power(Some(total)),
        );
        let total = format_lower_bound(now.at_least, total);
        let total = self.terminal.paint(TextStyle::Value, &total);
        let worst = worst.map_or_else(String::new, |worst| grade_label(worst, is_simulated(now)));
        let at = format_rfc3339(wall_clock_ns(now));
        format!("{}\n  this machine: {total}   {worst}   {at}\n", table.render(self.terminal))
    }

    /// One line per tick with a column per domain, or one line per domain if the terminal is too narrow.
    fn render_line(&mut self, before: &DomainSnapshot, now: &DomainSnapshot) -> String {
        let mut cells: Vec<(String, String)> = now
            .domains
            .iter()
            .map(|domain| {
                (printable(&domain.name), format_interval_power(power_between(before, now, domain)))
            })
            .collect();
        let (total, worst) = total_power(before, now);
        let name = if now.at_least == Some(true) { "total (at least)" } else { "total" };
        cells.push((name.into(), format_interval_power(total)));
        let at = format_rfc3339(wall_clock_ns(now));
        let width = |name: &str| display_width(name).max(VALUE_WIDTH);
        let needed: usize = at.len() + cells.iter().map(|(name, _)| width(name) + 2).sum::<usize>();
        let grade_suffix = match (is_simulated(now), worst) {
            (true, _) => "  (simulated)",
            (false, Some(Grade::Estimated)) => "  (estimated)",
            (false, _) => "",
        };
        if self.terminal.width.is_some_and(|width| needed + grade_suffix.len() > width) {
            let lines = cells.iter().map(|(name, figure)| format!("{name} {figure}{grade_suffix}\n"));
            return std::iter::once(format!("{at}\n")).chain(lines).chain(["\n".to_owned()]).collect();
        }
        let mut out = String::new();
        if !std::mem::replace(&mut self.header_printed, true) {
            let mut header = pad_right("TIME", at.len());
            header.extend(cells.iter().map(|(name, _)| format!("  {}", pad_left(name, width(name)))));
            out.push_str(&self.terminal.paint(TextStyle::Dim, &header));
            out.push('\n');
        }
        out += &at;
        out.extend(cells.iter().map(|(name, figure)| format!("  {}", pad_left(figure, width(name)))));
        out + grade_suffix + "\n"
    }

    fn render_csv(&mut self, before: &DomainSnapshot, now: &DomainSnapshot) -> String {
        let header = if std::mem::replace(&mut self.header_printed, true) { "" } else { CSV_HEADER };
        let mut out = header.to_owned();
        let at = format_rfc3339(wall_clock_ns(now));
        for domain in &now.domains {
            let power = power_between(before, now, domain).filter(|power| !power.too_short);
            let cells = [
                at.clone(),
                csv::escape_cell(&domain.name),
                power.map_or_else(String::new, |power| csv::format_thousandths(power.mw)),
                power.and_then(|power| power.error_mw).map_or_else(String::new, csv::format_thousandths),
                domain.energy_uj.map_or_else(String::new, csv::format_millionths),
                grade_name(domain.grade).into(),
                liveness_name(domain.liveness).into(),
                domain.counted.to_string(),
                domain.is_simulated().to_string(),
            ];
            out += &(cells.join(",") + "\n");
        }
        out
    }
}

/// The name of a liveness in the protocol.
fn liveness_name(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Live => "live",
        Liveness::Stuck => "stuck",
        Liveness::Lost => "lost",
        Liveness::Starting => "starting",
    }
}

/// The wall-clock time of a snapshot. Its monotonic time is of this machine.
fn wall_clock_ns(tick: &DomainSnapshot) -> u64 {
    clock::unix_ns().saturating_sub(clock::monotonic_ns().saturating_sub(tick.now_ns))
}

/// The power of a domain between two ticks.
#[derive(Debug, Clone, Copy)]
struct IntervalPower {
    mw: u64,
    error_mw: Option<u64>,
    /// The interval is too short for the counter.
    too_short: bool,
}

fn format_interval_power(power: Option<IntervalPower>) -> String {
    match power {
        None => "unknown".into(),
        Some(power) if power.too_short => TOO_SHORT.into(),
        Some(power) => format_power_value(power.mw, power.error_mw),
    }
}

/// Power between two snapshots, with the error of one counter update at either end.
fn power_between(
    before: &DomainSnapshot,
    now: &DomainSnapshot,
    domain: &DomainStatus,
) -> Option<IntervalPower> {
    if domain.liveness != Liveness::Live {
        return None;
    }
    let earlier = before.domains.iter().find(|other| other.name == domain.name)?;
    let used_uj = domain.energy_uj?.checked_sub(earlier.energy_uj?)?;
    let time_ns = now.now_ns.checked_sub(before.now_ns)?;
    let mw = mean_mw(used_uj, time_ns)?;
    // Either end may be off by up to one update interval.
    let error_mw = domain.update_interval_ns.and_then(|interval_ns| {
        let error_mw = u128::from(mw) * u128::from(interval_ns) / u128::from(time_ns);
        u64::try_from(error_mw).ok()
    });
    // Without a known update interval, an unchanged counter does not mean zero power.
    let too_short = domain.update_interval_ns.map_or(used_uj == 0, |interval_ns| time_ns < interval_ns);
    Some(IntervalPower { mw, error_mw, too_short })
}

/// Whether the machine is replayed from a file.
fn is_simulated(tick: &DomainSnapshot) -> bool {
    tick.domains.iter().any(DomainStatus::is_simulated)
}

/// Total power of the counted domains with its error, and their worst grade.
fn total_power(before: &DomainSnapshot, now: &DomainSnapshot) -> (Option<IntervalPower>, Option<Grade>) {
    let counted = || now.domains.iter().filter(|domain| domain.counted);
    let powers: Option<Vec<IntervalPower>> =
        counted().map(|domain| power_between(before, now, domain)).collect();
    let sum = powers.filter(|powers| !powers.is_empty()).map(|powers| {
        let mw = powers.iter().map(|power| power.mw).sum();
        let error_mw: Option<u64> = powers.iter().map(|power| power.error_mw).sum();
        let within_error = error_mw.is_some_and(|error_mw| is_within_error(mw, error_mw));
        IntervalPower { mw, error_mw, too_short: within_error || powers.iter().all(|power| power.too_short) }
    });
    (sum, counted().map(|domain| domain.grade).max())
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if !(0.01..=86_400.0).contains(&seconds) {
        return Err("expected 0.01 to 86400 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
