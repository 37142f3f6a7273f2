//! Forwards signals to the measured command, from [`install_handlers`] until the guard is dropped.
//!
//! A signal of the terminal (Ctrl-C) reaches the command directly, since it is in our process group; it is not forwarded,
//! which would deliver it twice. A signal that a process sends to us is forwarded. Termination requests are recorded in
//! both cases. A signal that was ignored at the start stays ignored. No signal terminates this program before its report.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

const FORWARDED_SIGNALS: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// The forwarded signals that request termination.
const TERMINATION_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];

/// `si_code` of a signal sent by `kill` on macOS (SI_USER); on Linux such codes are 0 or below.
const SI_USER_MACOS: libc::c_int = 0x10001;

/// Process ID of the running command, or 0.
static TARGET_PID: AtomicI32 = AtomicI32::new(0);

/// The last signal received while no command was running, or 0.
static PENDING_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// One of [`TERMINATION_SIGNALS`] was received.
static TERMINATION_REQUESTED: AtomicBool = AtomicBool::new(false);

/// Guard of the installed handlers; dropping it restores the previous ones.
#[derive(Debug)]
pub struct SignalForwarder {
    previous_actions: Vec<(libc::c_int, libc::sigaction)>,
}

/// Installs the handlers. Until [`SignalForwarder::set_target`] is called, the last signal is kept for the command.
pub fn install_handlers() -> SignalForwarder {
    PENDING_SIGNAL.store(0, Ordering::SeqCst);
    TERMINATION_REQUESTED.store(false, Ordering::SeqCst);
    let previous_actions =
        FORWARDED_SIGNALS.iter().filter_map(|&signal| Some((signal, install_handler(signal)?))).collect();
    SignalForwarder { previous_actions }
}

/// Sets SIGCHLD to its default. A parent may have ignored it, which this process inherits: then the kernel discards the
/// exit statuses of children.
pub fn keep_exit_statuses() {
    // SAFETY: SIG_DFL is a valid action, and no other thread runs yet that could set another.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

impl SignalForwarder {
    /// Forwards signals to `command` from now on. `None` stops forwarding: the command has ended, and its ID may be reused.
    pub fn set_target(&self, command: Option<Pid>) {
        TARGET_PID.store(command.map_or(0, Pid::as_raw_pid), Ordering::SeqCst);
        if let (Some(command), Some(pending)) =
            (command, Signal::from_named_raw(PENDING_SIGNAL.swap(0, Ordering::SeqCst)))
        {
            // Fails if the command has ended meanwhile.
            let _ = kill_process(command, pending);
        }
    }

    /// Drops a signal received while no command ran: it was meant for the previous command, not for the next.
    pub fn discard_pending(&self) {
        PENDING_SIGNAL.store(0, Ordering::SeqCst);
    }

    /// Whether a termination signal was received since [`install_handlers`], from the terminal or from a process.
    pub fn is_termination_requested(&self) -> bool {
        TERMINATION_REQUESTED.load(Ordering::SeqCst)
    }
}

impl Drop for SignalForwarder {
    fn drop(&mut self) {
        self.set_target(None);
        for (signal, action) in &self.previous_actions {
            // SAFETY: `action` was filled by sigaction for the same signal, and the null pointer requests no previous action.
            unsafe { libc::sigaction(*signal, action, std::ptr::null_mut()) };
        }
    }
}

/// Installs the handler and returns the previous action; `None` if the signal is ignored, which it stays.
fn install_handler(signal: libc::c_int) -> Option<libc::sigaction> {
    // SAFETY: sigaction is a plain C struct for which all zeroes is a valid value (SIG_DFL, no flags, empty mask).
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only reads the old one, which is written to a live struct of the right type.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut previous) };
    if previous.sa_sigaction == libc::SIG_IGN {
        return None;
    }
    // SAFETY: as above, all zeroes is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle_signal as extern "C" fn(_, _, _) as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is valid for the call, and `handle_signal` does only what a handler may do.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    Some(previous)
}

extern "C" fn handle_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if TERMINATION_SIGNALS.contains(&signal) {
        TERMINATION_REQUESTED.store(true, Ordering::SeqCst);
    }
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo for the time of the call.
    let code = unsafe { (*info).si_code };
    if code > 0 && code != SI_USER_MACOS {
        return;
    }
    // This stores the signal and then loads the target; `set_target` does the reverse. So at least one of them sees both,
    // and the swap lets only one send the signal.
    PENDING_SIGNAL.store(signal, Ordering::SeqCst);
    let command = TARGET_PID.load(Ordering::SeqCst);
    if command > 0 && PENDING_SIGNAL.swap(0, Ordering::SeqCst) != 0 {
        // The command is not reaped while it is the target, so its ID is not reused. kill changes errno only on failure,
        // that is for a command that now runs as another user.
        // SAFETY: kill is async-signal-safe.
        unsafe { libc::kill(command, signal) };
    }
}
