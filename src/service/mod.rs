//! The methods of the contract, between the socket's messages and the attribution.
//!
//! Owns spans, queries, the registry of names, durability, access and rate limits. It has one caller at a time: the
//! server's thread. Nothing a client does reaches a sampler: the samplers run on their own threads and share only
//! their rings.

pub(crate) mod access;
pub(crate) mod coarse_grid;
pub(crate) mod coarse_spans;
pub(crate) mod cursor;
pub(crate) mod domain_liveness;
pub(crate) mod duplicate_tracker;
pub(crate) mod durability;
pub(crate) mod gpu_process_usage;
pub(crate) mod metadata_limits;
pub(crate) mod process_tracking;
pub(crate) mod queries;
pub(crate) mod rate_limit;
pub(crate) mod readings;
pub(crate) mod reload;
pub(crate) mod reply_to;
pub(crate) mod service;
pub(crate) mod span_id;
pub(crate) mod span_lookup;
pub(crate) mod span_methods;
pub(crate) mod span_registry;
pub(crate) mod startup;
pub(crate) mod stored_queries;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod malloc_trim_ffi;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use malloc_trim_ffi as allocator;

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod malloc_trim_unsupported;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
use malloc_trim_unsupported as allocator;

pub use access::AccessPolicy;
pub use reload::{ConfigLoader, DaemonControl};
pub use service::{Service, ServiceSettings};
pub use startup::{DAEMON_DISCOVERY_TIMEOUT, StartupSettings};
