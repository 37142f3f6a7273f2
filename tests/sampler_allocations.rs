//! The sampler's tick allocates no memory; the source that it reads counts on the sampler's own thread.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use wattspan::clock::Clock;
use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade};
use wattspan::sampler::{self, SamplerSettings};
use wattspan::sources::{OpenedSource, Source};

#[path = "support/counting_allocator_ffi.rs"]
mod counting_allocator_ffi;

#[global_allocator]
static ALLOCATOR: counting_allocator_ffi::Counting = counting_allocator_ffi::Counting;

/// Number of ticks, more than the ring holds.
const TICKS: usize = 200;

/// A source that records its thread's allocation count at each read, and sends the counts once it has enough.
struct CountingSource {
    /// Allocated at its full size at the start, so that recording allocates nothing.
    request_counts: Box<[u64; TICKS]>,
    reads: usize,
    report: Sender<[u64; TICKS]>,
}

impl Source for CountingSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        into.fill(EnergyReading { valid: true, energy_uj: self.reads as u64, ..EnergyReading::default() });
        match self.request_counts.get_mut(self.reads) {
            Some(note) => *note = counting_allocator_ffi::requests(),
            None => drop(self.report.send(*self.request_counts)),
        }
        self.reads += 1;
        None
    }
}

#[test]
fn sampler_reads_allocate_no_memory() {
    let (report, reported) = channel();
    let domain = Domain {
        name: "package-0".into(),
        kind: DomainKind::Package,
        source: "watchful".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj: 1,
    };
    let opened = OpenedSource {
        name: "watchful",
        source: Box::new(CountingSource { request_counts: Box::new([0; TICKS]), reads: 0, report }),
        domains: vec![domain; 4],
        cpu: Some(0),
        max_rate_hz: 1000.0,
        advanced: vec![true; 4],
    };
    let settings =
        SamplerSettings { characterisation_ns: 20_000_000, ring_samples: 64, ..SamplerSettings::default() };
    let sampler = sampler::start(opened, &settings, Clock::Machine).unwrap();
    // Through all rates: characterisation, slow and fast.
    std::thread::sleep(Duration::from_millis(40));
    sampler.set_fast(true);
    let request_counts = reported.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(counting_allocator_ffi::requests() > 0, "the count counts");
    assert_eq!(request_counts, [request_counts[0]; TICKS], "requests at each read");
}
