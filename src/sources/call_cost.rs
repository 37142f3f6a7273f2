//! The measured cost of a driver call, and the shortest call period that follows from it.
//!
//! The same call takes 0.5 µs on one machine and 2.4 ms on another, so the cost is measured. Owns the two limits: the share
//! of a core for the calls of all boards, and the share of time in which one board's driver is busy with calls.
//! Invariant: every period keeps both limits.

use std::time::{Duration, Instant};

use crate::clock::thread_cpu_ns;

/// Number of measured calls, after a first call that may be slow.
const MEASURED_CALLS: usize = 5;

/// Largest share of a core for the calls of one board.
const MAX_CORE_SHARE_PER_BOARD: f64 = 0.01;
/// Largest share of a core for the calls of all boards. Two cases exceed the limits. NVML counters are read at least once
/// a second, because a counter that is silent for two seconds is lost, with all open spans: a call of 24 ms then takes
/// 2.4 % of a core for each board, and a call of 160 ms occupies the driver for 16 % of the time. A new board is probed
/// until its counter advances: for some tenths of a second at a fifth of a core, or for two calls.
const MAX_CORE_SHARE_TOTAL: f64 = 0.012;
/// Largest share of time in calls to one board's driver, whose locks the board's workload needs too.
const MAX_DRIVER_TIME_SHARE: f64 = 0.08;

/// The median cost of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCost {
    pub wall_ns: u64,
    /// CPU time of the calling thread.
    pub cpu_ns: u64,
}

impl CallCost {
    /// Measures the median of a few calls.
    pub fn measure(mut call: impl FnMut()) -> CallCost {
        call();
        let (mut wall, mut cpu) = ([0; MEASURED_CALLS], [0; MEASURED_CALLS]);
        for (wall_ns, cpu_ns) in wall.iter_mut().zip(&mut cpu) {
            let (started, before_ns) = (Instant::now(), thread_cpu_ns());
            call();
            *cpu_ns = thread_cpu_ns().saturating_sub(before_ns);
            *wall_ns = nanoseconds(started.elapsed());
        }
        wall.sort_unstable();
        cpu.sort_unstable();
        CallCost { wall_ns: wall[MEASURED_CALLS / 2], cpu_ns: cpu[MEASURED_CALLS / 2] }
    }

    /// The shortest period that keeps both limits on a machine with this number of boards.
    pub fn min_period_ns(self, boards: usize) -> u64 {
        let of_a_core = MAX_CORE_SHARE_PER_BOARD.min(MAX_CORE_SHARE_TOTAL / boards.max(1) as f64);
        let (by_core, by_time) =
            (self.cpu_ns as f64 / of_a_core, self.wall_ns as f64 / MAX_DRIVER_TIME_SHARE);
        by_core.max(by_time) as u64
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cheap_call_may_be_made_often_and_an_expensive_one_rarely() {
        let of = |wall_ns, cpu_ns, boards| CallCost { wall_ns, cpu_ns }.min_period_ns(boards);
        assert_eq!(of(1_000, 1_000, 1), 100_000);
        assert_eq!(of(2_400_000, 10_000, 1), 30_000_000, "a sleeping call: the limit of the driver applies");
        assert_eq!(of(2_400_000, 2_400_000, 1), 240_000_000, "a busy call: the limit of the core applies");
        assert_eq!(of(2_400_000, 2_400_000, 8), 1_600_000_000);
        assert_eq!(of(0, 0, 0), 0);
    }
}
