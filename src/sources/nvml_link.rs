//! The way to one board, and back to it after the driver went away.
//!
//! Owns the board and the waits between attempts: 1 s, doubled up to 60 s, until a read succeeds. The board is found by its
//! UUID each time, so that neither a new order of the indices nor a new driver can put another board in its place. Never
//! gives a board that has failed.

use std::ffi::OsString;

use super::nvml_ffi::Board;

const FIRST_WAIT_NS: u64 = 1_000_000_000;
const LONGEST_WAIT_NS: u64 = 60_000_000_000;

/// A board that may be away.
pub struct Link {
    library: OsString,
    uuid: String,
    board: Option<Board>,
    wait_ns: u64,
    /// No attempt before this.
    again_ns: u64,
}

impl Link {
    /// A way to a board that is there.
    pub fn new(library: OsString, uuid: String, board: Board) -> Self {
        Self { library, uuid, board: Some(board), wait_ns: FIRST_WAIT_NS, again_ns: 0 }
    }

    /// The board, looked for anew where it is away and the wait is over. This may take as long as the driver likes.
    pub fn board(&mut self, now_ns: u64) -> Option<&Board> {
        if self.board.is_none() && now_ns >= self.again_ns {
            match Board::find(&self.library, &self.uuid) {
                Ok(board) => self.board = Some(board),
                Err(_) => self.lose(now_ns),
            }
        }
        self.board.as_ref()
    }

    /// The board answered.
    pub fn hold(&mut self) {
        self.wait_ns = FIRST_WAIT_NS;
    }

    /// The board failed: gives NVML back, so that a new driver can be loaded, and waits.
    pub fn lose(&mut self, now_ns: u64) {
        self.board = None;
        self.again_ns = now_ns.saturating_add(self.wait_ns);
        self.wait_ns = (2 * self.wait_ns).min(LONGEST_WAIT_NS);
    }
}
