//! The machine's energy over the last 24 hours: what each domain measured, and what it was used for.
//!
//! Three rings of slots, coarser the further they reach back. Invariants: memory is bounded; in each slot, the energies of
//! the domains and those of the uses have the same sum, to the microjoule.

use std::collections::{BTreeMap, VecDeque};

use wattspan_client::account::Account;

use crate::top::account_totals::{AccountTotals, counted_share, output_tokens};
use crate::top::grouping::Grouping;
use crate::top::meter_feed::MeterSnapshot;

/// Domains with a column of their own. The last column has all others.
pub const MAX_DOMAINS: usize = 16;

/// Models with a column of their own: those with the most energy. The last column has all others.
pub const MAX_MODELS: usize = 8;

/// Columns of the uses: the models, other models, other spans, the idle part of all spans, no span.
pub const OTHER_MODELS: usize = MAX_MODELS;
pub const OTHER_SPANS: usize = MAX_MODELS + 1;
pub const IDLE: usize = MAX_MODELS + 2;
pub const UNATTRIBUTED: usize = MAX_MODELS + 3;
const USES: usize = MAX_MODELS + 4;

/// The longest time between two polls whose energy is divided among the slots between them.
const MAX_DIVIDED_NS: u64 = 10_000_000_000;

/// A part of the past with its resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HistoryRange {
    TenMinutes,
    Hour,
    Day,
}

impl HistoryRange {
    pub const ALL: [HistoryRange; 3] = [HistoryRange::TenMinutes, HistoryRange::Hour, HistoryRange::Day];

    /// The name in the page's requests.
    pub fn name(self) -> &'static str {
        match self {
            HistoryRange::TenMinutes => "10m",
            HistoryRange::Hour => "1h",
            HistoryRange::Day => "24h",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|range| range.name() == name)
    }

    /// The time of a slot.
    pub fn slot_s(self) -> u64 {
        match self {
            HistoryRange::TenMinutes => 1,
            HistoryRange::Hour => 10,
            HistoryRange::Day => 120,
        }
    }

    pub fn slots(self) -> u64 {
        self.seconds() / self.slot_s()
    }

    pub fn seconds(self) -> u64 {
        match self {
            HistoryRange::TenMinutes => 600,
            HistoryRange::Hour => 3_600,
            HistoryRange::Day => 86_400,
        }
    }

    /// The number of the slot that contains an instant.
    pub fn slot_of(self, unix_ns: u64) -> u64 {
        unix_ns / (self.slot_s() * 1_000_000_000)
    }
}

/// Energies in a part of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistorySlot {
    pub number: u64,
    /// The time of it that the meter covered.
    pub elapsed_ns: u64,
    pub domain_uj: [u64; MAX_DOMAINS + 1],
    pub use_uj: [u64; USES],
    /// Of the requests that settled: output tokens, and the energy of the accounts that state them.
    pub tokens: [u64; MAX_MODELS + 1],
    pub token_uj: [u64; MAX_MODELS + 1],
}

impl HistorySlot {
    fn for_each(&mut self, other: &Self, mut change: impl FnMut(&mut u64, u64)) {
        change(&mut self.elapsed_ns, other.elapsed_ns);
        let mut columns = |ours: &mut [u64], others: &[u64]| {
            ours.iter_mut().zip(others).for_each(|(own, other)| change(own, *other));
        };
        columns(&mut self.domain_uj, &other.domain_uj);
        columns(&mut self.use_uj, &other.use_uj);
        columns(&mut self.tokens, &other.tokens);
        columns(&mut self.token_uj, &other.token_uj);
    }

    pub fn add(&mut self, other: &Self) {
        self.for_each(other, |own, other| *own = own.saturating_add(other));
    }

    /// Divides into parts that are equal but for the roundings, which the first one has. Returns it and one of the others.
    /// In each, the domains and the uses have the same sum if they do here.
    fn divide(&self, parts: u64) -> (Self, Self) {
        let mut other = Self::default();
        other.for_each(self, |own, whole| *own = whole / parts);
        let (measured, used): (u64, u64) = (other.domain_uj.iter().sum(), other.use_uj.iter().sum());
        take_from(&mut other.domain_uj, measured.saturating_sub(used));
        take_from(&mut other.use_uj, used.saturating_sub(measured));
        let mut first = *self;
        first.for_each(&other, |own, other| *own -= other * (parts - 1));
        (first, other)
    }

