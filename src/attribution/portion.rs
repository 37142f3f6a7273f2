//! Which part of a domain's energy fell to whom, by what each used of it: CPU time, a GPU's time.
//!
//! Owns, for each *basis* (a resource whose use is told apart: 0 is CPU time) the looks at it, and for each *subject*
//! (a process with its descendants, a control group) and domain an accumulator `h` beside the domain's `g`: where `g`
//! grows by dE/W, `h` grows by dE/W × used/total, with used and total constant between two looks. A span's part is its
//! share × (h(close) − h(open)) / (g(close) − g(open)). Nothing happens when a span opens or closes; the figures are
//! made when they are asked for. Invariant, in integers: for subjects that have nothing in common the parts of spans
//! with the same edges, and a rest that is never negative, add up to the share. What nobody looked at is not known,
//! which is not 0.
//!
//! That energy goes with time used is a model, whatever the domain's own grade: a vector loop and a wait for memory
//! count alike, and so do a fast and a slow core.

use std::collections::{HashMap, VecDeque};

use super::lineage::Lineage;
use super::terms::{Look, SpanKey, Subject};
use super::track::Track;
use super::usage::{Basis, Uses};

/// The basis of the CPU domains.
pub const CPU_TIME: usize = 0;

/// How far apart two rows of a domain are, at least.
const ROW_NS: u64 = 20_000_000;
/// Rows kept of each domain; older edges of spans that are still open are noted apart.
const ROWS: usize = 256;
/// Where a domain's clock, and with it a subject's, stood at some instant.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Point {
    pub(super) g: u128,
    pub(super) h: u128,
    /// How many times `h` was rounded down since the row before.
    pub(super) rounded: u128,
}

/// What one domain gave a span up to some instant, and the part of its subject, both times a common factor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portion {
    /// Where the clocks stood at that instant.
    pub(super) point: Point,
    pub(super) part: u128,
    pub(super) whole: u128,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    at_ns: u64,
    g: u128,
}

/// One domain that is split.
#[derive(Debug, Default)]
pub(super) struct Field {
    pub(super) basis: Option<usize>,
    rows: VecDeque<Row>,
    /// The number of the first row, and of the first that no subject's clock has reached: the looks are behind.
    first: u64,
    told: u64,
}

/// One subject's clock in one domain, by row.
#[derive(Debug, Default)]
struct Lane {
    first: u64,
    rows: VecDeque<u128>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) subject: Subject,
    spans: usize,
    pub(super) uses: Vec<Uses>,
    lanes: Vec<Lane>,
}

/// All subjects and bases.
#[derive(Debug)]
pub(crate) struct Portions {
    pub(super) fields: Vec<Field>,
    pub(super) bases: Vec<Basis>,
    pub(super) entries: Vec<Option<Entry>>,
    present: usize,
    /// Where long spans opened, by domain.
    pub(super) anchors: HashMap<SpanKey, Vec<Option<Point>>>,
    pub(super) lineage: Lineage,
}

impl Portions {
    pub(crate) fn new(tracks: &[Track]) -> Self {
        let field = |track: &Track| Field { basis: basis_of(track), ..Field::default() };
        Self {
            fields: tracks.iter().map(field).collect(),
            bases: vec![Basis::default()],
            entries: Vec::new(),
            present: 0,
            anchors: HashMap::new(),
            lineage: Lineage::of(tracks.iter().map(|track| &track.domain)),
        }
    }

    /// A domain was added behind the others.
    pub(crate) fn widen(&mut self, tracks: &[Track]) {
        let new = tracks.iter().skip(self.fields.len());
        self.fields.extend(new.map(|track| Field { basis: basis_of(track), ..Field::default() }));
        self.anchors.values_mut().for_each(|anchors| anchors.resize(tracks.len(), None));
        self.relate(tracks);
    }

    /// Which domain lies in which changed.
    pub(crate) fn relate(&mut self, tracks: &[Track]) {
        self.lineage = Lineage::of(tracks.iter().map(|track| &track.domain));
    }

    /// From now on this domain is split by this basis.
    pub(crate) fn set_basis(&mut self, domain: usize, basis: usize) {
        if let Some(field) = self.fields.get_mut(domain) {
            field.basis = Some(basis);
            let bases = self.bases.len().max(basis + 1);
            self.bases.resize_with(bases, Basis::default);
        }
    }

    /// Takes up a subject; gives its number, which is never 0.
    pub(crate) fn admit(&mut self, subject: Subject, tracks: &[Track]) -> u32 {
        let entry = Entry { subject, spans: 0, uses: Vec::new(), lanes: Vec::new() };
        self.present += 1;
        let place = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        if place == self.entries.len() {
            self.entries.push(None);
        }
        self.entries[place] = Some(entry);
        self.follow(tracks);
        u32::try_from(place + 1).expect("subjects are few")
    }

