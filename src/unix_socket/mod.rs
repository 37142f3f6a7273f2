//! Unix sockets: a path that is taken safely, and the peer's credentials as the kernel states them.
//!
//! Owns both for every listener of these programs, so that the daemon and the proxy identify a caller by one rule.

mod listener;
mod peer_credentials;

#[cfg(target_os = "linux")]
mod so_peercred_ffi;
#[cfg(target_os = "linux")]
use so_peercred_ffi as peer;

#[cfg(target_os = "macos")]
mod local_peercred_ffi;
#[cfg(target_os = "macos")]
use local_peercred_ffi as peer;

pub use listener::{ListenError, SocketFile, SocketPermissions, bind};
pub use peer::{peer_credentials, peer_pid};
pub use peer_credentials::{OVERFLOW_UID, PeerCredentials};
