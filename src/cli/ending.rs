//! How the program ends: one table of exit statuses, and which trouble leads to which.
//!
//! Owns the numbers; they are promised in `--help` and in the manual, and never change their meaning.

use std::fmt;
use std::io;

use crate::client::Failure;

/// All went well.
pub const OK: u8 = 0;
/// Something failed that has no number of its own.
pub const FAILURE: u8 = 1;
/// The command line is not understood, as clap has it.
pub const USAGE: u8 = 2;
/// There is no counter and no model: nothing to measure with.
pub const NO_COUNTER: u8 = 3;
/// The daemon that was named, or that is needed, does not answer.
pub const UNREACHABLE: u8 = 4;
/// The daemon answers, and this user may not know.
pub const DENIED: u8 = 5;

/// What `--help` and the manual say of it.
pub const TABLE: &str = "\
Exit status:
  0    all went well
  1    something failed
  2    the command line makes no sense
  3    there is no counter and no model here: nothing to measure with
  4    the daemon that was named, or that is needed, does not answer
  5    the daemon does not let this user know

`wattspan run` gives the command's own status instead.";

/// What the help of `run` says of it.
pub const OF_RUN: &str = "\
Exit status: the command's own; 128+N where signal N ended it, 127 where it was
not found, 126 where it could not be executed. Where the meter cannot be used
the command is not started, and the status is 1 to 5 as `wattspan --help` tells.
Of repeated runs it is the first that is not 0. A signal that ends the command
ends the repetition, and so do INT, TERM, HUP and QUIT where it handles them.

Signals that are sent to wattspan reach the command. The report comes after the
command's own output, on standard error.";

/// How a user comes to more access.
const MEND_OF_DENIED: &str = "membership in the group wattspan gives span access (own spans, the machine's totals) and \
                              opens the socket, in wattspan-telemetry as well as in wattspan everybody's: sudo usermod \
                              -aG GROUP USER, and a new login";

/// Why the program ends before it is done.
#[derive(Debug)]
pub struct Trouble {
    /// The exit status.
    pub status: u8,
    cause: anyhow::Error,
}

impl Trouble {
    /// Trouble with this exit status.
    pub fn new(status: u8, cause: impl fmt::Display) -> Self {
        Trouble { status, cause: anyhow::anyhow!("{cause}") }
    }

    /// Nothing to tell: whoever was reading has heard enough (`wattspan read | head -1`).
    pub fn is_closed_pipe(&self) -> bool {
        let kind = self.cause.downcast_ref::<io::Error>().map(io::Error::kind);
        kind == Some(io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let status = match &failure {
            Failure::Unreachable { .. } => UNREACHABLE,
            denied if denied.is_denied() => DENIED,
            _ => FAILURE,
        };
        let cause = match status {
            DENIED => anyhow::anyhow!("{failure}; {MEND_OF_DENIED}"),
            _ => failure.into(),
        };
        Trouble { status, cause }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(cause: anyhow::Error) -> Self {
        Trouble { status: FAILURE, cause }
    }
}

impl From<io::Error> for Trouble {
    fn from(cause: io::Error) -> Self {
        Trouble { status: FAILURE, cause: cause.into() }
    }
}

impl From<serde_json::Error> for Trouble {
    fn from(cause: serde_json::Error) -> Self {
        io::Error::from(cause).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_the_telemetry_group_alone_is_told_that_it_needs_both() {
        // The socket has one group, so that this is all that such a member sees of it.
        let trouble = Trouble::from(Failure::KeptOut { path: "/run/wattspan/wattspan.sock".into() });
        assert_eq!(trouble.status, DENIED);
        assert!(trouble.to_string().contains("in wattspan-telemetry as well as in wattspan"), "{trouble}");
    }
}
