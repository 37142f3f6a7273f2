//! A short look under load: which counters move, and which are mirrors of others.
//!
//! A counter that is present may be dead (cloud machines show a `psys` that always reads 0), and two may be one
//! (`package-0-die-0` and `-die-1` of a Threadripper). Only watching tells. Owns the watch at the start: a busy loop on
//! the calling thread, ended as soon as there is nothing left to learn, and by `LONGEST_NS` at the latest; on a machine so
//! busy that it could hardly look, by `LONGEST_BUSY_NS`. Never decides what becomes of a domain.

use std::hint::spin_loop;

use crate::clock::monotonic_ns;
use crate::energy::{Domain, Grade, Kind, Reading};

use super::Opened;
use super::agreement::{Agreement, Disagreement};
use super::likeness::{Likeness, Pair};

/// A domain that has not moved after so long under load is stuck.
const LONGEST_NS: u64 = 40_000_000;

/// Two counters that may be one are watched on where a busy machine has let them be looked at less often than this by then;
/// a quiet one looks twice as often. It takes no more of a CPU, only more time, and ends in any case.
const LOOKS: usize = 100;
const LONGEST_BUSY_NS: u64 = 1_000_000_000;

/// Time between two looks: several within the millisecond in which RAPL counters move.
const PAUSE_NS: u64 = 200_000;

/// An integral has moved by then if it ever will.
const LEAST_LOOKS: usize = 4;

/// Two domains, as (source, domain), whose counters are one and the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// The later one.
    pub copy: (usize, usize),
    /// The earlier one.
    pub original: (usize, usize),
}

/// What the watch saw.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Counters that are copies of others.
    pub mirrors: Vec<Mirror>,
    /// Mechanisms that show the same domain and not the same energy.
    pub disagreements: Vec<Disagreement>,
}

/// Watches all domains under load, fills [`Opened::advanced`], and says what is to be thought of them.
pub fn watch(opened: &mut [Opened]) -> Seen {
    let begin_ns = monotonic_ns();
    let mut watched = watched(opened);
    let mut rivals = rivals(&watched);
    let mut agreement = Agreement::new(opened);
    let mut readings: Vec<_> =
        opened.iter().map(|source| vec![Reading::default(); source.domains.len()]).collect();
    for look in 1.. {
        for (source, readings) in opened.iter_mut().zip(&mut readings) {
            source.source.read(readings);
        }
        let of = |place: (usize, usize)| &readings[place.0][place.1];
        watched.iter_mut().for_each(|domain| domain.see(of(domain.place)));
        rivals.iter_mut().for_each(|rivals| rivals.pair.see(of(rivals.original), of(rivals.copy)));
        agreement.see(&readings);
        let suspects = rivals.iter().any(|rivals| rivals.pair.likeness() == Likeness::Suspect);
        let learnt = look >= LEAST_LOOKS && all_moved(&watched) && !suspects && !agreement.wants_more();
        let longest_ns = if suspects && look < LOOKS { LONGEST_BUSY_NS } else { LONGEST_NS };
        if learnt || monotonic_ns() - begin_ns >= longest_ns {
            break;
        }
        burn(PAUSE_NS);
    }
    for domain in &watched {
        opened[domain.place.0].advanced[domain.place.1] = domain.moved;
    }
    Seen { mirrors: mirrors(&rivals), disagreements: agreement.disagreements(opened) }
}

