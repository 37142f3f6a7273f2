//! The check itself: what to measure, in which state of the machine, and the text of the report.
//!
//! Calls NVML through the wrapper, beside the meter's own source, so that the two can be compared.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use wattspan::clock::{Clock, monotonic_ns, unix_ns};
use wattspan::ring::Sample;
use wattspan::sampler::{self, counter_profile::CounterProfile};
use wattspan::sources::{SourceSettings, discover, nvml};

const TOTAL_ENERGY: u32 = 83;
const ENERGY: u32 = 191;
const POWER_INSTANT: u32 = 186;
const CALLS: usize = 200;
const WINDOWS_MS: [u64; 4] = [500, 1_000, 2_000, 5_000];

/// Measures this machine's NVIDIA GPUs and writes the figures down.
#[derive(Parser)]
struct Flags {
    /// Directory for the JSON file; made where it is not there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// How long each part is watched
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// A shell command that keeps the GPUs busy until it is killed
    #[arg(long, value_name = "COMMAND")]
    load: Option<String>,
    /// How long the load takes to get going
    #[arg(long, default_value_t = 15)]
    warm_up_seconds: u64,
    /// Another library than the system's
    #[arg(long, value_name = "FILE", default_value = "libnvidia-ml.so.1")]
    nvml_library: OsString,
}

/// Measures, prints and writes.
pub fn check() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(path) => {
            println!("written to {}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nvml_check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<PathBuf, Box<dyn Error>> {
    let library = Nvml::builder().lib_path(&flags.nvml_library).init()?;
    let mut report = json!({
        "began_unix_ns": unix_ns(),
        "driver": library.sys_driver_version().ok(),
        "nvml": library.sys_nvml_version().ok(),
        "kernel": fs::read_to_string("/proc/version").ok(),
        "boards": boards(&library)?,
    });
    report["at_rest"] = measure_state(flags, &library, "at rest")?;
    if let Some(load) = &flags.load {
        let load = LoadProcess::start(load)?;
        sleep(Duration::from_secs(flags.warm_up_seconds));
        report["under_load"] = measure_state(flags, &library, "under load")?;
        drop(load);
        report["after_load"] = measure_state(flags, &library, "after the load")?;
    } else {
        println!("no --load: only at rest");
    }
    fs::create_dir_all(&flags.into)?;
    let path = flags.into.join(format!("nvml-{}.json", unix_ns() / 1_000_000_000));
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    Ok(path)
}

fn boards(library: &Nvml) -> Result<Value, Box<dyn Error>> {
    let board = |index| -> Result<Value, Box<dyn Error>> {
        let device = library.device_by_index(index)?;
        Ok(json!({
            "index": index,
            "uuid": device.uuid()?,
            "name": device.name().ok(),
            "pci": device.pci_info().ok().map(|pci| pci.bus_id),
            "architecture": device.architecture().ok().map(|architecture| format!("{architecture:?}")),
            "mig": device.mig_mode().ok().map(|mode| mode.current),
            "limit_mw": device.enforced_power_limit().ok(),
            "limits_mw": device.power_management_limit_constraints().ok().map(|of| [of.min_limit, of.max_limit]),
        }))
    };
    (0..library.device_count()?).map(board).collect::<Result<Vec<_>, _>>().map(Value::from)
}

/// Everything, in one state of the machine.
fn measure_state(flags: &Flags, library: &Nvml, state: &str) -> Result<Value, Box<dyn Error>> {
    println!("{state}:");
    let each = Duration::from_secs(flags.seconds);
    let mut results = Vec::new();
    for index in 0..library.device_count()? {
        let device = library.device_by_index(index)?;
        let trail = watch(&device, each);
        let board = json!({
            "index": index,
            "calls": costs(&device),
            "moves": moves(&trail),
            "stamps": stamps(&device),
            "residual": residuals(&trail),
        });
        println!("  board {index}: {board}");
        results.push(board);
    }
    let meter = meter(flags, each)?;
    println!("  the meter: {meter}");
    Ok(json!({ "boards": results, "meter": meter }))
}

/// A load in a process group of its own; ended with this value.
struct LoadProcess(Child);

impl LoadProcess {
    fn start(command: &str) -> std::io::Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        shell.spawn().map(LoadProcess)
    }
}

impl Drop for LoadProcess {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // Already gone is as good.
        let _ = group.map(|group| kill_process_group(group, Signal::TERM));
        let _ = self.0.wait();
    }
}

