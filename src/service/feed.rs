//! The way of the readings: from the samplers' rings into the ledger, and what is known of each domain on the way.
//!
//! Owns the samplers, how far each ring was read, and every domain's character, liveness and place in the host's total.
//! A domain that stops living, or comes to life, is said so once. Invariant: the ledger sees each domain's readings
//! once, in the order of time; what a ring lost before it was read is a gap, not an error. A source that has not answered
//! when the meter starts stands in the list as a domain of its own that is *starting*, until its domains are added.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::domain_state::state_of;
use super::duplicate::{Duplicates, NumberedPair};
use crate::attribution::account::Account;
use crate::attribution::{self, Ledger, Opening};
use crate::clock::Clock;
use crate::domain::{Absent, Domain, Duplicate, Grade, Kind, Liveness, Reading};
use crate::protocol::{DomainStatus, SamplerStatus, Window};
use crate::ring::{Reader, Sample};
use crate::sampler::counter_profile::CounterProfile;
use crate::sampler::{self, Sampler};
use crate::sources::duplicate::DuplicatePair;
use crate::sources::starting::Starting;
use crate::sources::{self, Opened, choice};
use crate::systemd::journal::{self, Entry, Tell};

/// How often liveness and the characters' figures are passed on to the ledger.
const REVIEW_NS: u64 = 100_000_000;

/// A read that takes longer than this hangs.
const HUNG_NS: u64 = 2_000_000_000;

/// How far beside a window readings are looked at, for the counter's moves around its edges.
const MARGIN_NS: u64 = 3_000_000_000;

/// All samplers and all domains, the domains in the order of the samplers.
pub struct Feeds {
    feeds: Vec<Feed>,
    domains: Vec<Metered>,
    duplicates: Duplicates,
    late: Option<Late>,
    fast: bool,
    reviewed_ns: Option<u64>,
    tell: Tell,
}

struct Feed {
    sampler: Sampler,
    ring: Reader,
    next: u64,
    first: usize,
    sample: Sample,
}

impl Feed {
    fn status(&self, domains: &[Metered]) -> SamplerStatus {
        let own = domains.iter().skip(self.first).take(self.sample.readings.len());
        let names: Vec<&Domain> = own.map(|metered| &metered.domain).collect();
        let ticks = self.sampler.stats();
        SamplerStatus {
            source: names.first().map_or_else(String::new, |domain| domain.source.clone()),
            domains: names.iter().map(|domain| domain.name.clone()).collect(),
            ticks: ticks.ticks,
            late: ticks.late,
            missed: ticks.missed,
            lateness_p50_ns: ticks.lateness_p50_ns,
            lateness_p99_ns: ticks.lateness_p99_ns,
            read_cost_ns: ticks.read_cost_ns,
            realtime: ticks.realtime,
            pinned: ticks.pinned,
        }
    }
}

/// Sources that have not answered, and what starting their samplers takes.
pub struct Late {
    /// The sources.
    pub starting: Starting,
    /// How samplers tick.
    pub settings: sampler::SamplerSettings,
    /// The meter's clock.
    pub clock: Clock,
    /// The physical packages that the kernel lists.
    pub packages: BTreeSet<u32>,
}

/// What a late source brought.
pub struct Attached {
    /// The number of its first domain.
    pub first: usize,
    /// What it does not have, with the reason.
    pub absent: Vec<Absent>,
}

/// Where a domain's readings come from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Origin {
    /// The feed of this number.
    Feed(usize),
    /// It stands for a source that has not answered, or not for all its domains; the number of those that it has.
    Starting(usize),
    /// It stood for one.
    Ended,
}

struct Metered {
    domain: Domain,
    character: CounterProfile,
    origin: Origin,
    liveness: (Liveness, Option<String>),
    /// The parent that its source names; the domain's own may be one that it perhaps duplicates.
    source_parent: Option<String>,
    counted: bool,
    in_doubt: bool,
    /// When it was found to be no second name of another domain; absent where it never was in question.
    independent_since_ns: Option<u64>,
    base_uj: Option<u64>,
    energy_uj: Option<u64>,
}

