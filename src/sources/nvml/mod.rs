//! NVIDIA GPUs through NVML, NVIDIA's own library: each board by itself, by its UUID.
//!
//! Owns the search at the start. Any call into the driver may hang for minutes, so all of them are made on threads of
//! their own, one for each board, and each board is shown when it answers. The library is loaded at run time, and its
//! absence is nothing but a line in the list. Needs no privilege but the right to open /dev/nvidia*. While boards are open
//! the driver cannot be unloaded: NVML keeps its device files open.

pub use board_search::open_each;

pub use super::source_settings::NVML as NAME;

/// One board as a source.
mod board_source;

/// The connection to a board, and reconnecting.
mod board_connection;

/// The calls to NVML.
mod board_ffi;

/// The search for boards.
mod board_search;

/// When an expensive call to NVML is due.
mod call_schedule;

/// What NVML's errors mean.
mod error_reason;

/// Per-process utilization of a board.
pub mod process_utilization;

/// The meter of one power scope of a board.
mod scope_meter;
