//! CPU time of a sampler and lateness of its ticks, on four files that simulate counters.
//!
//! CPU time is that of this whole process, idle, at 1 kHz and at 10 kHz; lateness is measured while other processes
//! keep every CPU busy. The source reads and parses four open files in memory, which costs as much as four powercap
//! files and more than one perf group. Compare missed ticks with the floor: those that a real-time thread that never
//! sleeps loses on this machine.
//!
//! Run with `cargo bench --bench sampler`, as root or with RLIMIT_RTPRIO for the real-time rows.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wattspan::clock::{Clock, monotonic_ns};
use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade};
use wattspan::ring::Sample;
use wattspan::sampler::{self, Sampler, SamplerSettings, TickStats};
use wattspan::sources::{OpenedSource, Source};

mod table;

use table::Table;

const DOMAINS: usize = 4;
/// As the first argument, makes this program keep one CPU busy until it is killed.
const BURN_ARG: &str = "burn";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(BURN_ARG) {
        loop {
            std::hint::spin_loop();
        }
    }
    let seconds =
        std::env::var("WATTSPAN_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    match measure(Duration::from_secs(seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sampler bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(duration: Duration) -> std::io::Result<()> {
    let (floor, watched_s) = measure_steal(duration)?;
    let title = format!("sampler: {DOMAINS} domains, {} s a row, {} CPUs", duration.as_secs(), cpus());
    let mut table = Table::new(&title);
    table.note(&format!("floor: 1 kHz ticks that no thread can make ({watched_s:.0} s)"), Some(floor), "%");
    table.at_most("at rest, 1 Hz: CPU", Some(cpu_percent(&slow_sampler()?, duration)), 0.1, "%");
    for (rate_hz, target) in [(1000.0, 3.0), (10_000.0, 25.0)] {
        let quiet = fast_sampler(rate_hz)?;
        table.at_most(
            &format!("{rate_hz} Hz, nothing else running: CPU"),
            Some(cpu_percent(&quiet, duration)),
            target,
            "%",
        );
        report_lateness(&mut table, rate_hz, "nothing else running", &quiet.stats(), None);
        drop(quiet);
        let load = CpuLoad::start(cpus())?;
        let busy = fast_sampler(rate_hz)?;
        table.at_most(
            &format!("{rate_hz} Hz, every CPU busy: CPU"),
            Some(cpu_percent(&busy, duration)),
            target,
            "%",
        );
        let limits = (rate_hz == 1000.0).then_some((100.0, 0.01));
        report_lateness(&mut table, rate_hz, "every CPU busy", &busy.stats(), limits);
        drop(load);
    }
    measure_schedules(&mut table, duration)?;
    measure_wake_up(&mut table)?;
    measure_edge_reads(&mut table)?;
    Ok(())
}

/// CPU and reads with one span open and eight edges a second: at the fixed rate, and by the schedule of edges. The rows
/// alternate, so that both see the same machine.
fn measure_schedules(table: &mut Table, duration: Duration) -> std::io::Result<()> {
    const EDGES_PER_SECOND: u32 = 8;
    const ROUNDS: u32 = 3;
    let mut totals = [(0.0, 0.0); 2];
    for _ in 0..ROUNDS {
        for (fixed_rate, total) in [true, false].into_iter().zip(&mut totals) {
            let settings = SamplerSettings { fixed_rate, ..SamplerSettings::default() };
            let sampler = sampler::start(moving(true)?, &settings, Clock::Machine)?;
            sampler.set_fast(true);
            // The survey at the start.
            std::thread::sleep(Duration::from_millis(500));
            let (reads, began, before) = (sampler.stats().ticks, Instant::now(), process_time());
            while began.elapsed() < duration / ROUNDS {
                std::thread::sleep(Duration::from_secs(1) / EDGES_PER_SECOND);
                sampler.report_edge(monotonic_ns());
            }
            let seconds = began.elapsed().as_secs_f64();
            total.0 += 100.0 * (process_time() - before).as_secs_f64() / seconds / f64::from(ROUNDS);
            total.1 += (sampler.stats().ticks - reads) as f64 / seconds / f64::from(ROUNDS);
        }
    }
    let [fixed, by_edges] = totals;
    let label = |what: &str| format!("1 span, {EDGES_PER_SECOND} edges a second, {what}");
    table.note(&label("1000 Hz: CPU"), Some(fixed.0), "%");
    table.note(&label("1000 Hz: reads a second"), Some(fixed.1), "");
    table.at_most(&label("by edges: CPU"), Some(by_edges.0), 0.5, "%");
    table.note(&label("by edges: reads a second"), Some(by_edges.1), "");
    table.note(&label("by edges / 1000 Hz: CPU"), Some(by_edges.0 / fixed.0), "");
    Ok(())
}

