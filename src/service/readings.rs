//! The way of the readings: from the samplers' rings into the attributor, and what is known of each domain on the way.
//!
//! Owns the samplers, how far each ring was read, and every domain's character, liveness and place in the host's total.
//! A domain that stops living, or comes to life, is said so once. Invariant: the attributor sees each domain's readings
//! once, in the order of time; what a ring lost before it was read is a gap, not an error. A source that has not answered
//! when the meter starts stands in the list as a domain of its own that is *starting*, until its domains are added.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::domain_liveness::domain_liveness;
use super::duplicate_tracker::{DuplicateTracker, TrackedPair};
use crate::attribution::account::Account;
use crate::attribution::{self, Attributor, NewSpan};
use crate::clock::Clock;
use crate::domain::{Absent, Domain, DomainKind, Duplicate, EnergyReading, Grade, Liveness};
use crate::protocol::{DomainStatus, SamplerStatus, WindowEnergy};
use crate::ring::{RingReader, Sample};
use crate::sampler::counter_profile::CounterProfile;
use crate::sampler::{self, Sampler};
use crate::sources::dedup::duplicate_pair::DuplicatePair;
use crate::sources::dedup::preference;
use crate::sources::{self, OpenedSource, StartingSources};
use crate::systemd::journal::{self, LogEntry, LogFn};

/// How often liveness and the characters' figures are passed on to the attributor.
const LIVENESS_CHECK_NS: u64 = 100_000_000;

/// A read that takes longer than this hangs.
const READ_TIMEOUT_NS: u64 = 2_000_000_000;

/// How far beside a window readings are looked at, for the counter's moves around its edges.
const WINDOW_MARGIN_NS: u64 = 3_000_000_000;

/// All samplers and all domains, the domains in the order of the samplers.
pub struct ReadingCollector {
    readers: Vec<SamplerReader>,
    domains: Vec<MeteredDomain>,
    duplicates: DuplicateTracker,
    pending_sources: Option<PendingSources>,
    is_fast: bool,
    liveness_checked_ns: Option<u64>,
    log: LogFn,
}

struct SamplerReader {
    sampler: Sampler,
    ring: RingReader,
    next_index: u64,
    first_domain: usize,
    sample: Sample,
}

impl SamplerReader {
    fn status(&self, domains: &[MeteredDomain]) -> SamplerStatus {
        let own = domains.iter().skip(self.first_domain).take(self.sample.readings.len());
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
pub struct PendingSources {
    /// The sources.
    pub starting: StartingSources,
    /// How samplers tick.
    pub settings: sampler::SamplerSettings,
    /// The meter's clock.
    pub clock: Clock,
    /// The physical packages that the kernel lists.
    pub packages: BTreeSet<u32>,
}

/// What a late source brought.
pub struct AttachedDomains {
    /// The number of its first domain.
    pub first_domain: usize,
    /// What it does not have, with the reason.
    pub absent: Vec<Absent>,
}

/// Where a domain's readings come from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum DomainOrigin {
    /// The feed of this number.
    Sampler(usize),
    /// It stands for a source that has not answered, or not for all its domains; the number of those that it has.
    Placeholder(usize),
    /// It stood for one.
    Retired,
}

struct MeteredDomain {
    domain: Domain,
    profile: CounterProfile,
    origin: DomainOrigin,
    liveness: (Liveness, Option<String>),
    /// The parent that its source names; the domain's own may be one that it perhaps duplicates.
    source_parent: Option<String>,
    counted: bool,
    is_undecided: bool,
    /// When it was found to be no second name of another domain; absent where it never was in question.
    independent_since_ns: Option<u64>,
    base_uj: Option<u64>,
    energy_uj: Option<u64>,
}

impl ReadingCollector {
    /// Over these samplers; `log` is told of each change of a domain's state, in words for the administrator.
    /// `duplicates`: domains that may be two names of one counter.
    pub fn new(samplers: Vec<Sampler>, duplicates: Vec<DuplicatePair>, log: LogFn) -> Self {
        let mut collector = Self {
            readers: Vec::new(),
            domains: Vec::new(),
            duplicates: DuplicateTracker::default(),
            pending_sources: None,
            is_fast: false,
            liveness_checked_ns: None,
            log,
        };
        samplers.into_iter().for_each(|sampler| collector.add_sampler(sampler));
        collector.add_duplicate_pairs(duplicates);
        collector.update_totals();
        collector
    }

