//! Sources that have not answered at startup, devices that appear later, and what starting their samplers takes.
//!
//! Each source that has not answered has a placeholder domain, so that totals are unknown until its domains are added. A
//! device that appears later has none: its energy before it appeared belongs to no span.

use std::collections::BTreeSet;

use crate::clock::Clock;
use crate::domain::{Absent, Domain, DomainKind, Grade};
use crate::sampler::{self, Sampler};
use crate::sources::dedup::preference::{self, PresentDomain};
use crate::sources::{self, DeviceWatch, KnownDevices, OpenedSource};
use crate::sources::{OpenProgress, StartingSources};

/// Sources that have not answered, the watch for new devices, and the parameters of their samplers.
pub struct PendingSources {
    pub starting: StartingSources,
    /// `None`: new devices are not looked for.
    pub watch: Option<DeviceWatch>,
    /// Rates and ring sizes.
    pub settings: sampler::SamplerSettings,
    pub clock: Clock,
    /// The physical packages that the kernel lists.
    pub packages: BTreeSet<u32>,
}

/// The domains that late sources have added.
pub struct AttachedDomains {
    /// The index of the first new domain.
    pub first_domain: usize,
    /// The parts of the sources that are not available, with reasons.
    pub absent: Vec<Absent>,
    /// Earlier reasons that no longer hold.
    pub outdated: Vec<Absent>,
}

impl AttachedDomains {
    pub(super) fn starting_at(first_domain: usize) -> Self {
        Self { first_domain, absent: Vec::new(), outdated: Vec::new() }
    }

    /// Adds reasons that no longer hold, also of those that were added before.
    pub(super) fn withdraw(&mut self, outdated: Vec<Absent>) {
        self.absent.retain(|absent| !outdated.contains(absent));
        self.outdated.extend(outdated);
    }
}

/// What a source has found since the last answer.
pub(super) struct LateAnswer {
    pub(super) progress: OpenProgress,
    /// Whether its devices appeared after the start.
    pub(super) is_new_device: bool,
}

impl PendingSources {
    /// The next answer of a source. Looks for new devices if that is due; `present` lists what is measured then, and `absent`
    /// is what is not.
    pub(super) fn next_answer(
        &mut self,
        now_ns: u64,
        present: impl FnOnce() -> Vec<Domain>,
        absent: &[Absent],
    ) -> Option<LateAnswer> {
        if let Some(progress) = self.starting.next_progress(None) {
            return Some(LateAnswer { progress, is_new_device: false });
        }
        let opening = self.starting.names();
        let known =
            || KnownDevices { domains: present(), opening: opening.to_vec(), absent: absent.to_vec() };
        let progress = self.watch.as_mut()?.next_progress(now_ns, known)?;
        Some(LateAnswer { progress, is_new_device: true })
    }

    /// Removes from an answer what one of the `present` domains already measures.
    pub(super) fn keep_new(&self, answer: &mut LateAnswer, present: &[PresentDomain<'_>]) {
        if answer.is_new_device {
            let domains = present.iter().map(|present| present.domain.clone()).collect();
            KnownDevices { domains, ..KnownDevices::default() }.drop_known(&mut answer.progress.found);
        }
        preference::keep_new(&mut answer.progress.found, present, &self.packages);
    }

    /// Whether every source has answered.
    pub(super) fn has_started(&self) -> bool {
        self.starting.names().is_empty()
    }

    /// Whether nothing can be added any more.
    pub(super) fn is_empty(&self) -> bool {
        self.has_started() && self.watch.is_none()
    }

    pub(super) fn start_sampler(&self, opened: OpenedSource, is_fast: bool) -> Result<Sampler, Absent> {
        let source = opened.name;
        let sampler = sampler::start(opened, &self.settings, self.clock.clone()).map_err(|error| Absent {
            source: source.into(),
            reason: format!("cannot start a thread to read it: {error}"),
        })?;
        sampler.set_fast(is_fast);
        Ok(sampler)
    }

    /// The reason that the placeholder of a source reports.
    pub(super) fn waiting_reason(&self, source: &str) -> String {
        let waited_s = self.starting.elapsed().as_secs();
        format!(
            "{source} has not answered for {waited_s} s; its domains are added once it does, and totals are unknown until \
             then: see the kernel's log, or remove the source from source.enabled"
        )
    }
}

/// The placeholder for a source that has not answered. Its kind is that of most of such a source's domains.
pub(super) fn placeholder_domain(source: &str) -> Domain {
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
