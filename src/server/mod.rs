//! The Unix socket: connections, framing and dispatch of the calls to the service.
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

pub(crate) mod arrears;
pub(crate) mod arrival;
pub(crate) mod audience;
pub(crate) mod connection;
pub(crate) mod door;
pub(crate) mod doors;
pub(crate) mod exchange;
pub(crate) mod fate;
pub(crate) mod gate;
pub(crate) mod handing;
pub(crate) mod hearing;
pub(crate) mod identity;
pub(crate) mod outbox;
pub(crate) mod readiness_ffi;
pub(crate) mod seat;
pub(crate) mod told;
pub(crate) mod turns;

#[cfg(target_os = "macos")]
#[path = "launchd_linked_ffi.rs"]
mod launchd;
#[cfg(not(target_os = "macos"))]
#[path = "launchd_unsupported.rs"]
mod launchd;
#[cfg(any(test, target_os = "macos"))]
mod launchd_ffi;

pub use arrival::{Arrival, Arrivals, Usher, usher};
pub use door::serve;
pub use doors::Doors;
pub use launchd::listeners as launchd_listeners;

#[cfg(test)]
mod coarse_access_tests;