    /// The energy and the tokens of all models together.
    pub fn token_sums(&self) -> (u64, u64) {
        let sum = |columns: &[u64]| columns.iter().fold(0_u64, |sum, column| sum.saturating_add(*column));
        (sum(&self.token_uj), sum(&self.tokens))
    }

    /// Moves the energy of a model to that of the other models.
    fn merge_model(&mut self, model: usize) {
        for columns in [&mut self.use_uj[..], &mut self.tokens[..], &mut self.token_uj[..]] {
            columns[OTHER_MODELS] = columns[OTHER_MODELS].saturating_add(std::mem::take(&mut columns[model]));
        }
    }
}

/// Reduces the sum of columns.
fn take_from(columns: &mut [u64], mut amount: u64) {
    for column in columns {
        let taken = amount.min(*column);
        (*column, amount) = (*column - taken, amount - taken);
    }
}

/// The slots of one range, the oldest first, without those in which the meter was not reached.
#[derive(Debug)]
struct HistoryRing {
    range: HistoryRange,
    slots: VecDeque<HistorySlot>,
}

impl HistoryRing {
    fn new(range: HistoryRange) -> Self {
        let capacity = usize::try_from(range.slots()).unwrap_or(0) + 1;
        HistoryRing { range, slots: VecDeque::with_capacity(capacity) }
    }

    fn add(&mut self, energies: &HistorySlot, now_unix_ns: u64) {
        let number = self.range.slot_of(now_unix_ns);
        // After a wall clock that was set back, the slots of the time that repeats are replaced.
        while self.slots.back().is_some_and(|last| last.number > number) {
            self.slots.pop_back();
        }
        let first = self.range.slot_of(now_unix_ns.saturating_sub(energies.elapsed_ns));
        let divides = energies.elapsed_ns <= MAX_DIVIDED_NS;
        let parts = match self.slots.back() {
            Some(last) if divides && last.number >= first => (number - last.number).max(1),
            _ => 1,
        };
        let (first_part, other_part) = energies.divide(parts);
        for part in 0..parts {
            self.add_to(number - (parts - 1 - part), if part == 0 { &first_part } else { &other_part });
        }
        while self.slots.front().is_some_and(|slot| slot.number + self.range.slots() <= number) {
            self.slots.pop_front();
        }
    }

    fn add_to(&mut self, number: u64, energies: &HistorySlot) {
        match self.slots.back_mut().filter(|last| last.number == number) {
            Some(last) => last.add(energies),
            None => self.slots.push_back(HistorySlot { number, ..*energies }),
        }
    }
}

/// The longest time for which energies wait until each counter has moved.
const MAX_HELD_NS: u64 = 3_000_000_000;

/// Cumulative energies at the last poll whose energies were drawn.
#[derive(Debug)]
struct Baseline {
    now_ns: u64,
    started_ns: Option<u64>,
    /// Measured and attributed energy of each counted domain.
    domains: BTreeMap<String, (u64, u64)>,
    /// The energy above idle of each column of models that was drawn so far, and the idle part of all.
    models_uj: [u64; MAX_MODELS + 1],
    idle_uj: u64,
    /// The change of the attributed energy that is not drawn yet: a cancelled span takes its energy back.
    attributed_uj: i128,
    /// The domains that moved between the last two of these polls. While no span is open, counters are read once a second:
    /// between two reads, a poll finds no energy.
    moving: Vec<String>,
    /// Tokens of the polls since then.
    held_tokens: HistorySlot,
}

impl Baseline {
    /// Whether energies of this poll are drawn: each counter that moves has moved, or the wait was long.
    fn is_due(&self, now_ns: u64, domains: &BTreeMap<String, (u64, u64)>) -> bool {
        let moved =
            |name: &String| domains.get(name).map(|now| now.0) != self.domains.get(name).map(|last| last.0);
        let waited = now_ns.saturating_sub(self.now_ns) >= MAX_HELD_NS;
        waited || (self.moving.iter().all(moved) && domains.keys().any(moved))
    }
}

