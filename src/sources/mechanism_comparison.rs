//! Comparison of mechanisms that show the same energy: one register, or the whole machine.
//!
//! Owns the choice of what is compared and the readings in one common period. Domains of one name are the same energy, and so
//! are the only NVIDIA board and the only rail of a GPU beside it. Of the whole machine there may be a platform's counter, power supplies, batteries, and the sum of the parts; the first of
//! them is compared with each other one. A source that does not answer delays no other. A gap gives no energy, never 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading};

use super::OpenedSource;
use super::dedup::{domain_tree, preference};
use super::source_settings::{HWMON, NVML};
use super::suspend_detector::SuspendDetector;

/// Shortest pause between two reads of a source: several updates of a fast counter.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// How long a read may last beyond the comparison.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// One of two mechanisms: some domains of one source, whose energies are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedMechanism {
    /// The name of the mechanism; several are separated by "+".
    pub source: String,
    /// Their names.
    pub domains: Vec<String>,
    /// The energy in the period; `None`: it was not readable all the time.
    pub energy_uj: Option<u64>,
}

/// Two mechanisms that show the same energy, or that of the whole machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MechanismPair {
    /// The one that discovery prefers, or that shows more of the machine.
    pub first: ComparedMechanism,
    /// The other one.
    pub second: ComparedMechanism,
    /// The length of the period in which both were read.
    pub period_ns: u64,
    /// How much more energy the second shows, in millionths of the first's; `None` if one is unknown or the first shows none.
    pub difference_ppm: Option<i64>,
    /// The part of the difference that the counters' steps explain.
    pub resolution_ppm: Option<u64>,
    /// Whether both show a GPU alone, which no load of the CPUs loads.
    pub is_gpu: bool,
}

/// Reads all sources while `load` runs on this thread, which returns after `duration`. Compares what shows the same energy.
pub fn compare(
    opened: Vec<OpenedSource>,
    clock: &Clock,
    duration: Duration,
    load: impl FnOnce(Duration),
) -> Vec<MechanismPair> {
    let is_over = Arc::new(AtomicBool::new(false));
    let (sender, recorded) = channel();
    let mut started = 0;
    for (nth, source) in opened.into_iter().enumerate() {
        let (is_over, clock, sender) = (Arc::clone(&is_over), clock.clone(), sender.clone());
        let thread = thread::Builder::new().name(format!("compare-{nth}"));
        let record_source = move || {
            let _ = sender.send((nth, record(source, &clock, &is_over)));
        };
        started += usize::from(thread.spawn(record_source).is_ok());
    }
    load(duration);
    is_over.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + READ_TIMEOUT;
    let next = || recorded.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    let mut parts: Vec<(usize, Vec<RecordedDomain>)> = (0..started).map_while(|_| next()).collect();
    parts.sort_by_key(|(nth, _)| *nth);
    compare_recorded(&parts.into_iter().flat_map(|(_, domains)| domains).collect::<Vec<_>>())
}

/// One domain with its readings, each at an instant, since the first valid one.
#[derive(Debug, Clone)]
struct RecordedDomain {
    domain: Domain,
    readings: Vec<(u64, EnergyReading)>,
}

/// Reads a source until the comparison is over.
fn record(mut opened: OpenedSource, clock: &Clock, is_over: &AtomicBool) -> Vec<RecordedDomain> {
    let mut suspend = SuspendDetector::new(clock);
    let pause = MIN_PAUSE.max(Duration::from_secs_f64(1.0 / opened.max_rate_hz.max(0.1)));
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    let of = |domain: Domain| RecordedDomain { domain, readings: Vec::new() };
    let mut recorded: Vec<RecordedDomain> = std::mem::take(&mut opened.domains).into_iter().map(of).collect();
    loop {
        let is_last = is_over.load(Ordering::Relaxed);
        let before_ns = clock.now_ns();
        opened.source.read(&mut readings);
        if suspend.has_suspended() {
            readings.fill(EnergyReading::default());
        }
        let middle_ns = before_ns + (clock.now_ns() - before_ns) / 2;
        for (domain, reading) in recorded.iter_mut().zip(&readings) {
            let at_ns = if reading.stamp_ns > 0 { reading.stamp_ns } else { middle_ns };
            let is_repeated = domain.readings.last().is_some_and(|(last_ns, _)| *last_ns >= at_ns);
            if (reading.valid || !domain.readings.is_empty()) && !(reading.valid && is_repeated) {
                domain.readings.push((at_ns, *reading));
            }
        }
        if is_last {
            return recorded;
        }
        thread::sleep(pause);
    }
}

