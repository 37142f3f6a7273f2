//! What a counter shows of a load that is switched on and off at known instants: its update interval, the jitter of its
//! updates, its step and its lag.
//!
//! The lag is the delay with which the load fits the energy best. For each delay, the steps of the counter are fitted by a
//! power at rest and one under load (least squares); the delay with the smallest rest counts. Everything is known as well as
//! the counter is observed, which `resolution_ns` states. Reads no clock.

/// The value of a counter at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSample {
    pub at_ns: u64,
    pub energy_uj: u64,
}

/// A load that is switched on and off at these instants in turn, the first time on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadWave {
    pub switched_ns: Vec<u64>,
}

/// What was measured; `None`: the samples do not show it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CounterProfile {
    pub updates: usize,
    pub update_interval_ns: Option<u64>,
    /// The largest deviation of an update from the median interval, but for one in twenty.
    pub jitter_ns: Option<u64>,
    pub quantum_uj: Option<f64>,
    pub lag: Option<MeasuredLag>,
    /// The time between two samples: no time is known better.
    pub resolution_ns: u64,
}

/// A lag, with the powers that fit best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeasuredLag {
    pub lag_ns: u64,
    pub rest_mw: i64,
    pub load_mw: i64,
}

/// An observed update: the counter moved between the samples before and at `at_ns`.
#[derive(Debug, Clone, Copy)]
struct Update {
    after_ns: u64,
    at_ns: u64,
    energy_uj: u64,
}

/// Fewer updates show nothing.
const MIN_UPDATES: usize = 20;

/// A shorter interval is not seen between samples.
const MIN_SAMPLES_PER_UPDATE: u64 = 3;

/// After a longer gap between two samples, in usual ones, it is not known when the counter moved.
const MAX_GAP_SAMPLES: u64 = 4;

/// The largest lag that is searched.
const MAX_LAG_NS: u64 = 400_000_000;

/// The steps of the search: all lags, and then those around the best one.
const COARSE_STEP_NS: u64 = 2_000_000;
const FINE_STEP_NS: u64 = 250_000;

/// The part of the variation of power that the load must explain.
const MIN_EXPLAINED: f64 = 0.5;

impl LoadWave {
    /// The time under load from `from_ns` to `to_ns`.
    fn loaded_ns(&self, from_ns: i64, to_ns: i64) -> i64 {
        let overlap = |pair: &[u64]| {
            let end_ns = pair.get(1).map_or(i64::MAX, |end_ns| *end_ns as i64);
            (end_ns.min(to_ns) - (pair[0] as i64).max(from_ns)).max(0)
        };
        self.switched_ns.chunks(2).map(overlap).sum()
    }
}

/// Evaluates the samples of one counter, in the order of time.
pub fn fit(samples: &[CounterSample], wave: &LoadWave) -> CounterProfile {
    let resolution_ns = median(samples.windows(2).map(|pair| pair[1].at_ns - pair[0].at_ns)).unwrap_or(0);
    let moved = |pair: &[CounterSample]| {
        (pair[1].energy_uj > pair[0].energy_uj).then_some(Update {
            after_ns: pair[0].at_ns,
            at_ns: pair[1].at_ns,
            energy_uj: pair[1].energy_uj,
        })
    };
    let updates: Vec<Update> = samples.windows(2).filter_map(moved).collect();
    let mut profile = CounterProfile { updates: updates.len(), resolution_ns, ..CounterProfile::default() };
    if updates.len() < MIN_UPDATES {
        return profile;
    }
    profile.quantum_uj = quantum_uj(&updates);
    let intervals = || updates.windows(2).map(|pair| middle_ns(&pair[1]) - middle_ns(&pair[0]));
    let interval_ns = median(intervals()).filter(|ns| *ns >= MIN_SAMPLES_PER_UPDATE * resolution_ns);
    profile.update_interval_ns = interval_ns.map(|median_ns| mean_interval_ns(&updates, median_ns));
    profile.jitter_ns = interval_ns.and_then(|interval_ns| {
        let deviations = intervals().map(|ns| ns.abs_diff(interval_ns)).collect();
        quantile(deviations, 0.95)
    });
    // Within an interval, a gap moves one update by less than that.
    let longest_gap_ns = (MAX_GAP_SAMPLES * resolution_ns).max(interval_ns.unwrap_or(0));
    let gap_ends_ns: Vec<u64> = samples
        .windows(2)
        .filter(|pair| pair[1].at_ns - pair[0].at_ns > longest_gap_ns)
        .map(|pair| pair[1].at_ns)
        .collect();
    profile.lag = fit_lag(&well_timed_steps(&updates, &gap_ends_ns, longest_gap_ns), wave);
    profile
}