    fn add_sampler(&mut self, sampler: Sampler) {
        let stream = sampler.stream();
        let first = self.domains.len();
        for (domain, advanced) in stream.domains.iter().zip(stream.advanced.iter()) {
            self.domains.push(MeteredDomain::new(
                domain.clone(),
                *advanced,
                DomainOrigin::Sampler(self.readers.len()),
            ));
        }
        let sample = Sample::empty(stream.domains.len());
        self.readers.push(SamplerReader {
            sampler,
            ring: stream.ring,
            next_index: 0,
            first_domain: first,
            sample,
        });
    }

    fn add_duplicate_pairs(&mut self, pairs: Vec<DuplicatePair>) {
        let named: Vec<&Domain> = self.domains.iter().map(|metered| &metered.domain).collect();
        self.duplicates.extend(pairs, &named);
    }

    /// Expects the domains of sources that have not answered. Each source stands for them as a domain that is starting.
    pub fn add_pending_sources(&mut self, pending: PendingSources) {
        for source in pending.starting.names() {
            self.domains.push(MeteredDomain::new(
                placeholder_domain(source),
                false,
                DomainOrigin::Placeholder(0),
            ));
        }
        self.pending_sources = Some(pending);
        self.update_placeholders();
        self.update_totals();
        for at in 0..self.domains.len() {
            if matches!(self.domains[at].origin, DomainOrigin::Placeholder(_)) {
                self.log_liveness(at, &self.domains[at].liveness);
            }
        }
    }

    /// Adds the domains of sources that have answered since.
    pub fn attach_started_sources(&mut self, attributor: &mut Attributor) -> Option<AttachedDomains> {
        let mut pending = self.pending_sources.take()?;
        let (first, mut absent, mut any) = (self.domains.len(), Vec::new(), false);
        while let Some(progress) = pending.starting.next_progress(None) {
            any = true;
            let mut found = progress.found;
            let present: Vec<&Domain> = self.metered().map(|metered| &metered.domain).collect();
            preference::keep_new(&mut found, &present, &pending.packages);
            let before = self.domains.len();
            for opened in found.opened {
                absent.extend(self.start_sampler(opened, &pending).err());
            }
            let added = self.domains.len() - before;
            self.add_duplicate_pairs(found.duplicates);
            absent.extend(found.absent);
            self.record_progress(&progress.source, added, progress.is_last, attributor);
        }
        self.pending_sources = Some(pending).filter(|pending| !pending.starting.names().is_empty());
        if !any {
            return None;
        }
        self.resolve_parents();
        self.update_placeholders();
        self.update_totals();
        self.domains[first..].iter().for_each(|metered| attributor.add_domain(metered.domain.clone()));
        attributor.set_parents(self.domains());
        self.publish_domain_state(attributor);
        Some(AttachedDomains { first_domain: first, absent })
    }

    fn start_sampler(&mut self, opened: OpenedSource, pending: &PendingSources) -> Result<(), Absent> {
        let source = opened.name;
        let sampler =
            sampler::start(opened, &pending.settings, pending.clock.clone()).map_err(|error| Absent {
                source: source.into(),
                reason: format!("the system gives no thread to read it: {error}"),
            })?;
        sampler.set_fast(self.is_fast);
        self.add_sampler(sampler);
        Ok(())
    }

    /// A source that has brought all its domains, or none, no longer makes totals unknown; where it brought none, it has
    /// not used anything in the spans that are open.
    fn record_progress(&mut self, source: &str, added: usize, is_last: bool, attributor: &mut Attributor) {
        for (at, metered) in self.domains.iter_mut().enumerate() {
            let DomainOrigin::Placeholder(total_added) = metered.origin else { continue };
            if metered.domain.source != source {
                continue;
            }
            let total_added = total_added + added;
            metered.origin =
                if is_last { DomainOrigin::Retired } else { DomainOrigin::Placeholder(total_added) };
            if is_last && total_added == 0 {
                attributor.exclude(at);
            }
        }
    }