/// The history and the names of its columns.
#[derive(Debug)]
pub struct LiveHistory {
    rings: [HistoryRing; 3],
    domains: Vec<String>,
    models: Vec<String>,
    baseline: Option<Baseline>,
}

/// Cumulative share and idle part of each model, in settled and open spans.
type ModelEnergies = BTreeMap<String, (u64, u64)>;

impl LiveHistory {
    pub fn new() -> Self {
        let rings = HistoryRange::ALL.map(HistoryRing::new);
        LiveHistory { rings, domains: Vec::new(), models: Vec::new(), baseline: None }
    }

    /// The names of the domains' columns; [`MAX_DOMAINS`] at most.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// The names of the models' columns; [`MAX_MODELS`] at most.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    pub fn slots(&self, range: HistoryRange) -> &VecDeque<HistorySlot> {
        &self.rings[range as usize].slots
    }

    /// Adds the energies since the last poll. After a new connection there is no last poll.
    pub fn update(
        &mut self,
        snapshot: &MeterSnapshot,
        totals: &AccountTotals,
        settled: &[Account],
        is_new_connection: bool,
        now_unix_ns: u64,
    ) {
        let counted = snapshot.counted_domains();
        let energies = model_energies(snapshot, totals, &counted);
        let balances = snapshot.balance.iter().filter(|balance| counted.contains(&balance.domain));
        let domains: BTreeMap<String, (u64, u64)> = balances
            .map(|balance| (balance.domain.clone(), (balance.measured_uj, balance.attributed_uj)))
            .collect();
        self.name_domains(&counted);
        let is_same_run =
            self.baseline.as_ref().is_some_and(|baseline| baseline.started_ns == snapshot.started_ns);
        let continues = is_same_run && !is_new_connection;
        self.name_models(&energies, continues);
        let (models_uj, idle_uj) = self.columns_of(&energies);
        match self.baseline.take().filter(|_| continues) {
            Some(mut last) => {
                self.add_tokens(&mut last.held_tokens, settled, &counted);
                if last.is_due(snapshot.now_ns, &domains) {
                    let slot = self.difference(&mut last, snapshot.now_ns, domains, (models_uj, idle_uj));
                    self.rings.iter_mut().for_each(|ring| ring.add(&slot, now_unix_ns));
                }
                self.baseline = Some(last);
            }
            None => {
                self.baseline = Some(Baseline {
                    now_ns: snapshot.now_ns,
                    started_ns: snapshot.started_ns,
                    domains,
                    models_uj,
                    idle_uj,
                    attributed_uj: 0,
                    moving: Vec::new(),
                    held_tokens: HistorySlot::default(),
                });
            }
        }
    }

    fn name_domains(&mut self, counted: &[String]) {
        for name in counted {
            if self.domains.len() < MAX_DOMAINS && !self.domains.contains(name) {
                self.domains.push(name.clone());
            }
        }
    }

    /// Gives columns to the models with the most energy. A model that has overtaken the least of them takes its column.
    fn name_models(&mut self, energies: &ModelEnergies, continues: bool) {
        let share = |name: &str| energies.get(name).map_or(0, |(share, _)| *share);
        let mut others: Vec<&String> =
            energies.keys().filter(|name| share(name) > 0 && !self.models.contains(name)).collect();
        others.sort_by_key(|name| std::cmp::Reverse(share(name)));
        for name in others {
            if self.models.len() < MAX_MODELS {
                self.models.push(name.clone());
                continue;
            }
            let least = (0..MAX_MODELS).min_by_key(|&at| share(&self.models[at])).unwrap_or(0);
            // A quarter more, so that two models with the same energy do not take turns.
            if share(name) <= share(&self.models[least]) / 4 * 5 {
                return;
            }
            self.rings.iter_mut().flat_map(|ring| &mut ring.slots).for_each(|slot| slot.merge_model(least));
            if let Some(baseline) = self.baseline.as_mut().filter(|_| continues) {
                let drawn = share(name).min(baseline.models_uj[OTHER_MODELS]);
                baseline.models_uj[OTHER_MODELS] += baseline.models_uj[least];
                baseline.models_uj[OTHER_MODELS] -= drawn;
                baseline.models_uj[least] = drawn;
            }
            self.models[least] = name.clone();
        }
    }

    fn model_column(&self, name: &str) -> usize {
        self.models.iter().position(|model| model == name).unwrap_or(OTHER_MODELS)
    }

    /// The energy above idle of each column, and the idle part of all.
    fn columns_of(&self, energies: &ModelEnergies) -> ([u64; MAX_MODELS + 1], u64) {
        let mut columns = [0; MAX_MODELS + 1];
        let mut all_idle_uj = 0;
        for (name, (share_uj, idle_uj)) in energies {
            columns[self.model_column(name)] += share_uj.saturating_sub(*idle_uj);
            all_idle_uj += idle_uj;
        }
        (columns, all_idle_uj)
    }

    /// The energies since the last poll, which becomes this one. The uses add up to the domains.
    fn difference(
        &self,
        last: &mut Baseline,
        now_ns: u64,
        domains: BTreeMap<String, (u64, u64)>,
        (models_uj, idle_uj): ([u64; MAX_MODELS + 1], u64),
    ) -> HistorySlot {
        let elapsed_ns = now_ns.saturating_sub(last.now_ns);
        let mut slot = HistorySlot { elapsed_ns, ..std::mem::take(&mut last.held_tokens) };
        last.moving.clear();
        for (name, (measured_uj, attributed_uj)) in &domains {
            let Some((last_measured_uj, last_attributed_uj)) = last.domains.get(name) else { continue };
            let column = self.domains.iter().position(|domain| domain == name).unwrap_or(MAX_DOMAINS);
            slot.domain_uj[column] += measured_uj.saturating_sub(*last_measured_uj);
            if measured_uj > last_measured_uj {
                last.moving.push(name.clone());
            }
            last.attributed_uj += i128::from(*attributed_uj) - i128::from(*last_attributed_uj);
        }
        let measured_uj: u64 = slot.domain_uj.iter().sum();
        let attributed_uj = last.attributed_uj.clamp(0, i128::from(measured_uj));
        last.attributed_uj -= attributed_uj;
        let attributed_uj = u64::try_from(attributed_uj).unwrap_or(measured_uj);
        slot.use_uj[UNATTRIBUTED] = measured_uj - attributed_uj;
        // An account can settle later than the balance has its energy. What does not fit is drawn with the next poll.
        let pending = |at: usize| models_uj[at].saturating_sub(last.models_uj[at]);
        let idle_pending = idle_uj.saturating_sub(last.idle_uj);
        let all: u64 = (0..=OTHER_MODELS).map(pending).sum::<u64>() + idle_pending;
        let drawn = |pending: u64| match all <= attributed_uj {
            true => pending,
            false => u64::try_from(u128::from(pending) * u128::from(attributed_uj) / u128::from(all))
                .unwrap_or(pending),
        };
        for at in 0..=OTHER_MODELS {
            slot.use_uj[at] = drawn(pending(at));
        }
        slot.use_uj[IDLE] = drawn(idle_pending);
        let sum: u64 = slot.use_uj.iter().take(IDLE + 1).sum();
        slot.use_uj[OTHER_SPANS] = attributed_uj - sum;
        for at in 0..=OTHER_MODELS {
            last.models_uj[at] += slot.use_uj[at];
        }
        last.idle_uj += slot.use_uj[IDLE];
        (last.now_ns, last.domains) = (now_ns, domains);
        slot
    }

    fn add_tokens(&self, slot: &mut HistorySlot, settled: &[Account], counted: &[String]) {
        for account in settled {
            let Some(tokens) = output_tokens(account) else { continue };
            let column = self.model_column(&Grouping::Model.key_of(account));
            slot.tokens[column] = slot.tokens[column].saturating_add(tokens);
            slot.token_uj[column] = slot.token_uj[column].saturating_add(counted_share(account, counted).0);
        }
    }
}