impl Feeds {
    /// Over these samplers; `tell` is told of each change of a domain's state, in words for the administrator.
    /// `duplicates`: domains that may be two names of one counter.
    pub fn new(samplers: Vec<Sampler>, duplicates: Vec<DuplicatePair>, tell: Tell) -> Self {
        let mut feeds = Self {
            feeds: Vec::new(),
            domains: Vec::new(),
            duplicates: Duplicates::default(),
            late: None,
            fast: false,
            reviewed_ns: None,
            tell,
        };
        samplers.into_iter().for_each(|sampler| feeds.push(sampler));
        feeds.compare(duplicates);
        feeds.count();
        feeds
    }

    fn push(&mut self, sampler: Sampler) {
        let from = sampler.stream();
        let first = self.domains.len();
        for (domain, advanced) in from.domains.iter().zip(from.advanced.iter()) {
            self.domains.push(Metered::new(domain.clone(), *advanced, Origin::Feed(self.feeds.len())));
        }
        let sample = Sample::blank(from.domains.len());
        self.feeds.push(Feed { sampler, ring: from.ring, next: 0, first, sample });
    }

    fn compare(&mut self, pairs: Vec<DuplicatePair>) {
        let named: Vec<&Domain> = self.domains.iter().map(|metered| &metered.domain).collect();
        self.duplicates.extend(pairs, &named);
    }

    /// Expects the domains of sources that have not answered. Each source stands for them as a domain that is starting.
    pub fn expect(&mut self, late: Late) {
        for source in late.starting.sources() {
            self.domains.push(Metered::new(stand_in_of(source), false, Origin::Starting(0)));
        }
        self.late = Some(late);
        self.review_starting();
        self.count();
        for at in 0..self.domains.len() {
            if matches!(self.domains[at].origin, Origin::Starting(_)) {
                self.announce(at, &self.domains[at].liveness);
            }
        }
    }

    /// Adds the domains of sources that have answered since.
    pub fn attach_late(&mut self, ledger: &mut Ledger) -> Option<Attached> {
        let mut late = self.late.take()?;
        let (first, mut absent, mut any) = (self.domains.len(), Vec::new(), false);
        while let Some(progress) = late.starting.next(None) {
            any = true;
            let mut found = progress.found;
            let present: Vec<&Domain> = self.metered().map(|metered| &metered.domain).collect();
            choice::keep_new(&mut found, &present, &late.packages);
            let before = self.domains.len();
            for opened in found.opened {
                absent.extend(self.start_sampler(opened, &late).err());
            }
            let brought = self.domains.len() - before;
            self.compare(found.duplicates);
            absent.extend(found.absent);
            self.note_progress(&progress.source, brought, progress.is_last, ledger);
        }
        self.late = Some(late).filter(|late| !late.starting.sources().is_empty());
        if !any {
            return None;
        }
        self.settle_parents();
        self.review_starting();
        self.count();
        self.domains[first..].iter().for_each(|metered| ledger.add(metered.domain.clone()));
        ledger.relate(self.domains());
        self.introduce(ledger);
        Some(Attached { first, absent })
    }

    fn start_sampler(&mut self, opened: Opened, late: &Late) -> Result<(), Absent> {
        let source = opened.name;
        let sampler = sampler::start(opened, &late.settings, late.clock.clone()).map_err(|error| Absent {
            source: source.into(),
            reason: format!("the system gives no thread to read it: {error}"),
        })?;
        sampler.set_fast(self.fast);
        self.push(sampler);
        Ok(())
    }

    /// A source that has brought all its domains, or none, no longer makes totals unknown; where it brought none, it has
    /// not used anything in the spans that are open.
    fn note_progress(&mut self, source: &str, brought: usize, is_last: bool, ledger: &mut Ledger) {
        for (at, metered) in self.domains.iter_mut().enumerate() {
            let Origin::Starting(so_far) = metered.origin else { continue };
            if metered.domain.source != source {
                continue;
            }
            let so_far = so_far + brought;
            metered.origin = if is_last { Origin::Ended } else { Origin::Starting(so_far) };
            if is_last && so_far == 0 {
                ledger.exclude(at);
            }
        }
    }

