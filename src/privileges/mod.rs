//! Dropping of the privileges that are needed to open the sources, but not to read them.
//!
//! Open descriptors of perf events, registers and files stay readable without the privilege that opened them.
//! So after discovery the daemon drops its capabilities and the means to regain them (no_new_privs, ambient
//! and bounding set). All threads block perf_event_open and exec, since a service manager's filter may force
//! it to keep a capability. If it serves other users it is not dumpable, so that no process of its user can
//! trace it or read its memory. The embedded meter keeps the privileges of its process.

#[cfg(target_os = "linux")]
mod capabilities;
#[cfg(not(target_os = "linux"))]
mod capabilities_unsupported;
mod required_privileges;
#[cfg(target_os = "linux")]
mod seccomp_ffi;

#[cfg(target_os = "linux")]
pub use capabilities::{current_privileges, drop_privileges};
#[cfg(not(target_os = "linux"))]
pub use capabilities_unsupported::{current_privileges, drop_privileges};
pub use required_privileges::RequiredPrivileges;
