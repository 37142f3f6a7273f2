//! The doors: where words from clients meet the ledger.
//!
//! ```text
//! socket ─► door ─► connection ─► exchange ─► service ─► ledger
//! binding    turns    framing       one call    meaning
//! ```
//!
//! Owns everything between a connected socket and the ledger: one thread, no runtime, level-triggered readiness.
//! Nothing a client does reaches a sampler: the samplers run on their own threads and share only their rings.
//!
//! The framing is ours (read up to a NUL under a cap) rather than zlink's: zlink 0.8 lets one connection buffer
//! 100 MB and receive 1,024 descriptors with a message, and neither can be configured. An own 60 lines are easier
//! to bound than a fork. Reading with plain `read` makes the kernel throw away any descriptors sent along.

mod access;
mod allowance;
mod arrears;
mod arrival;
mod audience;
mod coarse;
mod coarse_spans;
mod connection;
mod cursor;
mod domain_state;
mod door;
mod doors;
mod duplicate;
mod exchange;
mod fate;
mod feed;
mod gate;
mod gpu_share;
mod handing;
mod hearing;
mod history;
mod identity;
mod inquiry;
mod keeping;
mod life;
mod notes;
mod outbox;
mod plan;
mod readiness_ffi;
mod recall;
mod register;
mod seat;
mod service;
mod subject;
mod ticket;
mod token;
mod told;
mod turns;
mod upkeep;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod malloc_trim_ffi;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use malloc_trim_ffi as allocator;

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod allocator_unsupported;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
use allocator_unsupported as allocator;

#[cfg(target_os = "macos")]
#[path = "launchd_linked_ffi.rs"]
mod launchd;
#[cfg(not(target_os = "macos"))]
#[path = "launchd_unsupported.rs"]
mod launchd;
#[cfg(any(test, target_os = "macos"))]
mod launchd_ffi;

pub use access::Policy;
pub use arrival::{Arrival, Arrivals, Usher, usher};
pub use door::serve;
pub use doors::Doors;
pub use launchd::listeners as launchd_listeners;
pub use plan::{DAEMON_WAIT, Plan};
pub use service::{Service, Settings};
pub use upkeep::{Reread, Upkeep};
