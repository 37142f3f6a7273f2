//! A schedule of counter updates, openings, closings, weights, phases and cancellations on the attributor, against a slow
//! split of each interval.
//!
//! Each counter states the instants of its updates, so that the interpolated energy is known exactly. Between two updates or
//! edges the slow reference gives each open span its part of the interval in integers of 2^-40 µJ, rounded down; the shares
//! must be within one microjoule of it. The true energy uses the same steps with another distribution inside each, which the
//! error must cover. Balances hold to the microjoule at all times.

use std::collections::BTreeMap;

use wattspan::attribution::{AttributionError, AttributionSettings, Attributor, NewSpan, SpanKey};
use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade};
use wattspan_client::account::Account;

/// Fractions of a microjoule in the reference.
const FRACTION_BITS: u32 = 40;

/// The horizon of the attributor; edges older than this are moved, and the reference has none.
const HORIZON_NS: u64 = 10_000_000;

/// How long after its update a counter is read: less than the shortest time between two updates.
const READ_DELAY_NS: u64 = 1_000;

const MAX_OPEN: usize = 12;

/// The input as numbers; it ends with zeros.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u64 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first.into()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An update of a counter.
struct Step {
    at_ns: u64,
    energy_uj: u64,
    /// No energy is known between the previous update and this one.
    is_gap: bool,
    /// The part of the step's energy, of 256, that was used in the first half of its time.
    early_part: u64,
    /// What the counter does not show yet of the true energy: less than its quantum.
    residue_uj: u64,
}

struct Counter {
    quantum_uj: u64,
    interval_ns: u64,
    epoch: u32,
    steps: Vec<Step>,
}

/// A span, as the reference sees it: its weight in quarters from each instant on.
struct Reference {
    key: SpanKey,
    domains: Option<Vec<usize>>,
    /// Begin and weight of each piece.
    weights: Vec<(u64, u64)>,
    last_edge_ns: u64,
    closed_ns: Option<u64>,
    is_cancelled: bool,
    phases: u64,
}

/// A run of the schedule.
struct Schedule {
    attributor: Attributor,
    counters: Vec<Counter>,
    spans: Vec<Reference>,
    now_ns: u64,
    settled: Vec<(SpanKey, Account)>,
}

/// Runs the schedule and compares every account.
pub fn check(bytes: &[u8]) {
    let mut numbers = Numbers(bytes);
    let mut schedule = Schedule::new(&mut numbers);
    for _ in 0..400 {
        if numbers.is_empty() {
            break;
        }
        match numbers.next() % 8 {
            0..=2 => schedule.update(&mut numbers),
            3 => schedule.open(&mut numbers),
            4 => schedule.set_weight(&mut numbers),
            5 => schedule.begin_phase(&mut numbers),
            6 => schedule.end(&mut numbers, false),
            _ => schedule.end(&mut numbers, true),
        }
    }
    schedule.close_all();
    schedule.compare();
}

impl Schedule {
    fn new(numbers: &mut Numbers<'_>) -> Self {
        let count = 1 + numbers.next() as usize % 3;
        let kinds = [DomainKind::Package, DomainKind::Dram, DomainKind::Gpu];
        let (mut domains, mut counters) = (Vec::new(), Vec::new());
        for (index, kind) in kinds.into_iter().enumerate().take(count) {
            let quantum_uj = 1 + numbers.next() % 100;
            let interval_ns = (1 + numbers.next() % 64) * 250_000;
            domains.push(domain(&format!("domain-{index}"), kind, quantum_uj));
            counters.push(Counter { quantum_uj, interval_ns, epoch: 0, steps: Vec::new() });
        }
        let settings = AttributionSettings {
            horizon_ns: HORIZON_NS,
            // A counter that the schedule does not read for long has not failed.
            counter_timeout_ns: 3_600_000_000_000,
            ..AttributionSettings::default()
        };
        let mut schedule = Self {
            attributor: Attributor::new(domains, settings),
            counters,
            spans: Vec::new(),
            now_ns: 1_000_000_000,
            settled: Vec::new(),
        };
        for index in 0..count {
            schedule.read(index, 0, 128, false);
        }
        schedule
    }