    /// Parents across mechanisms, once other domains are there.
    fn resolve_parents(&mut self) {
        let mut own: Vec<Domain> = self.metered().map(MeteredDomain::with_source_parent).collect();
        preference::resolve_parents(own.iter_mut().collect());
        let metered =
            self.domains.iter_mut().filter(|metered| matches!(metered.origin, DomainOrigin::Sampler(_)));
        for (metered, own) in metered.zip(own) {
            metered.source_parent = own.parent;
        }
    }

    /// What is said of sources that have not answered.
    fn update_placeholders(&mut self) {
        let Some(pending) = &self.pending_sources else { return };
        let waited_s = pending.starting.elapsed().as_secs();
        for metered in
            self.domains.iter_mut().filter(|metered| matches!(metered.origin, DomainOrigin::Placeholder(_)))
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
    fn metered(&self) -> impl Iterator<Item = &MeteredDomain> {
        self.domains.iter().filter(|metered| matches!(metered.origin, DomainOrigin::Sampler(_)))
    }

    /// The names of the domains that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let active = self.domains.iter().filter(|metered| metered.origin != DomainOrigin::Retired);
        active.map(|metered| metered.domain.name.as_str())
    }

    /// The names of the domains that have readings.
    pub fn has_readings(&self, name: &str) -> bool {
        self.metered().any(|metered| metered.domain.name == name)
    }

    /// Waits until every source was read once, so that no span begins before the first reading; a source that hangs is
    /// not waited for.
    pub fn wait_for_first_readings(&self) {
        const FIRST_READING_TIMEOUT: Duration = Duration::from_millis(100);
        let deadline = Instant::now() + FIRST_READING_TIMEOUT;
        while self.readers.iter().any(|reader| reader.ring.written_count() == 0) && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Every domain, in the attributor's order.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter().map(|metered| &metered.domain)
    }

    /// Tells an attributor over these domains what is known of them.
    pub fn publish_domain_state(&self, attributor: &mut Attributor) {
        for (index, metered) in self.domains.iter().enumerate() {
            attributor.set_live(index, metered.liveness.0 == Liveness::Live);
            attributor.set_counted(index, metered.counted);
            attributor.set_undecided(index, metered.is_undecided);
            attributor.set_starting(index, matches!(metered.origin, DomainOrigin::Placeholder(_)));
            if let Some(interval_ns) = metered.profile.update_interval_ns() {
                attributor.set_update_interval(index, interval_ns);
            }
        }
    }

    /// Says whether readings are needed now.
    pub fn set_sampling_rate(&mut self, fast: bool) {
        self.is_fast = fast;
        self.readers.iter().for_each(|reader| reader.sampler.set_fast(fast));
    }

    /// Other rates from now on.
    pub fn set_rates(&mut self, settings: &sampler::SamplerSettings) {
        if let Some(pending) = &mut self.pending_sources {
            pending.settings = settings.clone();
        }
        self.readers.iter().for_each(|reader| reader.sampler.set_rates(settings));
    }

    /// For how long the sampler that is worst off has made no progress.
    pub fn overdue_ns(&self, now_ns: u64) -> u64 {
        self.readers.iter().map(|reader| reader.sampler.overdue_ns(now_ns)).max().unwrap_or(0)
    }

    /// The samplers' own ends, for a recording. Each domain names the parent that it has now, so that a replay counts no
    /// counter twice that may have two names.
    pub fn recording_feeds(&self) -> Vec<sampler::SampleStream> {
        let source = |reader: &SamplerReader| {
            let own = self.domains.iter().skip(reader.first_domain).take(reader.sample.readings.len());
            let domains = own.map(|metered| metered.domain.clone()).collect();
            sampler::SampleStream { domains, ..reader.sampler.stream() }
        };
        self.readers.iter().map(source).collect()
    }

