//! The end of another process (pidfd_open(2)).
//!
//! Owns a pidfd, which refers to the same process even when the kernel reuses its id.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub struct WatchedProcess(OwnedFd);

impl WatchedProcess {
    /// Watches the process that has this id now.
    ///
    /// # Errors
    /// No process has this id.
    pub fn new(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(WatchedProcess(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Calls `callback` after the end of the process, on a thread that waits for it.
    ///
    /// # Errors
    /// The system cannot create the thread.
    pub fn on_exit(self, callback: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let wait = move || {
            let mut exit = [PollFd::new(&self.0, PollFlags::IN)];
            while let Err(rustix::io::Errno::INTR) = poll(&mut exit, None) {}
            // Where the wait fails, the daemon's error in OpenSpan reports the end of the process.
            if exit[0].revents().contains(PollFlags::IN) {
                callback();
            }
        };
        std::thread::Builder::new().name("server-exit".into()).spawn(wait).map(drop)
    }
}
