//! `wattspan doctor --characterise`: measures what the guaranteed error assumes about each counter.
//!
//! Switches a load on and off while the meter's domains are watched, and shows update interval, lag, jitter and quantum beside
//! the assumed values, with the lines of the configuration that would set them. What could not be measured is shown as such,
//! never as the assumed value.

mod counter_fit;
pub mod square_wave;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::stdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use wattspan_client::domain::DomainKind;
use wattspan_client::protocol::{Access, DaemonInfo, DomainStatus};

use super::connect::{MeterConnector, MeterDescription, MeterOptions};
use super::domain_ticks::DomainTicks;
use super::exit_status::{CliError, FAILURE, NO_COUNTER, OK};
use super::output;
use super::quantity::{format_duration, format_power};
use super::table::{TextTable, number_column, text_column};
use super::terminal::{Terminal, TextStyle, printable, wrap};
use counter_fit::{CounterProfile, CounterSample, LoadWave};
use square_wave::{LoadSource, SwitchedLoad};

/// Interval of the snapshots: of a stream, and of queries, which count against the caller's rate limit.
const STREAM_INTERVAL: Duration = Duration::from_millis(1);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Options of `wattspan doctor --characterise`.
#[derive(Debug, Args)]
pub struct CharacteriseArgs {
    /// Measure update interval, lag, jitter and quantum of each counter under a load that is switched on and off, and print
    /// the lines of the configuration that would set them
    #[arg(long, conflicts_with = "bundle")]
    pub characterise: bool,
    /// Length of the measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "characterise",
          value_parser = clap::value_parser!(u32).range(2..=600))]
    load_seconds: u32,
}

/// A domain with what was measured of it.
#[derive(Debug, Serialize)]
struct CharacterisedDomain {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_interval_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jitter_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantum_uj: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ns: Option<u64>,
    /// Why the lag is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rest_mw: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_mw: Option<i64>,
    /// No time is known better than this.
    resolution_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed_update_interval_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed_update_interval_origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed_lag_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed_lag_origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed_quantum_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assumed_quantum_origin: Option<String>,
}

#[derive(Serialize)]
struct CharacteriseOutput {
    meter: MeterDescription,
    domains: Vec<CharacterisedDomain>,
    /// The lines of the configuration.
    configuration: String,
}

