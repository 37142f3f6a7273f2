//! The energy over which the harness computes its figures, and the other energies of its records.
//!
//! The harness computes over the whole chip where a record's `basis` is "soc", and over the accelerators otherwise. Its
//! CPU energy is in no figure of its own. Invariant: the basis is the host scope of the imported run, so that the
//! run's figures are the harness's; the other energies are further domains, outside the host's total.

use wattspan_client::domain::{DomainKind, Grade};

use super::super::row::DomainEnergy;
use super::super::scope::RunDomain;
use super::provenance::metered_domain;
use super::{EnergyMetrics, GpuInfo, ModelMetrics};

/// The grade of the CPU's energy: the results do not name its mechanism, and powermetrics' power is modelled.
const CPU_GRADE: Grade = Grade::Integrated;

/// What the energies of the results count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EnergyBasis {
    /// All accelerators.
    #[default]
    Accelerator,
    /// The whole chip: processors, graphics and neural engine.
    Soc,
    /// The processors: no record has an accelerator's energy. The harness itself has no figure.
    Cpu,
}

/// One of a record's energies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Component {
    Basis,
    Gpu,
    Cpu,
    NeuralEngine,
}

/// The domains of the results, in the order of the rows' energies.
#[derive(Debug, Clone, Default)]
pub struct EnergyLayout {
    /// The basis of the figures.
    pub basis: EnergyBasis,
    components: Vec<Component>,
    /// The domains of the run.
    pub domains: Vec<RunDomain>,
    /// How the basis was measured, if the results state it.
    pub mechanism: Option<String>,
}

impl EnergyBasis {
    fn of<'a>(metrics: impl Iterator<Item = &'a ModelMetrics> + Clone) -> Self {
        let mut energies = metrics.map(|metrics| &metrics.energy_metrics);
        let is_known = |joules: Option<f64>| joules.is_some_and(|joules| joules != 0.0);
        if energies.clone().any(|energy| energy.basis.as_deref() == Some("soc")) {
            Self::Soc
        } else if energies.clone().any(|energy| is_known(energy.per_query_joules))
            || !energies.any(|energy| is_known(energy.cpu_per_query_joules))
        {
            Self::Accelerator
        } else {
            Self::Cpu
        }
    }

    /// Returns the joules of a record in this basis.
    pub fn joules(self, energy: &EnergyMetrics) -> Option<f64> {
        match self {
            Self::Accelerator => energy.per_query_joules,
            // A record of a machine with a chip's energy may have its own, smaller basis.
            Self::Soc if energy.basis.as_deref() == Some("soc") => energy.soc_per_query_joules,
            Self::Soc => None,
            Self::Cpu => energy.cpu_per_query_joules,
        }
    }

    /// Returns the mean power of a record in this basis, which the harness computes from its samples.
    pub fn sampled_watts(self, metrics: &ModelMetrics) -> Option<f64> {
        let power = &metrics.power_metrics;
        let component = match self {
            Self::Accelerator => Some(&power.gpu),
            Self::Soc => power.soc.as_ref(),
            Self::Cpu => power.cpu.as_ref(),
        };
        component?.per_query_watts.avg.filter(|watts| watts.is_finite())
    }

    /// The name in the harness's files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accelerator => "gpu",
            Self::Soc => "soc",
            Self::Cpu => "cpu",
        }
    }
}

impl EnergyLayout {
    /// Derives the layout from all records of a model.
    pub fn of<'a>(metrics: impl Iterator<Item = &'a ModelMetrics> + Clone, gpu: Option<&GpuInfo>) -> Self {
        let basis = EnergyBasis::of(metrics.clone());
        let mut layout = Self { basis, ..Self::default() };
        let has = |joules: fn(&EnergyMetrics) -> Option<f64>| {
            metrics.clone().any(|metrics| joules(&metrics.energy_metrics).is_some())
        };
        let source = "intelligence-per-watt";
        if basis == EnergyBasis::Cpu {
            layout.mechanism =
                Some("integrated (the file does not state how; processors alone, no accelerator)".to_owned());
            let counted = true;
            let domain = RunDomain { counted, ..rail("cpu-all", DomainKind::Package, source, CPU_GRADE) };
            layout.push(Component::Basis, domain);
            return layout;
        }
        let Some((domain, mechanism)) = gpu.and_then(metered_domain) else { return layout };
        let (grade, parent) = (domain.grade, domain.name.clone());
        layout.mechanism = Some(mechanism.to_owned());
        layout.push(Component::Basis, domain);
        if basis == EnergyBasis::Soc {
            let rails = [
                (Component::Cpu, "cpu", DomainKind::Cpu, has(|of| of.cpu_per_query_joules)),
                (Component::Gpu, "gpu", DomainKind::Gpu, has(|of| of.per_query_joules)),
                (Component::NeuralEngine, "ane", DomainKind::Npu, has(|of| of.ane_per_query_joules)),
            ];
            for (component, name, kind, _) in rails.into_iter().filter(|(.., is_known)| *is_known) {
                let parent = Some(parent.clone());
                layout.push(component, RunDomain { parent, ..rail(name, kind, source, grade) });
            }
        } else if has(|of| of.cpu_per_query_joules) {
            layout.push(Component::Cpu, rail("cpu-all", DomainKind::Package, source, CPU_GRADE));
        }
        layout
    }

    fn push(&mut self, component: Component, domain: RunDomain) {
        self.components.push(component);
        self.domains.push(domain);
    }

    /// Returns the grade of the basis.
    pub fn grade(&self) -> Option<Grade> {
        self.domains.first().map(|domain| domain.grade)
    }

    /// Returns the energies of a record in the run's domains, given that of the basis.
    pub fn domain_energies(&self, metrics: &ModelMetrics, basis: DomainEnergy) -> Vec<DomainEnergy> {
        let energy = &metrics.energy_metrics;
        let of = |component: &Component| {
            let joules = match component {
                Component::Basis => return basis.clone(),
                Component::Gpu => energy.per_query_joules,
                Component::Cpu => energy.cpu_per_query_joules,
                Component::NeuralEngine => energy.ane_per_query_joules,
            };
            // A rail may rest for a whole query, so 0 J is a value.
            let uj = joules.filter(|joules| joules.is_finite() && *joules >= 0.0).map(to_microjoules);
            DomainEnergy { share_uj: uj, window_uj: uj, ..DomainEnergy::default() }
        };
        self.components.iter().map(of).collect()
    }
}

/// Converts joules to microjoules.
pub fn to_microjoules(joules: f64) -> u64 {
    (joules * 1e6).round() as u64
}

fn rail(name: &str, kind: DomainKind, source: &str, grade: Grade) -> RunDomain {
    RunDomain {
        name: name.to_owned(),
        kind,
        source: source.to_owned(),
        device: None,
        parent: None,
        counted: false,
        grade,
        update_interval_ns: None,
    }
}
