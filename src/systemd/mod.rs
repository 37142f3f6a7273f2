//! The interface to systemd: notifications, journal entries, and socket activation.

pub mod journal;
pub mod notify;

#[cfg(target_os = "linux")]
pub mod activation_ffi;
#[cfg(not(target_os = "linux"))]
#[path = "activation_unsupported.rs"]
pub mod activation_ffi;
#[cfg(target_os = "linux")]
mod notify_address;
#[cfg(not(target_os = "linux"))]
#[path = "notify_address_unsupported.rs"]
mod notify_address;
