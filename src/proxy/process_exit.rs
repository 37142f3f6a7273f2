//! The end of another process (pidfd_open(2)).
//!
//! Owns one descriptor, which means that process for ever: the number may be another's once the process has ended.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that is watched.
pub struct WatchedProcess(OwnedFd);

impl WatchedProcess {
    /// Watches the process that has this number now.
    ///
    /// # Errors
    /// There is none.
    pub fn new(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(WatchedProcess(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Calls `then` once it has ended, on a thread that waits for it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn on_exit(self, callback: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let wait = move || {
            let mut exit = [PollFd::new(&self.0, PollFlags::IN)];
            while let Err(rustix::io::Errno::INTR) = poll(&mut exit, None) {}
            // Where the system cannot wait, the daemon's refusal states the end.
            if exit[0].revents().contains(PollFlags::IN) {
                callback();
            }
        };
        std::thread::Builder::new().name("server-exit".into()).spawn(wait).map(drop)
    }
}
