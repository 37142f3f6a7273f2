//! A service in this process, on a simulated machine whose true energy between any two instants is known.
//!
//! Owns the service's thread and the ends of its socket pairs. The truth is computed here, from the power alone.

#![allow(dead_code, reason = "each test and bench uses its own part")]

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;

use wattspan::clock::{Clock, monotonic_ns};
use wattspan::config::Config;
use wattspan::server::{ForwardedReceiver, ServerSockets, serve};
use wattspan::service::{ServiceBuilder, StartupSettings};
use wattspan::sources::Inventory;
use wattspan::sources::replay::script::Script;
use wattspan::sources::replay::start_script;

/// Power changes between counter updates, and the counters differ in update interval and step.
pub const VARYING_POWER_MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.0013, 20], [0.0021, 180], [0.0004, 5], [0.0100, 90], [0.0007, 240]]
quantum_uj = 61
ceiling_w = 250
jitter_ns = 100_000
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[0.030, 60], [0.020, 400], [0.011, 150]]
update_ns = 20_000_000
phase_ns = 3_000_000
quantum_uj = 1000
ceiling_w = 500
"#;

/// An interval in which a span had a constant weight on the simulated machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightInterval {
    pub from_ns: u64,
    pub to_ns: u64,
    /// The weight, relative to the other spans.
    pub weight: f64,
}

/// A service in a thread of this process; dropping it waits until the last client has disconnected.
pub struct InProcessService {
    script: Script,
    /// The earliest and the latest instant at which the machine may have started.
    start_bounds_ns: (u64, u64),
    unused_connections: Mutex<Vec<UnixStream>>,
    /// Dropping it ends a service that has a listener.
    stop: Option<UnixStream>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl InProcessService {
    /// Starts a service on this machine, with this many connections.
    pub fn start(machine: &str, connections: usize) -> Self {
        Self::start_with(machine, connections, None)
    }

    /// The same with the calls that another server forwards. Such a service has a listener, as the daemon has, whose policy
    /// admits their callers.
    pub fn start_with(machine: &str, connections: usize, forwarded: Option<ForwardedReceiver>) -> Self {
        let script = Script::parse(machine).unwrap();
        let clock = Clock::Machine;
        let before_ns = monotonic_ns();
        let opened = start_script(script.clone(), &clock);
        let start_bounds_ns = (before_ns, monotonic_ns());
        let inventory = Inventory { opened: vec![opened], ..Inventory::default() };
        // On a busy machine messages reach the service late; the test does not measure the load of the test machine.
        let config = Config { horizon_ms: 1000.0, ..Config::default() };
        let settings = StartupSettings::from_config(&config);
        let service = ServiceBuilder::start(settings, inventory, clock, |_| ()).unwrap().build().unwrap();
        let (client_ends, service_ends): (Vec<_>, Vec<_>) =
            (0..connections).map(|_| UnixStream::pair().unwrap()).unzip();
        let mut sockets = ServerSockets { connections: service_ends, ..ServerSockets::default() };
        let mut stop = None;
        if forwarded.is_some() {
            let directory = tempfile::tempdir().unwrap();
            sockets.listeners = vec![UnixListener::bind(directory.path().join("socket")).unwrap()];
            let (own, other) = UnixStream::pair().unwrap();
            (stop, sockets.stop, sockets.forwarded) = (Some(own), Some(other), forwarded);
        }
        let thread = Some(std::thread::spawn(move || serve(service, sockets)));
        Self { script, start_bounds_ns, unused_connections: Mutex::new(client_ends), stop, thread }
    }

    /// Takes one of the remaining connections.
    pub fn connection(&self) -> UnixStream {
        self.unused_connections.lock().unwrap().pop().expect("a connection is left")
    }

    /// A domain's counter at an instant if it had no steps, in microjoules since the machine started.
    pub fn counter_uj(&self, domain: usize, at_ns: u64) -> f64 {
        let since_ns = at_ns.saturating_sub(self.start_bounds_ns.0);
        self.script.domains[domain].profile.energy_pj(since_ns) as f64 / 1e6
    }

    /// True energy of a domain between two instants, in microjoules, with the half-width of the uncertainty that comes
    /// from the machine's start.
    pub fn energy_uj(&self, domain: usize, from_ns: u64, to_ns: u64) -> (f64, f64) {
        let between = |start_bounds_ns: u64| {
            let at = |ns: u64| self.script.domains[domain].profile.energy_pj(ns - start_bounds_ns) as f64;
            (at(to_ns) - at(from_ns)) / 1e6
        };
        let (one, other) = (between(self.start_bounds_ns.0), between(self.start_bounds_ns.1));
        // An error in the start shifts both ends alike; the worst case is the peak power for as long as the start is
        // uncertain.
        let peak_mw = self.script.domains[domain].profile.peak_mw() as f64;
        let uncertainty_uj = peak_mw * (self.start_bounds_ns.1 - self.start_bounds_ns.0) as f64 / 1e6;
        ((one + other) / 2.0, uncertainty_uj)
    }

    /// The true share of a span in a domain, given all spans, and its uncertainty; both in microjoules.
    pub fn share_uj(&self, domain: usize, span: WeightInterval, all: &[WeightInterval]) -> (f64, f64) {
        let mut edges: Vec<u64> = all.iter().flat_map(|held| [held.from_ns, held.to_ns]).collect();
        edges.sort_unstable();
        edges.dedup();
        let open = |held: &WeightInterval, at_ns: u64| held.from_ns <= at_ns && at_ns < held.to_ns;
        let (mut sum, mut total_uncertainty_uj) = (0.0, 0.0);
        for interval in edges.windows(2).filter(|interval| open(&span, interval[0])) {
            let weights: f64 =
                all.iter().filter(|held| open(held, interval[0])).map(|held| held.weight).sum();
            let (energy, uncertainty_uj) = self.energy_uj(domain, interval[0], interval[1]);
            sum += energy * span.weight / weights;
            total_uncertainty_uj += uncertainty_uj;
        }
        (sum, total_uncertainty_uj)
    }
}

impl Drop for InProcessService {
    fn drop(&mut self) {
        self.unused_connections.lock().unwrap().clear();
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Stopped, or without a listener and without clients: nothing is left to serve.
            thread.join().unwrap().unwrap();
        }
    }
}