/// The steps between two updates of which none came within `unsure_ns` after a pause of the samples: it hides when the counter
/// moved, and the first sample after it may still show the counter as it was before. One step at a wrong time outweighs
/// hundreds of others.
fn well_timed_steps(updates: &[Update], gap_ends_ns: &[u64], unsure_ns: u64) -> Vec<[Update; 2]> {
    let is_well_timed = |update: &Update| {
        let gaps_before = gap_ends_ns.partition_point(|end_ns| *end_ns <= update.at_ns);
        gap_ends_ns[..gaps_before].last().is_none_or(|end_ns| update.at_ns - end_ns > unsure_ns)
    };
    let pairs = updates.windows(2).filter(|pair| pair.iter().all(is_well_timed));
    pairs.map(|pair| [pair[0], pair[1]]).collect()
}

/// The middle of the time in which the update can have happened.
fn middle_ns(update: &Update) -> u64 {
    update.after_ns.midpoint(update.at_ns)
}

/// The mean interval, which is known better than one interval. Missed updates count as several.
fn mean_interval_ns(updates: &[Update], median_ns: u64) -> u64 {
    let (mut total_ns, mut count) = (0, 0);
    for pair in updates.windows(2) {
        let ns = middle_ns(&pair[1]) - middle_ns(&pair[0]);
        let times = (ns + median_ns / 2) / median_ns;
        // A pause of the samples, or of the counter, is no interval.
        if (1..=2).contains(&times) {
            total_ns += ns;
            count += times;
        }
    }
    total_ns.checked_div(count).unwrap_or(median_ns)
}

/// The largest unit of which every step is a multiple, as far as whole microjoules show it; `None` where too few different
/// steps were seen, and for a unit of a few microjoules.
fn quantum_uj(updates: &[Update]) -> Option<f64> {
    const MIN_DIFFERENT_STEPS: usize = 8;
    const MIN_QUANTUM_UJ: f64 = 12.0;
    const MAX_PARTS: u32 = 1_000_000;
    let mut steps: Vec<u64> = updates.windows(2).map(|pair| pair[1].energy_uj - pair[0].energy_uj).collect();
    steps.sort_unstable();
    steps.dedup();
    if steps.len() < MIN_DIFFERENT_STEPS {
        return None;
    }
    let steps: Vec<f64> = steps.into_iter().map(|step| step as f64).collect();
    // A step far smaller than the others is too inexact for them: then a larger one is divided.
    (0..MIN_DIFFERENT_STEPS).find_map(|first| {
        let (smaller, larger) = steps.split_at(first);
        (1..=MAX_PARTS)
            .map(|parts| steps[first] / f64::from(parts))
            .take_while(|unit| *unit >= MIN_QUANTUM_UJ)
            .find_map(|unit| common_unit(unit, larger.iter().chain(smaller)))
    })
}

/// The unit near `unit` of which all steps are multiples; each step fixes it better. `None` where there is none.
fn common_unit<'a>(unit: f64, mut steps: impl Iterator<Item = &'a f64>) -> Option<f64> {
    /// Both ends of a step are rounded down, so its error is below one microjoule on either side.
    const ROUNDING_UJ: f64 = 1.0;
    let (mut least, mut most) = (0.0_f64, f64::INFINITY);
    let mut best = unit;
    steps.try_for_each(|step| {
        let times = (step / best).round();
        let is_near = times >= 1.0 && (step - times * best).abs() <= best / 4.0;
        least = least.max((step - ROUNDING_UJ) / times);
        most = most.min((step + ROUNDING_UJ) / times);
        best = least.midpoint(most);
        (is_near && least <= most).then_some(())
    })?;
    Some(best)
}