fn field(device: &Device<'_>, id: u32) -> Option<u64> {
    let mut answers = device.field_values_for(&[FieldId(id)]).ok()?;
    match answers.pop()?.ok()?.value.ok()? {
        SampleValue::F64(value) => Some(value as u64),
        SampleValue::U32(value) => Some(value.into()),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => u64::try_from(value).ok(),
    }
}

/// Percentiles; `null` where there is nothing.
fn percentiles(mut values: Vec<u64>) -> Value {
    values.sort_unstable();
    let at = |part: f64| values.get(((values.len().saturating_sub(1)) as f64 * part) as usize).copied();
    json!({ "count": values.len(), "min": at(0.0), "p5": at(0.05), "p50": at(0.5), "p95": at(0.95), "max": at(1.0) })
}

fn cost(mut call: impl FnMut() -> bool) -> Value {
    if !call() {
        return Value::Null;
    }
    let (mut wall_ns, mut cpu_ns) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        let (began, before) = (Instant::now(), thread_ns());
        call();
        cpu_ns.push(thread_ns() - before);
        wall_ns.push(began.elapsed().as_nanos() as u64);
        sleep(Duration::from_millis(3));
    }
    json!({ "wall_ns": percentiles(wall_ns), "cpu_ns": percentiles(cpu_ns) })
}

fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn costs(device: &Device<'_>) -> Value {
    json!({
        "nvmlDeviceGetTotalEnergyConsumption": cost(|| device.total_energy_consumption().is_ok()),
        "field 83, energy": cost(|| field(device, TOTAL_ENERGY).is_some()),
        "field 191, energy": cost(|| field(device, ENERGY).is_some()),
        "field 186, power of the moment": cost(|| field(device, POWER_INSTANT).is_some()),
        "nvmlDeviceGetPowerUsage": cost(|| device.power_usage().is_ok()),
    })
}

/// One look: when, the counter, the power of the moment.
type PowerSample = (u64, Option<u64>, Option<u64>);

/// Looks each millisecond, or as often as the calls let.
fn watch(device: &Device<'_>, each: Duration) -> Vec<PowerSample> {
    let (began, mut trail) = (Instant::now(), Vec::new());
    while began.elapsed() < each {
        let before_ns = monotonic_ns();
        let energy_mj = device.total_energy_consumption().ok();
        let at_ns = before_ns + (monotonic_ns() - before_ns) / 2;
        trail.push((at_ns, energy_mj, field(device, POWER_INSTANT)));
        sleep(Duration::from_millis(1));
    }
    trail
}

/// How often and by how much a figure moves.
fn update_statistics(trail: &[PowerSample], figure: impl Fn(&PowerSample) -> Option<u64>) -> Value {
    let (mut intervals_ns, mut steps, mut last) = (Vec::new(), Vec::new(), None::<(Option<u64>, u64)>);
    for look in trail {
        let Some(value) = figure(look) else { continue };
        match last {
            Some((moved_ns, before)) if before != value => {
                intervals_ns.extend(moved_ns.map(|moved_ns| look.0 - moved_ns));
                steps.push(before.abs_diff(value));
                last = Some((Some(look.0), value));
            }
            Some(_) => {}
            None => last = Some((None, value)),
        }
    }
    json!({ "interval_ns": percentiles(intervals_ns), "step": percentiles(steps) })
}

fn moves(trail: &[PowerSample]) -> Value {
    let gaps_ns = trail.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    json!({
        "look_gap_ns": percentiles(gaps_ns),
        "counter_mj": update_statistics(trail, |look| look.1),
        "power_mw": update_statistics(trail, |look| look.2),
    })
}

/// How old a field's time stamp is, and what it says that it took; and whether the stamp moves when the value does not.
fn stamps(device: &Device<'_>) -> Value {
    let (mut age_us, mut latency_us, mut moved_alone, mut still) = (Vec::new(), Vec::new(), 0, 0);
    let mut last = None;
    for _ in 0..CALLS {
        let now_us = unix_ns() / 1_000;
        let Ok(mut answers) = device.field_values_for(&[FieldId(POWER_INSTANT)]) else { return Value::Null };
        let Some(Ok(answer)) = answers.pop() else { return Value::Null };
        age_us.push(now_us.saturating_sub(answer.timestamp.max(0) as u64));
        latency_us.push(answer.latency.max(0) as u64);
        let value = field(device, POWER_INSTANT);
        if let Some((stamp, before)) = last.replace((answer.timestamp, value)) {
            moved_alone += u32::from(stamp != answer.timestamp && before == value);
            still += u32::from(stamp == answer.timestamp);
        }
        sleep(Duration::from_millis(5));
    }
    json!({
        "age_us": percentiles(age_us), "latency_us": percentiles(latency_us),
        "stamp_moved_and_value_did_not": moved_alone, "stamp_stood_still": still,
    })
}