impl RecordedDomain {
    fn has_moved(&self) -> bool {
        let energies = || self.readings.iter().filter(|(_, reading)| reading.valid).map(|(_, r)| r.energy_uj);
        energies().min() != energies().max()
    }

    /// The period of the readings; `None` if there was a gap.
    fn period_ns(&self) -> Option<(u64, u64)> {
        let (from_ns, first) = self.readings.first()?;
        let is_whole = self.readings.iter().all(|(_, reading)| reading.valid && reading.epoch == first.epoch);
        is_whole.then_some((*from_ns, self.readings.last()?.0))
    }

    /// The energy at an instant of the period, linear between two readings.
    fn energy_uj_at(&self, at_ns: u64) -> Option<u64> {
        let after = self.readings.iter().position(|(reading_ns, _)| *reading_ns >= at_ns)?;
        let (after_ns, end) = &self.readings[after];
        let Some((before_ns, start)) = after.checked_sub(1).map(|before| self.readings[before]) else {
            return Some(end.energy_uj);
        };
        let grown = u128::from(end.energy_uj - start.energy_uj) * u128::from(at_ns - before_ns);
        Some(start.energy_uj + u64::try_from(grown / u128::from(after_ns - before_ns)).ok()?)
    }

    /// The energy of the period, and what the steps of the counter may add to it or hide at both ends.
    fn energy_between(&self, (from_ns, to_ns): (u64, u64)) -> Option<(u64, u64)> {
        let energy_uj = self.energy_uj_at(to_ns)?.checked_sub(self.energy_uj_at(from_ns)?)?;
        let steps = self.readings.windows(2).map(|two| two[1].1.energy_uj.saturating_sub(two[0].1.energy_uj));
        Some((energy_uj, steps.max().unwrap_or(0) + self.domain.quantum_uj))
    }
}

/// Domains whose energies are added.
type Side<'a> = Vec<&'a RecordedDomain>;

fn compare_recorded(domains: &[RecordedDomain]) -> Vec<MechanismPair> {
    let mut sides: Vec<(Side<'_>, Side<'_>)> = Vec::new();
    for (nth, second) in domains.iter().enumerate() {
        let first = domains[..nth].iter().find(|first| first.domain.name == second.domain.name);
        sides.extend(first.map(|first| (vec![first], vec![second])));
    }
    sides.extend(board_and_rail(domains));
    if let Some((first, others)) = whole_machine(domains).split_first() {
        sides.extend(others.iter().map(|other| (first.clone(), other.clone())));
    }
    sides.into_iter().map(|(first, second)| compare_sides(&first, &second)).collect()
}

/// The NVIDIA board and the rail that feeds it, if there is one of each: NVML and hwmon name them differently. Another vendor's
/// card has a source of its own.
fn board_and_rail(domains: &[RecordedDomain]) -> Option<(Side<'_>, Side<'_>)> {
    let only = |source: &str| {
        let is_it = |one: &&RecordedDomain| one.domain.kind == DomainKind::Gpu && one.domain.source == source;
        let mut found = domains.iter().filter(is_it);
        found.next().filter(|_| found.next().is_none())
    };
    let (board, rail) = (only(NVML)?, only(HWMON)?);
    Some((vec![board], vec![rail]))
}

/// What shows the energy of the whole machine: a platform's counter or sensor, all power supplies, all batteries, and the sum
/// of the parts, where there are any.
fn whole_machine(domains: &[RecordedDomain]) -> Vec<Side<'_>> {
    let is_first = |(nth, one): &(usize, &RecordedDomain)| {
        domains[..*nth].iter().all(|other| other.domain.name != one.domain.name)
    };
    let unique: Side<'_> = domains.iter().enumerate().filter(is_first).map(|(_, domain)| domain).collect();
    let is_supply = |domain: &Domain| domain.kind == DomainKind::Psys && domain.name.starts_with("psu-");
    let is_platform = |domain: &Domain| domain.kind == DomainKind::Psys && !is_supply(domain);
    let all = |wanted: &dyn Fn(&Domain) -> bool| -> Side<'_> {
        unique.iter().copied().filter(|one| wanted(&one.domain)).collect()
    };
    // Of the psys of several packages only one moves.
    let platform = all(&is_platform).into_iter().filter(|one| one.has_moved()).take(1).collect();
    let batteries = all(&|domain| domain.kind == DomainKind::Battery);
    let sides = [platform, all(&is_supply), batteries, parts_of_machine(&unique)];
    sides.into_iter().filter(|side| !side.is_empty()).collect()
}

