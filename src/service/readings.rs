//! The collector of readings: from the samplers' rings into the attributor.
//!
//! Owns the samplers, the read position in each ring, and the list of domains with their states. Each change of a domain's
//! liveness is logged once. Invariant: the attributor receives each domain's readings once, in order of time; a reading that
//! a ring has overwritten is a gap, not an error.

use std::time::{Duration, Instant};

use wattspan_client::account::Account;
use wattspan_client::protocol::{
    DomainStatus, ExceededCeiling, ReadingSchedule, SamplerStatus, WindowEnergy,
};

use super::counter_moves::WindowSelection;
use super::domain_assumptions::AssumptionSettings;
use super::duplicate_tracker::{DuplicateTracker, TrackedPair};
use super::metered_domain::{Arrival, DomainLiveness, DomainOrigin, MeteredDomain};
use super::pending_sources::{AttachedDomains, LateAnswer, PendingSources, placeholder_domain};
use super::power_ceiling::sum_of_parts_mw;
use crate::attribution::{
    AttributionSettings, Attributor, DomainInputs, ExpectedUpdates, MAX_DOMAINS, NewSpan, SpanKey,
};
use crate::clock::Clock;
use crate::domain::{Absent, Domain, DomainKind, Duplicate, Liveness};
use crate::ring::{RingReader, Sample};
use crate::sampler::{self, Sampler};
use crate::sources;
use crate::sources::dedup::duplicate_pair::DuplicatePair;
use crate::sources::dedup::preference::{self, PresentDomain};
use crate::systemd::journal::{self, LogEntry, LogFn};

/// How often the domains' states are checked and passed on to the attributor.
const LIVENESS_CHECK_NS: u64 = 100_000_000;

/// A read that takes longer hangs.
const READ_TIMEOUT_NS: u64 = 2_000_000_000;

/// How far before and after a window readings are used: the counter's updates around its edges lie there.
const WINDOW_MARGIN_NS: u64 = 3_000_000_000;

/// All samplers and domains; the domains are in the order of the samplers.
pub struct ReadingCollector {
    readers: Vec<SamplerReader>,
    domains: Vec<MeteredDomain>,
    duplicates: DuplicateTracker,
    pending_sources: Option<PendingSources>,
    assumptions: AssumptionSettings,
    is_fast: bool,
    counter_timeout_ns: u64,
    /// All sources are read at their fixed rates, for a recording or a watcher.
    is_rate_fixed: bool,
    liveness_checked_ns: Option<u64>,
    log: LogFn,
}

struct SamplerReader {
    sampler: Sampler,
    ring: RingReader,
    next_index: u64,
    first_domain: usize,
    sample: Sample,
    limits_version: u64,
}

impl SamplerReader {
    /// Whether its first reading is still to come, and the source does not hang in it.
    fn awaits_first_reading(&self, clock: &Clock) -> bool {
        const HANG_NS: u64 = 1_000_000_000;
        let hangs = || self.sampler.hung_for_ns(clock.now_ns()).is_some_and(|hung_ns| hung_ns > HANG_NS);
        self.ring.written_count() == 0 && !hangs()
    }

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
            schedule: Some(match self.sampler.is_edge_driven() {
                true => ReadingSchedule::Edges,
                false => ReadingSchedule::FixedRate,
            }),
        }
    }

    /// Passes readings to an attributor: of each sample those of the domains that have a bit. Returns the time of the last
    /// sample.
    fn feed(&self, samples: impl Iterator<Item = (u64, u64)>, attributor: &mut DomainInputs<'_>) -> u64 {
        let mut last_ns = 0;
        let mut sample = self.sample.clone();
        for (index, domains) in samples {
            if !self.ring.read(index, &mut sample) {
                continue;
            }
            last_ns = sample.after_ns;
            for (at, reading) in sample
                .readings
                .iter()
                .enumerate()
                .filter(|(at, _)| domains.checked_shr(*at as u32).unwrap_or(0) & 1 == 1)
            {
                attributor.add_reading(self.first_domain + at, sample.before_ns, sample.after_ns, reading);
            }
        }
        last_ns
    }

    /// The readings that determine the energy of a window, for [`Self::feed`].
    fn samples_of_window(
        &self,
        from_ns: u64,
        to_ns: u64,
        domains: &[MeteredDomain],
    ) -> impl Iterator<Item = (u64, u64)> {
        let (begin_ns, end_ns) =
            (from_ns.saturating_sub(WINDOW_MARGIN_NS), to_ns.saturating_add(WINDOW_MARGIN_NS));
        let mut selection = WindowSelection::new(&self.ring, self.next_index, begin_ns, end_ns);
        if let Some(selection) = &mut selection {
            let own = &domains[self.first_domain..];
            for (place, metered) in own.iter().take(self.sample.readings.len()).enumerate() {
                selection.add_domain(&metered.moves, place, metered.domain.latency_ns, from_ns, to_ns);
            }
        }
        selection.into_iter().flat_map(WindowSelection::into_samples)
    }
}