    /// Drops a subject that no span refers to; says whether it did.
    pub(crate) fn dismiss(&mut self, subject: u32) -> bool {
        let Some(slot) = self.entries.get_mut(place(subject)) else { return false };
        if slot.as_ref().is_none_or(|entry| entry.spans > 0) {
            return false;
        }
        *slot = None;
        self.present -= 1;
        if self.present == 0 {
            self.fields.iter_mut().for_each(Field::clear);
            self.bases.iter_mut().for_each(|basis| *basis = Basis::default());
        }
        true
    }

    /// What is to be said where the subject's use is not known.
    pub(crate) fn excuse(&mut self, subject: u32, reason: Option<String>) {
        if let Some(Some(entry)) = self.entries.get_mut(place(subject)) {
            entry.subject.reason = reason;
        }
    }

    /// A span of this subject opens.
    #[inline]
    pub(crate) fn hold(&mut self, subject: u32) {
        if let Some(Some(entry)) = self.entries.get_mut(place(subject)) {
            entry.spans += 1;
        }
    }

    /// A span has left the ledger.
    #[inline]
    pub(crate) fn release(&mut self, subject: u32, key: SpanKey) {
        if let Some(Some(entry)) = self.entries.get_mut(place(subject)) {
            entry.spans -= 1;
        }
        if !self.anchors.is_empty() {
            self.anchors.remove(&key);
        }
    }

    /// Whether there is a subject of this number.
    pub(crate) fn has(&self, subject: u32) -> bool {
        matches!(self.entries.get(place(subject)), Some(Some(_)))
    }

    /// Whether there is any subject.
    pub(crate) fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// Whether spans of the subject are open or unsettled.
    pub(crate) fn held(&self, subject: u32) -> bool {
        matches!(self.entries.get(place(subject)), Some(Some(entry)) if entry.spans > 0)
    }

    /// What was used up to an instant.
    pub(crate) fn look(&mut self, look: &Look<'_>) {
        let Some(basis) = self.bases.get_mut(look.basis) else { return };
        let mut sums = (0_u64, 0_u64);
        for used in look.used {
            let Some(Some(entry)) = self.entries.get_mut(place(used.subject)) else { continue };
            if entry.uses.len() <= look.basis {
                entry.uses.resize_with(look.basis + 1, Uses::default);
            }
            let uses = &mut entry.uses[look.basis];
            let rise = uses.note(basis.next(), look.at_ns, look.busy.and(used.used));
            sums = (sums.0.max(rise), sums.1.saturating_add(if used.apart { rise } else { 0 }));
        }
        basis.look(look.at_ns, look.busy, sums.0.max(sums.1));
    }

    /// The domains have settled further: notes where their clocks stand. Gives the instant before which spans' openings
    /// are to be anchored, where the oldest rows are about to be dropped.
    pub(crate) fn follow(&mut self, tracks: &[Track]) -> Option<(usize, u64)> {
        if self.present == 0 {
            return None;
        }
        let mut full = None;
        for (domain, track) in tracks.iter().enumerate() {
            let Some(basis) = self.fields[domain].basis else { continue };
            let (at_ns, g) = (track.course.pos_ns(), track.course.clock.g);
            let last = self.fields[domain].rows.back().copied();
            if last.is_none_or(|last| at_ns >= last.at_ns + ROW_NS) {
                self.fields[domain].rows.push_back(Row { at_ns, g });
            }
            self.catch_up(domain, basis);
            let field = &self.fields[domain];
            if field.rows.len() > ROWS {
                full = Some((domain, field.rows[ROWS / 2].at_ns));
            }
        }
        full
    }

    /// Brings the subjects' clocks up to the last row that the looks cover.
    fn catch_up(&mut self, domain: usize, basis: usize) {
        let (field, basis_looks) = (&mut self.fields[domain], &self.bases[basis]);
        let Some(covered_ns) = basis_looks.last_ns() else { return };
        while let Some(row) =
            field.rows.get((field.told - field.first) as usize).filter(|row| row.at_ns <= covered_ns)
        {
            let before =
                (field.told - field.first).checked_sub(1).and_then(|place| field.rows.get(place as usize));
            for entry in self.entries.iter_mut().flatten() {
                let flowed = match (before, entry.uses.get(basis)) {
                    (Some(before), Some(uses)) => {
                        basis_looks.flow_to(uses, (before.at_ns, row.at_ns), row.at_ns, row.g - before.g).0
                    }
                    _ => 0,
                };
                if entry.lanes.len() <= domain {
                    entry.lanes.resize_with(domain + 1, Lane::default);
                }
                let lane = &mut entry.lanes[domain];
                if lane.rows.is_empty() {
                    lane.first = field.told;
                }
                let h = lane.rows.back().copied().unwrap_or(0) + flowed;
                lane.rows.push_back(h);
            }
            field.told += 1;
        }
    }

