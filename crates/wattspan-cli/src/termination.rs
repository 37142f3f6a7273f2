//! SIGINT and SIGTERM in programs that serve or run for long.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The handlers of both signals.
pub struct TerminationSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl TerminationSignals {
    /// Sets the handlers; the signals no longer end the process.
    ///
    /// # Errors
    /// The system refuses a handler. There is no tokio runtime with I/O.
    pub fn register() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Completes at the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
