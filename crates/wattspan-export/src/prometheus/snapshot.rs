//! What is shown between two grid instants.

use wattspan_client::domain::Liveness;
use wattspan_client::protocol::{DaemonInfo, DomainStatus, SamplerStatus, StoreStatus};

use super::totals_state::TotalsState;

/// The values that are not totals.
#[derive(Debug, Clone, Default)]
pub struct CurrentValues {
    pub version: String,
    /// Name, liveness, update interval in ns, quantum in µJ.
    pub domains: Vec<(String, Liveness, Option<u64>, Option<f64>)>,
    /// Mean power since the grid instant before, in W, by domain.
    pub power_w: Vec<(String, f64)>,
    pub host_power_w: Option<f64>,
    pub at_least: bool,
    pub simulated: bool,
    pub absent_sources: Vec<String>,
    /// Source, place among its samplers, median and 99th percentile of the lateness in ns.
    pub lateness: Vec<(String, usize, [Option<u64>; 2])>,
    pub store: Option<StoreStatus>,
    /// Whether the accounts could be read.
    pub accounts_up: bool,
}

impl CurrentValues {
    pub fn new(info: &DaemonInfo) -> Self {
        let status = |domain: &DomainStatus| {
            (domain.name.clone(), domain.liveness, domain.update_interval_ns, domain.quantum_uj)
        };
        let mut absent_sources: Vec<String> =
            info.absent.iter().map(|absent| absent.source.clone()).collect();
        absent_sources.sort();
        absent_sources.dedup();
        Self {
            version: info.version.clone(),
            domains: info.domains.iter().map(status).collect(),
            at_least: info.at_least == Some(true),
            simulated: info.simulated == Some(true),
            absent_sources,
            lateness: lateness(info),
            store: info.keeping.clone(),
            ..Self::default()
        }
    }
}

fn lateness(info: &DaemonInfo) -> Vec<(String, usize, [Option<u64>; 2])> {
    let row = |(at, sampler): (usize, &SamplerStatus)| {
        let same_source = |other: &&SamplerStatus| other.source == sampler.source;
        let place = info.samplers.iter().take(at).filter(same_source).count();
        (sampler.source.clone(), place, [sampler.lateness_p50_ns, sampler.lateness_p99_ns])
    };
    info.samplers.iter().enumerate().map(row).collect()
}

/// Everything that is shown at one grid instant.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub totals: TotalsState,
    /// `None`: the daemon did not reply.
    pub current: Option<CurrentValues>,
    /// The wall time of the grid instant; `None` before the first one.
    pub unix_ms: Option<u64>,
}