    /// Passes on every reading that is new.
    pub fn drain(&mut self, now_ns: u64, attributor: &mut Attributor) {
        for reader in &mut self.readers {
            let written = reader.ring.written_count();
            reader.next_index = reader.next_index.max(reader.ring.oldest_index());
            while reader.next_index < written {
                if reader.ring.read(reader.next_index, &mut reader.sample) {
                    let domains = &mut self.domains[reader.first_domain..];
                    process_sample(
                        &reader.sample,
                        reader.first_domain,
                        domains,
                        &mut self.duplicates,
                        attributor,
                    );
                }
                reader.next_index += 1;
            }
        }
        if self
            .liveness_checked_ns
            .is_none_or(|reviewed_ns| now_ns.saturating_sub(reviewed_ns) >= LIVENESS_CHECK_NS)
        {
            self.liveness_checked_ns = Some(now_ns);
            self.check_liveness(now_ns, attributor);
        }
    }

    /// Looks at every domain's state, and passes on and tells what changed.
    fn check_liveness(&mut self, now_ns: u64, attributor: &mut Attributor) {
        let mut changed = false;
        self.update_placeholders();
        for at in 0..self.domains.len() {
            let metered = &self.domains[at];
            let DomainOrigin::Sampler(reader) = metered.origin else { continue };
            let hung_ns = self.readers[reader].sampler.hung_for_ns(now_ns).filter(|ns| *ns > READ_TIMEOUT_NS);
            let liveness = match hung_ns {
                Some(ns) => (Liveness::Lost, Some(hang_reason(&metered.domain.source, ns))),
                None => domain_liveness(&metered.domain, &metered.profile),
            };
            if liveness.0 != metered.liveness.0 {
                self.log_liveness(at, &liveness);
                changed = true;
            }
            self.domains[at].liveness = liveness;
        }
        changed |= self.resolve_duplicates(now_ns, attributor);
        if changed {
            self.update_totals();
            attributor.set_parents(self.domains());
        }
        self.publish_domain_state(attributor);
    }

    /// Decides what the readings allow of domains that may be two names of one counter; gives whether a state changed.
    /// A domain that is found to be a second name leaves the totals of the spans that are open; one that is found to be
    /// independent is in the totals of spans that open from now on, since what it used before was not counted.
    fn resolve_duplicates(&mut self, now_ns: u64, attributor: &mut Attributor) -> bool {
        let (mut changed, domains, log) = (false, &mut self.domains, self.log);
        self.duplicates.resolve(|pair| {
            changed = true;
            match pair.state {
                Duplicate::Same => attributor.exclude(pair.copy),
                Duplicate::Independent => domains[pair.copy].independent_since_ns = Some(now_ns),
                Duplicate::Undecided => {}
            }
            log_duplicate(pair, domains, log);
        });
        let live: Vec<bool> = self.live_flags().collect();
        if self.duplicates.is_survey_due(now_ns, &live) {
            self.readers.iter().for_each(|reader| reader.sampler.characterise());
        }
        changed
    }

    fn log_liveness(&self, at: usize, liveness: &(Liveness, Option<String>)) {
        let Domain { name, source, .. } = &self.domains[at].domain;
        let fields = [("WATTSPAN_DOMAIN", name.as_str()), ("WATTSPAN_SOURCE", source.as_str())];
        match liveness {
            (Liveness::Live, _) => {
                let message = format!("domain {name} is live");
                (self.log)(&LogEntry { event: &journal::DOMAIN_LIVE, message: &message, fields: &fields });
            }
            (_, reason) => {
                let reason = reason.as_deref().unwrap_or("for a reason unknown");
                let message = format!("domain {name} is not live: {reason}");
                let fields = [fields[0], fields[1], ("WATTSPAN_REASON", reason)];
                (self.log)(&LogEntry {
                    event: &journal::DOMAIN_NOT_LIVE,
                    message: &message,
                    fields: &fields,
                });
            }
        }
    }

    fn live_flags(&self) -> impl Iterator<Item = bool> + '_ {
        self.domains.iter().map(|metered| metered.liveness.0 == Liveness::Live)
    }