/// The domains of the total, as if nothing showed the whole machine.
fn parts_of_machine<'a>(unique: &[&'a RecordedDomain]) -> Side<'a> {
    let is_part = |one: &&&RecordedDomain| {
        !matches!(one.domain.kind, DomainKind::Psys | DomainKind::Battery) && one.has_moved()
    };
    let parts: Side<'a> = unique.iter().filter(is_part).copied().collect();
    let mut domains: Vec<Domain> = parts.iter().map(|one| one.domain.clone()).collect();
    preference::resolve_parents(domains.iter_mut().collect());
    let counted = domain_tree::counted_in_total(&domains, &vec![true; domains.len()]);
    parts.into_iter().zip(counted).filter(|(_, counted)| *counted).map(|(one, _)| one).collect()
}

fn compare_sides(first: &Side<'_>, second: &Side<'_>) -> MechanismPair {
    let periods = |side: &Side<'_>| side.iter().map(|one| one.period_ns()).collect::<Option<Vec<_>>>();
    let period = periods(first).zip(periods(second)).and_then(|(first, second)| {
        let all = || first.iter().chain(&second);
        let (from_ns, to_ns) = (all().map(|period| period.0).max()?, all().map(|period| period.1).min()?);
        (from_ns < to_ns).then_some((from_ns, to_ns))
    });
    let energy = |side: &Side<'_>| {
        let energies = side.iter().map(|one| one.energy_between(period?)).collect::<Option<Vec<_>>>()?;
        Some(energies.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)))
    };
    let energies = energy(first).zip(energy(second)).filter(|((first_uj, _), _)| *first_uj > 0);
    let ppm = |part_uj: i128, of_uj: u64| part_uj * 1_000_000 / i128::from(of_uj);
    MechanismPair {
        first: describe(first, energy(first)),
        second: describe(second, energy(second)),
        period_ns: period.map_or(0, |(from_ns, to_ns)| to_ns - from_ns),
        difference_ppm: energies.and_then(|((first_uj, _), (second_uj, _))| {
            i64::try_from(ppm(i128::from(second_uj) - i128::from(first_uj), first_uj)).ok()
        }),
        is_gpu: first.iter().chain(second).all(|one| is_gpu(one.domain.kind)),
        resolution_ppm: energies.and_then(|((first_uj, first_step_uj), (_, second_step_uj))| {
            u64::try_from(ppm(i128::from(first_step_uj) + i128::from(second_step_uj), first_uj)).ok()
        }),
    }
}

fn is_gpu(kind: DomainKind) -> bool {
    matches!(kind, DomainKind::Gpu | DomainKind::GpuMemory)
}

