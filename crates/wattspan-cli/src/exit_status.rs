//! Exit statuses of `wattspan`, and the mapping from errors to them.
//!
//! The numbers are documented in `--help` and in the manual. Their meaning never changes.

use std::fmt;
use std::io;

use wattspan::config::{AccessGroups, group_exists, join_commands};
use wattspan_client::ClientError;

/// Success.
pub const OK: u8 = 0;
/// Any failure without a status of its own.
pub const FAILURE: u8 = 1;
/// Usage error. clap uses the same number.
pub const USAGE: u8 = 2;
/// No energy measured: no counter and no model is available, or an `ipw` run contains no energy.
pub const NO_COUNTER: u8 = 3;
/// The daemon is unreachable.
pub const UNREACHABLE: u8 = 4;
/// Permission denied by the daemon or its socket.
pub const PERMISSION_DENIED: u8 = 5;

/// The exit status section of `wattspan --help` and of the manual.
pub const EXIT_STATUS_HELP: &str = "\
Exit status:
  0    success
  1    failure
  2    usage error
  3    no energy measured: no counter and no model is available, or a run of
       `wattspan ipw` contains no energy
  4    daemon unreachable
  5    permission denied

`wattspan run` exits with the command's own status instead.";

/// The exit status section of `wattspan run --help`.
pub const RUN_EXIT_STATUS_HELP: &str = "\
Exit status: the command's own; 128+N if signal N terminated it, 127 if it was
not found, 126 if it could not be executed. If no meter is available, the
command is not started and the status is 1 to 5 as listed in `wattspan --help`.
With --repeat, it is the first status that is not 0. A signal that terminates
the command stops the repetition; so does INT, TERM, HUP or QUIT if the command
handles it, and a run that cannot start. The report is of the runs that ended.

Signals sent to wattspan are forwarded to the command. The report is printed
after the command's own output, on standard error.";

/// How to get more access, with commands that exist on this system. Uses the default groups: this user may not be able
/// to read the daemon's configuration.
fn permission_denied_hint() -> String {
    let AccessGroups { span_group, telemetry_group, .. } = AccessGroups::default();
    let restart = if group_exists(&span_group) { "" } else { ", restart wattspand" };
    format!(
        "membership in the group {span_group} gives span access (own spans, the machine's totals) and opens the socket: \
         {}{restart}, and log in again; accounts of other users need {telemetry_group} as well as {span_group}: {} (the \
         daemon's [access] may name other groups)",
        join_commands(&[&span_group]),
        join_commands(&[&span_group, &telemetry_group]),
    )
}

/// An error that ends the program, with its exit status.
#[derive(Debug)]
pub struct CliError {
    pub status: u8,
    cause: anyhow::Error,
}

impl CliError {
    pub fn new(status: u8, cause: impl fmt::Display) -> Self {
        CliError { status, cause: anyhow::anyhow!("{cause}") }
    }

    /// Whether the reader of standard output closed it (`wattspan read | head -1`), which is no failure.
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
        // The socket has one group: to a member of the other group it is an unreadable path.
        let error =
            CliError::from(ClientError::PermissionDenied { path: "/run/wattspan/wattspan.sock".into() });
        assert_eq!(error.status, PERMISSION_DENIED);
        let message = error.to_string();
        assert!(message.contains("need wattspan-telemetry as well as wattspan"), "{message}");
        assert!(
            message.contains("usermod -aG wattspan,wattspan-telemetry USER") || cfg!(target_os = "macos"),
            "{message}"
        );
        // usermod needs an existing group, or the command that creates it first.
        let creates = message.contains("groupadd --system wattspan &&");
        assert!(creates != group_exists("wattspan") || cfg!(target_os = "macos"), "{message}");
    }
}
