//! Scopes (which domains a figure counts) and the idle policy.
//!
//! Invariant: no domain is counted twice within a scope (a domain inside another one of the scope is excluded), and a
//! scope with an unknown domain is unknown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattspan_client::domain::{DomainKind, Grade, Liveness};
use wattspan_client::protocol::{DaemonInfo, DomainStatus};

use super::row::{DomainEnergy, QueryEnergy};

/// The set of domains that a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All domains that count towards the machine's total.
    #[default]
    Host,
    /// CPUs, memory and accelerators, without the rest of the board; `soc` in the public harness.
    #[value(alias = "soc")]
    #[serde(alias = "soc")]
    Compute,
    /// Accelerators only, as in most published figures.
    Accelerator,
}

impl Scope {
    /// All scopes, widest first.
    pub const ALL: [Self; 3] = [Self::Host, Self::Compute, Self::Accelerator];

    /// The name for display.
    pub fn title(self) -> &'static str {
        match self {
            Self::Host => "host (all counted domains)",
            Self::Compute => "CPU + memory + accelerator",
            Self::Accelerator => "accelerator only",
        }
    }

    fn includes(self, domain: &RunDomain) -> bool {
        match self {
            Self::Host => domain.counted,
            Self::Accelerator => matches!(domain.kind, DomainKind::Gpu | DomainKind::Npu),
            Self::Compute => matches!(
                domain.kind,
                DomainKind::Gpu
                    | DomainKind::Npu
                    | DomainKind::Package
                    | DomainKind::Cpu
                    | DomainKind::Dram
                    | DomainKind::Soc
                    | DomainKind::Module
            ),
        }
    }

    /// Returns the indices of the domains that the scope counts, outermost only.
    pub fn domain_indices(self, domains: &[RunDomain]) -> Vec<usize> {
        let included: Vec<usize> = (0..domains.len()).filter(|at| self.includes(&domains[*at])).collect();
        let is_nested = |at: &usize| {
            let mut parent = domains[*at].parent.as_deref();
            // The number of steps is limited: an edited file may have a cycle of parents.
            for _ in 0..domains.len() {
                let Some(name) = parent else { return false };
                if included.iter().any(|other| domains[*other].name == name) {
                    return true;
                }
                parent = domains
                    .iter()
                    .find(|domain| domain.name == name)
                    .and_then(|domain| domain.parent.as_deref());
            }
            false
        };
        included.iter().filter(|at| !is_nested(at)).copied().collect()
    }

    /// Returns the worst grade among its domains; `None` if it has none.
    pub fn grade(self, domains: &[RunDomain]) -> Option<Grade> {
        self.domain_indices(domains).into_iter().map(|at| domains[at].grade).max()
    }

    /// Returns a query's energy in this scope.
    pub fn energy(self, energy: &QueryEnergy, domain_indices: &[usize]) -> DomainEnergy {
        let energy_part = match self {
            Self::Host => {
                let QueryEnergy { share_uj, error_uj, idle_uj, window_uj, .. } = *energy;
                DomainEnergy { share_uj, error_uj, idle_uj, window_uj }
            }
            _ => Self::sum_domains(&energy.domains, domain_indices),
        };
        // A span without concurrent spans has the whole window; earlier versions stored no window per domain.
        let alone = energy_part.share_uj.filter(|_| energy.at_once == 1);
        DomainEnergy { window_uj: energy_part.window_uj.or(alone), ..energy_part }
    }

    /// Sums the energies of some domains; a value that is unknown for one of them is unknown.
    pub(super) fn sum_domains(parts: &[DomainEnergy], domains: &[usize]) -> DomainEnergy {
        let sum = |of: fn(&DomainEnergy) -> Option<u64>| -> Option<u64> {
            if domains.is_empty() {
                return None;
            }
            domains.iter().try_fold(0_u64, |sum, at| Some(sum.saturating_add(of(parts.get(*at)?)?)))
        };
        DomainEnergy {
            share_uj: sum(|part| part.share_uj),
            error_uj: sum(|part| part.error_uj),
            idle_uj: sum(|part| part.idle_uj),
            window_uj: sum(|part| part.window_uj),
        }
    }
}

/// Whether a figure includes idle energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Idle energy is included, as on the electricity bill.
    #[default]
    Included,
    /// Idle energy is subtracted.
    Excluded,
}

impl IdlePolicy {
    /// The name for display.
    pub fn title(self) -> &'static str {
        match self {
            Self::Included => "idle power included",
            Self::Excluded => "idle power excluded",
        }
    }
}

