//! The way to one board, and back to it after the driver went away.
//!
//! Owns the board and the waits between attempts: 1 s, doubled up to 60 s, until a read succeeds. The board is found by its
//! UUID each time, so that neither a new order of the indices nor a new driver can put another board in its place. Never
//! gives a board that has failed.

use std::ffi::OsString;

use super::board_ffi::NvmlBoard;

const MIN_BACKOFF_NS: u64 = 1_000_000_000;
const MAX_BACKOFF_NS: u64 = 60_000_000_000;

/// A board that may be away.
pub struct BoardConnection {
    library: OsString,
    uuid: String,
    board: Option<NvmlBoard>,
    backoff_ns: u64,
    /// No attempt before this.
    retry_at_ns: u64,
}

impl BoardConnection {
    /// A way to a board that is there.
    pub fn new(library: OsString, uuid: String, board: NvmlBoard) -> Self {
        Self { library, uuid, board: Some(board), backoff_ns: MIN_BACKOFF_NS, retry_at_ns: 0 }
    }

    /// The board, looked for anew where it is away and the wait is over. This may take as long as the driver likes.
    pub fn board(&mut self, now_ns: u64) -> Option<&NvmlBoard> {
        if self.board.is_none() && now_ns >= self.retry_at_ns {
            match NvmlBoard::find(&self.library, &self.uuid) {
                Ok(board) => self.board = Some(board),
                Err(_) => self.disconnect(now_ns),
            }
        }
        self.board.as_ref()
    }

    /// The board answered.
    pub fn reset_backoff(&mut self) {
        self.backoff_ns = MIN_BACKOFF_NS;
    }

    /// The board failed: gives NVML back, so that a new driver can be loaded, and waits.
    pub fn disconnect(&mut self, now_ns: u64) {
        self.board = None;
        self.retry_at_ns = now_ns.saturating_add(self.backoff_ns);
        self.backoff_ns = (2 * self.backoff_ns).min(MAX_BACKOFF_NS);
    }
}
