//! Runs the measured command and reports its exit status.
//!
//! The child inherits the terminal, the standard streams and the process group, so that Ctrl-C, Ctrl-Z, `fg` and pagers
//! work as without `wattspan`. Its output is never read.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command as Process, ExitStatus};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use wattspan_client::clock::monotonic_ns;

use super::signal_ffi::SignalForwarder;

/// Exit status of a shell for a command that is not found (POSIX).
const STATUS_NOT_FOUND: u8 = 127;

/// Exit status of a shell for a command that cannot be executed (POSIX).
const STATUS_NOT_EXECUTABLE: u8 = 126;

/// Base of a shell's exit status for a command terminated by a signal.
const SIGNAL_STATUS_BASE: u8 = 128;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildExit {
    Exited(u8),
    Signaled(u8),
}

impl ChildExit {
    /// The exit status that a shell would report.
    pub fn shell_status(self) -> u8 {
        match self {
            ChildExit::Exited(code) => code,
            ChildExit::Signaled(number) => SIGNAL_STATUS_BASE.saturating_add(number),
        }
    }

    fn of(status: ExitStatus) -> Self {
        let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        match (status.code(), status.signal()) {
            (Some(code), _) => ChildExit::Exited(byte(code)),
            (None, signal) => ChildExit::Signaled(signal.map_or(0, byte)),
        }
    }
}

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {program:?}: {reason}")]
pub struct StartCommandError {
    program: OsString,
    reason: io::Error,
}

impl StartCommandError {
    /// The exit status that a shell would report.
    pub fn shell_status(&self) -> u8 {
        if self.reason.kind() == io::ErrorKind::NotFound { STATUS_NOT_FOUND } else { STATUS_NOT_EXECUTABLE }
    }
}

/// One run of a command.
#[derive(Debug, Clone, Copy)]
pub struct CommandRun {
    /// Just before the start, on the monotonic clock.
    pub started_ns: u64,
    /// Just after the end was observed, on the monotonic clock.
    pub ended_ns: u64,
    pub exit: ChildExit,
}

/// Runs `command_line` (program first) to its end, and forwards signals to it meanwhile.
pub fn run_command(
    command_line: &[OsString],
    signals: &SignalForwarder,
) -> Result<CommandRun, StartCommandError> {
    let (program, arguments) =
        command_line.split_first().map_or((OsString::new(), command_line), |(p, a)| (p.clone(), a));
    let started_ns = monotonic_ns();
    let mut child = match Process::new(&program).args(arguments).spawn() {
        Ok(child) => child,
        Err(reason) => return Err(StartCommandError { program, reason }),
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    signals.set_target(pid);
    if let Some(pid) = pid {
        wait_unreaped(pid);
    }
    let ended_ns = monotonic_ns();
    signals.set_target(None);
    Ok(CommandRun { started_ns, ended_ns, exit: reap(&mut child) })
}

/// Returns when `pid` has ended, and leaves it unreaped: its number cannot be reused while a signal may still be forwarded.
fn wait_unreaped(pid: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), options).is_err_and(|error| error == Errno::INTR) {}
}

fn reap(child: &mut Child) -> ChildExit {
    // Fails only if the child was reaped elsewhere; no other code of this process does that.
    child.wait().map_or(ChildExit::Signaled(0), ChildExit::of)
}
