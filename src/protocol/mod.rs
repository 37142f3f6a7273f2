//! The words on the wire: `org.wattspan.Meter`, the methods of `org.varlink.service`, and their envelopes.
//!
//! Owns the names, the shapes and the framing, and belongs to neither side: the daemon and its clients read and
//! write the same structs, so they cannot drift apart. Additive changes only; an unknown parameter is refused,
//! because a caller who misspells `wieght` must not be billed by the default. Never touches a socket.
//!
//! Varlink (varlink.org) is one JSON object for each message, ended by one NUL byte.

mod envelope;
mod method;
mod method_error;
mod reply;
mod request;

pub use envelope::{Call, IncomingCall, IncomingReply, MethodReply};
pub use method::{METHOD_NAMES, Method, MethodName};
pub use method_error::{MethodError, ParseReplyError};
pub use reply::{
    Access, Balances, DaemonInfo, DomainSnapshot, DomainStatus, EmptyReply, InterfaceDescription, OpenedSpan,
    ReloadReply, SamplerStatus, ServiceInfo, SpanAccount, SpanAccounts, StoreStatus, WindowEnergy,
};
pub use request::{
    CancelSpan, CloseSpan, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo, GetSpan, ListSpans,
    MarkPhase, OpenSpan, ReadWindow, Reload, SetWeight, WatchDomains, WatchSpans,
};

/// The meter's own interface.
pub const METER_INTERFACE: &str = "org.wattspan.Meter";

/// Varlink's introspection, which every service answers.
pub const SERVICE_INTERFACE: &str = "org.varlink.service";

/// The description of [`METER_INTERFACE`], served by introspection; the contract itself, byte for byte.
pub const METER_DESCRIPTION: &str = include_str!("org.wattspan.Meter.varlink");

/// The description of [`SERVICE_INTERFACE`], as the Varlink specification gives it.
pub const SERVICE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

/// The byte that ends a message; JSON has no place for it, so no message holds one.
pub const MESSAGE_TERMINATOR: u8 = 0;