/// A domain of the machine on which a run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDomain {
    /// The name: "package-0", "gpu-0".
    pub name: String,
    /// The kind of hardware that it measures.
    pub kind: DomainKind,
    pub source: String,
    /// The device's stable identity, kept across reboots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The domain that contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether it counts towards the host's total.
    pub counted: bool,
    /// The grade of its readings.
    pub grade: Grade,
    /// The update interval of its counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_interval_ns: Option<u64>,
}

impl RunDomain {
    fn from_status(domain: &DomainStatus) -> Self {
        Self {
            name: domain.name.clone(),
            kind: domain.kind,
            source: domain.source.clone(),
            device: domain.device.clone(),
            parent: domain.parent.clone(),
            counted: domain.counted,
            grade: domain.grade,
            update_interval_ns: domain.update_interval_ns,
        }
    }
}

/// Returns the live domains of this machine, and the other ones by name with the reason.
pub fn live_domains(info: &DaemonInfo) -> (Vec<RunDomain>, BTreeMap<String, String>) {
    let (live, not_live): (Vec<_>, Vec<_>) =
        info.domains.iter().partition(|domain| domain.liveness == Liveness::Live);
    let reason = |domain: &DomainStatus| domain.reason.clone().unwrap_or_else(|| "reason unknown".into());
    let not_live = not_live.into_iter().map(|domain| (domain.name.clone(), reason(domain))).collect();
    (live.into_iter().map(RunDomain::from_status).collect(), not_live)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_domain(name: &str, kind: DomainKind, parent: Option<&str>, counted: bool) -> RunDomain {
        let (source, parent) = ("replay".into(), parent.map(str::to_owned));
        let grade = if kind == DomainKind::Gpu { Grade::Integrated } else { Grade::Measured };
        RunDomain {
            name: name.into(),
            kind,
            source,
            device: None,
            parent,
            counted,
            grade,
            update_interval_ns: None,
        }
    }

    fn machine() -> Vec<RunDomain> {
        vec![
            run_domain("psys", DomainKind::Psys, None, true),
            run_domain("package-0", DomainKind::Package, Some("psys"), false),
            run_domain("core-0", DomainKind::Core, Some("package-0"), false),
            run_domain("dram-0", DomainKind::Dram, Some("psys"), false),
            run_domain("gpu-0", DomainKind::Gpu, None, true),
            run_domain("gpu-memory-0", DomainKind::GpuMemory, Some("gpu-0"), false),
        ]
    }

    #[test]
    fn each_scope_counts_only_its_outermost_domains() {
        let machine = machine();
        assert_eq!(Scope::Host.domain_indices(&machine), [0, 4]);
        assert_eq!(Scope::Compute.domain_indices(&machine), [1, 3, 4]);
        assert_eq!(Scope::Accelerator.domain_indices(&machine), [4]);
        assert_eq!(Scope::Accelerator.grade(&machine), Some(Grade::Integrated));
        assert_eq!(Scope::Accelerator.grade(&machine[..4]), None);
    }

    #[test]
    fn nested_domains_and_parent_cycles_are_handled() {
        let grace = [
            run_domain("module-0", DomainKind::Module, None, true),
            run_domain("dram-0", DomainKind::Dram, Some("module-0"), false),
            run_domain("gpu-0", DomainKind::Gpu, Some("module-0"), false),
        ];
        assert_eq!(Scope::Compute.domain_indices(&grace), [0]);
        assert_eq!(Scope::Accelerator.domain_indices(&grace), [2]);
        let cycle = [
            run_domain("a", DomainKind::Gpu, Some("b"), true),
            run_domain("b", DomainKind::Core, Some("b"), true),
        ];
        assert_eq!(Scope::Accelerator.domain_indices(&cycle), [0]);
    }

    #[test]
    fn a_scope_with_an_unknown_domain_has_no_energy() {
        let window_uj = Some(200);
        let part = |share_uj| DomainEnergy { share_uj, error_uj: Some(1), idle_uj: None, window_uj };
        let domains = vec![part(None), part(Some(10)), part(Some(5)), part(Some(7)), part(Some(100))];
        let energy = QueryEnergy { share_uj: Some(112), domains, ..QueryEnergy::default() };
        let of = |scope: Scope| scope.energy(&energy, &scope.domain_indices(&machine()));
        assert_eq!(of(Scope::Host).share_uj, Some(112));
        let compute =
            DomainEnergy { share_uj: Some(117), error_uj: Some(3), idle_uj: None, window_uj: Some(600) };
        assert_eq!(of(Scope::Compute), compute);
        assert_eq!(Scope::Compute.energy(&energy, &[0, 1]).share_uj, None);
        assert_eq!(Scope::Accelerator.energy(&energy, &[]).share_uj, None);
    }
}
