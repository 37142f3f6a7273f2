//! The caller of a method, and the address of a reply that is sent later.
//!
//! Plain values. The service identifies connections by number and does not depend on the transport.

use wattspan_client::account::Account;

use super::access::Peer;
use crate::process_usage::ProcessIdentity;

/// A connection; the number is not reused while the daemon runs.
pub type ConnectionId = u64;

/// The address of a reply that is sent later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// The connection of the call.
    pub connection: ConnectionId,
    /// The position of the reply among the replies of that connection.
    pub slot: u64,
}

/// The caller of a method.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User and access.
    pub peer: Peer,
    /// The address of a reply that is sent later.
    pub reply_to: ReplyTo,
    /// The process at the other end, where the transport reports it.
    pub process: Option<ProcessIdentity>,
}

/// The result of a call that returns an account.
#[derive(Debug)]
pub enum AccountOutcome {
    /// The account as of now.
    Ready(Box<Account>),
    /// The account is sent later, to the caller's [`ReplyTo`].
    Deferred,
}