fn model_energies(snapshot: &MeterSnapshot, totals: &AccountTotals, counted: &[String]) -> ModelEnergies {
    let groups = totals.groups(Grouping::Model).iter();
    let mut energies: ModelEnergies =
        groups.map(|(name, group)| (name.clone(), (group.share_uj, group.idle_uj))).collect();
    for account in &snapshot.open {
        let (share_uj, idle_uj) = counted_share(account, counted);
        let energy = energies.entry(Grouping::Model.key_of(account)).or_default();
        *energy = (energy.0 + share_uj, energy.1 + idle_uj);
    }
    energies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::test_machine::{account, snapshot};

    /// The memory of the rings.
    fn memory_bytes(history: &LiveHistory) -> usize {
        history.rings.iter().map(|ring| ring.slots.capacity() * size_of::<HistorySlot>()).sum()
    }

    /// A meter whose figures a test changes, and the history of it.
    struct Machine {
        history: LiveHistory,
        totals: AccountTotals,
        now_ns: u64,
        unix_ns: u64,
        /// Measured and attributed.
        domains: Vec<(String, u64, u64)>,
        open: Vec<Account>,
    }

    impl Machine {
        fn new() -> Self {
            let mut machine = Machine {
                history: LiveHistory::new(),
                totals: AccountTotals::default(),
                now_ns: 1_000_000_000,
                unix_ns: 1_700_000_000_000_000_000,
                domains: vec![("package-0".into(), 1_000, 500), ("dram-0".into(), 100, 70)],
                open: Vec::new(),
            };
            machine.poll(0, vec![], true);
            machine
        }

        fn poll(&mut self, after_ns: u64, settled: Vec<Account>, is_new: bool) {
            (self.now_ns, self.unix_ns) = (self.now_ns + after_ns, self.unix_ns + after_ns);
            let domains: Vec<(&str, u64, u64)> =
                self.domains.iter().map(|(name, measured, part)| (name.as_str(), *measured, *part)).collect();
            let mut snapshot = snapshot(&domains);
            (snapshot.now_ns, snapshot.open) = (self.now_ns, self.open.clone());
            let counted = snapshot.counted_domains();
            settled.iter().for_each(|account| self.totals.add(account, &counted));
            self.history.update(&snapshot, &self.totals, &settled, is_new, self.unix_ns);
        }

        fn sum(&self, range: HistoryRange) -> HistorySlot {
            let mut sum = HistorySlot::default();
            self.history.slots(range).iter().for_each(|slot| sum.add(slot));
            sum
        }

        fn assert_adds_up(&self) {
            for range in HistoryRange::ALL {
                for slot in self.history.slots(range) {
                    let (domains, uses): (u64, u64) = (slot.domain_uj.iter().sum(), slot.use_uj.iter().sum());
                    assert_eq!(domains, uses, "{range:?} {slot:?}");
                }
            }
        }
    }

    #[test]
    fn sums_of_a_slot_end_at_the_largest_number() {
        let mut slot = HistorySlot {
            tokens: [u64::MAX; MAX_MODELS + 1],
            token_uj: [u64::MAX - 1; MAX_MODELS + 1],
            ..HistorySlot::default()
        };
        assert_eq!(slot.token_sums(), (u64::MAX, u64::MAX));
        slot.merge_model(0);
        assert_eq!((slot.tokens[0], slot.tokens[OTHER_MODELS]), (0, u64::MAX));
        assert_eq!((slot.token_uj[0], slot.token_uj[OTHER_MODELS]), (0, u64::MAX));
    }

    #[test]
    fn uses_add_up_to_the_domains_in_every_slot_whatever_settles_when() {
        let mut machine = Machine::new();
        // A linear congruential generator, so that the test needs no seed.
        let mut random = 12_345_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut settled_uj = 0;
        for step in 0..3_000 {
            let mut attributed = 0;
            for domain in &mut machine.domains {
                let measured = next(9_000);
                let part = next(measured + 1);
                (domain.1, domain.2) = (domain.1 + measured, domain.2 + part);
                attributed += part;
            }
            let mut settled = Vec::new();
            if next(3) == 0 {
                // Now and then more than was attributed since the last poll, since it was open for long.
                let share = next(2 * attributed + 1);
                settled_uj += share;
                let model = format!("model {}", next(12));
                settled.push(account("s", &model, &[("package-0", share, share / 3)]));
            }
            machine.poll(250_000_000 + next(2_000_000_000), settled, false);
            if step % 100 == 0 {
                machine.assert_adds_up();
            }
        }
        machine.assert_adds_up();
        let measured: u64 = machine.domains.iter().map(|(_, measured, _)| measured).sum::<u64>() - 1_100;
        let sum = machine.sum(HistoryRange::Day);
        assert_eq!(sum.domain_uj.iter().sum::<u64>(), measured);
        let drawn: u64 = sum.use_uj[..=OTHER_MODELS].iter().sum::<u64>() + sum.use_uj[IDLE];
        assert!(drawn <= settled_uj && drawn > settled_uj / 2, "{drawn} of {settled_uj}");
    }

    #[test]
    fn a_model_gets_its_energy_above_idle_while_it_is_open_and_once() {
        let mut machine = Machine::new();
        machine.domains[0] = ("package-0".into(), 3_000, 2_000);
        machine.open = vec![account("a", "small", &[("package-0", 1_500, 200)])];
        machine.poll(1_000_000_000, vec![], false);
        let sum = machine.sum(HistoryRange::TenMinutes);
        assert_eq!((sum.use_uj[0], sum.use_uj[IDLE], sum.use_uj[OTHER_SPANS]), (1_300, 200, 0));
        assert_eq!(sum.use_uj[UNATTRIBUTED], 500);
        // It is settling: in neither list.
        machine.open.clear();
        machine.poll(1_000_000_000, vec![], false);
        let mut settled = account("a", "small", &[("package-0", 1_500, 200)]);
        settled.attributes.insert("gen_ai.usage.output_tokens".into(), "10".into());
        machine.poll(500_000_000, vec![settled], false);
        // Its tokens wait for the counter.
        machine.domains[0].1 += 10;
        machine.poll(500_000_000, vec![], false);
        let sum = machine.sum(HistoryRange::TenMinutes);
        assert_eq!((sum.use_uj[0], sum.use_uj[IDLE]), (1_300, 200));
        assert_eq!((sum.tokens[0], sum.token_uj[0]), (10, 1_500));
        assert_eq!(machine.history.models(), ["small"]);
    }

    #[test]
    fn a_cancelled_span_takes_its_energy_back_from_later_slots() {
        let mut machine = Machine::new();
        machine.domains[0] = ("package-0".into(), 2_000, 1_500);
        machine.poll(1_000_000_000, vec![], false);
        machine.domains[0] = ("package-0".into(), 3_000, 1_200);
        machine.poll(1_000_000_000, vec![], false);
        machine.domains[0] = ("package-0".into(), 4_000, 2_200);
        machine.poll(1_000_000_000, vec![], false);
        machine.assert_adds_up();
        assert_eq!(machine.sum(HistoryRange::Hour).use_uj[OTHER_SPANS], 1_700);
    }

    #[test]
    fn counters_that_are_read_once_a_second_give_a_steady_power() {
        let mut machine = Machine::new();
        machine.domains.push(("stuck".into(), 7, 0));
        for half_second in 0..40_u64 {
            // The two are read at different times.
            let at = half_second as usize % 2;
            machine.domains[at].1 += 20_000 * (at as u64 + 1);
            machine.poll(500_000_000, vec![], false);
        }
        let slots = machine.history.slots(HistoryRange::TenMinutes);
        assert!(slots.len() >= 18, "{}", slots.len());
        for slot in slots.iter().skip(3) {
            let (package, dram) =
                (slot.domain_uj[0] * 1_000 / slot.elapsed_ns.div_ceil(1_000_000), slot.domain_uj[1]);
            assert_eq!(
                (package, dram * 1_000 / slot.elapsed_ns.div_ceil(1_000_000)),
                (20_000, 40_000),
                "{slot:?}"
            );
        }
        machine.assert_adds_up();
    }

    #[test]
    fn a_restart_leaves_a_gap_and_no_energy_of_the_time_before() {
        let mut machine = Machine::new();
        machine.domains[0].1 += 5;
        machine.poll(1_000_000_000, vec![], false);
        machine.domains = vec![("package-0".into(), 77_000, 70_000)];
        machine.poll(60_000_000_000, vec![], true);
        machine.domains[0].1 += 10;
        machine.poll(1_000_000_000, vec![], false);
        let slots = machine.history.slots(HistoryRange::TenMinutes);
        assert_eq!(slots.iter().map(|slot| slot.domain_uj.iter().sum::<u64>()).sum::<u64>(), 15);
        assert_eq!(slots.back().map(|slot| slot.number - slots[0].number), Some(61));
    }

    #[test]
    fn polls_less_frequent_than_slots_leave_no_gap() {
        let mut machine = Machine::new();
        for _ in 0..20 {
            machine.domains[0].1 += 2_001;
            machine.poll(2_100_000_000, vec![], false);
        }
        let numbers: Vec<u64> =
            machine.history.slots(HistoryRange::TenMinutes).iter().map(|slot| slot.number).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        machine.assert_adds_up();
        assert_eq!(machine.sum(HistoryRange::TenMinutes).domain_uj[0], 20 * 2_001);
    }

    #[test]
    fn three_days_of_any_number_of_names_need_the_memory_of_the_first_minute() {
        let mut machine = Machine::new();
        let before = memory_bytes(&machine.history);
        assert!(before < 1_000_000, "{before}");
        // Every slot of the finest ring, then three days.
        let polls = std::iter::repeat_n(1, 1_300).chain(std::iter::repeat_n(60, 4_320));
        for (step, after_s) in (0_u64..).zip(polls) {
            machine.domains[0].1 += 600;
            machine.domains[0].2 += 500;
            let settled = match step % 50 {
                0 => vec![account("s", &format!("model {step}"), &[("package-0", 300 + step, 0)])],
                _ => vec![],
            };
            machine.poll(after_s * 1_000_000_000, settled, false);
        }
        assert_eq!(memory_bytes(&machine.history), before);
        assert_eq!(
            (machine.history.models().len(), machine.history.slots(HistoryRange::Day).len()),
            (8, 720)
        );
        machine.assert_adds_up();
        for number in 0..100 {
            machine.domains.push((format!("gpu-{number}"), 0, 0));
        }
        machine.poll(1_000_000_000, vec![], false);
        assert_eq!(machine.history.domains().len(), MAX_DOMAINS);
    }

    #[test]
    fn a_clock_that_is_set_back_replaces_the_slots_of_the_time_that_repeats() {
        let mut machine = Machine::new();
        for _ in 0..30 {
            machine.domains[0].1 += 5;
            machine.poll(1_000_000_000, vec![], false);
        }
        machine.domains[0].1 += 5;
        machine.unix_ns -= 20_000_000_000;
        machine.poll(1_000_000_000, vec![], false);
        let slots = machine.history.slots(HistoryRange::TenMinutes);
        assert!(slots.iter().zip(slots.iter().skip(1)).all(|(one, two)| one.number < two.number));
        assert!(slots.len() < 15, "{}", slots.len());
    }

    #[test]
    fn a_model_that_overtakes_the_least_takes_its_column_and_no_energy_is_lost() {
        let mut machine = Machine::new();
        let mut all = 0;
        let mut settle = |machine: &mut Machine, model: &str, uj: u64| {
            all += uj;
            machine.domains[0].1 += uj;
            machine.domains[0].2 += uj;
            machine.poll(1_000_000_000, vec![account("s", model, &[("package-0", uj, 0)])], false);
        };
        for number in 0..MAX_MODELS as u64 {
            settle(&mut machine, &format!("model {number}"), 1_000 + number);
        }
        settle(&mut machine, "late", 900);
        assert!(!machine.history.models().contains(&"late".to_owned()));
        settle(&mut machine, "late", 900);
        assert_eq!(machine.history.models()[0], "late", "model 0 had the least");
        let sum = machine.sum(HistoryRange::Hour);
        assert_eq!(sum.use_uj.iter().sum::<u64>(), all);
        machine.assert_adds_up();
    }
}
