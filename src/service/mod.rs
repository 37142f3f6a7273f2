//! The methods of the protocol, independent of the transport.
//!
//! Owns spans, queries, the registry of names, durability, access and rate limits. Everything is called by one thread at a time;
//! the samplers run on threads of their own and share only their rings.

pub(crate) mod access;
pub(crate) mod caller;
pub(crate) mod coarse_grid;
mod coarse_spans;
mod counter_moves;
mod cursor;
mod daemon_control;
mod domain_assumptions;
mod domain_energy;
mod duplicate_tracker;
pub(crate) mod durability;
mod journal_clock;
mod journal_schedule;
#[cfg(test)]
mod journal_tests;
pub(crate) mod list_request;
mod metadata_limits;
pub(crate) mod meter_service;
mod metered_domain;
mod methods;
mod pending_sources;
mod power_ceiling;
mod process_tracker;
pub(crate) mod rate_limit;
pub(crate) mod readings;
pub(crate) mod reply;
pub(crate) mod request;
mod running_sums;
pub(crate) mod service_builder;
#[cfg(test)]
mod simulation;
mod span_id;
pub(crate) mod span_lifecycle;
mod span_memory;
mod span_registry;
pub(crate) mod startup;
pub(crate) mod stored_stream;
mod sum_request;
#[cfg(test)]
pub(crate) mod test_parts;
mod watchdog;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod malloc_trim_ffi;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use malloc_trim_ffi as allocator;

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod malloc_trim_unsupported;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
use malloc_trim_unsupported as allocator;

pub use access::AccessPolicy;
pub use daemon_control::{ConfigLoader, DaemonControl};
pub use domain_assumptions::AssumptionSettings;
pub use meter_service::Service;
pub use reply::{MethodResult, Reply};
pub use request::{ParameterSource, Request};
pub use service_builder::{DAEMON_DISCOVERY_TIMEOUT, ServiceBuilder};
pub use startup::{ServiceSettings, StartupSettings};
