//! The profile of a domain's counter: update interval, quantum, read cost, power and liveness.
//!
//! `wattspan doctor` shows it. It is computed from the stream of readings in constant memory, well under 100 ns per
//! reading. An unknown value is absent, never 0; a bound is never reported as a value.

mod phase_lock;
mod power;
mod update_interval;

use crate::domain::{EnergyReading, Liveness};

pub use phase_lock::{PhaseLock, UpdatePhase};
use power::{PowerWindow, Residual};
use update_interval::{RunningMedian, UpdateInterval};

/// A counter without a valid reading for this long is lost; one without an update for this long may be stuck.
const LIVENESS_TIMEOUT_NS: u64 = 2_000_000_000;
/// A counter is stuck only if it also has had no update for this many update intervals and this many read intervals.
const STUCK_INTERVALS: u64 = 10;
/// The cost of a read is sampled once per this many valid readings.
const READS_PER_COST_SAMPLE: u64 = 16;

/// Computes the profile of one domain's counter.
#[derive(Debug, Clone)]
pub struct CounterProfile {
    /// Whether discovery saw the counter advance.
    advanced: bool,
    /// The time without an update before the counter may be stuck.
    stuck_timeout_ns: u64,
    /// The number of readings, valid or not.
    reading_count: u64,
    valid_count: u64,
    /// The ends of the first and the newest read, valid or not.
    first_ns: u64,
    latest_ns: u64,
    last_valid: Option<ValidReading>,
    /// The last update, in any epoch.
    last_update_ns: Option<u64>,
    update_interval: UpdateInterval,
    phase_lock: PhaseLock,
    power: PowerWindow,
    residual: Residual,
    quantum_uj: Option<u64>,
    read_costs: RunningMedian,
}

/// A valid reading, with the instants before and after it.
#[derive(Debug, Clone, Copy)]
struct ValidReading {
    before_ns: u64,
    after_ns: u64,
    energy_uj: u64,
    epoch: u32,
    stamp_ns: u64,
    /// The time since the previous reading.
    spacing_ns: u64,
}

impl CounterProfile {
    /// Creates a profile without readings. `advanced`: discovery saw the counter advance under load.
    pub fn new(advanced: bool) -> Self {
        Self {
            advanced,
            stuck_timeout_ns: LIVENESS_TIMEOUT_NS,
            reading_count: 0,
            valid_count: 0,
            first_ns: 0,
            latest_ns: 0,
            last_valid: None,
            last_update_ns: None,
            update_interval: UpdateInterval::default(),
            phase_lock: PhaseLock::default(),
            power: PowerWindow::default(),
            residual: Residual::default(),
            quantum_uj: None,
            read_costs: RunningMedian::default(),
        }
    }

    /// Sets the latency of the domain's values: the counter may be without an update for this much longer.
    pub fn with_latency(self, latency_ns: u64) -> Self {
        Self { stuck_timeout_ns: self.stuck_timeout_ns.saturating_add(latency_ns), ..self }
    }

    /// Adds one reading; readings come in order of time. `before_ns` and `after_ns` are the clock before and after
    /// the read.
    pub fn observe(&mut self, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        if self.reading_count == 0 {
            self.first_ns = after_ns;
        }
        let spacing_ns = after_ns.saturating_sub(self.latest_ns.max(self.first_ns));
        (self.reading_count, self.latest_ns) = (self.reading_count + 1, after_ns);
        if !reading.valid {
            return;
        }
        self.phase_lock.observe(before_ns, after_ns, reading);
        // Only valid readings: a read that skips the counter is cheaper.
        if self.valid_count.is_multiple_of(READS_PER_COST_SAMPLE) {
            self.read_costs.push(after_ns.saturating_sub(before_ns));
        }
        self.valid_count += 1;
        let (energy_uj, epoch) = (reading.energy_uj, reading.epoch);
        let stamp_ns = reading.stamp_ns;
        match self.last_valid.replace(ValidReading {
            before_ns,
            after_ns,
            energy_uj,
            epoch,
            stamp_ns,
            spacing_ns,
        }) {
            Some(last) if last.epoch == epoch && last.energy_uj < energy_uj => {
                self.record_update(&last, after_ns, reading)
            }
            // The same value with a later stamp means a live counter of an idle device, such as a neural engine. This
            // does not apply to an integral of zero power, whose stamp advances even if its sensor has failed.
            Some(last) if last.epoch == epoch && reading.uncertainty_uj == 0 && last.stamp_ns < stamp_ns => {
                self.last_update_ns =
                    self.last_update_ns.map(|_| after_ns).or(self.advanced.then_some(after_ns));
            }
            Some(last) if last.epoch == epoch => {}
            _ => {
                // Values of different epochs cannot be compared.
                self.update_interval.interrupt();
                self.power = PowerWindow::default();
                self.residual.interrupt();
            }
        }
    }