/// The time from an edge to the end of the reading after it: on the reporting thread, and on the sampler's thread.
fn measure_edge_reads(table: &mut Table) -> std::io::Result<()> {
    for (can_block, what) in [(false, "read on the reporting thread"), (true, "read on the woken thread")] {
        let sampler = sampler::start(moving(can_block)?, &SamplerSettings::default(), Clock::Machine)?;
        sampler.set_fast(true);
        std::thread::sleep(Duration::from_millis(500));
        let (ring, mut took_ns) = (sampler.stream().ring, Vec::new());
        let mut sample = Sample::empty(DOMAINS);
        for round in 0..300 {
            std::thread::sleep(Duration::from_micros(5_000 + 37 * round));
            let (written, edge_ns) = (ring.written_count(), monotonic_ns());
            sampler.report_edge(edge_ns);
            while ring.written_count() == written {
                std::hint::spin_loop();
            }
            assert!(ring.read(written, &mut sample), "the ring holds it");
            took_ns.push(sample.after_ns.saturating_sub(edge_ns));
        }
        took_ns.sort_unstable();
        table.note(&format!("edge, {what}: p50"), Some(took_ns[took_ns.len() / 2] as f64 / 1000.0), "us");
        table.note(
            &format!("edge, {what}: p99"),
            Some(took_ns[took_ns.len() * 99 / 100] as f64 / 1000.0),
            "us",
        );
    }
    Ok(())
}

/// The fraction of 1 kHz ticks, in %, that a thread without sleep and system calls loses because the machine takes its
/// CPU away (usually a hypervisor), and the seconds observed. No sampler can miss fewer.
fn measure_steal(duration: Duration) -> std::io::Result<(f64, f64)> {
    let lost = Arc::new(AtomicU64::new(0));
    let spinner =
        OpenedSource { source: Box::new(Spinner(Arc::clone(&lost))), max_rate_hz: 1.0, ..opened()? };
    let sampler = sampler::start(spinner, &slow_settings(), Clock::Machine)?;
    sampler.set_fast(true);
    std::thread::sleep(duration.max(Duration::from_secs(2)));
    let watched_ms = sampler.stats().ticks * Spinner::SPIN_NS / 1_000_000;
    Ok((100.0 * lost.load(Ordering::Relaxed) as f64 / watched_ms as f64, watched_ms as f64 / 1000.0))
}

/// A source without a counter: each read spins on the clock and counts the milliseconds in which it did not run.
struct Spinner(Arc<AtomicU64>);

impl Spinner {
    /// Below the runtime at which the kernel throttles real-time threads.
    const SPIN_NS: u64 = 450_000_000;
}

impl Source for Spinner {
    fn read(&mut self, _: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let began_ns = monotonic_ns();
        let (mut last_ns, mut lost) = (began_ns, 0);
        while last_ns - began_ns < Self::SPIN_NS {
            let now_ns = monotonic_ns();
            lost += (now_ns - last_ns) / 1_000_000;
            last_ns = now_ns;
        }
        self.0.fetch_add(lost, Ordering::Relaxed);
        None
    }
}

/// Prints lateness in µs and missed ticks in %, against limits for the p99 and the misses where given.
fn report_lateness(
    table: &mut Table,
    rate_hz: f64,
    condition: &str,
    ticks: &TickStats,
    limits: Option<(f64, f64)>,
) {
    let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1000.0);
    let class = if ticks.realtime { "SCHED_FIFO" } else { "NOT real-time" };
    let label = |what: &str| format!("{rate_hz} Hz, {condition}, {class}: {what}");
    let missed = 100.0 * ticks.missed as f64 / (ticks.ticks + ticks.missed) as f64;
    table.note(&label("late p50"), us(ticks.lateness_p50_ns), "us");
    match limits {
        Some((p99_us, max_missed)) => {
            table.at_most(&label("p99"), us(ticks.lateness_p99_ns), p99_us, "us");
            table.at_most(&label("missed"), Some(missed), max_missed, "%");
        }
        None => {
            table.note(&label("p99"), us(ticks.lateness_p99_ns), "us");
            table.note(&label("missed"), Some(missed), "%");
        }
    }
    table.note(&label("read p50"), us(ticks.read_cost_ns), "us");
}

