//! A reverse proxy for an inference server that measures the energy of each request.
//!
//! ```text
//! client ─► frontend ─► forward ─► server
//!        ◄─ measured_response ◄─
//! request_span ─► span_client ─► daemon_connection ─► wattspand
//! ```
//!
//! A span opens when a request arrives at an inference path, begins its decode phase at the first token of content, and
//! closes at the end of the response. The energy is added as a header, a trailer, a comment of the event stream, or in
//! `usage`; other requests and responses are forwarded unchanged. Invariant: a daemon that is unreachable, slow or
//! faulty fails no request, and delays a response by the account timeout at most. One thread runs everything.

#![warn(clippy::unwrap_used)]

mod annotation;
mod annotation_policy;
mod body_timer;
mod bound_proxy;
mod client_io;
mod connection_limit;
mod context;
mod counters;
mod daemon_connection;
mod forward;
mod frontend;
#[doc(hidden)]
pub mod fuzz_entry;
mod head_timer;
mod json_scanner;
mod listener;
mod log;
mod measured_response;
#[cfg(target_os = "linux")]
mod process_exit;
#[cfg(not(target_os = "linux"))]
#[path = "process_exit_unsupported.rs"]
mod process_exit;
mod reply_progress;
mod request_span;
mod response_reader;
mod route;
mod server_process;
mod span_client;
#[cfg(target_os = "linux")]
mod tcp_owner;
#[cfg(not(target_os = "linux"))]
#[path = "tcp_owner_unsupported.rs"]
mod tcp_owner;
mod trace_context;
mod upstream_request;
mod usage_inserter;

pub use annotation_policy::AnnotationGroup;
pub use bound_proxy::{
    BoundProxy, DEFAULT_ACCOUNT_TIMEOUT, DEFAULT_BODY_TIMEOUT, DEFAULT_HEAD_TIMEOUT, ProxySettings,
};
pub use client_io::ClientIo;
pub use connection_limit::ConnectionLimit;
pub use context::AnnotationMode;
pub use counters::ProxyCounters;
pub use head_timer::{HeadTimer, ReceivedBytes};
pub use listener::{AcceptedConnection, ListenAddress, ListenSocket, ParseListenAddressError, ProxyListener};
pub use server_process::ServerProcess;
