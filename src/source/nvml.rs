//! NVIDIA GPUs through NVML, NVIDIA's own library: each board by itself, by its UUID.
//!
//! Owns the search at the start. Any call into the driver may hang for minutes, so all of them are made on threads of
//! their own, one for each board; a search that takes too long is left behind, and what it had found by then is what there
//! is. The library is loaded at run time, and its absence is nothing but a line in the list. Needs no privilege but the
//! right to open /dev/nvidia*. While boards are open the driver cannot be unloaded: NVML keeps its device files open.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;

use super::nvml_channel::Part;
use super::nvml_ffi::load;
use super::nvml_gpu::{self, Found, Identity};
use super::nvml_refusal::{refused_board, refused_library};
use super::{Inventory, Settings};

/// The mechanism's name.
pub const NAME: &str = "nvml";

/// What the loader finds where no library is named.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How long the boards may take to answer at the start. A driver that keeps nothing warm needs a second for each board.
const PATIENCE: Duration = Duration::from_secs(10);

/// A search under way.
pub struct Search {
    told: Receiver<Told>,
    until: Instant,
    patience: Duration,
}

/// What the threads of a search tell.
enum Told {
    /// There is no NVML here.
    Refused(String),
    /// The board with this number exists, and is being looked at.
    Exists(u32),
    /// It was looked at.
    Board(u32, Box<Result<Found, String>>),
}

/// Begins to look for boards, on other threads.
pub fn search(settings: &Settings, clock: &Clock) -> Search {
    search_for(settings, clock, PATIENCE)
}

/// The same with a patience of one's own.
pub fn search_for(settings: &Settings, clock: &Clock, patience: Duration) -> Search {
    let library = settings.nvml_library.clone().map_or_else(|| LIBRARY.into(), OsString::from);
    let (tell, told) = channel();
    let (teller, clock) = (tell.clone(), clock.clone());
    let look = move || {
        if let Err(reason) = list(&library, &clock, &teller) {
            // Nobody listens any more where the patience was over.
            let _ = teller.send(Told::Refused(reason));
        }
    };
    if let Err(error) = thread::Builder::new().name("nvml-search".into()).spawn(look) {
        let _ = tell.send(Told::Refused(format!("the system gives no thread: {error}")));
    }
    Search { told, until: Instant::now() + patience, patience }
}

/// Lists the boards and has each one looked at by a thread of its own.
fn list(library: &OsString, clock: &Clock, tell: &Sender<Told>) -> Result<(), String> {
    let nvml = load(library).map_err(|error| refused_library(&error, library))?;
    let count = nvml.device_count().map_err(|error| refused_library(&error, library))?;
    if count == 0 {
        return Err(
            "the driver is there, but shows no GPU: the container or the cgroup may not let it".into()
        );
    }
    for number in 0..count {
        let _ = tell.send(Told::Exists(number));
        let uuid = nvml.device_by_index(number).and_then(|device| device.uuid());
        let teller = tell.clone();
        match uuid.map_err(|error| refused_board(&error)) {
            Err(reason) => drop(teller.send(Told::Board(number, Box::new(Err(reason))))),
            Ok(uuid) => {
                let identity = Identity { number, uuid, boards: count as usize };
                let (library, clock) = (library.clone(), clock.clone());
                let look = move || {
                    let found = nvml_gpu::open(NAME, library, &identity, &clock);
                    let _ = teller.send(Told::Board(number, Box::new(found)));
                };
                let begun = thread::Builder::new().name(format!("nvml-{number}")).spawn(look);
                begun.map_err(|error| format!("the system gives no thread: {error}"))?;
            }
        }
    }
    Ok(())
}

impl Search {
    /// Waits for what there is, as long as the patience lasts.
    pub fn finish(self) -> Inventory {
        let mut inventory = Inventory::default();
        let mut boards = BTreeMap::new();
        let out_of_time = loop {
            match self.told.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
                Ok(Told::Refused(reason)) => inventory.miss(NAME, reason),
                Ok(Told::Exists(number)) => drop(boards.insert(number, None)),
                Ok(Told::Board(number, found)) => drop(boards.insert(number, Some(*found))),
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) => break true,
            }
        };
        let patience_s = self.patience.as_secs_f64();
        if out_of_time && boards.is_empty() {
            inventory.miss(NAME, format!("the driver did not answer within {patience_s} s; {SEE_THE_LOG}"));
        }
        for (number, found) in boards {
            let gpu = Part::Gpu.name(number);
            match found {
                Some(Ok(found)) => {
                    found.notes.into_iter().for_each(|note| inventory.miss(NAME, note));
                    inventory.opened.push(found.opened);
                }
                Some(Err(reason)) => inventory.miss(NAME, format!("{gpu}: {reason}")),
                None => {
                    inventory
                        .miss(NAME, format!("{gpu} did not answer within {patience_s} s; {SEE_THE_LOG}"));
                }
            }
        }
        inventory
    }
}

const SEE_THE_LOG: &str = "see the kernel's log for `NVRM`, and restart the meter when the driver answers";