/// The time from a switch to the fast rate, while slow, to the end of the reading that it triggers.
fn measure_wake_up(table: &mut Table) -> std::io::Result<()> {
    let sampler =
        sampler::start(opened()?, &SamplerSettings { linger_ns: 0, ..slow_settings() }, Clock::Machine)?;
    let (ring, mut took_ns, mut calls_ns) = (sampler.stream().ring, Vec::new(), Vec::new());
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(5));
        let (written, asked_ns) = (ring.written_count(), monotonic_ns());
        sampler.set_fast(true);
        calls_ns.push(monotonic_ns() - asked_ns);
        while ring.written_count() == written {
            std::hint::spin_loop();
        }
        took_ns.push(monotonic_ns() - asked_ns);
        sampler.set_fast(false);
    }
    for (what, mut ns) in [("the call", calls_ns), ("until the reading is there", took_ns)] {
        ns.sort_unstable();
        table.note(&format!("demand at rest, {what}: p50"), Some(ns[ns.len() / 2] as f64 / 1000.0), "us");
        table.note(
            &format!("demand at rest, {what}: p99"),
            Some(ns[ns.len() * 99 / 100] as f64 / 1000.0),
            "us",
        );
    }
    Ok(())
}

/// CPU time of this process while `sampler` runs, in % of one core.
fn cpu_percent(sampler: &Sampler, duration: Duration) -> f64 {
    // After the start-up, in the steady state.
    std::thread::sleep(Duration::from_millis(200));
    let (began, before) = (Instant::now(), process_time());
    std::thread::sleep(duration);
    let spent = process_time() - before;
    assert!(sampler.stats().ticks > 0, "a sampler that did not tick costs nothing");
    100.0 * spent.as_secs_f64() / began.elapsed().as_secs_f64()
}

fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn slow_settings() -> SamplerSettings {
    SamplerSettings { characterisation_ns: 0, ..SamplerSettings::default() }
}

fn slow_sampler() -> std::io::Result<Sampler> {
    sampler::start(opened()?, &slow_settings(), Clock::Machine)
}

fn fast_sampler(rate_hz: f64) -> std::io::Result<Sampler> {
    let sampler = sampler::start(opened()?, &SamplerSettings { rate_hz, ..slow_settings() }, Clock::Machine)?;
    sampler.set_fast(true);
    Ok(sampler)
}

/// Processes that keep every CPU busy; killed on drop.
struct CpuLoad(Vec<Child>);

impl CpuLoad {
    fn start(count: usize) -> std::io::Result<Self> {
        let program = std::env::current_exe()?;
        let burner = |_| Command::new(&program).arg(BURN_ARG).stdin(Stdio::null()).spawn();
        let load = (0..count).map(burner).collect::<std::io::Result<_>>().map(Self);
        std::thread::sleep(Duration::from_millis(500));
        load
    }
}

impl Drop for CpuLoad {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            // It may have exited already.
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

/// Four open files with one number each, as in powercap.
struct Files(Vec<File>);

impl Source for Files {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        for (file, reading) in self.0.iter().zip(into) {
            let mut text = [0; 32];
            let Ok(length) = rustix::io::pread(file, &mut text, 0) else { continue };
            let digits = text[..length].iter().take_while(|byte| byte.is_ascii_digit());
            reading.energy_uj = digits.fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
            reading.valid = true;
        }
        None
    }
}

/// The same four files, with counters that move each 976.6 µs.
struct MovingFiles {
    files: Files,
    can_block: bool,
}

impl Source for MovingFiles {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        self.files.read(into);
        let updates = monotonic_ns() * 10 / 9_766_000;
        into.iter_mut().for_each(|reading| reading.energy_uj += updates * 50_000);
        None
    }

    fn can_block(&self) -> bool {
        self.can_block
    }
}

fn moving(can_block: bool) -> std::io::Result<OpenedSource> {
    let mut opened = opened_with(|files| Box::new(MovingFiles { files, can_block }))?;
    opened.domains.iter_mut().for_each(|domain| domain.ceiling_mw = Some(300_000));
    opened.max_rate_hz = 10_000.0;
    Ok(opened)
}

fn opened() -> std::io::Result<OpenedSource> {
    opened_with(|files| Box::new(files))
}

fn opened_with(source: impl FnOnce(Files) -> Box<dyn Source>) -> std::io::Result<OpenedSource> {
    let memory = std::path::Path::new("/dev/shm");
    let files = (0..DOMAINS).map(|index| {
        let mut file = if memory.is_dir() { tempfile::tempfile_in(memory) } else { tempfile::tempfile() }?;
        writeln!(file, "{}", 123_456_789_012_u64 + index as u64)?;
        Ok(file)
    });
    let domain = |index| Domain {
        name: format!("package-{index}"),
        kind: DomainKind::Package,
        source: "files".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj: 1,
    };
    Ok(OpenedSource {
        name: "files",
        source: source(Files(files.collect::<std::io::Result<_>>()?)),
        domains: (0..DOMAINS).map(domain).collect(),
        cpu: Some(cpus() - 1),
        max_rate_hz: f64::INFINITY,
        advanced: vec![true; DOMAINS],
    })
}