    /// Drops the older half of a domain's rows; what older spans need of them is anchored.
    pub(crate) fn forget(&mut self, domain: usize) {
        let field = &mut self.fields[domain];
        field.rows.drain(..ROWS / 2);
        field.first += (ROWS / 2) as u64;
        field.told = field.told.max(field.first);
        for entry in self.entries.iter_mut().flatten() {
            if let Some(lane) = entry.lanes.get_mut(domain) {
                let gone = field.first.saturating_sub(lane.first).min(lane.rows.len() as u64);
                lane.rows.drain(..gone as usize);
                lane.first += gone;
            }
        }
        for number in 0..self.bases.len() {
            let of_basis = self.fields.iter().filter(|field| field.basis == Some(number));
            let oldest = of_basis.filter_map(|field| field.rows.front()).map(|row| row.at_ns).min();
            let passed = self.bases[number].forget(oldest.unwrap_or(0));
            for uses in self.entries.iter_mut().flatten().filter_map(|entry| entry.uses.get_mut(number)) {
                uses.forget(passed);
            }
        }
    }

    /// Up to which instant no later reading or look moves a subject's clock in this domain.
    pub(super) fn final_ns(&self, domain: usize) -> u64 {
        let field = &self.fields[domain];
        let last = (field.told - field.first).checked_sub(1).and_then(|place| field.rows.get(place as usize));
        last.map_or(0, |row| row.at_ns)
    }

    /// Where a domain's clock and a subject's stood at an instant that the rows, or the way since the last one, hold.
    pub(super) fn point(&self, domain: usize, subject: u32, at_ns: u64, track: &Track) -> Option<Point> {
        let (field, entry) = (&self.fields[domain], self.entries.get(place(subject))?.as_ref()?);
        let (basis, uses) = (&self.bases[field.basis?], entry.uses.get(field.basis?)?);
        let here = field.rows.partition_point(|row| row.at_ns <= at_ns).checked_sub(1)?;
        let told = (field.told - field.first).checked_sub(1).map_or(0, |told| here.min(told as usize));
        // Before its first row a subject's clock stood at 0: nothing had been looked at.
        let number = field.first + told as u64;
        let lane = entry.lanes.get(domain);
        let known = lane.and_then(|lane| lane.rows.get(number.checked_sub(lane.first)? as usize));
        let (mut h, mut rounded) = (known.copied().unwrap_or(0), 0);
        let tip = Row { at_ns: track.course.pos_ns(), g: track.course.clock.g };
        let mut g = field.rows[here].g;
        for at in told..=here {
            let (row, next) = (field.rows[at], field.rows.get(at + 1).copied().unwrap_or(tip));
            let until_ns =
                if at == here { at_ns.clamp(row.at_ns, next.at_ns.max(row.at_ns)) } else { next.at_ns };
            let energy = next.g.saturating_sub(row.g);
            let flowed = basis.flow_to(uses, (row.at_ns, next.at_ns), until_ns, energy);
            (h, rounded) = (h + flowed.0, rounded + flowed.1);
            if at == here {
                g += part_of(energy, until_ns - row.at_ns, next.at_ns.saturating_sub(row.at_ns));
            }
        }
        Some(Point { g, h, rounded })
    }
}

pub(super) fn place(subject: u32) -> usize {
    (subject as usize).wrapping_sub(1)
}

/// What is split by CPU time: what CPUs draw, and the memory beside them, of whose traffic the kernel keeps no account
/// by process. Not the graphics beside the cores, nor a whole board.
fn basis_of(track: &Track) -> Option<usize> {
    use crate::domain::Kind::{Core, Cpu, Dram, Package};
    matches!(track.domain.kind, Package | Core | Dram | Cpu).then_some(CPU_TIME)
}

impl Field {
    fn clear(&mut self) {
        self.first += self.rows.len() as u64;
        self.told = self.first;
        self.rows.clear();
    }
}

/// `of × past / all`, rounded down.
pub(super) fn part_of(of: u128, past: u64, all: u64) -> u128 {
    if past >= all { of } else { of.saturating_mul(u128::from(past)) / u128::from(all) }
}