    /// The update interval; `None` if the counter was never read several times between two updates.
    pub fn update_interval_ns(&self) -> Option<u64> {
        self.update_phase()
            .map(|phase| phase.interval_ns.round() as u64)
            .or_else(|| self.update_interval.median_ns())
    }

    /// The expected instants of updates around the newest reading; `None` while they are not known well enough.
    pub fn update_phase(&self) -> Option<UpdatePhase> {
        self.phase_lock.phase(self.latest_ns)
    }

    /// The smallest step observed, in microjoules.
    pub fn quantum_uj(&self) -> Option<f64> {
        self.quantum_uj.map(|step_uj| step_uj as f64)
    }

    /// The counter's energy divided by the integral of the device's power readings, minus 1: 0.03 is 3 % more. `None`
    /// if the device has no power sensor, or the readings cover too short a time.
    pub fn residual(&self) -> Option<f64> {
        self.residual.ratio()
    }

    /// The median duration of one read of the domain's source.
    pub fn read_cost_ns(&self) -> Option<u64> {
        self.read_costs.median()
    }

    /// Mean power over the last updates, in milliwatts; `None` while it is not live.
    pub fn power_mw(&self) -> Option<u64> {
        self.power.power_mw(self.latest_ns).filter(|_| self.liveness().0 == Liveness::Live)
    }

    /// The liveness as of the newest reading; if not live, with the reason and a remedy.
    pub fn liveness(&self) -> (Liveness, Option<String>) {
        let Some(last) = self.last_valid else { return self.liveness_before_first_answer() };
        let silent_ns = self.latest_ns.saturating_sub(last.after_ns);
        if silent_ns > LIVENESS_TIMEOUT_NS {
            let reason = format!(
                "has not answered for {}; the device or its driver may have been removed: see the kernel's log, then \
                 restart wattspand",
                format_seconds(silent_ns)
            );
            return (Liveness::Lost, Some(reason));
        }
        let stuck_timeout_ns = self
            .stuck_timeout_ns
            .max(STUCK_INTERVALS * self.update_interval.median_ns().unwrap_or(0).max(last.spacing_ns));
        // An advance seen by discovery counts as an update at the first reading.
        let last_update_ns = self.last_update_ns.or(self.advanced.then_some(self.first_ns));
        match last_update_ns.map(|last_update_ns| self.latest_ns.saturating_sub(last_update_ns)) {
            None => (Liveness::Stuck, Some(NEVER_UPDATED.into())),
            Some(still_ns) if still_ns <= stuck_timeout_ns => (Liveness::Live, None),
            Some(still_ns) => (
                Liveness::Stuck,
                Some(format!("answers, but has not moved for {}", format_seconds(still_ns))),
            ),
        }
    }

    fn record_update(&mut self, last: &ValidReading, after_ns: u64, reading: &EnergyReading) {
        let energy_uj = reading.energy_uj;
        // The update lies between the start of the last read of the old value and the end of this read.
        let gap_ns = after_ns.saturating_sub(last.before_ns);
        let expected_ns = self.update_phase().map(|phase| phase.last_until(after_ns).max(last.after_ns));
        let at_ns = expected_ns.unwrap_or(last.before_ns + gap_ns / 2);
        let step_uj = energy_uj - last.energy_uj;
        self.quantum_uj = Some(self.quantum_uj.map_or(step_uj, |least_uj| least_uj.min(step_uj)));
        self.last_update_ns = Some(after_ns);
        self.update_interval.record_update(at_ns, gap_ns);
        self.power.record_update(at_ns, energy_uj);
        if reading.shape_uj != 0 {
            self.residual.record_update(after_ns, energy_uj, reading.shape_uj);
        }
    }