    /// The next update of a counter, or of all.
    fn update(&mut self, numbers: &mut Numbers<'_>) {
        let (which, size, early_part) = (numbers.next(), numbers.next(), numbers.next());
        let is_gap = which >= 0xf0;
        for index in 0..self.counters.len() {
            if which & 8 != 0 || which as usize % self.counters.len() == index {
                self.read(
                    index,
                    size * size * 37,
                    early_part,
                    is_gap && self.counters[index].steps.len() > 2,
                );
            }
        }
        self.settle();
    }

    /// Moves the clock to the counter's next update, and reads it shortly after.
    fn read(&mut self, index: usize, step_uj: u64, early_part: u64, is_gap: bool) {
        let counter = &mut self.counters[index];
        let last = counter.steps.last().map(|step| (step.at_ns, step.energy_uj, step.residue_uj));
        let (last_ns, last_uj, last_residue_uj) = last.unwrap_or((self.now_ns, 1_000, 0));
        let at_ns = (last_ns + counter.interval_ns).max(self.now_ns);
        counter.epoch += u32::from(is_gap);
        let energy_uj = last_uj + step_uj;
        // The true energy never falls.
        let residue_uj = (early_part * counter.quantum_uj / 256).max(last_residue_uj.saturating_sub(step_uj));
        let is_gap = is_gap || last.is_none();
        counter.steps.push(Step { at_ns, energy_uj, is_gap, early_part, residue_uj });
        let reading = EnergyReading {
            valid: true,
            energy_uj,
            stamp_ns: at_ns,
            epoch: counter.epoch,
            ..EnergyReading::default()
        };
        self.now_ns = at_ns + READ_DELAY_NS;
        self.attributor.add_reading(index, self.now_ns, self.now_ns, &reading);
    }

    /// An instant within the horizon, not before `earliest_ns`.
    fn edge_ns(&self, numbers: &mut Numbers<'_>, earliest_ns: u64) -> u64 {
        let back_ns = numbers.next() * (HORIZON_NS / 256);
        self.now_ns.saturating_sub(back_ns).max(earliest_ns)
    }

    fn open_spans(&self) -> Vec<usize> {
        (0..self.spans.len()).filter(|index| self.spans[*index].closed_ns.is_none()).collect()
    }

    /// An open span.
    fn choose(&self, numbers: &mut Numbers<'_>) -> Option<usize> {
        let open = self.open_spans();
        let chosen = numbers.next() as usize;
        (!open.is_empty()).then(|| open[chosen % open.len()])
    }

    fn open(&mut self, numbers: &mut Numbers<'_>) {
        if self.open_spans().len() >= MAX_OPEN {
            return;
        }
        let (scope, quarters) = (numbers.next(), numbers.next() % 32);
        let at_ns = self.edge_ns(numbers, 0);
        let domains = (scope & 0x30 == 0).then(|| vec![scope as usize % self.counters.len()]);
        let span_id = self.spans.len().to_string();
        let new_span = NewSpan {
            weight: quarters as f64 / 4.0,
            domains: domains.clone(),
            ..NewSpan::new(span_id, at_ns)
        };
        let key = self.attributor.open(self.now_ns, new_span).expect("a valid opening");
        self.spans.push(Reference {
            key,
            domains,
            weights: vec![(at_ns, quarters)],
            last_edge_ns: at_ns,
            closed_ns: None,
            is_cancelled: false,
            phases: 0,
        });
    }

    fn set_weight(&mut self, numbers: &mut Numbers<'_>) {
        let Some(index) = self.choose(numbers) else { return };
        let quarters = numbers.next() % 32;
        let at_ns = self.edge_ns(numbers, self.spans[index].last_edge_ns);
        let span = &mut self.spans[index];
        let changed = self.attributor.set_weight(self.now_ns, span.key, quarters as f64 / 4.0, at_ns);
        changed.expect("a valid change of weight");
        span.weights.push((at_ns, quarters));
        span.last_edge_ns = at_ns;
    }