    fn update_totals(&mut self) {
        let domains: Vec<Domain> = self.domains.iter().map(MeteredDomain::with_source_parent).collect();
        let live: Vec<bool> = self.live_flags().collect();
        let membership = self.duplicates.membership(&domains, &live);
        let parents = membership.parents.into_iter();
        let totals = membership.counted.into_iter().zip(membership.undecided);
        for (metered, (parent, (counted, is_undecided))) in self.domains.iter_mut().zip(parents.zip(totals)) {
            metered.domain.parent = parent;
            (metered.counted, metered.is_undecided) = (counted, is_undecided);
        }
        // What a source will show is not known, so it may be any part of the total; but RAPL has one set of registers.
        let rapl_is_read = self.domains.iter().any(|metered| metered.counted && is_rapl(&metered.domain));
        for metered in &mut self.domains {
            if matches!(metered.origin, DomainOrigin::Placeholder(_)) {
                metered.counted =
                    !(rapl_is_read && is_rapl(&metered.domain)) && metered.domain.kind != DomainKind::Battery;
            }
        }
    }

    /// Every domain as it is now.
    pub fn statuses(&self) -> Vec<DomainStatus> {
        let active =
            self.domains.iter().enumerate().filter(|(_, metered)| metered.origin != DomainOrigin::Retired);
        let status = |(at, metered): (usize, &MeteredDomain)| {
            let duplicate = self.duplicates.state_of(at);
            DomainStatus {
                duplicate: duplicate.map(|(state, _)| state),
                duplicate_of: duplicate.map(|(_, original)| self.domains[original].domain.name.clone()),
                ..metered.status()
            }
        };
        active.map(status).collect()
    }

    /// Whether the total leaves out domains that may be part of it: then it is at least what it says.
    pub fn at_least(&self) -> Option<bool> {
        self.domains.iter().any(|metered| metered.is_undecided).then_some(true)
    }

    /// What became of each sampler's ticks.
    pub fn sampler_statuses(&self) -> Vec<SamplerStatus> {
        self.readers.iter().map(|reader| reader.status(&self.domains)).collect()
    }

    /// What the domains used from `from_ns` to `to_ns`: the account of a span that had the machine to itself then, by
    /// the same rule and with the same guarantee as every other account, from the readings that the rings still hold.
    pub fn window(
        &self,
        from_ns: u64,
        to_ns: u64,
        settings: &attribution::AttributionSettings,
    ) -> Option<WindowEnergy> {
        let settings = attribution::AttributionSettings { horizon_ns: 0, ..settings.clone() };
        let mut attributor = Attributor::new(self.domains().cloned().collect(), settings);
        self.publish_domain_state(&mut attributor);
        let later =
            |metered: &MeteredDomain| metered.independent_since_ns.is_some_and(|since_ns| since_ns > from_ns);
        for (index, metered) in self.domains.iter().enumerate().filter(|(_, metered)| later(metered)) {
            // A decision holds from its instant on, never backwards.
            attributor.set_undecided(index, metered.counted || metered.is_undecided);
            attributor.set_counted(index, false);
        }
        let opening = NewSpan::new(String::new(), from_ns);
        let key = attributor.open(from_ns, opening).ok()?;
        attributor.close(to_ns, key, to_ns, Default::default(), false).ok()?;
        let mut end_ns = to_ns.saturating_add(1);
        for reader in &self.readers {
            let last_ns = reader.feed_range(
                from_ns.saturating_sub(WINDOW_MARGIN_NS),
                to_ns.saturating_add(WINDOW_MARGIN_NS),
                &mut attributor,
            );
            end_ns = end_ns.max(last_ns);
        }
        let mut settled = Vec::new();
        attributor.settle(end_ns, &mut settled);
        let account = match settled.pop() {
            Some((_, account)) => account,
            None => attributor.account(end_ns, key).ok()?,
        };
        let Account { domains, window_uj, error_uj, grade, at_least, .. } = account;
        Some(WindowEnergy { domains, window_uj, error_uj, grade, at_least })
    }
}