    /// Parents across mechanisms, once other domains are there.
    fn settle_parents(&mut self) {
        let mut own: Vec<Domain> = self.metered().map(Metered::as_its_source_has_it).collect();
        choice::settle_parents(own.iter_mut().collect());
        let metered = self.domains.iter_mut().filter(|metered| matches!(metered.origin, Origin::Feed(_)));
        for (metered, own) in metered.zip(own) {
            metered.source_parent = own.parent;
        }
    }

    /// What is said of sources that have not answered.
    fn review_starting(&mut self) {
        let Some(late) = &self.late else { return };
        let waited_s = late.starting.elapsed().as_secs();
        for metered in self.domains.iter_mut().filter(|metered| matches!(metered.origin, Origin::Starting(_)))
        {
            let reason = format!(
                "{} has not answered for {waited_s} s; its domains are added once it does, and totals are unknown until \
                 then: see the kernel's log, or leave the source out of source.enabled",
                metered.domain.source
            );
            metered.liveness = (Liveness::Starting, Some(reason));
        }
    }

    /// The domains that have readings, not those that stand for a source.
    fn metered(&self) -> impl Iterator<Item = &Metered> {
        self.domains.iter().filter(|metered| matches!(metered.origin, Origin::Feed(_)))
    }

    /// The names of the domains that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let there = self.domains.iter().filter(|metered| metered.origin != Origin::Ended);
        there.map(|metered| metered.domain.name.as_str())
    }

    /// The names of the domains that have readings.
    pub fn has_readings(&self, name: &str) -> bool {
        self.metered().any(|metered| metered.domain.name == name)
    }

    /// Waits until every source was read once, so that no span begins before the first reading; a source that hangs is
    /// not waited for.
    pub fn await_first(&self) {
        const PATIENCE: Duration = Duration::from_millis(100);
        let deadline = Instant::now() + PATIENCE;
        while self.feeds.iter().any(|feed| feed.ring.written() == 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Every domain, in the ledger's order.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter().map(|metered| &metered.domain)
    }

    /// Tells a ledger over these domains what is known of them.
    pub fn introduce(&self, ledger: &mut Ledger) {
        for (index, metered) in self.domains.iter().enumerate() {
            ledger.set_live(index, metered.liveness.0 == Liveness::Live);
            ledger.set_counted(index, metered.counted);
            ledger.set_in_doubt(index, metered.in_doubt);
            ledger.set_starting(index, matches!(metered.origin, Origin::Starting(_)));
            if let Some(interval_ns) = metered.character.update_interval_ns() {
                ledger.set_interval(index, interval_ns);
            }
        }
    }

    /// Says whether readings are needed now.
    pub fn demand(&mut self, fast: bool) {
        self.fast = fast;
        self.feeds.iter().for_each(|feed| feed.sampler.set_fast(fast));
    }

    /// Other rates from now on.
    pub fn set_rates(&mut self, settings: &sampler::SamplerSettings) {
        if let Some(late) = &mut self.late {
            late.settings = settings.clone();
        }
        self.feeds.iter().for_each(|feed| feed.sampler.set_rates(settings));
    }

    /// For how long the sampler that is worst off has made no progress.
    pub fn overdue_ns(&self, now_ns: u64) -> u64 {
        self.feeds.iter().map(|feed| feed.sampler.overdue_ns(now_ns)).max().unwrap_or(0)
    }

    /// The samplers' own ends, for a recording. Each domain names the parent that it has now, so that a replay counts no
    /// counter twice that may have two names.
    pub fn sources(&self) -> Vec<sampler::SampleStream> {
        let source = |feed: &Feed| {
            let own = self.domains.iter().skip(feed.first).take(feed.sample.readings.len());
            let domains = own.map(|metered| metered.domain.clone()).collect();
            sampler::SampleStream { domains, ..feed.sampler.stream() }
        };
        self.feeds.iter().map(source).collect()
    }

    /// Passes on every reading that is new.
    pub fn drain(&mut self, now_ns: u64, ledger: &mut Ledger) {
        for feed in &mut self.feeds {
            let written = feed.ring.written();
            feed.next = feed.next.max(feed.ring.oldest());
            while feed.next < written {
                if feed.ring.read(feed.next, &mut feed.sample) {
                    let domains = &mut self.domains[feed.first..];
                    take_in(&feed.sample, feed.first, domains, &mut self.duplicates, ledger);
                }
                feed.next += 1;
            }
        }
        if self.reviewed_ns.is_none_or(|reviewed_ns| now_ns.saturating_sub(reviewed_ns) >= REVIEW_NS) {
            self.reviewed_ns = Some(now_ns);
            self.review(now_ns, ledger);
        }
    }

    /// Looks at every domain's state, and passes on and tells what changed.
    fn review(&mut self, now_ns: u64, ledger: &mut Ledger) {
        let mut changed = false;
        self.review_starting();
        for at in 0..self.domains.len() {
            let metered = &self.domains[at];
            let Origin::Feed(feed) = metered.origin else { continue };
            let hung_ns = self.feeds[feed].sampler.hung_for_ns(now_ns).filter(|ns| *ns > HUNG_NS);
            let liveness = match hung_ns {
                Some(ns) => (Liveness::Lost, Some(hung(&metered.domain.source, ns))),
                None => state_of(&metered.domain, &metered.character),
            };
            if liveness.0 != metered.liveness.0 {
                self.announce(at, &liveness);
                changed = true;
            }
            self.domains[at].liveness = liveness;
        }
        changed |= self.decide_duplicates(now_ns, ledger);
        if changed {
            self.count();
            ledger.relate(self.domains());
        }
        self.introduce(ledger);
    }

    /// Decides what the readings allow of domains that may be two names of one counter; gives whether a state changed.
    /// A domain that is found to be a second name leaves the totals of the spans that are open; one that is found to be
    /// independent is in the totals of spans that open from now on, since what it used before was not counted.
    fn decide_duplicates(&mut self, now_ns: u64, ledger: &mut Ledger) -> bool {
        let (mut changed, domains, tell) = (false, &mut self.domains, self.tell);
        self.duplicates.decide(|pair| {
            changed = true;
            match pair.state {
                Duplicate::Same => ledger.exclude(pair.copy),
                Duplicate::Independent => domains[pair.copy].independent_since_ns = Some(now_ns),
                Duplicate::Undecided => {}
            }
            announce_duplicate(pair, domains, tell);
        });
        let live: Vec<bool> = self.live().collect();
        if self.duplicates.wants_survey(now_ns, &live) {
            self.feeds.iter().for_each(|feed| feed.sampler.characterise());
        }
        changed
    }

    fn announce(&self, at: usize, liveness: &(Liveness, Option<String>)) {
        let Domain { name, source, .. } = &self.domains[at].domain;
        let fields = [("WATTSPAN_DOMAIN", name.as_str()), ("WATTSPAN_SOURCE", source.as_str())];
        match liveness {
            (Liveness::Live, _) => {
                let message = format!("domain {name} is live");
                (self.tell)(&Entry { event: &journal::LIVE, message: &message, fields: &fields });
            }
            (_, reason) => {
                let reason = reason.as_deref().unwrap_or("for a reason unknown");
                let message = format!("domain {name} is not live: {reason}");
                let fields = [fields[0], fields[1], ("WATTSPAN_REASON", reason)];
                (self.tell)(&Entry { event: &journal::NOT_LIVE, message: &message, fields: &fields });
            }
        }
    }

    fn live(&self) -> impl Iterator<Item = bool> + '_ {
        self.domains.iter().map(|metered| metered.liveness.0 == Liveness::Live)
    }

    fn count(&mut self) {
        let domains: Vec<Domain> = self.domains.iter().map(Metered::as_its_source_has_it).collect();
        let live: Vec<bool> = self.live().collect();
        let membership = self.duplicates.membership(&domains, &live);
        let parents = membership.parents.into_iter();
        let totals = membership.counted.into_iter().zip(membership.in_doubt);
        for (metered, (parent, (counted, in_doubt))) in self.domains.iter_mut().zip(parents.zip(totals)) {
            metered.domain.parent = parent;
            (metered.counted, metered.in_doubt) = (counted, in_doubt);
        }
        // What a source will show is not known, so it may be any part of the total; but RAPL has one set of registers.
        let rapl_is_read = self.domains.iter().any(|metered| metered.counted && is_rapl(&metered.domain));
        for metered in &mut self.domains {
            if matches!(metered.origin, Origin::Starting(_)) {
                metered.counted =
                    !(rapl_is_read && is_rapl(&metered.domain)) && metered.domain.kind != Kind::Battery;
            }
        }
    }

    /// Every domain as it is now.
    pub fn statuses(&self) -> Vec<DomainStatus> {
        let there = self.domains.iter().enumerate().filter(|(_, metered)| metered.origin != Origin::Ended);
        let status = |(at, metered): (usize, &Metered)| {
            let duplicate = self.duplicates.of(at);
            DomainStatus {
                duplicate: duplicate.map(|(state, _)| state),
                duplicate_of: duplicate.map(|(_, original)| self.domains[original].domain.name.clone()),
                ..metered.status()
            }
        };
        there.map(status).collect()
    }

    /// Whether the total leaves out domains that may be part of it: then it is at least what it says.
    pub fn at_least(&self) -> Option<bool> {
        self.domains.iter().any(|metered| metered.in_doubt).then_some(true)
    }

    /// What became of each sampler's ticks.
    pub fn samplers(&self) -> Vec<SamplerStatus> {
        self.feeds.iter().map(|feed| feed.status(&self.domains)).collect()
    }

    /// What the domains used from `from_ns` to `to_ns`: the account of a span that had the machine to itself then, by
    /// the same rule and with the same guarantee as every other account, from the readings that the rings still hold.
    pub fn window(&self, from_ns: u64, to_ns: u64, settings: &attribution::Settings) -> Option<Window> {
        let settings = attribution::Settings { horizon_ns: 0, ..settings.clone() };
        let mut ledger = Ledger::new(self.domains().cloned().collect(), settings);
        self.introduce(&mut ledger);
        let later =
            |metered: &Metered| metered.independent_since_ns.is_some_and(|since_ns| since_ns > from_ns);
        for (index, metered) in self.domains.iter().enumerate().filter(|(_, metered)| later(metered)) {
            // A decision holds from its instant on, never backwards.
            ledger.set_in_doubt(index, metered.counted || metered.in_doubt);
            ledger.set_counted(index, false);
        }
        let opening = Opening::plain(String::new(), from_ns);
        let key = ledger.open(from_ns, opening).ok()?;
        ledger.close(to_ns, key, to_ns, Default::default(), false).ok()?;
        let mut end_ns = to_ns.saturating_add(1);
        for feed in &self.feeds {
            let last_ns =
                feed.replay(from_ns.saturating_sub(MARGIN_NS), to_ns.saturating_add(MARGIN_NS), &mut ledger);
            end_ns = end_ns.max(last_ns);
        }
        let mut settled = Vec::new();
        ledger.settle(end_ns, &mut settled);
        let account = match settled.pop() {
            Some((_, account)) => account,
            None => ledger.account(end_ns, key).ok()?,
        };
        let Account { domains, window_uj, error_uj, grade, at_least, .. } = account;
        Some(Window { domains, window_uj, error_uj, grade, at_least })
    }
}

