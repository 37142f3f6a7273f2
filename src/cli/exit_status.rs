//! How the program ends: one table of exit statuses, and which error leads to which.
//!
//! Owns the numbers; they are promised in `--help` and in the manual, and never change their meaning.

use std::fmt;
use std::io;

use crate::client::ClientError;
use crate::config::{AccessGroups, group_exists, join_commands};

/// All went well.
pub const OK: u8 = 0;
/// Something failed that has no number of its own.
pub const FAILURE: u8 = 1;
/// The command line is not understood, as clap has it.
pub const USAGE: u8 = 2;
/// No energy was measured: there is no counter and no model, or a run holds none.
pub const NO_COUNTER: u8 = 3;
/// The daemon that was named, or that is needed, does not answer.
pub const UNREACHABLE: u8 = 4;
/// The daemon answers, and this user may not know.
pub const PERMISSION_DENIED: u8 = 5;

/// What `--help` and the manual say of it.
pub const EXIT_STATUS_HELP: &str = "\
Exit status:
  0    all went well
  1    something failed
  2    the command line makes no sense
  3    no energy was measured: there is no counter and no model here, or a run
       of `wattspan ipw` holds none
  4    the daemon that was named, or that is needed, does not answer
  5    the daemon does not let this user know

`wattspan run` gives the command's own status instead.";

/// What the help of `run` says of it.
pub const RUN_EXIT_STATUS_HELP: &str = "\
Exit status: the command's own; 128+N where signal N ended it, 127 where it was
not found, 126 where it could not be executed. Where the meter cannot be used
the command is not started, and the status is 1 to 5 as `wattspan --help` tells.
Of repeated runs it is the first that is not 0. A signal that ends the command
ends the repetition, and so do INT, TERM, HUP and QUIT where it handles them.

Signals that are sent to wattspan reach the command. The report comes after the
command's own output, on standard error.";

/// How a user comes to more access, with commands that this system can carry out. Not from the daemon's configuration,
/// which this user may not be able to read.
fn permission_denied_hint() -> String {
    let AccessGroups { span_group, telemetry_group, .. } = AccessGroups::default();
    let restart = if group_exists(&span_group) { "" } else { ", restart wattspand" };
    format!(
        "membership in the group {span_group} gives span access (own spans, the machine's totals) and opens the socket: \
         {}{restart}, and log in again; everybody's accounts need {telemetry_group} as well as {span_group}: {} (the \
         daemon's [access] may name other groups)",
        join_commands(&[&span_group]),
        join_commands(&[&span_group, &telemetry_group]),
    )
}

/// Why the program ends before it is done.
#[derive(Debug)]
pub struct CliError {
    /// The exit status.
    pub status: u8,
    cause: anyhow::Error,
}

impl CliError {
    /// An error with this exit status.
    pub fn new(status: u8, cause: impl fmt::Display) -> Self {
        CliError { status, cause: anyhow::anyhow!("{cause}") }
    }

    /// Nothing to tell: whoever was reading has heard enough (`wattspan read | head -1`).
    pub fn is_broken_pipe(&self) -> bool {
        let kind = self.cause.downcast_ref::<io::Error>().map(io::Error::kind);
        kind == Some(io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let status = match &error {
            ClientError::Unreachable { .. } => UNREACHABLE,
            error if error.is_permission_denied() => PERMISSION_DENIED,
            _ => FAILURE,
        };
        let cause = match status {
            PERMISSION_DENIED => anyhow::anyhow!("{error}; {}", permission_denied_hint()),
            _ => error.into(),
        };
        CliError { status, cause }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(cause: anyhow::Error) -> Self {
        CliError { status: FAILURE, cause }
    }
}

impl From<io::Error> for CliError {
    fn from(cause: io::Error) -> Self {
        CliError { status: FAILURE, cause: cause.into() }
    }
}

impl From<serde_json::Error> for CliError {
    fn from(cause: serde_json::Error) -> Self {
        io::Error::from(cause).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_for_a_member_of_the_telemetry_group_alone_names_both_groups() {
        // The socket has one group, so that this is all that such a member sees of it.
        let error =
            CliError::from(ClientError::PermissionDenied { path: "/run/wattspan/wattspan.sock".into() });
        assert_eq!(error.status, PERMISSION_DENIED);
        let message = error.to_string();
        assert!(message.contains("need wattspan-telemetry as well as wattspan"), "{message}");
        assert!(
            message.contains("usermod -aG wattspan,wattspan-telemetry USER") || cfg!(target_os = "macos"),
            "{message}"
        );
        // A group is named to usermod only where it exists, or after the command that creates it.
        let creates = message.contains("groupadd --system wattspan &&");
        assert!(creates != group_exists("wattspan") || cfg!(target_os = "macos"), "{message}");
    }
}