impl SamplerReader {
    /// Feeds what the ring holds between two instants into another attributor; gives the time of the last reading.
    fn feed_range(&self, from_ns: u64, to_ns: u64, attributor: &mut Attributor) -> u64 {
        let mut last_ns = 0;
        let mut sample = self.sample.clone();
        let first = self.ring.find_at_or_before(from_ns).unwrap_or_else(|| self.ring.oldest_index());
        for index in first..self.ring.written_count() {
            if !self.ring.read(index, &mut sample) {
                continue;
            }
            if sample.before_ns > to_ns {
                break;
            }
            last_ns = sample.after_ns;
            for (at, reading) in sample.readings.iter().enumerate() {
                attributor.add_reading(self.first_domain + at, sample.before_ns, sample.after_ns, reading);
            }
        }
        last_ns
    }
}

impl MeteredDomain {
    fn new(domain: Domain, advanced: bool, origin: DomainOrigin) -> Self {
        let profile = CounterProfile::new(advanced).with_latency(domain.latency_ns);
        Self {
            liveness: domain_liveness(&domain, &profile),
            source_parent: domain.parent.clone(),
            domain,
            profile,
            origin,
            counted: false,
            is_undecided: false,
            independent_since_ns: None,
            base_uj: None,
            energy_uj: None,
        }
    }

    fn with_source_parent(&self) -> Domain {
        Domain { parent: self.source_parent.clone(), ..self.domain.clone() }
    }

    fn record_reading(&mut self, reading: &EnergyReading) {
        if reading.valid {
            self.base_uj.get_or_insert(reading.energy_uj);
            self.energy_uj = Some(reading.energy_uj);
        }
    }

    fn status(&self) -> DomainStatus {
        let (domain, profile) = (&self.domain, &self.profile);
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
            update_interval_ns: profile.update_interval_ns(),
            quantum_uj: profile.quantum_uj(),
            read_cost_ns: profile.read_cost_ns(),
            residual: profile.residual(),
            energy_uj: self.energy_uj.filter(|_| moved).and_then(since_start),
            power_mw: profile.power_mw(),
        }
    }
}

fn process_sample(
    sample: &Sample,
    first: usize,
    domains: &mut [MeteredDomain],
    duplicates: &mut DuplicateTracker,
    attributor: &mut Attributor,
) {
    for (at, (reading, metered)) in sample.readings.iter().zip(domains).enumerate() {
        metered.profile.observe(sample.before_ns, sample.after_ns, reading);
        metered.record_reading(reading);
        duplicates.observe(first + at, sample.before_ns, sample.after_ns, reading);
        attributor.add_reading(first + at, sample.before_ns, sample.after_ns, reading);
    }
}

fn log_duplicate(pair: &TrackedPair, domains: &[MeteredDomain], log: LogFn) {
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
    log(&LogEntry { event: &journal::DUPLICATE_DOMAINS, message: &message, fields: &fields });
}

/// What stands for a source that has not answered. Its kind is what such a source mostly shows.
fn placeholder_domain(source: &str) -> Domain {
    let kind = match source {
        sources::nvml::NAME | sources::amdgpu::NAME | sources::intelgpu::NAME => DomainKind::Gpu,
        sources::battery::NAME => DomainKind::Battery,
        sources::perf::NAME | sources::powercap::NAME | sources::msr::NAME => DomainKind::Package,
        sources::hwmon::NAME => DomainKind::Module,
        sources::apple::smc::NAME => DomainKind::Psys,
        _ => DomainKind::Soc,
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

fn hang_reason(source: &str, ns: u64) -> String {
    format!("the {source} driver has not answered for {} s; see the kernel's log", ns / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::DomainKind;

    #[test]
    fn an_invalid_reading_means_not_discharging_for_a_battery_and_no_answer_otherwise() {
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
        let mut profile = CounterProfile::new(false);
        profile.observe(1_000, 2_000, &EnergyReading::default());
        let reason = |kind| domain_liveness(&domain(kind), &profile).1.unwrap();
        assert!(reason(DomainKind::Battery).contains("not discharging"), "{}", reason(DomainKind::Battery));
        assert!(reason(DomainKind::Gpu).contains("never answered"), "{}", reason(DomainKind::Gpu));
    }
}