/// The lag with which the load explains the steps best; `None` where it does not explain them.
fn fit_lag(steps: &[[Update; 2]], wave: &LoadWave) -> Option<MeasuredLag> {
    let best_of = |from_ns: u64, to_ns: u64, step_ns: u64| {
        let lags = (from_ns..=to_ns).step_by(step_ns as usize);
        let fits = lags.filter_map(|lag_ns| Some((lag_ns, fit_powers(steps, wave, lag_ns)?)));
        fits.min_by(|a, b| a.1.rest.total_cmp(&b.1.rest))
    };
    let (near_ns, _) = best_of(0, MAX_LAG_NS, COARSE_STEP_NS)?;
    let from_ns = near_ns.saturating_sub(COARSE_STEP_NS);
    let (lag_ns, best) = best_of(from_ns, near_ns + COARSE_STEP_NS, FINE_STEP_NS)?;
    let is_load_seen = best.load > best.idle && best.rest <= (1.0 - MIN_EXPLAINED) * best.variation;
    // µJ/ns is kW.
    let to_mw = |power: f64| (power * 1e6).round() as i64;
    is_load_seen.then(|| MeasuredLag { lag_ns, rest_mw: to_mw(best.idle), load_mw: to_mw(best.load) })
}

/// The best powers for one lag.
struct PowerFit {
    idle: f64,
    load: f64,
    /// The sum of squares that they leave, and that a constant power leaves.
    rest: f64,
    variation: f64,
}

/// Least squares of ΔE = idle · (Δt − loaded) + load · loaded.
fn fit_powers(steps: &[[Update; 2]], wave: &LoadWave, lag_ns: u64) -> Option<PowerFit> {
    let (mut aa, mut ab, mut bb, mut ae, mut be, mut ee) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let (mut tt, mut te) = (0.0, 0.0);
    for pair in steps {
        let from_ns = middle_ns(&pair[0]) as i64 - lag_ns as i64;
        let to_ns = middle_ns(&pair[1]) as i64 - lag_ns as i64;
        let loaded = wave.loaded_ns(from_ns, to_ns) as f64;
        let (whole, energy) = ((to_ns - from_ns) as f64, (pair[1].energy_uj - pair[0].energy_uj) as f64);
        let idle = whole - loaded;
        aa += idle * idle;
        ab += idle * loaded;
        bb += loaded * loaded;
        ae += idle * energy;
        be += loaded * energy;
        ee += energy * energy;
        tt += whole * whole;
        te += whole * energy;
    }
    let determinant = aa * bb - ab * ab;
    if determinant <= 0.0 || tt <= 0.0 {
        return None;
    }
    let (idle, load) = ((ae * bb - be * ab) / determinant, (be * aa - ae * ab) / determinant);
    let rest = (ee - idle * ae - load * be).max(0.0);
    Some(PowerFit { idle, load, rest, variation: (ee - te * te / tt).max(0.0) })
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    quantile(values.collect(), 0.5)
}

