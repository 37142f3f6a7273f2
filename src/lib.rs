//! wattspan: a power meter for one machine that bills energy to spans of time.
//!
//! ```text
//! hardware ─► source ─► sampler ─► ring ─► ledger ─► ipc ─► client ─► cli
//!           raw counts   ticks     history  accounts  words
//! ```
//!
//! Each stage imports only from the stages before it; `tests/architecture.rs` fails otherwise. The modules below
//! stand in that order.

#![warn(clippy::unwrap_used)]

/// Units, domains, readings: the words of the program.
pub mod energy;

/// The monotonic clock and its hand-cranked twin.
pub mod clock;

/// Settings: defaults, file, flags, checks.
pub mod config;

/// Reads hardware.
pub mod source;

/// Fixed history of samples: one writer, many readers.
pub mod ring;

/// One thread for each source: ticks into a ring.
pub mod sampler;

/// Who the joules belong to: spans, the splitting rule, accounts.
pub mod ledger;

/// The words on the wire.
pub mod protocol;

/// The doors: the Unix socket and who may come in.
pub mod ipc;

/// A blocking client of the daemon.
pub mod client;

/// HTTP as a client of inference servers: targets, a pool with TLS, lines and events out of any cut.
pub mod http;

/// Intelligence per watt: questions, answers, scores, figures.
pub mod ipw;

/// Wiring of the daemon.
pub mod daemon;

/// The same meter inside the client's process, where no daemon answers.
pub mod meter;

/// The `wattspan` program.
pub mod cli;
