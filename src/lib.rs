//! wattspan: an energy meter for one machine that attributes energy to spans of time.
//!
//! ```text
//! hardware ─► source ─► sampler ─► ring ─► attribution ─► service ─► server
//!           raw counts   ticks     history  accounts  wire
//! ```
//!
//! Each stage imports only from the stages before it; `tests/architecture.rs` fails otherwise. The modules below
//! stand in that order. The messages of the protocol are in the crate `wattspan-client`, code for networks, terminals
//! and scores in other crates below `crates/`: the privileged daemon links none of it.

#![warn(missing_docs)]
#![warn(clippy::unwrap_used)]

/// Units, domains and readings.
pub mod domain;

/// The monotonic clock, and a manual one for tests.
pub mod clock;

/// Notifications, journal entries and socket activation.
pub mod systemd;

/// Sockets that launchd creates and passes to the daemon.
pub(crate) mod launchd;

/// The capabilities that the sources need; the daemon drops the others.
pub mod privileges;

/// Configuration: defaults, files, flags, validation.
pub mod config;

/// Energy sources: hardware counters, sensors, models and replay.
pub mod sources;

/// A ring of samples: one writer, many readers.
pub mod ring;

/// Sampling: one thread per source writes to a ring.
pub mod sampler;

/// Attribution of each domain's energy to spans.
pub mod attribution;

/// The store of accounts on disk.
pub mod store;

/// CPU time and GPU use of processes and control groups.
pub mod process_usage;

/// The protocol's methods: spans, queries, durability, access, rate limits.
pub mod service;

/// The Unix socket: event loop, acceptor, connections, dispatch, subscriptions.
pub mod server;

/// The D-Bus interface.
#[cfg(target_os = "linux")]
pub mod dbus;
#[cfg(not(target_os = "linux"))]
mod dbus_unsupported;
#[cfg(not(target_os = "linux"))]
use dbus_unsupported as dbus;

/// Entry point of the daemon.
pub mod daemon;

/// The embedded meter, used where no daemon runs.
pub mod embedded;