fn quantile(mut values: Vec<u64>, part: f64) -> Option<u64> {
    values.sort_unstable();
    let index = (values.len() as f64 * part) as usize;
    values.get(index.min(values.len().checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START_NS: u64 = 5_000 * MS;

    /// A counter with known properties, under a load with known power.
    #[derive(Clone, Copy)]
    struct Counter {
        interval_ns: u64,
        jitter_ns: u64,
        lag_ns: u64,
        quantum_uj: f64,
        idle_w: f64,
        load_w: f64,
    }

    const COUNTER: Counter = Counter {
        interval_ns: 20 * MS,
        jitter_ns: 0,
        lag_ns: 45 * MS,
        quantum_uj: 1000.0,
        idle_w: 40.0,
        load_w: 170.0,
    };

    /// On and off for 150 to 450 ms, for ten seconds.
    fn wave() -> LoadWave {
        let (mut at_ns, mut switched_ns, mut random) = (START_NS + 500 * MS, Vec::new(), 7_u64);
        while at_ns < START_NS + 10_000 * MS {
            switched_ns.push(at_ns);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            at_ns += 150 * MS + (random >> 33) % (300 * MS);
        }
        LoadWave { switched_ns }
    }

    impl Counter {
        /// Samples every millisecond, a little irregularly.
        fn samples(&self, wave: &LoadWave) -> Vec<CounterSample> {
            (0..10_500_u64)
                .map(|at| {
                    let at_ns = START_NS + at * MS + (at * 7919) % 200_000;
                    CounterSample { at_ns, energy_uj: self.energy_uj(at_ns, wave) }
                })
                .collect()
        }

        fn energy_uj(&self, at_ns: u64, wave: &LoadWave) -> u64 {
            // The delay of an update is a function of its number.
            let visible_ns = |update: u64| {
                let delay_ns = update.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0xffff_ffff;
                update * self.interval_ns + self.lag_ns + delay_ns * self.jitter_ns / 0xffff_ffff
            };
            let mut update = (at_ns - self.lag_ns) / self.interval_ns;
            if visible_ns(update) > at_ns {
                update -= 1;
            }
            let (from_ns, to_ns) = (START_NS as i64 - 1_000 * MS as i64, (update * self.interval_ns) as i64);
            let loaded_ns = wave.loaded_ns(from_ns, to_ns) as f64;
            let idle_ns = (to_ns - from_ns) as f64 - loaded_ns;
            let exact_uj = (idle_ns * self.idle_w + loaded_ns * self.load_w) / 1e3;
            ((exact_uj / self.quantum_uj).floor() * self.quantum_uj) as u64
        }

        fn profile(&self) -> CounterProfile {
            let wave = wave();
            fit(&self.samples(&wave), &wave)
        }
    }

    #[track_caller]
    fn assert_near(measured: u64, truth: u64, tolerance: u64) {
        assert!(measured.abs_diff(truth) <= tolerance, "{measured} is not {truth} ± {tolerance}");
    }

    #[test]
    fn interval_lag_and_quantum_are_those_of_the_counter() {
        for (interval_ns, lag_ns) in
            [(20 * MS, 45 * MS), (20 * MS, 0), (100 * MS, 60 * MS), (100 * MS, 180 * MS), (10 * MS, 3 * MS)]
        {
            let profile = Counter { interval_ns, lag_ns, ..COUNTER }.profile();
            assert_near(profile.update_interval_ns.unwrap(), interval_ns, MS / 10);
            let lag = profile.lag.unwrap();
            assert_near(lag.lag_ns, lag_ns, 2 * MS);
            assert_near(lag.rest_mw.unsigned_abs(), 40_000, 1_000);
            assert_near(lag.load_mw.unsigned_abs(), 170_000, 3_000);
            assert!((profile.quantum_uj.unwrap() - 1000.0).abs() < 0.1, "{:?}", profile.quantum_uj);
            assert!(profile.jitter_ns.unwrap() <= 2 * MS);
        }
    }

    #[test]
    fn a_fractional_quantum_is_found_below_large_steps() {
        let profile = Counter { quantum_uj: 61.035, ..COUNTER }.profile();
        let quantum = profile.quantum_uj.unwrap();
        assert!((quantum - 61.035).abs() < 0.01, "{quantum}");
        // Whole microjoules: nothing is known.
        assert_eq!(Counter { quantum_uj: 1.0, ..COUNTER }.profile().quantum_uj, None);
    }

    #[test]
    fn jitter_shows_in_the_intervals() {
        let profile = Counter { jitter_ns: 8 * MS, ..COUNTER }.profile();
        let jitter_ns = profile.jitter_ns.unwrap();
        assert!((4 * MS..=9 * MS).contains(&jitter_ns), "{jitter_ns}");
        // Its mean delay is half of the jitter.
        assert_near(profile.lag.unwrap().lag_ns, 49 * MS, 3 * MS);
        assert_near(profile.update_interval_ns.unwrap(), 20 * MS, MS / 2);
    }

    #[test]
    fn a_pause_of_the_samples_does_not_hide_the_lag() {
        for interval_ns in [20 * MS, 50 * MS] {
            let (wave, counter) = (wave(), Counter { interval_ns, ..COUNTER });
            for (from_ms, pause_ms) in
                [(2_003, 100), (3_010, 300), (5_417, 300), (7_345, 1_000), (8_888, 1_000)]
            {
                let pause_ns = START_NS + from_ms * MS..START_NS + (from_ms + pause_ms) * MS;
                let mut samples = counter.samples(&wave);
                let before_uj = counter.energy_uj(pause_ns.start, &wave);
                samples.retain(|sample| !pause_ns.contains(&sample.at_ns));
                // The first sample after it is that of a reading before it.
                let first = samples.partition_point(|sample| sample.at_ns < pause_ns.end);
                samples[first].energy_uj = before_uj;
                let lag = fit(&samples, &wave).lag;
                let lag = lag.unwrap_or_else(|| panic!("{interval_ns} ns, {pause_ms} ms from {from_ms} ms"));
                assert_near(lag.lag_ns, counter.lag_ns, 2 * MS);
                assert_near(lag.load_mw.unsigned_abs(), 170_000, 3_000);
            }
        }
    }

    #[test]
    fn a_counter_that_does_not_follow_the_load_has_no_lag() {
        let profile = Counter { load_w: 40.0, ..COUNTER }.profile();
        assert_eq!(profile.lag, None);
        assert!(profile.update_interval_ns.is_some());
    }

    #[test]
    fn updates_faster_than_the_samples_and_a_stuck_counter_show_no_interval() {
        let fast = Counter { interval_ns: MS, lag_ns: 0, ..COUNTER }.profile();
        assert_eq!((fast.update_interval_ns, fast.jitter_ns), (None, None));
        assert_near(fast.lag.unwrap().lag_ns, 0, 2 * MS);
        let stuck = Counter { idle_w: 0.0, load_w: 0.0, ..COUNTER }.profile();
        assert_eq!(stuck, CounterProfile { resolution_ns: stuck.resolution_ns, ..CounterProfile::default() });
    }

    /// The updates of a counter that shows whole microjoules, after these numbers of quanta.
    fn updates(parts: &[u64], unit_uj: f64) -> Vec<Update> {
        let ends = parts.iter().scan(1_000_u64, |sum, parts| {
            *sum += parts;
            Some(*sum)
        });
        std::iter::once(1_000)
            .chain(ends)
            .zip(0..)
            .map(|(sum, at_ns)| Update { after_ns: at_ns, at_ns, energy_uj: (sum as f64 * unit_uj) as u64 })
            .collect()
    }

    #[test]
    fn the_quantum_is_found_beside_a_step_of_few_quanta() {
        let unit_uj = 1e6 / 16_384.0;
        let parts = [20, 33_000, 33_017, 40_111, 52_340, 61_007, 77_777, 90_001, 110_003, 140_001_u64];
        let found_uj = quantum_uj(&updates(&parts, unit_uj)).expect("a quantum");
        assert!((found_uj - unit_uj).abs() < 0.01, "{found_uj}");
    }

    #[test]
    fn the_quantum_is_found_however_the_ends_of_the_steps_are_rounded() {
        let mut random = 7_u64;
        for unit_uj in [1e6 / 16_384.0, 1e6 / 65_536.0, 1e6 / 3_000.0] {
            for seed in 0..300 {
                let parts: Vec<u64> = (0..160)
                    .map(|_| {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let spread = (random >> 33) % 2_000;
                        if (random >> 20).is_multiple_of(2) { 32_000 + spread } else { 138_000 + spread }
                    })
                    .collect();
                let found_uj = quantum_uj(&updates(&parts, unit_uj));
                assert!(
                    found_uj.is_some_and(|found_uj| (found_uj - unit_uj).abs() < 0.01),
                    "{unit_uj}, {seed}: {found_uj:?}"
                );
            }
        }
    }
}
