//! CPU time of a read of IOReport without Apple's own part: wattspan's calls, the decoding, and the fake library, which
//! creates every object of a sample again.
//!
//! Measured for the chips with the fewest and the most meters, and with a subscription to the whole group. The target
//! is 20 us, including the fake library's part. Run with `cargo bench --bench apple`.

use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wattspan::clock::Clock;
use wattspan::domain::EnergyReading;
use wattspan::sources::discover;

#[path = "../tests/fake/apple/mod.rs"]
mod apple;
mod table;

use apple::{Library, Mac, SILICON, fixture};
use table::Table;

const READS: u32 = 50_000;
const TARGET_US: f64 = 20.0;

fn main() {
    let mut table = Table::new("a read of Apple's counters, CPU time");
    for (chip, whole) in [("m2", false), ("m1-ultra", false), ("m2", true), ("m1-ultra", true)] {
        let library = Library::new(&fixture(chip));
        library.set_global(Mac::RefusesPart, whole.into());
        let (cost, meters) = cost(&library, "ioreport");
        let channels = library.get_global(Mac::Sampled);
        let what = format!("{chip}: {meters} meters of {channels} channels");
        match whole {
            false => table.at_most(&what, Some(cost), TARGET_US, "us"),
            // Does not occur where the system accepts a part of the group; most of the time goes to the fake creating
            // channels.
            true => table.note(&what, Some(cost), "us"),
        }
    }
    let library = Library::new(&fixture("m2"));
    library.set_global(Mac::Controller, SILICON);
    library.key(0, b"PSTR", b"flt ", &20.0_f32.to_le_bytes());
    table.at_most("the controller's one key", Some(cost(&library, "smc").0), TARGET_US, "us");
    assert_eq!(library.get_global(Mac::Misused), 0);
}

/// Microseconds of this thread's CPU time per read, and the number of domains.
fn cost(library: &Library, source: &str) -> (f64, usize) {
    let mut found = discover(&library.settings(), &Clock::Machine);
    let opened = found.opened.iter_mut().find(|opened| opened.name == source).expect("it is there");
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    let mut read = || {
        opened.source.read(&mut readings);
        black_box(&readings);
    };
    (0..READS / 10).for_each(|_| read());
    let before = thread_time();
    (0..READS).for_each(|_| read());
    let spent = thread_time() - before;
    (spent.as_secs_f64() * 1e6 / f64::from(READS), readings.len())
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
