//! What the daemon and its clients need from the system: private files, Unix sockets with credentials, and printable text.

#![warn(clippy::unwrap_used)]

pub mod escape;
#[cfg(feature = "groups")]
pub mod groups;
pub mod private_file;
pub mod unix_socket;
