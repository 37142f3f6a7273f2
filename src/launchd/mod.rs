//! Sockets that launchd creates and passes to the daemon (macOS).
//!
//! The code of `activation_ffi` takes the system call as an argument, so that its tests run on every system.

#[cfg(any(test, target_os = "macos"))]
mod activation_ffi;
#[cfg(target_os = "macos")]
mod linked_ffi;
#[cfg(not(target_os = "macos"))]
mod linked_unsupported;

#[cfg(target_os = "macos")]
pub use linked_ffi::listeners;
#[cfg(not(target_os = "macos"))]
pub use linked_unsupported::listeners;
