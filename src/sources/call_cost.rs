//! What a call into the driver costs here, and how often it may be made for that.
//!
//! The same call takes 0.5 µs on one machine and 2.4 ms on another, so it is measured, never assumed. Owns the two limits:
//! the part of a core that all boards' calls together may burn, and the part of time for which one board's driver may be
//! held. Invariant: a period keeps both.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Calls whose median is taken, after one that may be slow because it is the first.
const MEASURED_CALLS: usize = 5;

/// No more than this part of a core goes into the calls of one board, ...
const MAX_CORE_SHARE_PER_BOARD: f64 = 0.01;
/// ... nor more than this into those of all boards together. Two things are dearer. NVML's counters are asked once a
/// second at least, since one that is silent for two is lost, and with it every account that is open: a call of 24 ms takes
/// 2.4 % of a core for each board then, and one that holds the driver for 160 ms holds it for 16 % of the time. And a board
/// that was just found is looked at until its counter moves: for some tenths of a second, a fifth of a core or two calls.
const MAX_CORE_SHARE_TOTAL: f64 = 0.012;
/// For no more than this part of the time is a board's driver asked: it has locks that the board's real work needs too.
const MAX_DRIVER_TIME_SHARE: f64 = 0.08;

/// The median cost of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCost {
    /// From begin to end.
    pub wall_ns: u64,
    /// CPU time of the calling thread.
    pub cpu_ns: u64,
}

impl CallCost {
    /// Makes the call a few times and measures it.
    pub fn measure(mut call: impl FnMut()) -> CallCost {
        call();
        let (mut wall, mut cpu) = ([0; MEASURED_CALLS], [0; MEASURED_CALLS]);
        for (wall_ns, cpu_ns) in wall.iter_mut().zip(&mut cpu) {
            let (started, before) = (Instant::now(), thread_cpu_time());
            call();
            *cpu_ns = nanoseconds(thread_cpu_time().saturating_sub(before));
            *wall_ns = nanoseconds(started.elapsed());
        }
        wall.sort_unstable();
        cpu.sort_unstable();
        CallCost { wall_ns: wall[MEASURED_CALLS / 2], cpu_ns: cpu[MEASURED_CALLS / 2] }
    }

    /// The shortest time between two calls that keeps the limits on a machine with so many boards.
    pub fn min_period_ns(self, boards: usize) -> u64 {
        let of_a_core = MAX_CORE_SHARE_PER_BOARD.min(MAX_CORE_SHARE_TOTAL / boards.max(1) as f64);
        let (by_core, by_time) =
            (self.cpu_ns as f64 / of_a_core, self.wall_ns as f64 / MAX_DRIVER_TIME_SHARE);
        by_core.max(by_time) as u64
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
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
        assert_eq!(of(2_400_000, 10_000, 1), 30_000_000, "it sleeps: the driver is what is spared");
        assert_eq!(of(2_400_000, 2_400_000, 1), 240_000_000, "it burns: the core is");
        assert_eq!(of(2_400_000, 2_400_000, 8), 1_600_000_000);
        assert_eq!(of(0, 0, 0), 0);
    }
}
