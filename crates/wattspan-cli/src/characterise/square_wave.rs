//! A load that is switched on and off: all CPUs but one, or a command.
//!
//! Owns the threads or the process group of the load. The intervals are irregular, so that no counter's update interval is in
//! step with them. A command runs all the time and is stopped (SIGSTOP) while the load is off, because its start may take
//! longer than an interval. Invariant: when the wave is dropped, neither thread nor process is left.

use std::hint::black_box;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use wattspan_client::clock::monotonic_ns;

use super::counter_fit::LoadWave;

/// The shortest interval, and the range above it.
const MIN_INTERVAL_MS: u64 = 150;
const INTERVAL_RANGE_MS: u64 = 300;

/// What makes the load.
#[derive(Debug, Clone, Copy)]
pub enum LoadSource<'a> {
    Cpu,
    /// A command for the shell.
    Command(&'a str),
}

enum RunningLoad {
    Threads(Vec<JoinHandle<()>>),
    Process(Child),
}

/// Whether the threads have to work.
#[derive(Default)]
struct LoadSwitch {
    is_on: AtomicBool,
    is_over: AtomicBool,
    changed: Condvar,
    lock: Mutex<()>,
}

/// A load that can be switched.
pub struct SwitchedLoad {
    load: RunningLoad,
    switch: Arc<LoadSwitch>,
}

impl SwitchedLoad {
    /// Starts the load, switched off.
    ///
    /// # Errors
    /// The command or a thread cannot be started.
    pub fn start(source: LoadSource<'_>) -> io::Result<Self> {
        let switch = Arc::new(LoadSwitch::default());
        let load = match source {
            LoadSource::Cpu => {
                let cpus = thread::available_parallelism().map_or(1, usize::from);
                // One is left for the meter.
                let spin = |_| {
                    let switch = Arc::clone(&switch);
                    thread::Builder::new().name("load".into()).spawn(move || switch.spin_while_on())
                };
                RunningLoad::Threads((1..cpus.max(2)).map(spin).collect::<io::Result<_>>()?)
            }
            LoadSource::Command(line) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", line]).process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
                RunningLoad::Process(shell.spawn()?)
            }
        };
        let load = Self { load, switch };
        load.set(false);
        Ok(load)
    }

    /// Switches the load, and returns when.
    fn set(&self, is_on: bool) -> u64 {
        let at_ns = monotonic_ns();
        match &self.load {
            RunningLoad::Threads(_) => self.switch.set(|switch| switch.is_on.store(is_on, Ordering::Release)),
            RunningLoad::Process(child) => signal(child, if is_on { Signal::CONT } else { Signal::STOP }),
        }
        at_ns
    }

    /// Whether the command has ended.
    pub fn has_ended(&mut self) -> bool {
        match &mut self.load {
            RunningLoad::Threads(_) => false,
            RunningLoad::Process(child) => !matches!(child.try_wait(), Ok(None)),
        }
    }

    /// Keeps the load on for this time, or until `is_interrupted` is set.
    pub fn run_steady(&self, duration: Duration, is_interrupted: &AtomicBool) {
        const CHECK_INTERVAL: Duration = Duration::from_millis(50);
        let end_ns = monotonic_ns() + u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.set(true);
        while !is_interrupted.load(Ordering::Relaxed) {
            let remaining = Duration::from_nanos(end_ns.saturating_sub(monotonic_ns()));
            if remaining.is_zero() {
                break;
            }
            thread::sleep(remaining.min(CHECK_INTERVAL));
        }
    }

    /// Switches the load on and off for this time, or until `is_interrupted` is set. Returns when it was switched.
    pub fn run_wave(&self, duration: Duration, is_interrupted: &AtomicBool) -> LoadWave {
        let end_ns = monotonic_ns() + u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mut wave = LoadWave::default();
        let mut random = 7_u64;
        let mut is_on = false;
        while (monotonic_ns() < end_ns && !is_interrupted.load(Ordering::Relaxed)) || is_on {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            thread::sleep(Duration::from_millis(MIN_INTERVAL_MS + (random >> 33) % INTERVAL_RANGE_MS));
            is_on = !is_on;
            wave.switched_ns.push(self.set(is_on));
        }
        wave
    }
}

impl Drop for SwitchedLoad {
    fn drop(&mut self) {
        self.switch.set(|switch| switch.is_over.store(true, Ordering::Release));
        match &mut self.load {
            RunningLoad::Threads(threads) => threads.drain(..).for_each(|thread| drop(thread.join())),
            RunningLoad::Process(child) => {
                // A stopped process is killed without being continued.
                signal(child, Signal::KILL);
                let _ = child.wait();
            }
        }
    }
}

/// Sends a signal to the command and all that it has started in its group.
fn signal(child: &Child, signal: Signal) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Fails if the command has ended.
        let _ = kill_process_group(group, signal);
    }
}

impl LoadSwitch {
    fn set(&self, change: impl FnOnce(&Self)) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        change(self);
        drop(lock);
        self.changed.notify_all();
    }

    fn spin_while_on(&self) {
        let mut x = 1_u64;
        while !self.is_over.load(Ordering::Acquire) {
            if self.is_on.load(Ordering::Acquire) {
                for _ in 0..1000 {
                    x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17));
                }
                continue;
            }
            let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            let is_waiting =
                |(): &mut ()| !self.is_on.load(Ordering::Acquire) && !self.is_over.load(Ordering::Acquire);
            drop(self.changed.wait_while(lock, is_waiting));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu_ticks(pid: u32) -> Option<(String, u64)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some((fields[0].to_owned(), fields[11].parse().ok()?))
    }

    #[test]
    fn a_command_is_stopped_while_the_load_is_off_and_ends_with_it() {
        if !std::path::Path::new("/proc/self/stat").exists() {
            return;
        }
        let load = SwitchedLoad::start(LoadSource::Command("while :; do :; done")).unwrap();
        let RunningLoad::Process(child) = &load.load else { panic!() };
        let pid = child.id();
        let wait_for = |wanted: &dyn Fn(&str, u64) -> bool| {
            while !cpu_ticks(pid).is_some_and(|(state, ticks)| wanted(&state, ticks)) {
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait_for(&|state, _| state == "T");
        let before = cpu_ticks(pid).unwrap().1;
        load.set(true);
        wait_for(&|_, ticks| ticks > before);
        load.set(false);
        wait_for(&|state, _| state == "T");
        drop(load);
        assert_eq!(cpu_ticks(pid), None);
    }

    #[test]
    fn a_wave_begins_on_and_ends_off() {
        let load = SwitchedLoad::start(LoadSource::Cpu).unwrap();
        let wave = load.run_wave(Duration::from_millis(400), &AtomicBool::new(false));
        assert!(wave.switched_ns.len().is_multiple_of(2) && !wave.switched_ns.is_empty());
        assert!(wave.switched_ns.windows(2).all(|pair| pair[1] - pair[0] >= MIN_INTERVAL_MS * 1_000_000));
        assert!(!load.switch.is_on.load(Ordering::Relaxed));
    }
}
