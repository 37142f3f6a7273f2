//! wattspan: a power meter for one machine that bills energy to spans of time.
//!
//! ```text
//! hardware ─► source ─► sampler ─► ring ─► attribution ─► service ─► server ─► client ─► proxy ─► cli
//!           raw counts   ticks     history  accounts  words
//! ```
//!
//! Each stage imports only from the stages before it; `tests/architecture.rs` fails otherwise. The modules below
//! stand in that order.

#![warn(clippy::unwrap_used)]

/// Units, domains, readings: the words of the program.
pub mod domain;

/// The monotonic clock, and a manual one for tests.
pub mod clock;

/// Control and format characters made visible.
pub mod escape;

/// Files that only their owner reads.
pub mod private_file;

/// Notifications, journal entries and socket activation.
pub mod systemd;

/// Sockets that launchd creates and passes to the daemon.
pub(crate) mod launchd;

/// Dropping of privileges.
pub(crate) mod privileges;

/// Unix sockets: safe binding of a path, and the credentials of a peer.
pub(crate) mod unix_socket;

/// Settings: defaults, file, flags, checks.
pub mod config;

/// Reads hardware.
pub mod sources;

/// Fixed history of samples: one writer, many readers.
pub mod ring;

/// One thread for each source: ticks into a ring.
pub mod sampler;

/// Splits the energy of each domain among spans, and accounts for it.
pub mod attribution;

/// The ledger on disk.
pub mod store;

/// Who used the machine: CPU time of processes and control groups.
pub mod process_usage;

/// The words on the wire.
pub mod protocol;

/// The methods of the contract: spans, queries, durability, access, rate limits.
pub mod service;

/// The Unix socket: event loop, acceptor, connections, dispatch, subscriptions.
pub mod server;

/// The service on the system bus (D-Bus).
#[cfg(target_os = "linux")]
pub mod dbus;
#[cfg(not(target_os = "linux"))]
mod dbus_unsupported;
#[cfg(not(target_os = "linux"))]
use dbus_unsupported as dbus;

/// A blocking client of the daemon.
pub mod client;

/// HTTP as a client of inference servers needs it.
pub mod http;

/// Energy for each request of an inference server that nobody has to change.
pub mod proxy;

/// Intelligence per watt: questions, answers, scores, figures.
pub mod ipw;

/// Wiring of the daemon.
pub mod daemon;

/// The same meter inside the client's process, where no daemon answers.
pub mod embedded;

/// The `wattspan` program.
pub mod cli;