    fn liveness_before_first_answer(&self) -> (Liveness, Option<String>) {
        let waited_ns = self.latest_ns.saturating_sub(self.first_ns);
        match self.advanced && waited_ns <= LIVENESS_TIMEOUT_NS {
            true => (Liveness::Live, None),
            false if self.reading_count == 0 => {
                (Liveness::Stuck, Some("did not advance when it was discovered".into()))
            }
            false => (Liveness::Stuck, Some(format!("never answered in {}", format_seconds(waited_ns)))),
        }
    }
}

/// The most common case: a virtual machine that exposes its host's counter but never updates it.
const NEVER_UPDATED: &str = "answers, but has never moved; a virtual machine often shows a counter that its host \
                             does not update, which can be corrected only on the host";

fn format_seconds(ns: u64) -> String {
    format!("{}.{} s", ns / 1_000_000_000, ns / 100_000_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn counter(energy_uj: u64) -> EnergyReading {
        EnergyReading { valid: true, energy_uj, ..EnergyReading::default() }
    }

    /// Adds readings from `reading` each `read_ns` in the range `times`; each read takes 2 µs.
    fn observe_range(
        profile: &mut CounterProfile,
        times: (u64, u64),
        read_ns: u64,
        reading: impl Fn(u64) -> EnergyReading,
    ) {
        for at_ns in (times.0..=times.1).step_by(read_ns as usize) {
            profile.observe(at_ns, at_ns + 2_000, &reading(at_ns));
        }
    }

    /// 50 W, published each millisecond in whole microjoules.
    fn rapl(at_ns: u64) -> EnergyReading {
        counter(at_ns / MS * 50_000)
    }

    #[test]
    fn four_reads_per_update_give_interval_quantum_cost_and_power() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 300 * MS), MS / 4, rapl);
        assert!(profile.update_interval_ns().unwrap().abs_diff(MS) <= MS / 4);
        assert_eq!(profile.quantum_uj(), Some(50_000.0));
        assert_eq!(profile.read_cost_ns(), Some(2_000));
        assert_eq!(profile.power_mw(), Some(50_000));
        assert_eq!(profile.liveness(), (Liveness::Live, None));
    }

    #[test]
    fn sparse_pairs_of_reads_give_the_power_once_the_phase_is_known() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 300 * MS), MS / 4, rapl);
        let phase = profile.update_phase().expect("a phase");
        let mut now_ns = 300 * MS;
        for _ in 0..40 {
            let update_ns = phase.first_after(now_ns + 19 * MS);
            for at_ns in [update_ns - MS / 4, update_ns + MS / 4] {
                profile.observe(at_ns, at_ns + 2_000, &rapl(at_ns));
            }
            now_ns = update_ns;
            let power_mw = profile.power_mw().expect("live");
            assert!((49_000..=51_000).contains(&power_mw), "{power_mw} mW");
        }
        assert!(profile.update_interval_ns().expect("an interval").abs_diff(MS) < 2_000);
    }

    #[test]
    fn one_read_per_update_gives_power_but_no_interval() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS / 2, 3_000 * MS), MS, rapl);
        assert_eq!(profile.update_interval_ns(), None);
        assert_eq!(profile.power_mw(), Some(50_000));
    }

    #[test]
    fn the_quantum_is_the_smallest_step_within_an_epoch() {
        let mut profile = CounterProfile::new(true);
        let steps = [(100, 0), (400, 0), (461, 0), (470, 1), (900, 1)];
        for (tick, (energy_uj, epoch)) in steps.into_iter().enumerate() {
            let at_ns = tick as u64 * MS;
            profile.observe(at_ns, at_ns + 1, &EnergyReading { epoch, ..counter(energy_uj) });
        }
        assert_eq!(profile.quantum_uj(), Some(61.0));
    }

    #[test]
    fn a_constant_zero_counter_is_stuck_with_a_reason() {
        for (advanced, why) in [(true, "has not moved for 2.9 s"), (false, "never moved")] {
            let mut profile = CounterProfile::new(advanced);
            observe_range(&mut profile, (MS, 3_000 * MS), MS, |_| counter(0));
            let (liveness, reason) = profile.liveness();
            assert_eq!(liveness, Liveness::Stuck);
            let reason = reason.unwrap();
            assert!(reason.contains(why), "{reason}");
            assert_eq!((profile.power_mw(), profile.quantum_uj()), (None, None));
        }
    }

    #[test]
    fn a_counter_that_advanced_at_discovery_is_live_until_the_timeout() {
        let mut profile = CounterProfile::new(true);
        assert_eq!(profile.liveness(), (Liveness::Live, None));
        observe_range(&mut profile, (MS, 1_000 * MS), MS, |_| counter(7));
        assert_eq!(profile.liveness(), (Liveness::Live, None));
    }

    #[test]
    fn a_stopped_counter_is_stuck_after_the_timeout_and_live_after_an_update() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 500 * MS), MS, rapl);
        observe_range(&mut profile, (501 * MS, 2_400 * MS), MS, |_| rapl(500 * MS));
        assert_eq!(profile.liveness().0, Liveness::Live);
        observe_range(&mut profile, (2_401 * MS, 3_000 * MS), MS, |_| rapl(500 * MS));
        let (liveness, reason) = profile.liveness();
        assert_eq!(liveness, Liveness::Stuck);
        assert!(reason.unwrap().contains("2.5 s"));
        observe_range(&mut profile, (3_001 * MS, 3_002 * MS), MS, rapl);
        assert_eq!(profile.liveness(), (Liveness::Live, None));
    }

    #[test]
    fn a_counter_with_an_interval_above_the_timeout_is_not_stuck() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 60_000 * MS), 100 * MS, |at_ns| counter(at_ns / (3_000 * MS)));
        assert!(profile.update_interval_ns().unwrap().abs_diff(3_000 * MS) <= 100 * MS);
        assert_eq!(profile.liveness().0, Liveness::Live);
    }

    #[test]
    fn reads_once_a_second_do_not_make_a_counter_stuck() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 1_000 * MS), MS, rapl);
        observe_range(&mut profile, (2_000 * MS, 9_000 * MS), 1_000 * MS, |_| rapl(1_000 * MS));
        assert_eq!(profile.liveness().0, Liveness::Live);
    }

    #[test]
    fn a_domain_that_no_longer_answers_is_lost_and_one_that_never_did_is_not() {
        let silent = |_| EnergyReading::default();
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 500 * MS), MS, rapl);
        observe_range(&mut profile, (501 * MS, 2_400 * MS), MS, silent);
        assert_eq!(profile.liveness().0, Liveness::Live, "not yet");
        observe_range(&mut profile, (2_401 * MS, 4_000 * MS), MS, silent);
        assert_eq!(profile.liveness().0, Liveness::Lost);
        assert_eq!(profile.power_mw(), None);

        let mut never = CounterProfile::new(true);
        observe_range(&mut never, (MS, 4_000 * MS), MS, silent);
        let (liveness, reason) = never.liveness();
        assert_eq!((liveness, reason.as_deref()), (Liveness::Stuck, Some("never answered in 3.9 s")));
    }

    #[test]
    fn power_after_an_epoch_change_needs_two_updates() {
        let mut profile = CounterProfile::new(true);
        observe_range(&mut profile, (MS, 500 * MS), MS, rapl);
        let later = |at_ns| EnergyReading { epoch: 1, ..rapl(at_ns) };
        observe_range(&mut profile, (501 * MS, 501 * MS), MS, later);
        assert_eq!(profile.power_mw(), None);
        observe_range(&mut profile, (502 * MS, 520 * MS), MS, later);
        assert_eq!(profile.power_mw(), Some(50_000));
    }
}
