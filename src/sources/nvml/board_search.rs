//! The search for NVIDIA boards at the start: one thread for each board.
//!
//! A call into the driver may hang for minutes, so each board is reported when its own thread has opened it.

use std::ffi::OsString;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::clock::Clock;
use crate::sources::source_settings::NVML as NAME;
use crate::sources::{Inventory, SourceSettings};

use super::board_ffi::{DEFAULT_LIBRARY, load_library};
use super::board_source::{self, BoardIdentity, OpenedBoard};
use super::error_reason::{board_error_reason, library_error_reason};
use super::scope_meter::PowerScope;

/// A result of the search.
enum SearchEvent {
    /// NVML is unavailable, with the reason.
    Unavailable(String),
    /// The board with this number is open, or failed to open.
    Board(u32, Box<Result<OpenedBoard, String>>),
}

/// Searches for boards and passes each one to `show` when it is open. Returns after the last one; may block for ever.
pub fn open_each(settings: &SourceSettings, clock: &Clock, mut show: impl FnMut(Inventory)) {
    let library = settings.nvml_library.clone().map_or_else(|| DEFAULT_LIBRARY.into(), OsString::from);
    let (sender, events) = channel();
    if let Err(reason) = list_boards(&library, clock, &sender) {
        let _ = sender.send(SearchEvent::Unavailable(reason));
    }
    drop(sender);
    for event in events {
        let mut found = Inventory::default();
        match event {
            SearchEvent::Unavailable(reason) => found.add_absent(NAME, reason),
            SearchEvent::Board(number, board) => match *board {
                Ok(board) => {
                    board.notes.into_iter().for_each(|note| found.add_absent(NAME, note));
                    found.opened.push(board.opened);
                }
                Err(reason) => {
                    found.add_absent(NAME, format!("{}: {reason}", PowerScope::Gpu.domain_name(number)))
                }
            },
        }
        show(found);
    }
}

/// Lists the boards and starts one thread to open each.
fn list_boards(library: &OsString, clock: &Clock, sender: &Sender<SearchEvent>) -> Result<(), String> {
    let nvml = load_library(library).map_err(|error| library_error_reason(&error, library))?;
    let count = nvml.device_count().map_err(|error| library_error_reason(&error, library))?;
    if count == 0 {
        return Err(
            "the driver is loaded but lists no GPU: the container or the cgroup may deny access to it".into(),
        );
    }
    for number in 0..count {
        let uuid = nvml.device_by_index(number).and_then(|device| device.uuid());
        let board_sender = sender.clone();
        match uuid.map_err(|error| board_error_reason(&error)) {
            Err(reason) => drop(board_sender.send(SearchEvent::Board(number, Box::new(Err(reason))))),
            Ok(uuid) => {
                let identity = BoardIdentity { number, uuid, boards: count as usize };
                let (library, clock) = (library.clone(), clock.clone());
                let open_board = move || {
                    let found = board_source::open(NAME, library, &identity, &clock);
                    let _ = board_sender.send(SearchEvent::Board(number, Box::new(found)));
                };
                let spawned = thread::Builder::new().name(format!("nvml-{number}")).spawn(open_board);
                spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
            }
        }
    }
    Ok(())
}
