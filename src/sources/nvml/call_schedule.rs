//! The schedule of an expensive NVML call: the sampler ticks that include it.
//!
//! Owns the instant of the last call. Reads no clock.

/// The schedule of an expensive call.
#[derive(Debug, Clone)]
pub struct CallSchedule {
    period_ns: u64,
    last_ns: Option<u64>,
}

impl CallSchedule {
    /// Creates a schedule with at most one call in `period_ns`.
    pub fn new(period_ns: u64) -> Self {
        Self { period_ns, last_ns: None }
    }

    /// Whether the call is due at `now_ns`. If so, records it as made.
    pub fn claim_if_due(&mut self, now_ns: u64) -> bool {
        // A slightly early tick counts as due.
        let slack_ns = self.period_ns / 16;
        let due =
            self.last_ns.is_none_or(|last_ns| now_ns.saturating_sub(last_ns) + slack_ns >= self.period_ns);
        if due {
            self.last_ns = Some(now_ns);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_picks_the_ticks_nearest_to_its_period() {
        let mut cadence = CallSchedule::new(48);
        let picked: Vec<u64> = (0..200).step_by(10).filter(|&now_ns| cadence.claim_if_due(now_ns)).collect();
        assert_eq!(picked, [0, 50, 100, 150]);
        assert!((200..210).all(|now_ns| CallSchedule::new(0).claim_if_due(now_ns)));
    }

    #[test]
    fn a_tick_after_a_long_rest_always_calls() {
        let mut cadence = CallSchedule::new(48);
        assert!(cadence.claim_if_due(1_000));
        assert!(!cadence.claim_if_due(1_010));
        assert!(cadence.claim_if_due(900_000));
    }
}