fn describe(side: &Side<'_>, energy: Option<(u64, u64)>) -> ComparedMechanism {
    let mut sources: Vec<&str> = side.iter().map(|one| one.domain.source.as_str()).collect();
    sources.dedup();
    ComparedMechanism {
        source: sources.join("+"),
        domains: side.iter().map(|one| one.domain.name.clone()).collect(),
        energy_uj: energy.map(|(energy_uj, _)| energy_uj),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Grade;

    const MS: u64 = 1_000_000;

    /// A domain of constant power that is read every 10 ms for a second, beginning at `from_ns`.
    fn recorded(name: &str, kind: DomainKind, source: &str, power_mw: u64, from_ns: u64) -> RecordedDomain {
        let domain = Domain {
            name: name.into(),
            kind,
            source: source.into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 61,
        };
        let reading = |at_ns: u64| {
            let energy_uj = power_mw * at_ns / MS;
            (from_ns + at_ns, EnergyReading { valid: true, energy_uj, ..EnergyReading::default() })
        };
        RecordedDomain { domain, readings: (0..=100).map(|nth| reading(nth * 10 * MS)).collect() }
    }

    fn package(source: &str, power_mw: u64) -> RecordedDomain {
        recorded("package-0", DomainKind::Package, source, power_mw, 0)
    }

    #[test]
    fn one_register_read_twice_agrees_within_its_resolution_and_a_factor_is_shown() {
        let pairs = |second_mw| compare_recorded(&[package("perf", 100_000), package("hwmon", second_mw)]);
        let [pair] = pairs(100_000).try_into().unwrap();
        assert_eq!((pair.difference_ppm, pair.first.energy_uj), (Some(0), Some(100_000_000)));
        assert_eq!((pair.first.source.as_str(), pair.second.source.as_str()), ("perf", "hwmon"));
        // Two steps of a second's hundredth, and two quanta.
        assert_eq!(pair.resolution_ppm, Some(20_001));
        assert_eq!(pairs(110_000)[0].difference_ppm, Some(100_000));
        assert_eq!(pairs(25_000)[0].difference_ppm, Some(-750_000));
        assert_eq!(pairs(0)[0].difference_ppm, Some(-1_000_000), "the second stands still");
    }

    #[test]
    fn the_only_nvidia_board_is_compared_with_the_only_rail_of_a_gpu() {
        let gpu = |name, source, power_mw| recorded(name, DomainKind::Gpu, source, power_mw, 0);
        let (board, rail) = (gpu("gpu-0", NVML, 50_000), gpu("vdd-gpu", HWMON, 45_000));
        let [pair] = compare_recorded(&[board.clone(), rail.clone()]).try_into().unwrap();
        assert_eq!((pair.difference_ppm, pair.is_gpu), (Some(-100_000), true));
        assert_eq!(compare_recorded(&[board.clone(), gpu("gpu-1", NVML, 50_000), rail]), []);
        assert_eq!(compare_recorded(&[board, gpu("amdgpu-0", "amdgpu", 50_000)]), []);
        assert!(!compare_recorded(&[package("perf", 1_000), package("hwmon", 1_000)])[0].is_gpu);
    }

    #[test]
    fn only_the_common_period_is_compared() {
        let late = recorded("package-0", DomainKind::Package, "hwmon", 100_000, 255 * MS);
        let [pair] = compare_recorded(&[package("perf", 100_000), late]).try_into().unwrap();
        assert_eq!((pair.period_ns, pair.difference_ppm), (745 * MS, Some(0)));
        assert_eq!(pair.first.energy_uj, Some(74_500_000));
        let after = recorded("package-0", DomainKind::Package, "hwmon", 100_000, 2_000 * MS);
        let [pair] = compare_recorded(&[package("perf", 100_000), after]).try_into().unwrap();
        assert_eq!((pair.period_ns, pair.difference_ppm, pair.second.energy_uj), (0, None, None));
    }

    #[test]
    fn a_gap_a_new_epoch_or_no_reading_is_unknown_and_never_0() {
        let (mut gap, mut epoch, mut empty) =
            (package("hwmon", 100_000), package("hwmon", 100_000), package("hwmon", 100_000));
        gap.readings[40].1 = EnergyReading::default();
        epoch.readings[60..].iter_mut().for_each(|(_, reading)| reading.epoch = 1);
        empty.readings.clear();
        for second in [gap, epoch, empty] {
            let [pair] = compare_recorded(&[package("perf", 100_000), second]).try_into().unwrap();
            assert_eq!((pair.second.energy_uj, pair.difference_ppm, pair.resolution_ppm), (None, None, None));
        }
        let [pair] = compare_recorded(&[package("perf", 0), package("hwmon", 5_000)]).try_into().unwrap();
        assert_eq!((pair.first.energy_uj, pair.difference_ppm), (Some(0), None), "no share of nothing");
    }

    #[test]
    fn the_whole_machine_is_compared_with_supplies_batteries_and_the_sum_of_the_parts() {
        let psys = |name: &str, source, power_mw| recorded(name, DomainKind::Psys, source, power_mw, 0);
        let mut core = recorded("core-0", DomainKind::Core, "perf", 60_000, 0);
        core.domain.parent = Some("package-0".into());
        let rail = recorded("ina-0", DomainKind::Rail, "hwmon", 500_000, 0);
        let card = recorded("gpu-0", DomainKind::Gpu, "nvml", 50_000, 0);
        let supplies = [psys("psu-0", "hwmon", 100_000), psys("psu-1", "hwmon", 110_000)];
        let battery = recorded("battery-0", DomainKind::Battery, "battery", 220_000, 0);
        let domains = [&[package("perf", 100_000), core, rail, card][..], &supplies].concat();
        let shown = |domains: &[RecordedDomain]| -> Vec<(String, String, Option<i64>)> {
            let text = |side: &ComparedMechanism| format!("{} {}", side.source, side.domains.join("+"));
            let pairs = compare_recorded(domains);
            pairs.iter().map(|pair| (text(&pair.first), text(&pair.second), pair.difference_ppm)).collect()
        };
        let row = |first: &str, second: &str, ppm| (first.to_owned(), second.to_owned(), Some(ppm));
        let parts = "perf+nvml package-0+gpu-0";
        assert_eq!(shown(&domains), [row("hwmon psu-0+psu-1", parts, -285_714)]);
        // The psys of the second package stands still; that of another mechanism is the same register.
        let platform = [psys("psys", "perf", 200_000), psys("psys-1", "perf", 0), battery];
        let with_platform = [&domains[..], &platform[..]].concat();
        assert_eq!(
            shown(&with_platform),
            [
                row("perf psys", "hwmon psu-0+psu-1", 50_000),
                row("perf psys", "battery battery-0", 100_000),
                row("perf psys", parts, -250_000),
            ]
        );
    }
}
