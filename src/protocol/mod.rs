//! The words on the wire: `org.wattspan.Meter`, the methods of `org.varlink.service`, and their envelopes.
//!
//! Owns the names, the shapes and the framing, and belongs to neither side: the daemon and its clients read and
//! write the same structs, so they cannot drift apart. Additive changes only; an unknown parameter is refused,
//! because a caller who misspells `wieght` must not be billed by the default. Never touches a socket.
//!
//! Varlink (varlink.org) is one JSON object for each message, ended by one NUL byte.

mod envelope;
mod interface;
mod method_error;
mod methods;

pub use envelope::{Call, IncomingCall, IncomingReply, MethodReply};
pub use interface::{
    MESSAGE_TERMINATOR, METER_DESCRIPTION, METER_INTERFACE, SERVICE_DESCRIPTION, SERVICE_INTERFACE,
};
pub use method_error::{MethodError, ParseReplyError};
pub use methods::{
    Access, Balances, CancelSpan, CloseSpan, DaemonInfo, DomainSnapshot, DomainStatus, EmptyReply,
    GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo, GetSpan, InterfaceDescription, ListSpans,
    METHOD_NAMES, MarkPhase, Method, MethodName, OpenSpan, OpenedSpan, ReadWindow, Reload, ReloadReply,
    SamplerStatus, ServiceInfo, SetWeight, SpanAccount, SpanAccounts, StoreStatus, WatchDomains, WatchSpans,
    WindowEnergy,
};
