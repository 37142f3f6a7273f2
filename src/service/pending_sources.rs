//! Sources that have not answered at startup, and what starting their samplers takes.
//!
//! Each such source has a placeholder domain, so that totals are unknown until its domains are added.

use std::collections::BTreeSet;

use crate::clock::Clock;
use crate::domain::{Absent, Domain, DomainKind, Grade};
use crate::sampler::{self, Sampler};
use crate::sources::dedup::preference::{self, PresentDomain};
use crate::sources::{self, OpenedSource};
use crate::sources::{OpenProgress, StartingSources};

/// Sources that have not answered, and the parameters of their samplers.
pub struct PendingSources {
    pub starting: StartingSources,
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
}

impl PendingSources {
    /// The next answer of a source, without what one of the `present` domains already measures.
    pub(super) fn next_progress(&mut self, present: &[PresentDomain<'_>]) -> Option<OpenProgress> {
        let mut progress = self.starting.next_progress(None)?;
        preference::keep_new(&mut progress.found, present, &self.packages);
        Some(progress)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starting.names().is_empty()
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