    fn begin_phase(&mut self, numbers: &mut Numbers<'_>) {
        let Some(index) = self.choose(numbers) else { return };
        let at_ns = self.edge_ns(numbers, self.spans[index].last_edge_ns);
        let span = &mut self.spans[index];
        span.phases += 1;
        span.last_edge_ns = at_ns;
        let begun = self.attributor.begin_phase(self.now_ns, span.key, format!("p{}", span.phases), at_ns);
        begun.expect("a valid phase");
    }

    /// Closes or cancels a span. An end before its opening, and a second one, are refused and change nothing.
    fn end(&mut self, numbers: &mut Numbers<'_>, is_cancelled: bool) {
        let Some(index) = self.choose(numbers) else { return };
        let at_ns = self.edge_ns(numbers, self.spans[index].last_edge_ns);
        let (now_ns, span) = (self.now_ns, &mut self.spans[index]);
        let opened_ns = span.weights[0].0;
        let early = self.attributor.close(now_ns, span.key, opened_ns - 1, BTreeMap::new(), false);
        assert!(matches!(early, Err(AttributionError::InvalidTime { .. })), "{early:?}");
        let ended = match is_cancelled {
            true => self.attributor.cancel(now_ns, span.key, at_ns),
            false => self.attributor.close(now_ns, span.key, at_ns, BTreeMap::new(), false),
        };
        ended.expect("a valid end");
        (span.closed_ns, span.is_cancelled) = (Some(at_ns), is_cancelled);
        let again = self.attributor.close(now_ns, span.key, at_ns, BTreeMap::new(), false);
        assert_eq!(again, Err(AttributionError::AlreadyClosed));
        self.settle();
    }

    fn close_all(&mut self) {
        for index in self.open_spans() {
            let span = &mut self.spans[index];
            let closed = self.attributor.close(self.now_ns, span.key, self.now_ns, BTreeMap::new(), false);
            closed.expect("a valid closing");
            span.closed_ns = Some(self.now_ns);
        }
        let end_ns = self.now_ns + 2 * HORIZON_NS;
        for index in 0..self.counters.len() {
            while self.counters[index].steps.last().is_none_or(|step| step.at_ns < end_ns) {
                self.read(index, 5, 0, false);
                self.settle();
            }
        }
        // An update takes effect once the horizon has passed it.
        self.now_ns += 2 * HORIZON_NS;
        self.settle();
    }

