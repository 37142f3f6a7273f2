//! Unix sockets: safe binding of a path, and the credentials of a peer.
//!
//! The daemon and the proxy use the same code, so that both identify a caller by one rule.

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
