//! NVIDIA GPUs through NVML, NVIDIA's own library: one source for each board, identified by its UUID.
//!
//! Any call into the driver may hang for minutes, so each board has its own thread. The library is loaded at run time; a
//! missing library is an entry in the list of absent sources. Needs access to /dev/nvidia* only. The driver cannot be
//! unloaded while boards are open: NVML keeps its device files open.

pub use board_search::open_each;
pub use known_boards::{KnownBoards, SearchResult};

pub use super::source_settings::NVML as NAME;

/// One board as a source.
mod board_source;

/// The connection to a board, with reconnection.
mod board_connection;

/// The calls to NVML.
mod board_ffi;

mod board_search;

/// The schedule of expensive NVML calls.
mod call_schedule;

/// Reasons and remedies for NVML errors.
mod error_reason;

/// Per-process utilization of a board.
pub mod process_utilization;

mod known_boards;

/// The meter of one power scope of a board.
mod scope_meter;