/// Runs `wattspan doctor --characterise`.
pub fn characterise(
    options: &MeterOptions,
    args: &CharacteriseArgs,
    load: Option<&str>,
) -> Result<u8, CliError> {
    let (connector, client) = MeterConnector::open(options)?;
    let info = client.info()?;
    if info.domains.is_empty() {
        return Err(CliError::new(NO_COUNTER, "there is no counter to measure; `wattspan doctor` says why"));
    }
    let source = load.map_or(LoadSource::Cpu, LoadSource::Command);
    let (wave, samples) = observe(&connector, &info, source, Duration::from_secs(args.load_seconds.into()))?;
    // The origins and the assumed values under load.
    let info = client.info()?;
    let is_cpu_load = load.is_none();
    let domains: Vec<CharacterisedDomain> =
        info.domains.iter().map(|domain| evaluate(domain, &samples, &wave, is_cpu_load)).collect();
    let configuration = configuration_lines(&domains);
    if options.json {
        let meter = connector.description();
        output::print_json(&CharacteriseOutput { meter, domains, configuration })?;
    } else {
        output::print_text(&render(&domains, &configuration, is_cpu_load, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

/// Watches the domains while the load is switched. Returns when that happened, and the samples of each domain.
fn observe(
    connector: &MeterConnector,
    info: &DaemonInfo,
    source: LoadSource<'_>,
    duration: Duration,
) -> Result<(LoadWave, BTreeMap<String, Vec<CounterSample>>), CliError> {
    let interval = if info.access >= Access::Telemetry { STREAM_INTERVAL } else { POLL_INTERVAL };
    let ticks = DomainTicks::open(connector, connector.connect()?, info, interval)?;
    let start_failed = |error| CliError::new(FAILURE, format!("cannot start the load: {error}"));
    let is_interrupted = interruption_flag().map_err(start_failed)?;
    let mut load = SwitchedLoad::start(source).map_err(start_failed)?;
    let mut samples: BTreeMap<String, Vec<CounterSample>> = BTreeMap::new();
    let wave = thread::scope(|scope| {
        let running = scope.spawn(|| load.run_wave(duration, &is_interrupted));
        for tick in ticks {
            let tick = tick?;
            for domain in tick.domains {
                if let Some(energy_uj) = domain.energy_uj {
                    let sample = CounterSample { at_ns: tick.now_ns, energy_uj };
                    samples.entry(domain.name).or_default().push(sample);
                }
            }
            if running.is_finished() {
                break;
            }
        }
        let wave = running.join().map_err(|_| CliError::new(FAILURE, "the load has failed"))?;
        Ok::<_, CliError>(wave)
    })?;
    if is_interrupted.load(Ordering::Relaxed) {
        return Err(CliError::new(FAILURE, "interrupted"));
    }
    if load.has_ended() {
        return Err(CliError::new(FAILURE, LOAD_ENDED));
    }
    Ok((wave, samples))
}

/// The error where the command of the load was too short.
pub const LOAD_ENDED: &str =
    "the command of --load ended during the measurement; give one that runs until it is ended";

/// A flag that a signal sets: the command of a load is in a process group of its own, so the terminal's signals do not reach
/// it.
///
/// # Errors
/// The signals cannot be handled.
pub fn interruption_flag() -> std::io::Result<Arc<AtomicBool>> {
    let is_interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&is_interrupted))?;
    }
    Ok(is_interrupted)
}

fn evaluate(
    domain: &DomainStatus,
    samples: &BTreeMap<String, Vec<CounterSample>>,
    wave: &LoadWave,
    is_cpu_load: bool,
) -> CharacterisedDomain {
    let profile =
        samples.get(&domain.name).map_or_else(CounterProfile::default, |list| counter_fit::fit(list, wave));
    // The meter's own readings locate updates that are faster than the snapshots.
    let by_meter = domain.update_interval_ns.filter(|_| {
        domain.update_interval_origin.as_deref() == Some("measured") && profile.update_interval_ns.is_none()
    });
    let lag_reason = match (&profile.lag, is_gpu(domain.kind) && is_cpu_load) {
        (Some(_), _) => None,
        (None, true) => Some("the CPUs were loaded; give --load COMMAND"),
        (None, false) if profile.updates == 0 => Some("it did not move"),
        (None, false) => Some("it did not follow the load"),
    };
    CharacterisedDomain {
        name: domain.name.clone(),
        update_interval_ns: profile.update_interval_ns.or(by_meter),
        jitter_ns: profile.jitter_ns,
        quantum_uj: profile.quantum_uj,
        lag_ns: profile.lag.map(|lag| lag.lag_ns),
        lag_reason,
        rest_mw: profile.lag.map(|lag| lag.rest_mw),
        load_mw: profile.lag.map(|lag| lag.load_mw),
        resolution_ns: profile.resolution_ns,
        assumed_update_interval_ns: domain.update_interval_ns,
        assumed_update_interval_origin: domain.update_interval_origin.clone(),
        assumed_lag_ns: domain.lag_ns,
        assumed_lag_origin: domain.lag_origin.clone(),
        assumed_quantum_uj: domain.assumed_quantum_uj,
        assumed_quantum_origin: domain.quantum_origin.clone(),
    }
}

fn is_gpu(kind: DomainKind) -> bool {
    matches!(kind, DomainKind::Gpu | DomainKind::GpuMemory)
}

/// The value of a key, where it was measured.
type ConfiguredValue<'a> = &'a dyn Fn(&CharacterisedDomain) -> Option<String>;

/// The lines that would set the measured values; empty where nothing was measured. A lag is the longest one: jitter and
/// resolution are added.
fn configuration_lines(domains: &[CharacterisedDomain]) -> String {
    let to_ms = |ns: u64| format!("{:.1}", ns as f64 / 1e6);
    let lag = |domain: &CharacterisedDomain| {
        let lag_ns = domain.lag_ns? + domain.jitter_ns.unwrap_or(0) + domain.resolution_ns;
        Some(to_ms(lag_ns.next_multiple_of(100_000)))
    };
    let interval = |domain: &CharacterisedDomain| domain.update_interval_ns.map(to_ms);
    let quantum = |domain: &CharacterisedDomain| Some(format!("{:.0}", domain.quantum_uj?.ceil()));
    let sections: [(&str, ConfiguredValue<'_>); 3] =
        [("lag_ms", &lag), ("update_interval_ms", &interval), ("quantum_uj", &quantum)];
    let mut out = String::new();
    for (section, value) in sections {
        let lines: Vec<String> = domains
            .iter()
            .filter_map(|domain| Some(format!("{} = {}\n", toml_key(&domain.name), value(domain)?)))
            .collect();
        if !lines.is_empty() {
            let _ = writeln!(out, "[{section}]");
            out.extend(lines);
        }
    }
    out
}

/// A bare key where TOML allows one.
fn toml_key(name: &str) -> String {
    let is_bare = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if is_bare { name.to_owned() } else { toml::Value::from(name).to_string() }
}

/// The measured values beside the assumed ones.
fn render_table(domains: &[CharacterisedDomain], terminal: Terminal) -> String {
    let mut table = TextTable::new([
        text_column("DOMAIN"),
        text_column("PROPERTY"),
        number_column("MEASURED"),
        number_column("ASSUMED"),
        text_column("ORIGIN"),
    ]);
    for domain in domains {
        let time = |ns: Option<u64>| ns.map_or_else(|| "unknown".into(), format_duration);
        let energy = |uj: Option<f64>| uj.map_or_else(|| "unknown".into(), |uj| format!("{uj:.1} µJ"));
        let origin = |origin: &Option<String>| origin.as_deref().map(printable).unwrap_or_default();
        let mut row = |name: &str, property: &str, measured, assumed, origin| {
            table.add_row(vec![name.to_owned(), property.to_owned(), measured, assumed, origin]);
        };
        row(
            &printable(&domain.name),
            "update interval",
            time(domain.update_interval_ns),
            time(domain.assumed_update_interval_ns),
            origin(&domain.assumed_update_interval_origin),
        );
        row("", "jitter", time(domain.jitter_ns), String::new(), String::new());
        row("", "lag", time(domain.lag_ns), time(domain.assumed_lag_ns), origin(&domain.assumed_lag_origin));
        row(
            "",
            "quantum",
            energy(domain.quantum_uj),
            energy(domain.assumed_quantum_uj.map(|uj| uj as f64)),
            origin(&domain.assumed_quantum_origin),
        );
    }
    table.render(terminal)
}

fn render(
    domains: &[CharacterisedDomain],
    configuration: &str,
    is_cpu_load: bool,
    terminal: Terminal,
) -> String {
    let mut out = render_table(domains, terminal);
    let mut paragraph = |text: &str| {
        out.push('\n');
        wrap(text, terminal.width).iter().for_each(|line| out.extend([line, "\n"]));
    };
    for domain in domains {
        let name = printable(&domain.name);
        match (domain.lag_reason, domain.rest_mw, domain.load_mw) {
            (Some(reason), ..) => paragraph(&format!("{name}: no lag was measured: {reason}.")),
            (None, Some(rest_mw), Some(load_mw)) => {
                let power = |mw: i64| format_power(u64::try_from(mw).unwrap_or(0), None);
                let resolution = format_duration(domain.resolution_ns);
                paragraph(&format!(
                    "{name}: {} at rest, {} under load; times are known to {resolution}.",
                    power(rest_mw),
                    power(load_mw)
                ));
            }
            _ => {}
        }
    }
    if is_cpu_load {
        paragraph("The load was on the CPUs. For a GPU give a command that loads it: --load COMMAND.");
    }
    if !configuration.is_empty() {
        let _ = writeln!(
            out,
            "\n{}\n{configuration}",
            terminal.paint(TextStyle::Heading, "Configuration that sets the measured values")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> DomainStatus {
        serde_json::from_value(serde_json::json!({
            "name": "gpu-0", "kind": "gpu", "source": "nvml", "counted": true, "grade": "measured", "liveness": "live",
            "update_interval_ns": 33_000_000, "update_interval_origin": "configured", "lag_ns": 70_000_000,
            "lag_origin": "update_interval", "assumed_quantum_uj": 7777, "quantum_origin": "specification",
        }))
        .unwrap()
    }

    /// A counter of 20 ms that shows the load 50 ms late.
    fn lagging_samples() -> (LoadWave, BTreeMap<String, Vec<CounterSample>>) {
        const MS: u64 = 1_000_000;
        let switched_ns = (0..20).map(|at| 1_000 * MS + at * 333 * MS + at * at * 7 * MS).collect();
        let wave = LoadWave { switched_ns };
        let is_on =
            |at_ns: u64| wave.switched_ns.iter().filter(|switched| **switched <= at_ns).count() % 2 == 1;
        let mut energy_uj = vec![0_u64];
        for ms in 0..12_000 {
            energy_uj.push(energy_uj[ms as usize] + if is_on(ms * MS) { 150_000 } else { 30_003 });
        }
        let sample = |ms: u64| {
            let update = (ms - 50) / 20 * 20;
            CounterSample { at_ns: ms * MS, energy_uj: energy_uj[update as usize] / 1000 * 1000 }
        };
        let samples = (100..12_000).map(sample).collect();
        (wave, [("gpu-0".to_owned(), samples)].into())
    }

    #[test]
    fn measured_values_are_beside_the_assumed_ones_and_become_configuration() {
        let (wave, samples) = lagging_samples();
        let domain = evaluate(&status(), &samples, &wave, false);
        let lag_ns = domain.lag_ns.unwrap();
        assert!((48_000_000..=53_000_000).contains(&lag_ns), "{lag_ns}");
        let configuration = configuration_lines(std::slice::from_ref(&domain));
        let parsed: toml::Table = configuration.parse().unwrap();
        let lag_ms = parsed["lag_ms"]["gpu-0"].as_float().unwrap();
        assert!((50.0..56.0).contains(&lag_ms), "{lag_ms}");
        assert_eq!(parsed["update_interval_ms"]["gpu-0"].as_float(), Some(20.0));
        assert_eq!(parsed["quantum_uj"]["gpu-0"].as_integer(), Some(1000));
        let shown = render(&[domain], &configuration, false, Terminal::PLAIN);
        for expected in [
            "33.00 ms",
            "configured",
            "70.00 ms",
            "update_interval",
            "7777.0 µJ",
            "specification",
            "20.00 ms",
        ] {
            assert!(shown.contains(expected), "{expected}\n{shown}");
        }
        assert!(shown.contains("30.00 W at rest, 150.0 W under load"), "{shown}");
        assert!(!configuration.contains("33") && !configuration.contains("70"), "{configuration}");
    }

    #[test]
    fn what_was_not_measured_is_neither_assumed_nor_configured() {
        let domain = evaluate(&status(), &BTreeMap::new(), &LoadWave::default(), true);
        assert_eq!((domain.lag_ns, domain.update_interval_ns, domain.quantum_uj), (None, None, None));
        assert_eq!(configuration_lines(std::slice::from_ref(&domain)), "");
        let shown = render(&[domain], "", true, Terminal::PLAIN);
        assert!(shown.contains("unknown") && shown.contains("give --load COMMAND"), "{shown}");
        assert!(!shown.contains("Configuration that sets"), "{shown}");
    }
}
