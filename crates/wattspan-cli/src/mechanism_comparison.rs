//! `wattspan doctor --compare`: how far the mechanisms that show the same energy disagree under load.
//!
//! Reads the mechanisms in this process, because a daemon reads each domain by one mechanism only. The load is on the CPUs,
//! or a command of the user: this program cannot load a GPU.

use std::io::stdout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use wattspan::embedded::{self, ComparedMechanism, MechanismPair};
use wattspan_client::domain::Absent;

use super::busy_loop::keep_busy;
use super::characterise::square_wave::{LoadSource, SwitchedLoad};
use super::characterise::{LOAD_ENDED, interruption_flag};
use super::connect::{MeterOptions, load_config};
use super::exit_status::{CliError, FAILURE, OK, USAGE};
use super::output;
use super::quantity::{format_duration, format_energy};
use super::table::{TextTable, number_column, text_column};
use super::terminal::{Terminal, TextStyle, printable, wrap};

/// The load is on and off in turns, so that mechanisms with different delays or ranges differ.
const LOAD_PERIOD: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct ComparisonOutput<'a> {
    /// `cpu` or `command`.
    load: &'static str,
    compared: Vec<PairOutput<'a>>,
    absent: &'a [Absent],
}

#[derive(Serialize)]
struct PairOutput<'a> {
    first: MechanismOutput<'a>,
    second: MechanismOutput<'a>,
    /// Whether what was compared was loaded: a GPU by a command only.
    loaded: bool,
    period_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference_ppm: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution_ppm: Option<u64>,
}

#[derive(Serialize)]
struct MechanismOutput<'a> {
    source: &'a str,
    domains: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    energy_uj: Option<u64>,
}

