//! Sources of Apple's Macs: the energy counters of Apple silicon and the System Management Controller.
//!
//! The C functions come from the system or, in tests, from a library that replaces it.

/// A library that is loaded at run time.
mod dynamic_library_ffi;

/// The choice of the library that has Apple's C functions.
mod function_loader;

/// Apple's C functions, by their addresses.
mod functions_ffi;

/// Apple silicon's energy counters.
pub mod ioreport;

/// The choice of IOReport's channels, and their raw elements.
pub mod ioreport_channel;

/// The calls to IOReport.
mod ioreport_ffi;

/// Apple's C functions from the system.
#[cfg(target_os = "macos")]
#[path = "linked_functions_ffi.rs"]
mod linked_functions;

/// Apple's C functions: stub for other systems.
#[cfg(not(target_os = "macos"))]
#[path = "linked_functions_unsupported.rs"]
mod linked_functions;

/// Apple's C functions from a replacement library.
mod loaded_functions_ffi;

/// The System Management Controller as a source.
pub mod smc;

/// The calls to the System Management Controller.
mod smc_ffi;

/// The System Management Controller's protocol: keys, parameters, value types.
pub(super) mod smc_protocol;
