//! Cost of eight NVIDIA boards next to two CPU sockets, and delays that slow calls into their driver cause elsewhere.
//!
//! Measures the daemon's CPU time and wake-ups by thread while a span is open at the default rates, and the lateness of a
//! CPU source's ticks while boards respond in 7 ms. The boards belong to the tests' fake library, with a configured cost
//! per read, and report that the bench uses half of each; the sockets are powercap trees in memory, whose counters a thread
//! of the bench moves each 976.6 µs. The daemon is the program itself and no child of the bench, as on a real machine: the
//! processes of a span would contain it.
//!
//! Run with `cargo bench --bench gpus` on a quiet machine, as root for real-time ticks; on a busy one under `chrt -f 20`,
//! since late counters have no phase and are read at the fixed rate.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wattspan::clock::{Clock, monotonic_ns};
use wattspan::sampler::{self, Sampler, TickStats};
use wattspan::sources::{SourceSettings, discover};
use wattspan_client::Client;

#[path = "../tests/fake/nvml/mod.rs"]
mod nvml;
mod table;

use nvml::{Knob, Library};
use table::Table;

const BOARDS: u64 = 8;
const EDGES_PER_SECOND: u32 = 8;

/// Parts of the daemon, and how the names of their threads begin.
const PARTS: [(&str, &str); 5] = [
    ("the boards' threads", "sampler-nvml"),
    ("the sockets' threads", "sampler-powerca"),
    ("the use of boards by process", "nvml-use"),
    ("the server", "wattspand"),
    ("the store", "store"),
];