impl Feed {
    /// Feeds what the ring holds between two instants into another ledger; gives the time of the last reading.
    fn replay(&self, from_ns: u64, to_ns: u64, ledger: &mut Ledger) -> u64 {
        let mut last_ns = 0;
        let mut sample = self.sample.clone();
        let first = self.ring.find(from_ns).unwrap_or_else(|| self.ring.oldest());
        for index in first..self.ring.written() {
            if !self.ring.read(index, &mut sample) {
                continue;
            }
            if sample.before_ns > to_ns {
                break;
            }
            last_ns = sample.after_ns;
            for (at, reading) in sample.readings.iter().enumerate() {
                ledger.feed(self.first + at, sample.before_ns, sample.after_ns, reading);
            }
        }
        last_ns
    }
}

impl Metered {
    fn new(domain: Domain, advanced: bool, origin: Origin) -> Self {
        let character = CounterProfile::new(advanced).with_latency(domain.latency_ns);
        Self {
            liveness: state_of(&domain, &character),
            source_parent: domain.parent.clone(),
            domain,
            character,
            origin,
            counted: false,
            in_doubt: false,
            independent_since_ns: None,
            base_uj: None,
            energy_uj: None,
        }
    }

    fn as_its_source_has_it(&self) -> Domain {
        Domain { parent: self.source_parent.clone(), ..self.domain.clone() }
    }

