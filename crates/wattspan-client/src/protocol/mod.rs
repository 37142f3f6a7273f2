//! The Varlink protocol: the interfaces `org.wattspan.Meter` and `org.varlink.service`, and their messages.
//!
//! The daemon and its clients use the same types. The contract changes by addition only. An unknown parameter is an
//! error: a caller that misspells `weight` must not get the default. No I/O here.

mod envelope;
mod interface;
mod method_error;
mod methods;
mod process_privileges;

pub use envelope::{Call, IncomingCall, IncomingReply, MethodReply};
pub use interface::{
    MESSAGE_TERMINATOR, METER_DESCRIPTION, METER_INTERFACE, SERVICE_DESCRIPTION, SERVICE_INTERFACE,
};
pub use method_error::{MethodError, ParseReplyError};
pub use methods::{
    Access, Balances, CancelSpan, CeilingStatus, CloseSpan, DaemonInfo, DomainSnapshot, DomainStatus,
    EmptyReply, ExceededCeiling, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo, GetSpan,
    InterfaceDescription, ListSpans, METHOD_NAMES, MarkPhase, Method, MethodName, MissingAccounts, OpenSpan,
    OpenedSpan, ReadWindow, ReadingSchedule, Reload, ReloadReply, SamplerStatus, ServiceInfo, SetWeight,
    SpanAccount, SpanAccounts, SpanCounts, SpanSum, SpanSums, StoreStatus, SumSpans, WatchDomains,
    WatchSpans, WatchedSpan, WindowEnergy,
};
pub use process_privileges::ProcessPrivileges;