fn main() -> ExitCode {
    let seconds =
        std::env::var("WATTSPAN_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    match measure(Duration::from_secs(seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpus bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(each: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let mut table = Table::new(&format!("{BOARDS} GPUs and 2 sockets, {} s a row", each.as_secs()));
    let calls = [
        ("a counter in 10 us", Knob::BurnNs, 10_000),
        ("a counter in 2.4 ms asleep", Knob::SleepNs, 2_400_000),
        ("a counter in 2.4 ms of CPU", Knob::BurnNs, 2_400_000),
        ("a counter in 7 ms asleep", Knob::SleepNs, 7_000_000),
    ];
    for (what, knob, ns) in calls {
        let machine = machine(knob, ns)?;
        let daemon = Daemon::start(&machine)?;
        let client = Client::from_stream(UnixStream::connect(&daemon.socket)?)?;
        let span = client.open_span("bench")?;
        std::thread::sleep(Duration::from_secs(2));
        let reads_before = [SOCKETS, "nvml"].map(|source| reads_of(&client, source));
        let (began, before) = (Instant::now(), daemon.usage()?);
        let mut other = None;
        while began.elapsed() < each {
            std::thread::sleep(Duration::from_secs(1) / EDGES_PER_SECOND);
            other = match other.take() {
                None => Some(client.open_span("other")?),
                Some(open) => {
                    open.close()?;
                    None
                }
            };
        }
        let (passed, after) = (began.elapsed(), daemon.usage()?);
        let used = |thread: &str| of(&after, thread).since(of(&before, thread));
        let percent = |used: ThreadUsage| 100.0 * used.cpu_ns as f64 / passed.as_nanos() as f64;
        let label = format!("{what}: daemon, 1 span, {EDGES_PER_SECOND} edges/s: CPU");
        table.at_most(&label, Some(percent(used(""))), 3.0, "%");
        for (part, thread) in PARTS {
            table.note(&format!("  of it {part}"), Some(percent(used(thread))), "%");
            let wake_ups = used(thread).wake_ups as f64 / passed.as_secs_f64();
            table.note("    wake-ups", Some(wake_ups), "/s");
        }
        for (source, before) in [SOCKETS, "nvml"].into_iter().zip(reads_before) {
            let reads = reads_of(&client, source)? - before?;
            table.note(&format!("  reads of {source}"), Some(reads as f64 / passed.as_secs_f64()), "/s");
        }
        drop(span.close()?);
    }
    delays(&mut table, each)
}

/// How often the source's counters were read so far.
fn reads_of(client: &Client, source: &str) -> Result<u64, wattspan_client::ClientError> {
    let samplers = client.info()?.samplers.into_iter();
    Ok(samplers.filter(|sampler| sampler.source == source).map(|sampler| sampler.ticks).sum())
}

/// A CPU source's lateness next to boards that respond in 7 ms, against its lateness without them.
fn delays(table: &mut Table, each: Duration) -> Result<(), Box<dyn std::error::Error>> {
    for (what, knob) in [("asleep", Knob::SleepNs), ("of CPU", Knob::BurnNs)] {
        let machine = machine(knob, 7_000_000)?;
        let alone = lateness(&machine, &[SOCKETS], each)?;
        let beside = lateness(&machine, &[SOCKETS, "nvml"], each)?;
        let us = |ticks: &TickStats| ticks.lateness_p99_ns.map(|ns| ns as f64 / 1_000.0);
        let class = if beside.realtime { "SCHED_FIFO" } else { "NOT real-time" };
        table.note(&format!("CPU ticks alone, {class}: late p99"), us(&alone), "us");
        let target = 2.0 * us(&alone).unwrap_or(0.0);
        table.at_most(&format!("beside {BOARDS} calls of 7 ms {what}: late p99"), us(&beside), target, "us");
    }
    Ok(())
}

fn lateness(
    machine: &Machine,
    enabled: &[&str],
    each: Duration,
) -> Result<TickStats, Box<dyn std::error::Error>> {
    let enabled = enabled.iter().map(|name| (*name).to_owned()).collect();
    let settings = SourceSettings { enabled, ..machine.settings() };
    let found = discover(&settings, &Clock::Machine);
    let quiet = sampler::SamplerSettings { characterisation_ns: 0, ..sampler::SamplerSettings::default() };
    let start = |opened| sampler::start(opened, &quiet, Clock::Machine);
    let samplers: Vec<Sampler> = found.opened.into_iter().map(start).collect::<Result<_, _>>()?;
    samplers.iter().for_each(|sampler| sampler.set_fast(true));
    std::thread::sleep(each);
    let cpu = samplers.iter().find(|sampler| sampler.stream().source == SOCKETS);
    Ok(cpu.ok_or("the stand-in sockets were not found")?.stats())
}

/// Boards of a fake library, and sockets of a fake tree.
struct Machine {
    library: Library,
    tree: tempfile::TempDir,
    _counters: MovingCounters,
}

impl Machine {
    fn settings(&self) -> SourceSettings {
        SourceSettings {
            sysfs_root: self.tree.path().into(),
            proc_root: "/proc".into(),
            nvml_library: Some(self.library.path()),
            ..SourceSettings::default()
        }
    }
}

/// The mechanism that provides the sockets' counters.
const SOCKETS: &str = "powercap";

fn machine(knob: Knob, ns: u64) -> std::io::Result<Machine> {
    let library = Library::new(BOARDS);
    let this_process = u64::from(std::process::id());
    for board in 0..BOARDS {
        library.set(board, knob, ns);
        library.set(board, Knob::ProcessUsageSupported, 1);
        library.set(board, Knob::UserA, this_process);
        library.set(board, Knob::UserAPercent, 50);
    }
    let memory = Path::new("/dev/shm");
    let tree = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
    let mut counters = Vec::new();
    for socket in 0..2 {
        let mut zone = |id: &str, name: &str| -> std::io::Result<()> {
            let zone = tree.path().join("class/powercap").join(id);
            fs::create_dir_all(&zone)?;
            fs::write(zone.join("name"), format!("{name}\n"))?;
            fs::write(zone.join("max_energy_range_uj"), "262143328850\n")?;
            fs::write(zone.join("energy_uj"), "123456789012\n")?;
            counters.push(fs::File::options().write(true).open(zone.join("energy_uj"))?);
            Ok(())
        };
        zone(&format!("intel-rapl:{socket}"), &format!("package-{socket}"))?;
        zone(&format!("intel-rapl:{socket}:0"), "core")?;
        zone(&format!("intel-rapl:{socket}:1"), "dram")?;
    }
    Ok(Machine { library, tree, _counters: MovingCounters::start(counters) })
}

/// A thread that moves counters in files; ends on drop.
struct MovingCounters {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MovingCounters {
    fn start(files: Vec<fs::File>) -> Self {
        const INTERVAL_NS: u64 = 976_600;
        let ends = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            // Hardware is not late when other programs are busy; without the right to it, the counters jitter.
            let _ = rustix::process::setpriority_process(None, -20);
            let (begun_ns, mut updates) = (monotonic_ns(), 0);
            while !is_ended.load(Ordering::Relaxed) {
                // A late update keeps its value, as a counter does.
                updates = (updates + 1).max((monotonic_ns() - begun_ns) / INTERVAL_NS);
                let wait_ns = (begun_ns + updates * INTERVAL_NS).saturating_sub(monotonic_ns());
                std::thread::sleep(Duration::from_nanos(wait_ns));
                for (place, file) in files.iter().enumerate() {
                    // 60 W and less; the length of the text stays.
                    let energy_uj = 123_456_789_012 + updates * (60_000 - 7_000 * place as u64);
                    let _ = file.write_all_at(format!("{energy_uj}\n").as_bytes(), 0);
                }
            }
        });
        Self { ends, thread: Some(thread) }
    }
}

