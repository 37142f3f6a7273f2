//! Where an answer goes that comes later.
//!
//! Owns the names by which the service speaks of connections without knowing what they are.

/// A connection, for as long as the daemon runs.
pub type ConnectionId = u64;

/// Where an awaited answer is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// Which connection.
    pub connection: ConnectionId,
    /// Which of its answers.
    pub slot: u64,
}