impl ReadingCollector {
    /// `duplicates`: domains that may be two names of one counter. `log` receives each change of a domain's state.
    pub fn new(samplers: Vec<Sampler>, duplicates: Vec<DuplicatePair>, log: LogFn) -> Self {
        let mut collector = Self {
            readers: Vec::new(),
            domains: Vec::new(),
            duplicates: DuplicateTracker::default(),
            pending_sources: None,
            assumptions: AssumptionSettings::default(),
            is_fast: false,
            counter_timeout_ns: 0,
            is_rate_fixed: false,
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
            let origin = DomainOrigin::Sampler(self.readers.len());
            let mut metered = MeteredDomain::new(domain.clone(), *advanced, origin);
            metered.configure_assumptions(&self.assumptions);
            self.domains.push(metered);
        }
        let sample = Sample::empty(stream.domains.len());
        self.readers.push(SamplerReader {
            sampler,
            ring: stream.ring,
            next_index: 0,
            first_domain: first,
            sample,
            limits_version: 0,
        });
    }

    fn add_duplicate_pairs(&mut self, pairs: Vec<DuplicatePair>) {
        let named: Vec<&Domain> = self.domains.iter().map(|metered| &metered.domain).collect();
        self.duplicates.extend(pairs, &named);
    }

    /// Adds a placeholder domain, in the state *starting*, for each source that has not answered.
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
            if self.domains[at].is_placeholder() {
                self.log_liveness(at, &self.domains[at].liveness);
            }
        }
    }

    /// Adds the domains of sources that have answered since the last call, and of new devices; `None` where there are none.
    /// `absent`: the current reasons of what is not measured.
    pub fn attach_started_sources(
        &mut self,
        now_ns: u64,
        absent: &[Absent],
        attributor: &mut DomainInputs<'_>,
    ) -> Option<AttachedDomains> {
        let mut answer = self.next_answer(now_ns, absent)?;
        let mut attached = AttachedDomains::starting_at(self.domains.len());
        loop {
            self.attach_answer(answer, &mut attached, attributor);
            let Some(next) = self.next_answer(now_ns, absent) else { break };
            answer = next;
        }
        if self.pending_sources.as_ref().is_some_and(PendingSources::is_empty) {
            self.pending_sources = None;
        }
        self.resolve_parents();
        self.update_placeholders();
        self.update_totals();
        let new_domains = &self.domains[attached.first_domain..];
        new_domains.iter().for_each(|metered| attributor.add_domain(metered.domain.clone()));
        attributor.set_parents(self.domains());
        self.publish_domain_state(attributor);
        Some(attached)
    }

    fn next_answer(&mut self, now_ns: u64, absent: &[Absent]) -> Option<LateAnswer> {
        let mut pending = self.pending_sources.take()?;
        let present = || self.metered().map(MeteredDomain::with_source_parent).collect();
        let answer = pending.next_answer(now_ns, present, absent);
        self.pending_sources = Some(pending);
        answer
    }

    /// Starts the samplers of an answer's new domains.
    fn attach_answer(
        &mut self,
        mut answer: LateAnswer,
        attached: &mut AttachedDomains,
        attributor: &mut DomainInputs<'_>,
    ) {
        let Some(pending) = self.pending_sources.take() else { return };
        let is_stuck = |metered: &MeteredDomain| metered.liveness.0 == Liveness::Stuck;
        let present: Vec<PresentDomain<'_>> = self
            .metered()
            .map(|metered| PresentDomain { domain: &metered.domain, is_stuck: is_stuck(metered) })
            .collect();
        pending.keep_new(&mut answer, &present);
        let source = &answer.progress.source;
        attached.withdraw(answer.progress.outdated);
        let (found, before) = (answer.progress.found, self.domains.len());
        for opened in found.opened {
            if self.domains.len() + opened.domains.len() > MAX_DOMAINS {
                let reason =
                    format!("the meter has at most {MAX_DOMAINS} domains; restart it to measure this device");
                attached.absent.push(Absent { source: source.clone(), reason });
                continue;
            }
            match pending.start_sampler(opened, self.is_fast) {
                Ok(sampler) => {
                    sampler.set_fixed_rate(self.is_rate_fixed);
                    self.add_sampler(sampler);
                }
                Err(unavailable) => attached.absent.push(unavailable),
            }
        }
        let added = self.domains.len() - before;
        self.add_duplicate_pairs(found.duplicates);
        attached.absent.extend(found.absent);
        let arrival = if answer.is_new_device { Arrival::NewDevice } else { Arrival::OfStartingSource };
        self.domains[before..].iter_mut().for_each(|metered| metered.set_arrival(arrival));
        self.record_progress(source, added, answer.progress.is_last, attributor);
        self.pending_sources = Some(pending);
    }

    /// Counts the domains that a source has added. After its last answer the placeholder is retired; if there was no domain,
    /// the placeholder has no energy in the spans that are open.
    fn record_progress(
        &mut self,
        source: &str,
        added: usize,
        is_last: bool,
        attributor: &mut DomainInputs<'_>,
    ) {
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

    /// Resolves parents across sources after domains have been added.
    fn resolve_parents(&mut self) {
        let mut own: Vec<Domain> = self.metered().map(MeteredDomain::with_source_parent).collect();
        preference::resolve_parents(own.iter_mut().collect());
        let metered =
            self.domains.iter_mut().filter(|metered| matches!(metered.origin, DomainOrigin::Sampler(_)));
        for (metered, own) in metered.zip(own) {
            metered.source_parent = own.parent;
        }
    }

    /// Updates the reasons of placeholders.
    fn update_placeholders(&mut self) {
        let Some(pending) = &self.pending_sources else { return };
        for metered in self.domains.iter_mut().filter(|metered| metered.is_placeholder()) {
            let reason = pending.waiting_reason(&metered.domain.source);
            metered.liveness = (Liveness::Starting, Some(reason));
        }
    }

    /// The domains that have readings, without placeholders.
    fn metered(&self) -> impl Iterator<Item = &MeteredDomain> {
        self.domains.iter().filter(|metered| matches!(metered.origin, DomainOrigin::Sampler(_)))
    }

    /// The names of all domains, with those of placeholders.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let active = self.domains.iter().filter(|metered| metered.origin != DomainOrigin::Retired);
        active.map(|metered| metered.domain.name.as_str())
    }

    /// Whether a domain of this name has readings.
    pub fn has_readings(&self, name: &str) -> bool {
        self.metered().any(|metered| metered.domain.name == name)
    }

    /// Waits until every source has been read once, so that no span opens before the first reading; for one that hangs, a
    /// second. A busy machine may run the samplers' threads late, and until then nothing hangs.
    pub fn wait_for_first_readings(&self, clock: &Clock) {
        const THREADS_TIMEOUT: Duration = Duration::from_secs(5);
        let deadline = Instant::now() + THREADS_TIMEOUT;
        while self.readers.iter().any(|reader| reader.awaits_first_reading(clock))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// All domains, in the attributor's order.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter().map(|metered| &metered.domain)
    }

    /// Passes the state of all domains to an attributor.
    pub fn publish_domain_state(&self, attributor: &mut DomainInputs<'_>) {
        for (index, metered) in self.domains.iter().enumerate() {
            attributor.set_live(index, metered.liveness.0 == Liveness::Live);
            attributor.set_counted(index, metered.counted);
            attributor.set_undecided(index, metered.is_undecided);
            attributor.set_starting(index, metered.is_placeholder());
            attributor.set_measured_since(index, metered.measured_since_ns());
            attributor.set_latency(index, metered.domain.latency_ns);
            attributor.set_power_limits(index, metered.ceilings.limits());
            if let Some(interval_ns) = metered.update_interval_ns() {
                attributor.set_update_interval(index, interval_ns);
            }
        }
    }

    /// Switches all samplers to the full or the idle rate.
    pub fn set_sampling_rate(&mut self, fast: bool) {
        self.is_fast = fast;
        self.readers.iter().for_each(|reader| reader.sampler.set_fast(fast));
    }

    /// Sets the time without an update after which the attributor regards a counter's time as unknown.
    pub fn set_counter_timeout(&mut self, timeout_ns: u64) {
        self.counter_timeout_ns = timeout_ns;
    }

    /// Sets whether all samplers keep to their fixed rates.
    pub fn set_fixed_rate(&mut self, fixed: bool) {
        self.is_rate_fixed = fixed;
        self.readers.iter().for_each(|reader| reader.sampler.set_fixed_rate(fixed));
    }

    /// Whether no sampler reads more often than a thousand times a second.
    pub fn has_few_readings(&self) -> bool {
        self.readers.iter().all(|reader| reader.sampler.has_few_readings())
    }

    /// Reports an edge of a span to all samplers, which read the counters near it. An edge in the future is read at its
    /// instant only if that is near.
    pub fn report_edge(&self, at_ns: u64, now_ns: u64) {
        const MAX_FUTURE_NS: u64 = 1_000_000;
        let edge_ns = at_ns.min(now_ns + MAX_FUTURE_NS);
        self.readers.iter().for_each(|reader| reader.sampler.report_edge(edge_ns));
    }

    /// Sets the configured assumptions about domains, for readings from now on.
    pub fn set_assumptions(&mut self, assumptions: AssumptionSettings) {
        self.domains.iter_mut().for_each(|metered| metered.configure_assumptions(&assumptions));
        self.assumptions = assumptions;
    }

    /// Changes the rates of all samplers.
    pub fn set_rates(&mut self, settings: &sampler::SamplerSettings) {
        if let Some(pending) = &mut self.pending_sources {
            pending.settings = settings.clone();
        }
        self.readers.iter().for_each(|reader| reader.sampler.set_rates(settings));
    }

    /// The longest time for which a sampler has made no progress.
    pub fn overdue_ns(&self, now_ns: u64) -> u64 {
        self.readers.iter().map(|reader| reader.sampler.overdue_ns(now_ns)).max().unwrap_or(0)
    }

    /// The streams of all samplers, for a recording. Each domain has its current parent, so that a replay counts no counter
    /// twice that may have two names.
    pub fn recording_feeds(&self) -> Vec<sampler::SampleStream> {
        let source = |reader: &SamplerReader| {
            let own = self.domains.iter().skip(reader.first_domain).take(reader.sample.readings.len());
            let domains = own.map(|metered| metered.domain.clone()).collect();
            sampler::SampleStream { domains, ..reader.sampler.stream() }
        };
        self.readers.iter().map(source).collect()
    }

    /// Passes all new readings to the attributor.
    pub fn drain(&mut self, now_ns: u64, attributor: &mut DomainInputs<'_>) {
        for reader in &mut self.readers {
            let written = reader.ring.written_count();
            reader.next_index = reader.next_index.max(reader.ring.oldest_index());
            while reader.next_index < written {
                if reader.ring.read(reader.next_index, &mut reader.sample) {
                    let domains = &mut self.domains[reader.first_domain..];
                    for (metered, reading) in domains.iter_mut().zip(&reader.sample.readings) {
                        metered.moves.record(
                            reader.next_index,
                            &reader.sample,
                            reading,
                            self.counter_timeout_ns,
                        );
                    }
                    process_sample(
                        &reader.sample,
                        reader.first_domain,
                        domains,
                        &mut self.duplicates,
                        attributor,
                        self.log,
                    );
                }
                reader.next_index += 1;
            }
        }
        if self
            .liveness_checked_ns
            .is_none_or(|checked_ns| now_ns.saturating_sub(checked_ns) >= LIVENESS_CHECK_NS)
        {
            self.liveness_checked_ns = Some(now_ns);
            self.drop_overwritten_moves();
            self.check_liveness(now_ns, attributor);
        }
    }

    fn drop_overwritten_moves(&mut self) {
        for reader in &self.readers {
            let oldest = reader.ring.oldest_index();
            let own = self.domains.iter_mut().skip(reader.first_domain).take(reader.sample.readings.len());
            own.for_each(|metered| metered.moves.drop_before(oldest));
        }
    }

    /// Updates every domain's state, logs changes, and passes the states to the attributor.
    fn check_liveness(&mut self, now_ns: u64, attributor: &mut DomainInputs<'_>) {
        let mut changed = false;
        self.update_placeholders();
        self.update_assumptions();
        for at in 0..self.domains.len() {
            let metered = &self.domains[at];
            let DomainOrigin::Sampler(reader) = metered.origin else { continue };
            let hung_ns = self.readers[reader].sampler.hung_for_ns(now_ns).filter(|ns| *ns > READ_TIMEOUT_NS);
            let liveness = metered.current_liveness(hung_ns);
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

    /// Takes the power limits that the samplers have read, and updates what is assumed about each domain.
    fn update_assumptions(&mut self) {
        for reader in &mut self.readers {
            let Some((version, limits)) = reader.sampler.power_limits_since(reader.limits_version) else {
                continue;
            };
            reader.limits_version = version;
            for (metered, limits) in self.domains[reader.first_domain..].iter_mut().zip(limits) {
                metered.ceilings.add_limits(limits, metered.profile.power_mw());
            }
        }
        self.domains.iter_mut().for_each(MeteredDomain::update_assumptions);
        let is_complete = self.pending_sources.as_ref().is_none_or(PendingSources::has_started);
        let parts_mw = is_complete.then(|| sum_of_parts_mw(self.metered().map(|metered| &metered.domain)));
        for metered in self.domains.iter_mut().filter(|metered| metered.domain.kind == DomainKind::Psys) {
            metered.ceilings.set_parts_mw(parts_mw.flatten());
            metered.update_assumptions();
        }
    }

    /// Decides, as far as the readings allow, which domains are two names of one counter; returns whether a state changed.
    /// A duplicate leaves the totals of open spans. An independent domain enters the totals of spans that open from now on,
    /// since its energy was not counted before.
    fn resolve_duplicates(&mut self, now_ns: u64, attributor: &mut DomainInputs<'_>) -> bool {
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

    fn log_liveness(&self, at: usize, liveness: &DomainLiveness) {
        let Domain { name, source, .. } = &self.domains[at].domain;
        let fields = [("WATTSPAN_DOMAIN", name.as_str()), ("WATTSPAN_SOURCE", source.as_str())];
        match liveness {
            (Liveness::Live, _) => {
                let message = format!("domain {name} is live");
                (self.log)(&LogEntry { event: &journal::DOMAIN_LIVE, message: &message, fields: &fields });
            }
            (_, reason) => {
                let reason = reason.as_deref().unwrap_or("unknown reason");
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
        // The domains of a pending source are unknown and may be any part of the total, except that RAPL has one set of
        // registers.
        let is_rapl = |metered: &MeteredDomain| sources::reads_rapl(&metered.domain.source);
        let rapl_is_read = self.domains.iter().any(|metered| metered.counted && is_rapl(metered));
        for metered in self.domains.iter_mut().filter(|metered| metered.is_placeholder()) {
            metered.counted =
                !(rapl_is_read && is_rapl(metered)) && metered.domain.kind != DomainKind::Battery;
        }
    }

    /// The status of every domain.
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

    /// True if the total is a lower bound: domains that may be part of it are left out.
    pub fn at_least(&self) -> Option<bool> {
        self.domains.iter().any(|metered| metered.is_undecided).then_some(true)
    }

    /// The status of every sampler.
    pub fn sampler_statuses(&self) -> Vec<SamplerStatus> {
        self.readers.iter().map(|reader| reader.status(&self.domains)).collect()
    }

    /// The energy of the domains from `from_ns` to `to_ns`: the account of a single span over that window, with the same
    /// guarantees as every account, from the readings that the rings still hold. The idle power is that of `live`.
    pub fn window(
        &self,
        from_ns: u64,
        to_ns: u64,
        settings: &AttributionSettings,
        live: &Attributor,
    ) -> Option<WindowEnergy> {
        let mut attributor = self.window_attributor(from_ns, settings, live);
        let key = attributor.open(from_ns, NewSpan::new(String::new(), from_ns)).ok()?;
        attributor.close(to_ns, key, to_ns, Default::default(), false).ok()?;
        let mut end_ns = to_ns.saturating_add(1);
        for reader in &self.readers {
            let samples = reader.samples_of_window(from_ns, to_ns, &self.domains);
            end_ns = end_ns.max(reader.feed(samples, &mut attributor.domains()));
        }
        window_energy(&mut attributor, key, end_ns)
    }

    /// An attributor for one window that begins at `from_ns`.
    fn window_attributor(
        &self,
        from_ns: u64,
        settings: &AttributionSettings,
        live: &Attributor,
    ) -> Attributor {
        let idle_mw = |(at, domain): (usize, &Domain)| Some((domain.name.clone(), live.idle_power_mw(at)?));
        let idle_mw = self.domains().enumerate().filter_map(idle_mw).collect();
        let settings = AttributionSettings { horizon_ns: 0, idle_mw, ..settings.clone() };
        let mut attributor = Attributor::new(self.domains().cloned().collect(), settings);
        self.publish_domain_state(&mut attributor.domains());
        let later =
            |metered: &MeteredDomain| metered.independent_since_ns.is_some_and(|since_ns| since_ns > from_ns);
        for (index, metered) in self.domains.iter().enumerate().filter(|(_, metered)| later(metered)) {
            // The decision holds from its instant on.
            attributor.domains().set_undecided(index, metered.counted || metered.is_undecided);
            attributor.domains().set_counted(index, false);
        }
        attributor
    }
}

/// The energy of the only span of an attributor that has all readings up to `end_ns`.
fn window_energy(attributor: &mut Attributor, key: SpanKey, end_ns: u64) -> Option<WindowEnergy> {
    let mut settled = Vec::new();
    attributor.settle(end_ns, &mut settled);
    let account = match settled.pop() {
        Some((_, account)) => account,
        None => attributor.account(end_ns, key).ok()?,
    };
    let Account { domains, window_uj, error_uj, grade, at_least, .. } = account;
    Some(WindowEnergy { domains, window_uj, error_uj, grade, at_least })
}

fn process_sample(
    sample: &Sample,
    first: usize,
    domains: &mut [MeteredDomain],
    duplicates: &mut DuplicateTracker,
    attributor: &mut DomainInputs<'_>,
    log: LogFn,
) {
    for (at, (reading, metered)) in sample.readings.iter().zip(domains).enumerate() {
        let (before_ns, after_ns) = (sample.before_ns, sample.after_ns);
        if let Some(exceeded) = metered.ceilings.observe(before_ns, after_ns, reading, &metered.domain) {
            log_exceeded(&metered.domain, exceeded, log);
            // Before the reading settles anything with it.
            attributor.set_power_limits(first + at, metered.ceilings.limits());
        }
        metered.profile.observe(sample.before_ns, sample.after_ns, reading);
        metered.record_reading(reading, after_ns);
        let expected = metered.profile.update_phase();
        let expected = expected.map(|phase| ExpectedUpdates {
            at_ns: phase.at_ns,
            interval_ns: phase.interval_ns,
            uncertainty_ns: phase.uncertainty_ns,
        });
        attributor.set_expected_updates(first + at, expected);
        duplicates.observe(first + at, sample.before_ns, sample.after_ns, reading);
        attributor.add_reading(first + at, sample.before_ns, sample.after_ns, reading);
    }
}

fn log_exceeded(domain: &Domain, exceeded: &ExceededCeiling, log: LogFn) {
    let Domain { name, source, .. } = domain;
    let ExceededCeiling { from_ns, to_ns, power_mw, limit_mw, origin, .. } = exceeded;
    let message = format!(
        "domain {name} used at least {power_mw} mW from {from_ns} to {to_ns} ns, more than its ceiling of {limit_mw} mW \
         ({origin}): the ceiling is raised, and the errors of accounts over this interval may be too small"
    );
    let fields = [("WATTSPAN_DOMAIN", name.as_str()), ("WATTSPAN_SOURCE", source.as_str())];
    log(&LogEntry { event: &journal::CEILING_EXCEEDED, message: &message, fields: &fields });
}

fn log_duplicate(pair: &TrackedPair, domains: &[MeteredDomain], log: LogFn) {
    let name = |at: usize| domains[at].domain.name.as_str();
    let (original, copy) = (name(pair.original), name(pair.copy));
    let message = match pair.state {
        Duplicate::Same => {
            format!("domains {original} and {copy} read the same counter; {copy} is not counted")
        }
        Duplicate::Independent => {
            format!("domain {copy} is independent of {original} and counts from now on")
        }
        Duplicate::Undecided => return,
    };
    let fields = [("WATTSPAN_DOMAIN", copy), ("WATTSPAN_SOURCE", domains[pair.copy].domain.source.as_str())];
    log(&LogEntry { event: &journal::DUPLICATE_DOMAINS, message: &message, fields: &fields });
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::domain::EnergyReading;
    use crate::sampler::{SamplerSettings, stepped};
    use crate::service::test_parts::package;
    use crate::sources::{OpenedSource, Source};

    /// A source that answers a read once the other end of its channel is dropped.
    struct BlockingSource(Receiver<()>);

    impl Source for BlockingSource {
        fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
            let _ = self.0.recv();
            into.fill(EnergyReading { valid: true, ..EnergyReading::default() });
            None
        }
    }

    fn opened(answers: Receiver<()>) -> OpenedSource {
        OpenedSource {
            name: "blocking",
            source: Box::new(BlockingSource(answers)),
            domains: vec![package("package-0")],
            cpu: None,
            max_rate_hz: 1000.0,
            advanced: vec![true],
        }
    }

    /// The number of readings after the wait, with a sampler's thread that begins to run after 300 ms.
    fn readings_after_wait(answers: Receiver<()>) -> u64 {
        let clock = Clock::Machine;
        let (sampler, mut thread) =
            stepped::start(opened(answers), &SamplerSettings::default(), clock.clone());
        let collector = ReadingCollector::new(vec![sampler], Vec::new(), |_| ());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            thread.run_until_asleep();
        });
        collector.wait_for_first_readings(&clock);
        collector.readers[0].ring.written_count()
    }

    #[test]
    fn a_service_waits_for_samplers_that_a_busy_machine_runs_late_and_not_for_a_source_that_hangs() {
        let (hold, answers) = channel();
        drop(hold);
        assert!(readings_after_wait(answers) > 0);
        let (hold, answers) = channel();
        assert_eq!(readings_after_wait(answers), 0);
        drop(hold);
    }
}