/// Runs `wattspan doctor --compare`. `command`: the load instead of that of the CPUs.
pub fn compare(options: &MeterOptions, seconds: u32, command: Option<&str>) -> Result<u8, CliError> {
    if options.socket.is_some() {
        let reason = "mechanisms are compared in this process, since a daemon reads one for each domain";
        return Err(CliError::new(USAGE, format!("{reason}: remove --socket")));
    }
    let (config, notice) = load_config(options)?;
    if let Some(notice) = notice {
        output::eprint_message(&notice);
    }
    output::eprint_message(&format!("comparing for {seconds} s"));
    let duration = Duration::from_secs(seconds.into());
    let mut loaded = Ok(());
    let (pairs, absent) = embedded::compare_mechanisms(&config, duration, |duration| match command {
        None => load_all_cpus(duration),
        Some(command) => loaded = run_command(command, duration),
    });
    loaded?;
    let is_cpu_load = command.is_none();
    if options.json {
        let compared = pairs.iter().map(|pair| pair_output(pair, is_cpu_load)).collect();
        let load = if is_cpu_load { "cpu" } else { "command" };
        output::print_json(&ComparisonOutput { load, compared, absent: &absent })?;
    } else {
        output::print_text(&render_comparison(&pairs, &absent, is_cpu_load, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

/// Runs the user's load all the time, and ends it.
fn run_command(command: &str, duration: Duration) -> Result<(), CliError> {
    let start_failed = |error| CliError::new(FAILURE, format!("cannot start the load: {error}"));
    let is_interrupted = interruption_flag().map_err(start_failed)?;
    let mut load = SwitchedLoad::start(LoadSource::Command(command)).map_err(start_failed)?;
    load.run_steady(duration, &is_interrupted);
    match (is_interrupted.load(Ordering::Relaxed), load.has_ended()) {
        (true, _) => Err(CliError::new(FAILURE, "interrupted")),
        (false, true) => Err(CliError::new(FAILURE, LOAD_ENDED)),
        (false, false) => Ok(()),
    }
}

/// Keeps all CPUs busy and idle in turns.
fn load_all_cpus(duration: Duration) {
    let deadline = Instant::now() + duration;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let sleep_period = || thread::sleep(LOAD_PERIOD.min(deadline.saturating_duration_since(Instant::now())));
    while Instant::now() < deadline {
        let busy = AtomicBool::new(true);
        thread::scope(|scope| {
            for _ in 0..cpus {
                scope.spawn(|| keep_busy(&busy));
            }
            sleep_period();
            busy.store(false, Ordering::Relaxed);
        });
        sleep_period();
    }
}

fn pair_output(pair: &MechanismPair, is_cpu_load: bool) -> PairOutput<'_> {
    PairOutput {
        loaded: !(is_cpu_load && pair.is_gpu),
        first: mechanism_output(&pair.first),
        second: mechanism_output(&pair.second),
        period_ns: pair.period_ns,
        difference_ppm: pair.difference_ppm,
        resolution_ppm: pair.resolution_ppm,
    }
}

fn mechanism_output(mechanism: &ComparedMechanism) -> MechanismOutput<'_> {
    let ComparedMechanism { source, domains, energy_uj } = mechanism;
    MechanismOutput { source, domains, energy_uj: *energy_uj }
}

fn render_comparison(
    pairs: &[MechanismPair],
    absent: &[Absent],
    is_cpu_load: bool,
    terminal: Terminal,
) -> String {
    let mut out = String::new();
    if pairs.is_empty() {
        out.push_str("no two mechanisms of this machine show the same energy\n");
    } else {
        out.push_str(&render_pairs(pairs, terminal));
        for line in wrap(NOTICE, terminal.width) {
            out.extend(["\n", &line]);
        }
        out.push('\n');
        for pair in pairs.iter().filter(|pair| is_cpu_load && pair.is_gpu) {
            let name = printable(&pair.first.domains.join(" + "));
            let text =
                format!("{name} was compared without a load: give a command that loads it, --load COMMAND.");
            wrap(&text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
        }
    }
    if !absent.is_empty() {
        out.extend(["\n", &terminal.paint(TextStyle::Heading, "Unavailable sources"), "\n"]);
    }
    for Absent { source, reason } in absent {
        out.extend(["  ", &printable(source), "\n"]);
        for line in wrap(reason, terminal.width.map(|width| width.saturating_sub(4))) {
            out.extend(["    ", &line, "\n"]);
        }
    }
    out
}

const NOTICE: &str = "DIFFERENCE is what the second shows more than the first. RESOLUTION is what the steps of both may explain. \
                      A platform, its power supplies and its batteries contain more than the sum of the parts.";

fn render_pairs(pairs: &[MechanismPair], terminal: Terminal) -> String {
    let mut table = TextTable::new([
        text_column("FIRST"),
        text_column("SOURCE"),
        number_column("ENERGY"),
        text_column("SECOND"),
        text_column("SOURCE"),
        number_column("ENERGY"),
        number_column("DIFFERENCE"),
        number_column("RESOLUTION"),
        number_column("PERIOD"),
    ]);
    for pair in pairs {
        let energy = |side: &ComparedMechanism| {
            side.energy_uj.map_or_else(|| "unknown".to_owned(), |uj| format_energy(uj, None))
        };
        let percent = |ppm: f64, sign: &str| format!("{sign}{:.2} %", ppm / 1e4);
        let difference = pair.difference_ppm.map(|ppm| percent(ppm as f64, if ppm > 0 { "+" } else { "" }));
        let resolution = pair.resolution_ppm.map(|ppm| percent(ppm as f64, ""));
        table.add_row(vec![
            pair.first.domains.join(" + "),
            pair.first.source.clone(),
            energy(&pair.first),
            pair.second.domains.join(" + "),
            pair.second.source.clone(),
            energy(&pair.second),
            difference.unwrap_or_else(|| "unknown".into()),
            resolution.unwrap_or_else(|| "unknown".into()),
            format_duration(pair.period_ns),
        ]);
    }
    table.render(terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, is_gpu: bool) -> MechanismPair {
        let mechanism = |source: &str| ComparedMechanism {
            source: source.into(),
            domains: vec![name.into()],
            energy_uj: Some(1_000_000),
        };
        MechanismPair {
            first: mechanism("nvml"),
            second: mechanism("hwmon"),
            period_ns: 1_000_000_000,
            difference_ppm: Some(0),
            resolution_ppm: Some(0),
            is_gpu,
        }
    }

    #[test]
    fn a_gpu_that_no_command_loaded_is_named() {
        let pairs = [pair("package-0", false), pair("gpu-0", true)];
        let shown = |is_cpu_load| {
            render_comparison(&pairs, &[], is_cpu_load, Terminal { colour: false, width: None })
        };
        let hint = "gpu-0 was compared without a load: give a command that loads it, --load COMMAND.";
        assert_eq!(shown(true).matches("without a load").count(), 1, "{}", shown(true));
        assert!(shown(true).contains(hint), "{}", shown(true));
        assert!(!shown(false).contains("without a load"), "{}", shown(false));
        let loaded = |is_cpu_load| pairs.each_ref().map(|pair| pair_output(pair, is_cpu_load).loaded);
        assert_eq!((loaded(true), loaded(false)), ([true, false], [true, true]));
    }
}
