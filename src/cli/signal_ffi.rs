//! Passes signals on to the command that is being measured.
//!
//! Owns the handlers of the signals that end or steer a program, from [`install_handlers`] until the guard goes. A signal
//! that the terminal sends (Ctrl-C) reaches the command by itself, since it stays in our process group: passing it on
//! would deliver it twice. One that a process sends to us alone is passed on. Either way it is remembered that one came
//! which means the end, whatever the command makes of it. A signal that we were started to ignore
//! stays ignored, here and in the command. Never ends this program: it ends once its report is printed.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

/// Signals that a person or a service manager sends to steer a program.
const FORWARDED_SIGNALS: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Those of them that ask a program to end; the others mean what the command takes them for.
const TERMINATION_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];

/// What `si_code` is for a signal that `kill` sent, on macOS; on Linux such codes are 0 or below.
const SI_USER_MACOS: libc::c_int = 0x10001;

/// The command that runs now, or 0.
static TARGET_PID: AtomicI32 = AtomicI32::new(0);

/// The last signal that came while there was no command to pass it on to, or 0.
static PENDING_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// One of [`TERMINATION_SIGNALS`] came.
static TERMINATION_REQUESTED: AtomicBool = AtomicBool::new(false);

/// Handlers are in place; they go with it.
#[derive(Debug)]
pub struct SignalForwarder {
    previous_actions: Vec<(libc::c_int, libc::sigaction)>,
}

/// Installs the handlers. Until a command is named with [`SignalForwarder::set_target`], the last signal is kept for it.
pub fn install_handlers() -> SignalForwarder {
    PENDING_SIGNAL.store(0, Ordering::SeqCst);
    TERMINATION_REQUESTED.store(false, Ordering::SeqCst);
    let previous_actions =
        FORWARDED_SIGNALS.iter().filter_map(|&signal| Some((signal, install_handler(signal)?))).collect();
    SignalForwarder { previous_actions }
}

impl SignalForwarder {
    /// Passes signals on to `command` from now on; `None`: to no process, because it has ended and its number may come
    /// to mean another process.
    pub fn set_target(&self, command: Option<Pid>) {
        TARGET_PID.store(command.map_or(0, Pid::as_raw_pid), Ordering::SeqCst);
        if let (Some(command), Some(pending)) =
            (command, Signal::from_named_raw(PENDING_SIGNAL.swap(0, Ordering::SeqCst)))
        {
            // A command that has ended meanwhile needs no signal.
            let _ = kill_process(command, pending);
        }
    }

    /// Drops a signal that came while no command ran: it was sent to the one that has ended, not to the next.
    pub fn discard_pending(&self) {
        PENDING_SIGNAL.store(0, Ordering::SeqCst);
    }

    /// Whether a signal came since [`install_handlers`] that asks a program to end, from the terminal or from a process.
    pub fn is_termination_requested(&self) -> bool {
        TERMINATION_REQUESTED.load(Ordering::SeqCst)
    }
}

impl Drop for SignalForwarder {
    fn drop(&mut self) {
        self.set_target(None);
        for (signal, action) in &self.previous_actions {
            // SAFETY: `action` was filled by sigaction for the same signal, and the null pointer asks for nothing back.
            unsafe { libc::sigaction(*signal, action, std::ptr::null_mut()) };
        }
    }
}

/// Puts the handler in place and gives back what was there; `None` where the signal was and stays ignored.
fn install_handler(signal: libc::c_int) -> Option<libc::sigaction> {
    // SAFETY: sigaction is a plain C struct for which all zeroes is a valid value (SIG_DFL, no flags, empty mask).
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action asks only for the old one, which is written to a live struct of the right type.
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
    // Kept first and looked for a command second; `set_target` does it the other way round. So one of the two sees both, and
    // the swap lets only one of them send it.
    PENDING_SIGNAL.store(signal, Ordering::SeqCst);
    let command = TARGET_PID.load(Ordering::SeqCst);
    if command > 0 && PENDING_SIGNAL.swap(0, Ordering::SeqCst) != 0 {
        // The command stays unreaped while it is named, so the number means it or its remains. kill changes errno only
        // where it fails, which is for a command that has become another user's.
        // SAFETY: kill is async-signal-safe.
        unsafe { libc::kill(command, signal) };
    }
}
