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
    /// The sources that have their first domains now: their earlier reasons no longer hold.
    pub appeared: Vec<String>,
}

/// What a source has found since the last answer.
pub(super) struct LateAnswer {
    pub(super) progress: OpenProgress,
    /// Whether its devices appeared after the start.
    pub(super) is_new_device: bool,
}

impl PendingSources {
    /// The next answer of a source. Looks for new devices if that is due; `present` lists what is measured then.
    pub(super) fn next_answer(
        &mut self,
        now_ns: u64,
        present: impl FnOnce() -> Vec<Domain>,
    ) -> Option<LateAnswer> {
        if let Some(progress) = self.starting.next_progress(None) {
            return Some(LateAnswer { progress, is_new_device: false });
        }
        let opening = self.starting.names();
        let known = || KnownDevices { domains: present(), opening: opening.to_vec() };
        let progress = self.watch.as_mut()?.next_progress(now_ns, known)?;
        Some(LateAnswer { progress, is_new_device: true })
    }

    /// Removes from an answer what one of the `present` domains already measures.
    pub(super) fn keep_new(&self, answer: &mut LateAnswer, present: &[PresentDomain<'_>]) {
        if answer.is_new_device {
            let domains = present.iter().map(|present| present.domain.clone()).collect();
            KnownDevices { domains, opening: Vec::new() }.drop_known(&mut answer.progress.found);
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
