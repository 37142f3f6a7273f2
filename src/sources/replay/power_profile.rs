//! Power over time as repeating steps, and its energy in closed form.
//!
//! Owns the true energy of a simulated machine: exact, in picojoules (mW times ns), for any instant.

/// Repeating steps of constant power.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerProfile {
    /// In ascending order; each step has the energy before it.
    steps: Vec<ProfileStep>,
    period_ns: u64,
    /// The energy of one period.
    period_pj: u128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProfileStep {
    start_ns: u64,
    power_mw: u64,
    energy_before_pj: u128,
}

impl PowerProfile {
    /// A profile of (duration in ns, power in mW); `None` if its duration is 0, or longer than 584 years.
    pub fn new(steps: impl IntoIterator<Item = (u64, u64)>) -> Option<PowerProfile> {
        let (mut at_ns, mut sum_pj, mut listed) = (0_u64, 0_u128, Vec::new());
        for (duration_ns, power_mw) in steps {
            listed.push(ProfileStep { start_ns: at_ns, power_mw, energy_before_pj: sum_pj });
            at_ns = at_ns.checked_add(duration_ns)?;
            sum_pj += u128::from(duration_ns) * u128::from(power_mw);
        }
        (at_ns > 0).then_some(PowerProfile { steps: listed, period_ns: at_ns, period_pj: sum_pj })
    }

    /// The energy from the start until `at_ns`.
    pub fn energy_pj(&self, at_ns: u64) -> u128 {
        let (rounds, within_ns) = (at_ns / self.period_ns, at_ns % self.period_ns);
        let step = self.step_at(within_ns);
        let in_step_pj = u128::from(step.power_mw) * u128::from(within_ns - step.start_ns);
        u128::from(rounds) * self.period_pj + step.energy_before_pj + in_step_pj
    }

    /// The power at `at_ns`.
    pub fn power_mw(&self, at_ns: u64) -> u64 {
        self.step_at(at_ns % self.period_ns).power_mw
    }

    /// The highest power of all steps.
    pub fn peak_mw(&self) -> u64 {
        self.steps.iter().map(|step| step.power_mw).max().unwrap_or(0)
    }

    /// The step at an instant; the first one begins at 0.
    fn step_at(&self, within_ns: u64) -> ProfileStep {
        let started = self.steps.partition_point(|step| step.start_ns <= within_ns);
        self.steps[started.saturating_sub(1)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_energy_of_whole_and_partial_periods_is_exact() {
        let profile = PowerProfile::new([(1_000, 50_000), (500, 200_000)]).unwrap();
        assert_eq!(profile.energy_pj(0), 0);
        assert_eq!(profile.energy_pj(1_000), 50_000_000);
        assert_eq!(profile.energy_pj(1_250), 100_000_000);
        assert_eq!(profile.energy_pj(1_500), 150_000_000);
        assert_eq!(profile.energy_pj(3 * 1_500 + 1), 450_050_000);
        assert_eq!(
            (profile.power_mw(999), profile.power_mw(1_000), profile.power_mw(1_500)),
            (50_000, 200_000, 50_000)
        );
        assert_eq!(profile.peak_mw(), 200_000);
    }

    #[test]
    fn a_profile_without_time_is_none() {
        assert_eq!(PowerProfile::new([]), None);
        assert_eq!(PowerProfile::new([(0, 5)]), None);
        assert_eq!(PowerProfile::new([(u64::MAX, 5), (1, 5)]), None);
    }

    proptest! {
        #[test]
        fn the_energy_grows_by_the_power_in_every_nanosecond(
            steps in proptest::collection::vec((0_u64..50, 0_u64..1_000), 1..10), at_ns in 0_u64..2_000,
        ) {
            prop_assume!(steps.iter().any(|(duration_ns, _)| *duration_ns > 0));
            let profile = PowerProfile::new(steps).unwrap();
            let grown = profile.energy_pj(at_ns + 1) - profile.energy_pj(at_ns);
            prop_assert_eq!(grown, u128::from(profile.power_mw(at_ns)));
        }
    }
}
