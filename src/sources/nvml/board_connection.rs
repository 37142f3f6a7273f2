//! The connection to one board, with reconnection after the driver was unloaded.
//!
//! Owns the board and the delays between attempts: 1 s, doubled up to 60 s, until a read succeeds. Each attempt finds the
//! board by its UUID, so a new order of the indices cannot substitute another board. Never returns a failed board.

use std::ffi::OsString;
use std::thread;

use nvml_wrapper::error::NvmlError;

use super::board_ffi::NvmlBoard;

const MIN_BACKOFF_NS: u64 = 1_000_000_000;
const MAX_BACKOFF_NS: u64 = 60_000_000_000;

/// A board that may be disconnected.
pub struct BoardConnection {
    library: OsString,
    uuid: String,
    board: Option<NvmlBoard>,
    backoff_ns: u64,
    /// The earliest instant of the next attempt.
    retry_at_ns: u64,
}

impl BoardConnection {
    /// Creates the connection from an open board.
    pub fn new(library: OsString, uuid: String, board: NvmlBoard) -> Self {
        Self { library, uuid, board: Some(board), backoff_ns: MIN_BACKOFF_NS, retry_at_ns: 0 }
    }

    /// Creates the connection to a board that is opened at the first use.
    pub fn unopened(library: OsString, uuid: String) -> Self {
        Self { library, uuid, board: None, backoff_ns: MIN_BACKOFF_NS, retry_at_ns: 0 }
    }

    /// The board; `None` during a delay, and while it cannot be opened. May block in the driver.
    pub fn board(&mut self, now_ns: u64) -> Option<&NvmlBoard> {
        self.connect(now_ns).ok().flatten()
    }

    /// The board, opened if it is disconnected and the delay is over; `None` during the delay. May block in the driver.
    ///
    /// # Errors
    /// The board cannot be opened. The next delay has begun.
    pub fn connect(&mut self, now_ns: u64) -> Result<Option<&NvmlBoard>, NvmlError> {
        if self.board.is_none() && now_ns >= self.retry_at_ns {
            match NvmlBoard::find(&self.library, &self.uuid) {
                Ok(board) => self.board = Some(board),
                Err(error) => {
                    self.disconnect(now_ns);
                    return Err(error);
                }
            }
        }
        Ok(self.board.as_ref())
    }

    /// Records a successful read.
    pub fn reset_backoff(&mut self) {
        self.backoff_ns = MIN_BACKOFF_NS;
    }

    /// Records a failure: releases NVML, so that a new driver can be loaded, and starts the delay.
    pub fn disconnect(&mut self, now_ns: u64) {
        self.board = None;
        self.retry_at_ns = now_ns.saturating_add(self.backoff_ns);
        self.backoff_ns = (2 * self.backoff_ns).min(MAX_BACKOFF_NS);
    }
}

impl Drop for BoardConnection {
    /// Releases NVML on another thread: a board that is not measured after all is dropped where no call may hang.
    fn drop(&mut self) {
        if let Some(board) = self.board.take() {
            let _ = thread::Builder::new().name("release-nvml".into()).spawn(move || drop(board));
        }
    }
}
