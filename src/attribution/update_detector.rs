//! Knots: the instants at which a domain's counter is known to have moved.
//!
//! Owns the passage from readings to knots. A counter shows the energy of its last update, and the reader does not
//! see the update happen: it lies somewhere between the last reading with the old value and the first with the new.
//! Invariant, for a knot and the true energy E: `E(early) <= energy + quantum` and `E(late) >= energy`; `at` is the
//! best guess between them; `early`, `at` and `late` never go back from knot to knot. Never interpolates.

use crate::domain::{Domain, Reading};

/// An instant at which a counter moved, or the end of a time for which nothing vouches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CounterUpdate {
    /// The counter still showed less than this: the truth had not passed `energy_uj + quantum` yet.
    pub early_ns: u64,
    /// When it probably moved.
    pub at_ns: u64,
    /// The counter showed this: the truth had reached `energy_uj`.
    pub late_ns: u64,
    /// What it shows from here on.
    pub energy_uj: u64,
    /// The source's own cumulative doubt.
    pub doubt_uj: u64,
    /// Nothing vouches for the time between the knot before and this one.
    pub gap: bool,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    before_ns: u64,
    moved_ns: u64,
    energy_uj: u64,
    doubt_uj: u64,
    stamp_ns: u64,
    epoch: u32,
}

impl Seen {
    /// A reading in which the counter has moved.
    fn moving(before_ns: u64, after_ns: u64, reading: &Reading) -> Self {
        Self {
            before_ns,
            moved_ns: after_ns,
            energy_uj: reading.energy_uj,
            doubt_uj: reading.doubt_uj,
            stamp_ns: reading.stamp_ns,
            epoch: reading.epoch,
        }
    }
}

/// Finds the knots of one domain in its readings.
#[derive(Debug)]
pub(crate) struct UpdateDetector {
    latency_ns: u64,
    patience_ns: u64,
    interval_ns: Option<u64>,
    seen: Option<Seen>,
    last_at_ns: u64,
    fed_ns: u64,
    silent: bool,
}

impl UpdateDetector {
    pub(crate) fn new(domain: &Domain, patience_ns: u64) -> Self {
        Self {
            latency_ns: domain.latency_ns,
            patience_ns,
            interval_ns: None,
            seen: None,
            last_at_ns: 0,
            fed_ns: 0,
            silent: false,
        }
    }

    /// The counter's update interval as characterised: places `at` where the value cannot be older than this.
    pub(crate) fn set_interval(&mut self, interval_ns: u64) {
        self.interval_ns = Some(interval_ns);
    }

    /// How long an unmoved counter is waited for: one whose values take long to where they can be read, so much longer.
    pub(crate) fn patience_ns(&self) -> u64 {
        self.patience_ns.saturating_add(self.latency_ns).max(self.interval_ns.unwrap_or(0).saturating_mul(10))
    }

    /// When the last reading came, valid or not.
    pub(crate) fn fed_ns(&self) -> u64 {
        self.fed_ns
    }

    /// Takes a reading; gives a knot where it shows that the counter moved, or that it has been silent too long.
    pub(crate) fn feed(&mut self, before_ns: u64, after_ns: u64, reading: &Reading) -> Option<CounterUpdate> {
        if before_ns < self.last_at_ns || after_ns < before_ns {
            return None;
        }
        self.fed_ns = after_ns;
        let Some(seen) = self.seen else {
            return if reading.valid { Some(self.begin(before_ns, after_ns, reading)) } else { None };
        };
        if !reading.valid {
            return self.is_quiet(seen, before_ns);
        }
        if reading.epoch != seen.epoch || reading.energy_uj < seen.energy_uj {
            return Some(self.begin(before_ns, after_ns, reading));
        }
        let moved = if reading.stamp_ns == 0 {
            reading.energy_uj != seen.energy_uj
        } else {
            reading.stamp_ns > seen.stamp_ns && reading.stamp_ns > self.last_at_ns
        };
        if !moved {
            self.seen = Some(Seen { before_ns, ..seen });
            return self.is_quiet(seen, before_ns);
        }
        if self.silent {
            return Some(self.begin(before_ns, after_ns, reading));
        }
        Some(self.advance_to(seen, before_ns, after_ns, reading))
    }

    /// Nothing has been read for too long (a hung driver): the time up to `at_ns` is unknown.
    pub(crate) fn give_up(&mut self, at_ns: u64) -> Option<CounterUpdate> {
        if at_ns <= self.last_at_ns {
            return None;
        }
        self.silent = true;
        self.last_at_ns = at_ns;
        let (energy_uj, doubt_uj) = self.seen.map_or((0, 0), |seen| (seen.energy_uj, seen.doubt_uj));
        Some(CounterUpdate { early_ns: at_ns, at_ns, late_ns: at_ns, energy_uj, doubt_uj, gap: true })
    }

    /// The first reading, or the first after something that cannot be bridged: a baseline and no energy.
    fn begin(&mut self, before_ns: u64, after_ns: u64, reading: &Reading) -> CounterUpdate {
        let at_ns = if reading.stamp_ns > self.last_at_ns && reading.stamp_ns <= after_ns {
            reading.stamp_ns
        } else {
            after_ns
        };
        self.silent = false;
        self.last_at_ns = at_ns;
        self.seen = Some(Seen::moving(before_ns, after_ns, reading));
        CounterUpdate {
            early_ns: at_ns,
            at_ns,
            late_ns: after_ns.max(at_ns),
            energy_uj: reading.energy_uj,
            doubt_uj: reading.doubt_uj,
            gap: true,
        }
    }

    fn is_quiet(&mut self, seen: Seen, before_ns: u64) -> Option<CounterUpdate> {
        if before_ns.saturating_sub(seen.moved_ns) <= self.patience_ns() {
            return None;
        }
        self.give_up(before_ns)
    }

    fn advance_to(&mut self, seen: Seen, before_ns: u64, after_ns: u64, reading: &Reading) -> CounterUpdate {
        let knot = if reading.stamp_ns != 0 {
            let at_ns = reading.stamp_ns.min(after_ns);
            CounterUpdate {
                early_ns: at_ns,
                at_ns,
                late_ns: at_ns,
                energy_uj: reading.energy_uj,
                doubt_uj: reading.doubt_uj,
                gap: false,
            }
        } else {
            let early_ns = seen.before_ns.saturating_sub(self.latency_ns);
            let youngest = self.interval_ns.map_or(early_ns, |t| after_ns.saturating_sub(t).max(early_ns));
            CounterUpdate {
                early_ns,
                at_ns: (youngest + (after_ns - youngest) / 2).max(self.last_at_ns + 1),
                late_ns: after_ns.max(self.last_at_ns + 1),
                energy_uj: reading.energy_uj,
                doubt_uj: reading.doubt_uj,
                gap: false,
            }
        };
        self.last_at_ns = knot.at_ns;
        self.seen = Some(Seen::moving(before_ns, after_ns, reading));
        knot
    }
}