    fn settle(&mut self) {
        self.attributor.settle(self.now_ns, &mut self.settled);
        for balance in self.attributor.balance() {
            assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj, "{balance:?}");
        }
    }

    /// Compares the accounts with the reference.
    fn compare(&self) {
        let unsettled =
            self.spans.iter().filter_map(|span| self.attributor.account(self.now_ns, span.key).ok());
        let unsettled: Vec<Account> = unsettled.collect();
        assert!(!self.attributor.is_busy(), "these spans never settle: {unsettled:#?}");
        let kept = self.spans.iter().filter(|span| !span.is_cancelled);
        assert_eq!(self.settled.len(), kept.clone().count(), "each span settles once");
        for index in 0..self.counters.len() {
            let (shares, truths) = (self.shares(index, false), self.shares(index, true));
            let mut attributed_uj = 0;
            for (span, (share, truth)) in self.spans.iter().zip(shares.iter().zip(&truths)) {
                if !span.is_cancelled && span.uses(index) {
                    attributed_uj += self.compare_span(span, index, *share, *truth);
                }
            }
            let balance = &self.attributor.balance()[index];
            assert_eq!(balance.attributed_uj, attributed_uj, "the accounts hold what was attributed");
        }
        for (_, account) in &self.settled {
            let phases: Option<u64> = account.phases.iter().map(|phase| phase.share_uj).sum();
            assert!(
                account.phases.is_empty() || phases == account.share_uj,
                "the phases do not add up: {account:?}"
            );
        }
    }

    /// Compares one share of one span, and returns it.
    fn compare_span(&self, span: &Reference, index: usize, expected: u128, truth: u128) -> u64 {
        const MICROJOULE: u128 = 1 << FRACTION_BITS;
        let (_, account) = self.settled.iter().find(|(key, _)| *key == span.key).expect("it settled");
        assert_eq!((account.opened_ns, account.closed_ns), (span.weights[0].0, span.closed_ns));
        assert_eq!(account.moved_ns, 0, "no edge is older than the horizon");
        let name = format!("domain-{index}");
        let share = account.domains.iter().find(|share| share.domain == *name).expect("it uses the domain");
        let Some(share_uj) = share.share_uj else { return 0 };
        let shown = u128::from(share_uj) << FRACTION_BITS;
        // The reference rounds each interval down, by a few thousand fractions in all.
        assert!(
            shown.abs_diff(expected) <= MICROJOULE + (1 << 16),
            "share {share_uj}, expected {expected:#x}: {account:?}"
        );
        assert!(share.window_uj.is_none_or(|window_uj| window_uj >= share_uj), "{share:?}");
        if let Some(error_uj) = share.error_uj {
            let bound = u128::from(error_uj) << FRACTION_BITS;
            assert!(
                shown.abs_diff(truth) <= bound + (1 << 16),
                "the truth is outside the error: {share:?} {truth:#x}"
            );
        }
        share_uj
    }

    /// The share of each span in a domain: of the interpolated energy, or of the true one.
    fn shares(&self, index: usize, is_true: bool) -> Vec<u128> {
        let counter = &self.counters[index];
        let mut shares = vec![0; self.spans.len()];
        for pair in counter.steps.windows(2).filter(|pair| !pair[1].is_gap) {
            let (from_ns, to_ns) = (pair[0].at_ns, pair[1].at_ns);
            let shown_uj = pair[1].energy_uj - pair[0].energy_uj;
            let middle_ns = from_ns + (to_ns - from_ns) / 2;
            if is_true && middle_ns > from_ns {
                let true_uj = shown_uj + pair[1].residue_uj - pair[0].residue_uj;
                let energy = u128::from(true_uj) << FRACTION_BITS;
                let early = energy * u128::from(pair[1].early_part) / 256;
                self.split(index, (from_ns, middle_ns), early, &mut shares);
                self.split(index, (middle_ns, to_ns), energy - early, &mut shares);
            } else {
                self.split(index, (from_ns, to_ns), u128::from(shown_uj) << FRACTION_BITS, &mut shares);
            }
        }
        shares
    }

    /// Splits energy that is used at constant power between two instants.
    fn split(&self, index: usize, (from_ns, to_ns): (u64, u64), energy: u128, shares: &mut [u128]) {
        let within = |at_ns: &u64| (from_ns..to_ns).contains(at_ns);
        let edges = self
            .spans
            .iter()
            .flat_map(|span| span.weights.iter().map(|(at_ns, _)| *at_ns).chain(span.closed_ns));
        let mut instants: Vec<u64> = edges.filter(within).chain([from_ns, to_ns]).collect();
        instants.sort_unstable();
        instants.dedup();
        for piece in instants.windows(2) {
            let weights: Vec<u128> =
                self.spans.iter().map(|span| u128::from(span.quarters_at(index, piece[0]))).collect();
            let total: u128 = weights.iter().sum();
            if total == 0 {
                continue;
            }
            let length = u128::from(to_ns - from_ns);
            for (share, weight) in shares.iter_mut().zip(weights) {
                // At most 2^62 of energy, 2^34 of time and 2^5 of weight.
                *share += energy * u128::from(piece[1] - piece[0]) / length * weight / total;
            }
        }
    }
}

impl Reference {
    fn uses(&self, index: usize) -> bool {
        self.domains.as_ref().is_none_or(|domains| domains.contains(&index))
    }

    /// The weight from an instant on, in quarters; 0 before the opening and from the closing on.
    fn quarters_at(&self, index: usize, at_ns: u64) -> u64 {
        if !self.uses(index) || self.closed_ns.is_some_and(|closed_ns| at_ns >= closed_ns) {
            return 0;
        }
        self.weights.iter().rfind(|(from_ns, _)| *from_ns <= at_ns).map_or(0, |(_, quarters)| *quarters)
    }
}

fn domain(name: &str, kind: DomainKind, quantum_uj: u64) -> Domain {
    Domain {
        name: name.into(),
        kind,
        source: "replay".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj,
    }
}