    fn note(&mut self, reading: &Reading) {
        if reading.valid {
            self.base_uj.get_or_insert(reading.energy_uj);
            self.energy_uj = Some(reading.energy_uj);
        }
    }

    fn status(&self) -> DomainStatus {
        let (domain, character) = (&self.domain, &self.character);
        // A counter that never moved has measured nothing, which is not 0 J.
        let moved = self.liveness.0 == Liveness::Live || self.energy_uj > self.base_uj;
        let since_start = |energy_uj: u64| Some(energy_uj - self.base_uj?);
        DomainStatus {
            name: domain.name.clone(),
            kind: domain.kind,
            source: domain.source.clone(),
            device: domain.device.clone(),
            parent: domain.parent.clone(),
            counted: self.counted,
            duplicate: None,
            duplicate_of: None,
            grade: domain.grade,
            liveness: self.liveness.0,
            reason: self.liveness.1.clone(),
            update_interval_ns: character.update_interval_ns(),
            quantum_uj: character.quantum_uj(),
            read_cost_ns: character.read_cost_ns(),
            residual: character.residual(),
            energy_uj: self.energy_uj.filter(|_| moved).and_then(since_start),
            power_mw: character.power_mw(),
        }
    }
}

fn take_in(
    sample: &Sample,
    first: usize,
    domains: &mut [Metered],
    duplicates: &mut Duplicates,
    ledger: &mut Ledger,
) {
    for (at, (reading, metered)) in sample.readings.iter().zip(domains).enumerate() {
        metered.character.observe(sample.before_ns, sample.after_ns, reading);
        metered.note(reading);
        duplicates.see(first + at, sample.before_ns, sample.after_ns, reading);
        ledger.feed(first + at, sample.before_ns, sample.after_ns, reading);
    }
}

