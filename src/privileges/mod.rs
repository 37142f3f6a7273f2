//! Giving up privilege: what opening the sources needed and reading them does not.
//!
//! Owns what the daemon keeps, and says it. Descriptors of perf events, registers and files stay readable without the
//! privilege that opened them, so capabilities go, and with them the way back: no new privileges, no ambient or bounding
//! set. And every thread refuses perf_event_open and the starting of programs, whatever capability a service manager's
//! filter makes us keep. Not dumpable, where it serves others: nobody of its user may trace it or read its memory. This
//! comes after discovery. Never done by the meter inside a client: that one is the client.

#[cfg(target_os = "linux")]
mod capabilities;
#[cfg(not(target_os = "linux"))]
mod capabilities_unsupported;
mod process_privileges;
#[cfg(target_os = "linux")]
mod seccomp_ffi;

#[cfg(target_os = "linux")]
pub use capabilities::{current_privileges, drop_privileges};
#[cfg(not(target_os = "linux"))]
pub use capabilities_unsupported::{current_privileges, drop_privileges};
pub use process_privileges::{ProcessPrivileges, RequiredPrivileges};