impl Drop for MovingCounters {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// The program on this machine; killed on drop.
struct Daemon {
    pid: Pid,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(machine: &Machine) -> Result<Self, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let (socket, config) = (folder.path().join("run/wattspan.sock"), folder.path().join("wattspan.toml"));
        fs::write(&config, format!("[source]\nenabled = [\"{SOCKETS}\", \"nvml\"]\n"))?;
        // Its parent ends at once.
        let output = Command::new("sh")
            .args(["-c", r#""$0" "$@" >/dev/null 2>&1 & echo $!"#, env!("CARGO_BIN_EXE_wattspand")])
            .args(["--config".as_ref(), config.as_os_str(), "--socket".as_ref(), socket.as_os_str()])
            .args(["--sysfs-root".as_ref(), machine.tree.path().as_os_str()])
            .args(["--state-dir".as_ref(), folder.path().join("state").as_os_str()])
            .args(["--nvml-library".as_ref(), machine.library.path().as_os_str()])
            .output()?;
        let pid = String::from_utf8(output.stdout)?.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or("the daemon did not start")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { pid, socket, _folder: folder })
    }

    /// What each thread has used so far, by its name.
    fn usage(&self) -> std::io::Result<Vec<(String, ThreadUsage)>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero()))?;
        tasks
            .map(|task| {
                let task = task?.path();
                let name = fs::read_to_string(task.join("comm"))?;
                let spent = fs::read_to_string(task.join("schedstat"))?;
                let cpu_ns = spent.split_whitespace().next().and_then(|text| text.parse().ok());
                let status = fs::read_to_string(task.join("status"))?;
                let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                let wake_ups = waits.and_then(|text| text.trim().parse().ok());
                let usage = ThreadUsage { cpu_ns: cpu_ns.unwrap_or(0), wake_ups: wake_ups.unwrap_or(0) };
                Ok((name.trim().to_owned(), usage))
            })
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

/// CPU time and voluntary waits.
#[derive(Clone, Copy, Default)]
struct ThreadUsage {
    cpu_ns: u64,
    wake_ups: u64,
}

impl ThreadUsage {
    /// A thread may have ended since.
    fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            wake_ups: self.wake_ups.saturating_sub(before.wake_ups),
        }
    }
}

/// What all threads have used whose name begins with `thread`.
fn of(usages: &[(String, ThreadUsage)], thread: &str) -> ThreadUsage {
    let named = usages.iter().filter(|(name, _)| name.starts_with(thread));
    named.fold(ThreadUsage::default(), |sum, (_, usage)| ThreadUsage {
        cpu_ns: sum.cpu_ns + usage.cpu_ns,
        wake_ups: sum.wake_ups + usage.wake_ups,
    })
}