fn announce_duplicate(pair: &NumberedPair, domains: &[Metered], tell: Tell) {
    let name = |at: usize| domains[at].domain.name.as_str();
    let (original, copy) = (name(pair.original), name(pair.copy));
    let message = match pair.state {
        Duplicate::Same => format!("domains {original} and {copy} show one counter; {copy} is not counted"),
        Duplicate::Independent => {
            format!("domain {copy} is independent of {original} and counts from now on")
        }
        Duplicate::Undecided => return,
    };
    let fields = [("WATTSPAN_DOMAIN", copy), ("WATTSPAN_SOURCE", domains[pair.copy].domain.source.as_str())];
    tell(&Entry { event: &journal::DUPLICATE, message: &message, fields: &fields });
}

/// What stands for a source that has not answered. Its kind is what such a source mostly shows.
fn stand_in_of(source: &str) -> Domain {
    let kind = match source {
        sources::nvml::NAME | sources::amdgpu::NAME | sources::intelgpu::NAME => Kind::Gpu,
        sources::battery::NAME => Kind::Battery,
        sources::perf::NAME | sources::powercap::NAME | sources::msr::NAME => Kind::Package,
        sources::hwmon::NAME => Kind::Module,
        sources::smc::NAME => Kind::Psys,
        _ => Kind::Soc,
    };
    Domain {
        name: source.to_owned(),
        kind,
        source: source.to_owned(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj: 1,
    }
}

/// Mechanisms that read RAPL's registers.
fn is_rapl(domain: &Domain) -> bool {
    [sources::perf::NAME, sources::powercap::NAME, sources::msr::NAME].contains(&domain.source.as_str())
}

fn hung(source: &str, ns: u64) -> String {
    format!("the {source} driver has not answered for {} s; see the kernel's log", ns / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Kind;

    #[test]
    fn a_battery_that_is_silent_rests_and_anything_else_never_answered() {
        let domain = |kind| Domain {
            name: "x".into(),
            kind,
            source: "battery".into(),
            device: None,
            parent: None,
            grade: crate::domain::Grade::Integrated,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        };
        let mut character = CounterProfile::new(false);
        character.observe(1_000, 2_000, &Reading::default());
        let reason = |kind| state_of(&domain(kind), &character).1.unwrap();
        assert!(reason(Kind::Battery).contains("not discharging"), "{}", reason(Kind::Battery));
        assert!(reason(Kind::Gpu).contains("never answered"), "{}", reason(Kind::Gpu));
    }
}
