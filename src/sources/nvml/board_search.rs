//! The search for NVIDIA boards, at the start and when the driver has new ones: one thread for each board.
//!
//! A call into the driver may hang for minutes, so each board is reported when its own thread has opened it. Invariant: a
//! board keeps the number in its domains' names, whatever its index is later.

use std::ffi::OsString;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::clock::Clock;
use crate::sources::source_settings::NVML as NAME;
use crate::sources::{Inventory, SourceSettings};

use super::board_ffi::{DEFAULT_LIBRARY, load_library};
use super::board_source::{self, BoardIdentity, OpenedBoard};
use super::error_reason::{board_error_reason, library_error_reason};
use super::known_boards::{KnownBoards, SearchResult};
use super::scope_meter::PowerScope;

/// A result of the search.
enum SearchEvent {
    /// NVML is unavailable, with the reason.
    Unavailable(String),
    /// The board with this number is open, or failed to open.
    Board(u32, Box<Result<OpenedBoard, String>>),
}

impl KnownBoards {
    /// The number of a new board: its index, unless another board has it.
    fn claim_number(&mut self, index: u32) -> u32 {
        let number = (index..).find(|number| !self.numbers.contains(number)).unwrap_or(index);
        self.numbers.insert(number);
        number
    }
}

/// Searches for boards and passes each new one to `show` when it is open. Returns after the last one; may block for ever.
pub fn open_each(
    settings: &SourceSettings,
    known: KnownBoards,
    clock: &Clock,
    mut show: impl FnMut(Inventory),
) -> SearchResult {
    let library = settings.nvml_library.clone().map_or_else(|| DEFAULT_LIBRARY.into(), OsString::from);
    let (sender, events) = channel();
    let (is_initialised, in_driver) = (!known.uuids.is_empty(), known.listed);
    let (mut measured, count) = list_boards(&library, known, clock, &sender).unwrap_or_else(|reason| {
        let _ = sender.send(SearchEvent::Unavailable(reason));
        (0, 0)
    });
    drop(sender);
    for event in events {
        let mut found = Inventory::default();
        match event {
            SearchEvent::Unavailable(reason) => found.add_absent(NAME, reason),
            SearchEvent::Board(number, board) => match *board {
                Ok(board) => {
                    measured += 1;
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
    let is_list_outdated = is_initialised && measured >= count && count > 0 && count < in_driver;
    if is_list_outdated {
        let mut found = Inventory::default();
        found.add_absent(NAME, outdated_list_reason(count, in_driver));
        show(found);
    }
    SearchResult { measured, is_list_outdated }
}

fn outdated_list_reason(count: usize, in_driver: usize) -> String {
    format!(
        "the driver has {in_driver} boards and NVML lists {count}: it lists them only when it is initialised, and the measured \
         boards keep it initialised; restart the daemon to measure the others, and if they are missing then, allow access to \
         their /dev/nvidia* files"
    )
}

/// Lists the boards and starts one thread to open each new one. Returns how many are known, and the number of all.
fn list_boards(
    library: &OsString,
    mut known: KnownBoards,
    clock: &Clock,
    sender: &Sender<SearchEvent>,
) -> Result<(usize, usize), String> {
    let nvml = load_library(library).map_err(|error| library_error_reason(&error, library))?;
    let count = nvml.device_count().map_err(|error| library_error_reason(&error, library))?;
    if count == 0 {
        return Err(
            "the driver is loaded but lists no GPU: the container or the cgroup may deny access to it".into(),
        );
    }
    let mut listed_known = 0;
    for index in 0..count {
        let uuid = nvml.device_by_index(index).and_then(|device| device.uuid());
        let board_sender = sender.clone();
        match uuid.map_err(|error| board_error_reason(&error)) {
            Err(reason) => drop(board_sender.send(SearchEvent::Board(index, Box::new(Err(reason))))),
            Ok(uuid) if known.uuids.contains(&uuid) => listed_known += 1,
            Ok(uuid) => {
                let number = known.claim_number(index);
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
    Ok((listed_known, count as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_board_has_its_index_as_number_unless_another_has_it() {
        let mut known = KnownBoards { numbers: [0, 2].into(), ..KnownBoards::default() };
        let numbers: Vec<u32> = [1, 0, 2, 5].into_iter().map(|index| known.claim_number(index)).collect();
        assert_eq!(numbers, [1, 3, 4, 5]);
    }
}
