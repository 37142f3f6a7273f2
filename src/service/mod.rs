//! The methods of the contract, between the socket's messages and the attribution.
//!
//! Owns spans, queries, the registry of names, durability, access and rate limits. It has one caller at a time: the
//! server's thread. Nothing a client does reaches a sampler: the samplers run on their own threads and share only
//! their rings.

pub(crate) mod access;
pub(crate) mod allowance;
pub(crate) mod coarse;
pub(crate) mod coarse_spans;
pub(crate) mod cursor;
pub(crate) mod domain_state;
pub(crate) mod duplicate;
pub(crate) mod feed;
pub(crate) mod gpu_share;
pub(crate) mod history;
pub(crate) mod inquiry;
pub(crate) mod keeping;
pub(crate) mod life;
pub(crate) mod notes;
pub(crate) mod plan;
pub(crate) mod recall;
pub(crate) mod register;
pub(crate) mod service;
pub(crate) mod subject;
pub(crate) mod ticket;
pub(crate) mod token;
pub(crate) mod upkeep;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod malloc_trim_ffi;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use malloc_trim_ffi as allocator;

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod allocator_unsupported;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
use allocator_unsupported as allocator;

pub use access::Policy;
pub use plan::{DAEMON_WAIT, Plan};
pub use service::{Service, Settings};
pub use upkeep::{Reread, Upkeep};