/// One domain under watch.
struct Watched {
    place: (usize, usize),
    /// Domains of one kind are compared with each other, and only within one mechanism and one device.
    rival: (&'static str, Kind, Option<String>),
    /// Whether it counts. An integral moves at once or has nothing to integrate; and two that integrate the same steady
    /// power move alike without being one.
    counter: bool,
    last: Option<Reading>,
    moved: bool,
}

impl Watched {
    fn see(&mut self, reading: &Reading) {
        if !reading.valid {
            return;
        }
        let moved = |last: &Reading| reading.epoch == last.epoch && reading.energy_uj > last.energy_uj;
        self.moved |= self.last.as_ref().is_some_and(moved);
        self.last = Some(*reading);
    }
}

/// Two domains that may be one.
struct Rivals {
    original: (usize, usize),
    copy: (usize, usize),
    pair: Pair,
}

fn watched(opened: &[Opened]) -> Vec<Watched> {
    let of = |(nth, source): (usize, &Opened)| {
        let name = source.name;
        let one = move |(at, domain): (usize, &Domain)| Watched {
            place: (nth, at),
            rival: (name, domain.kind, domain.device.clone()),
            counter: domain.grade != Grade::Integrated,
            last: None,
            moved: false,
        };
        source.domains.iter().enumerate().map(one).collect::<Vec<_>>()
    };
    opened.iter().enumerate().flat_map(of).collect()
}

fn all_moved(watched: &[Watched]) -> bool {
    watched.iter().all(|domain| !domain.counter || domain.moved)
}

/// Each two counters of one kind and mechanism, the earlier first.
fn rivals(watched: &[Watched]) -> Vec<Rivals> {
    let of = |(nth, original): (usize, &Watched)| {
        let copies = watched[nth + 1..].iter().filter(|copy| copy.counter && copy.rival == original.rival);
        let one = |copy: &Watched| Rivals { original: original.place, copy: copy.place, pair: Pair::new() };
        copies.map(one).collect::<Vec<_>>()
    };
    watched.iter().enumerate().filter(|(_, original)| original.counter).flat_map(of).collect()
}

fn mirrors(rivals: &[Rivals]) -> Vec<Mirror> {
    let mut copies: Vec<_> = rivals
        .iter()
        .filter(|rivals| rivals.pair.likeness() == Likeness::Same)
        .map(|rivals| Mirror { copy: rivals.copy, original: rivals.original })
        .collect();
    // Three counters that are one make three pairs: each copy is named once, with the first original.
    copies.sort_by_key(|mirror| (mirror.copy, mirror.original));
    copies.dedup_by_key(|mirror| mirror.copy);
    copies
}

/// Keeps this CPU busy, so that what is alive has something to count.
fn burn(for_ns: u64) {
    let end_ns = monotonic_ns() + for_ns;
    while monotonic_ns() < end_ns {
        spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    /// Counters that add the next of their moves at each read, over and over; an empty list never moves.
    struct Moving(Vec<Vec<u64>>, Vec<u64>, usize);

    impl Source for Moving {
        fn read(&mut self, into: &mut [Reading]) -> Option<(u64, u64)> {
            for ((moves, sum), reading) in self.0.iter().zip(&mut self.1).zip(into) {
                *sum += moves.get(self.2 % moves.len().max(1)).copied().unwrap_or(0);
                *reading = Reading { valid: true, energy_uj: *sum, ..Reading::default() };
            }
            self.2 += 1;
            None
        }
    }

    fn packages(moves: &[&[u64]]) -> Vec<Opened> {
        let domain = |nth: usize| Domain {
            name: format!("package-{nth}"),
            kind: Kind::Package,
            source: "test".into(),
            device: None,
            parent: None,
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        vec![Opened {
            name: "test",
            source: Box::new(Moving(moves.iter().map(|m| m.to_vec()).collect(), vec![0; moves.len()], 0)),
            domains: (0..moves.len()).map(domain).collect(),
            cpu: None,
            max_rate_hz: 1_000.0,
            advanced: vec![false; moves.len()],
        }]
    }

    #[test]
    fn a_counter_that_never_moves_is_told_apart_from_one_that_does() {
        let mut opened = packages(&[&[5, 6, 7], &[]]);
        assert_eq!(watch(&mut opened), Seen::default());
        assert_eq!(opened[0].advanced, [true, false]);
    }

    #[test]
    fn counters_that_move_exactly_alike_are_mirrors_of_the_first() {
        let moves: &[u64] = &[31, 41, 59, 26, 53, 58, 97];
        let mut opened = packages(&[moves, moves, &[27, 18, 28], moves]);
        let original = (0, 0);
        assert_eq!(
            watch(&mut opened).mirrors,
            [Mirror { copy: (0, 1), original }, Mirror { copy: (0, 3), original }]
        );
    }

    #[test]
    fn two_devices_are_never_one_however_alike_they_move() {
        let moves: &[u64] = &[31, 41, 59, 26, 53, 58, 97];
        let mut opened = packages(&[moves, moves]);
        opened[0].domains[1].device = Some("0000:04:00.0".into());
        assert_eq!(watch(&mut opened), Seen::default());
    }

    #[test]
    fn integrals_of_the_same_steady_power_are_no_mirrors() {
        let moves: &[u64] = &[31, 41, 59, 26, 53, 58, 97];
        let mut opened = packages(&[moves, moves]);
        opened[0].domains.iter_mut().for_each(|domain| domain.grade = Grade::Integrated);
        assert_eq!(watch(&mut opened), Seen::default());
    }

    #[test]
    fn idle_counters_that_move_by_single_steps_are_no_mirrors() {
        let mut opened = packages(&[&[61, 61, 61, 61, 61, 61, 61, 62], &[61, 61, 61, 61, 61, 61, 61, 62]]);
        assert_eq!(watch(&mut opened), Seen::default());
    }

    #[test]
    fn discovery_with_nothing_to_watch_is_over_at_once() {
        assert_eq!(watch(&mut []), Seen::default());
    }
}