/// Counter over integrated power, less 1, in windows that begin and end where the counter moved.
fn residuals(trail: &[PowerSample]) -> Value {
    let (mut integral_mj, mut last, mut edges) = (0.0, None::<(u64, u64)>, Vec::<(u64, u64, f64)>::new());
    for &(at_ns, energy_mj, power_mw) in trail {
        let (Some(energy_mj), Some(power_mw)) = (energy_mj, power_mw) else { continue };
        if let Some((last_ns, last_mw)) = last.replace((at_ns, power_mw)) {
            integral_mj += (at_ns - last_ns) as f64 * (last_mw + power_mw) as f64 / 2e9;
        }
        if edges.last().is_none_or(|edge| edge.1 != energy_mj) {
            edges.push((at_ns, energy_mj, integral_mj));
        }
    }
    let ratio = |from: &(u64, u64, f64), to: &(u64, u64, f64)| {
        let (counter, sensor) = (to.1.saturating_sub(from.1) as f64, to.2 - from.2);
        (sensor > 0.0).then(|| counter / sensor - 1.0)
    };
    let mut results =
        json!({ "whole": edges.first().zip(edges.last()).and_then(|(from, to)| ratio(from, to)) });
    for window_ms in WINDOWS_MS {
        let mut off: Vec<f64> = Vec::new();
        let mut from = 0;
        for to in 0..edges.len() {
            if edges[to].0 - edges[from].0 >= window_ms * 1_000_000 {
                off.extend(ratio(&edges[from], &edges[to]));
                from = to;
            }
        }
        off.sort_by(f64::total_cmp);
        let middle = off.get(off.len() / 2).copied();
        results[format!("{window_ms} ms")] = json!({
            "windows": off.len(), "least": off.first(), "median": middle, "most": off.last(),
        });
    }
    results
}

/// What the meter's own source and sampler make of the boards at their own pace.
fn meter(flags: &Flags, each: Duration) -> Result<Value, Box<dyn Error>> {
    let nvml_library = Some((&flags.nvml_library).into());
    let settings =
        SourceSettings { nvml_library, enabled: vec![nvml::NAME.into()], ..SourceSettings::default() };
    let found = discover(&settings, &Clock::Machine);
    let absent: Vec<_> = found.absent.iter().map(|absent| absent.reason.clone()).collect();
    let start = |opened| sampler::start(opened, &sampler::SamplerSettings::default(), Clock::Machine);
    let samplers = found.opened.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
    samplers.iter().for_each(|sampler| sampler.set_fast(true));
    sleep(each.max(Duration::from_secs(6)));
    let mut domains = Vec::new();
    for sampler in &samplers {
        let (stream, ticks) = (sampler.stream(), sampler.stats());
        let mut sample = Sample::empty(stream.domains.len());
        let mut profiles: Vec<_> =
            stream.advanced.iter().map(|&advanced| CounterProfile::new(advanced)).collect();
        for index in stream.ring.oldest_index()..stream.ring.written_count() {
            if stream.ring.read(index, &mut sample) {
                for (profile, reading) in profiles.iter_mut().zip(&sample.readings) {
                    profile.observe(sample.before_ns, sample.after_ns, reading);
                }
            }
        }
        for (domain, profile) in stream.domains.iter().zip(&profiles) {
            let (liveness, reason) = profile.liveness();
            domains.push(json!({
                "domain": domain.name, "device": domain.device, "grade": domain.grade, "rate_hz": stream.rate_hz,
                "liveness": liveness, "reason": reason, "update_interval_ns": profile.update_interval_ns(),
                "quantum_uj": profile.quantum_uj(), "read_cost_ns": profile.read_cost_ns(),
                "power_mw": profile.power_mw(), "residual": profile.residual(),
                "ticks": ticks.ticks, "late": ticks.late, "missed": ticks.missed,
                "lateness_p99_ns": ticks.lateness_p99_ns,
            }));
        }
    }
    Ok(json!({ "domains": domains, "absent": absent }))
}
