//! Whether a connection goes on.
//!
//! Owns that one word between a connection, which knows, and the door, which acts.

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It does.
    Stays,
    /// It is over; drop it.
    Over,
}
