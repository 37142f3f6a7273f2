//! Cost of the ring: a push with zero, one and two hostile readers, a read, a search, and untouched memory.
//!
//! Verifies that readers cannot delay the sampler, and that a history uses no memory until it is filled. Run with
//! `cargo bench --bench ring`.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use wattspan::domain::EnergyReading;
use wattspan::ring::{RingReader, Sample, ring};
use wattspan::sampler::counter_profile::CounterProfile;

mod table;

use table::Table;

const DOMAINS: usize = 4;
const PUSHES: u64 = 200_000;
/// The readers have the cache lines to themselves between pushes, as they do between ticks.
const PAUSE: Duration = Duration::from_micros(5);

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ring bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Box<dyn std::error::Error>> {
    let mut table = Table::new(&format!("ring: {DOMAINS} domains"));
    // First, while the allocator has no freed memory to reuse.
    let before = resident_kib()?;
    let untouched = ring(1 << 20, DOMAINS);
    let grown_mib = (resident_kib()?.saturating_sub(before)) as f64 / 1024.0;
    table.at_most("resident memory of an unused history of 2^20 (152 MiB)", Some(grown_mib), 1.0, "MiB");
    drop(untouched);

    for readers in 0..=2 {
        let pushed = measure_pushes(readers)?;
        table.note(
            &format!("push, {readers} hostile readers: p50"),
            Some(pushed.value_at_quantile(0.5) as f64),
            "ns",
        );
        table.note(
            &format!("push, {readers} hostile readers: p99"),
            Some(pushed.value_at_quantile(0.99) as f64),
            "ns",
        );
        let tail_ns = pushed.value_at_quantile(0.999) as f64;
        table.at_most(&format!("push, {readers} hostile readers: p99.9"), Some(tail_ns), 10_000.0, "ns");
    }
    measure_reads(&mut table);
    measure_profile(&mut table);
    Ok(())
}

/// Times single pushes (including two clock reads) while readers copy the newest samples without a pause.
fn measure_pushes(readers: usize) -> Result<Histogram<u64>, hdrhistogram::CreationError> {
    let (mut writer, reader) = ring(4096, DOMAINS);
    let mut pushed = Histogram::new(3)?;
    let (stop, read) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| read.fetch_add(read_newest(&reader, &stop), Ordering::Relaxed));
        }
        for index in 0..PUSHES {
            let (sample, paused) = (sample(index), Instant::now());
            while paused.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
            let began = Instant::now();
            writer.push(black_box(&sample));
            pushed.saturating_record(began.elapsed().as_nanos() as u64);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(readers == 0 || read.into_inner() > 0, "readers that read nothing are not hostile");
    Ok(pushed)
}

fn read_newest(reader: &RingReader, stop: &AtomicBool) -> u64 {
    let (mut into, mut read) = (Sample::empty(DOMAINS), 0);
    while !stop.load(Ordering::Relaxed) || (read == 0 && reader.written_count() > 0) {
        if reader.read(reader.written_count().saturating_sub(1), &mut into) {
            read += 1;
        }
    }
    read
}

fn measure_reads(table: &mut Table) {
    let (mut writer, reader) = ring(65_536, DOMAINS);
    (0..100_000).for_each(|index| writer.push(&sample(index)));
    let mut into = Sample::empty(DOMAINS);
    let newest = reader.written_count() - 1;
    let read_ns = mean_ns(|_| assert!(reader.read(newest, black_box(&mut into))));
    table.note("read of the newest sample", Some(read_ns), "ns");
    let follow_ns = mean_ns(|round| assert!(reader.read(newest - round % 60_000, black_box(&mut into))));
    table.note("read of one sample after the other", Some(follow_ns), "ns");
    // A prime stride through the instants, so that consecutive searches differ.
    let find_ns = mean_ns(|round| {
        assert!(reader.find_at_or_before(35_000_000 + round * 7_919_023 % 60_000_000).is_some())
    });
    table.note("search by time in 65,536 samples", Some(find_ns), "ns");
}

/// A counter of 50 W that moves every millisecond, read at 1 kHz and at 4 kHz.
fn measure_profile(table: &mut Table) {
    for (rate, step_ns) in [("1 kHz", 1_000_000), ("4 kHz", 250_000)] {
        let mut profile = CounterProfile::new(true);
        let observe_ns = mean_ns(|round| {
            let at_ns = round * step_ns;
            let reading = EnergyReading {
                valid: true,
                energy_uj: at_ns / 1_000_000 * 50_000,
                ..EnergyReading::default()
            };
            black_box(&mut profile).observe(at_ns, at_ns + 2_000, &reading);
        });
        table.at_most(&format!("character: one reading at {rate}"), Some(observe_ns), 100.0, "ns");
    }
}

fn mean_ns(mut round: impl FnMut(u64)) -> f64 {
    const ROUNDS: u64 = 2_000_000;
    let began = Instant::now();
    (0..ROUNDS).for_each(&mut round);
    began.elapsed().as_nanos() as f64 / ROUNDS as f64
}

fn sample(index: u64) -> Sample {
    let reading = EnergyReading {
        valid: true,
        energy_uj: index,
        uncertainty_uj: 0,
        stamp_ns: index,
        epoch: 1,
        shape_uj: index,
    };
    Sample { before_ns: index * 1000, after_ns: index * 1000 + 100, readings: vec![reading; DOMAINS] }
}

fn resident_kib() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.split_whitespace().nth(1).ok_or("VmRSS without a value")?.parse()?)
}
