//! The Unix socket: connections, framing and dispatch of the calls to the service.
//!
//! ```text
//! socket ─► acceptor ─► connection ─► dispatch ─► service ─► attributor
//!            limits      framing       one call    meaning
//! ```
//!
//! Owns everything between a connected socket and the attributor: one thread, no runtime, level-triggered readiness.
//! Nothing a client does reaches a sampler: the samplers run on their own threads and share only their rings.
//!
//! The framing is ours (read up to a NUL under a cap) rather than zlink's: zlink 0.8 lets one connection buffer
//! 100 MB and receive 1,024 descriptors with a message, and neither can be configured. An own 60 lines are easier
//! to bound than a fork. Reading with plain `read` makes the kernel throw away any descriptors sent along.

pub(crate) mod acceptor;
pub(crate) mod connection;
pub(crate) mod connection_channel;
pub(crate) mod connection_table;
pub(crate) mod delivery;
pub(crate) mod dispatch;
pub(crate) mod encode;
pub(crate) mod event_loop;
pub(crate) mod fair_scheduler;
pub(crate) mod peer_identity;
pub(crate) mod readiness_ffi;
pub(crate) mod recv;
pub(crate) mod reply_queue;
pub(crate) mod server_sockets;
pub(crate) mod stall_detection;
pub(crate) mod subscriptions;

#[cfg(target_os = "macos")]
#[path = "launchd_linked_ffi.rs"]
mod launchd;
#[cfg(not(target_os = "macos"))]
#[path = "launchd_unsupported.rs"]
mod launchd;
#[cfg(any(test, target_os = "macos"))]
mod launchd_ffi;

pub use connection_channel::{ConnectionReceiver, ConnectionSender, ForwardedConnection, connection_channel};
pub use event_loop::serve;
pub use launchd::listeners as launchd_listeners;
pub use server_sockets::ServerSockets;

#[cfg(test)]
mod coarse_access_tests;
