//! The end of another process, on systems where it is not waited for: the daemon's refusal states it.

use std::io;

/// A process that is not watched.
pub struct WatchedProcess;

impl WatchedProcess {
    /// Takes any number.
    pub fn new(_pid: u32) -> io::Result<Self> {
        Ok(WatchedProcess)
    }

    /// Never calls `then`.
    pub fn on_exit(self, _callback: impl FnOnce() + Send + 'static) -> io::Result<()> {
        Ok(())
    }
}
