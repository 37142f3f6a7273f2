//! The Unix socket: connections, framing and dispatch of the calls to the service.
//!
//! ```text
//! socket ─► acceptor ─► connection ─► dispatch ─► service ─► attributor
//!            limits      framing      one call    semantics
//! ```
//!
//! One thread without an async runtime, level-triggered readiness. No client can delay a sampler: the
//! samplers run on their own threads and share only their rings.
//!
//! The framing is our own (read up to a NUL, under a cap). zlink 0.8 lets one connection buffer 100 MB and
//! receive 1,024 descriptors with a message, and neither limit is configurable. These 60 lines are easier to
//! bound than a fork.

mod acceptor;
mod connection;
mod connection_table;
mod dispatch;
mod event_loop;
mod fair_scheduler;
mod forwarded_calls;
mod forwarded_clients;
#[doc(hidden)]
pub mod fuzz_entry;
mod parameters;
mod readiness;
mod readiness_ffi;
mod reply_queue;
mod subscriptions;

#[cfg(target_os = "linux")]
mod readiness_wait_ffi;
#[cfg(target_os = "linux")]
use readiness_wait_ffi::ReadinessWaiter;

#[cfg(not(target_os = "linux"))]
use readiness::PollerWaiter as ReadinessWaiter;

pub use event_loop::{ServerSockets, serve};
pub use forwarded_calls::{
    ForwardedCall, ForwardedClient, ForwardedEvent, ForwardedReceiver, ForwardedSender, forwarded_calls,
};

#[cfg(test)]
mod coarse_access_tests;
