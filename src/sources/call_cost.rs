//! What a call into the driver costs here, and how often it may be made for that.
//!
//! The same call takes 0.5 µs on one machine and 2.4 ms on another, so it is measured, never assumed. Owns the two limits:
//! the part of a core that all boards' calls together may burn, and the part of time for which one board's driver may be
//! held. Invariant: a period keeps both.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Calls whose median is taken, after one that may be slow because it is the first.
const CALLS: usize = 5;

/// No more than this part of a core goes into the calls of one board, ...
const OF_A_CORE: f64 = 0.01;
/// ... nor more than this into those of all boards together. Two things are dearer. NVML's counters are asked once a
/// second at least, since one that is silent for two is lost, and with it every account that is open: a call of 24 ms takes
/// 2.4 % of a core for each board then, and one that holds the driver for 160 ms holds it for 16 % of the time. And a board
/// that was just found is looked at until its counter moves: for some tenths of a second, a fifth of a core or two calls.
const OF_A_CORE_TOGETHER: f64 = 0.012;
/// For no more than this part of the time is a board's driver asked: it has locks that the board's real work needs too.
const OF_THE_TIME: f64 = 0.08;

/// The median cost of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// From begin to end.
    pub wall_ns: u64,
    /// CPU time of the calling thread.
    pub cpu_ns: u64,
}

impl Cost {
    /// Makes the call a few times and measures it.
    pub fn of(mut call: impl FnMut()) -> Cost {
        call();
        let (mut wall, mut cpu) = ([0; CALLS], [0; CALLS]);
        for (wall_ns, cpu_ns) in wall.iter_mut().zip(&mut cpu) {
            let (began, before) = (Instant::now(), thread_time());
            call();
            *cpu_ns = nanoseconds(thread_time().saturating_sub(before));
            *wall_ns = nanoseconds(began.elapsed());
        }
        wall.sort_unstable();
        cpu.sort_unstable();
        Cost { wall_ns: wall[CALLS / 2], cpu_ns: cpu[CALLS / 2] }
    }

    /// The shortest time between two calls that keeps the limits on a machine with so many boards.
    pub fn period_ns(self, boards: usize) -> u64 {
        let of_a_core = OF_A_CORE.min(OF_A_CORE_TOGETHER / boards.max(1) as f64);
        let (by_core, by_time) = (self.cpu_ns as f64 / of_a_core, self.wall_ns as f64 / OF_THE_TIME);
        by_core.max(by_time) as u64
    }
}

fn thread_time() -> Duration {
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
    fn a_cheap_call_may_be_made_often_and_a_dear_one_seldom() {
        let of = |wall_ns, cpu_ns, boards| Cost { wall_ns, cpu_ns }.period_ns(boards);
        assert_eq!(of(1_000, 1_000, 1), 100_000);
        assert_eq!(of(2_400_000, 10_000, 1), 30_000_000, "it sleeps: the driver is what is spared");
        assert_eq!(of(2_400_000, 2_400_000, 1), 240_000_000, "it burns: the core is");
        assert_eq!(of(2_400_000, 2_400_000, 8), 1_600_000_000);
        assert_eq!(of(0, 0, 0), 0);
    }
}
