//! The state file: what was exported, and the range that is being written. Each change is a new file, fsynced and renamed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wattspan_system::private_file::{self, write_atomically};

/// A state has some hundred bytes, and names of up to 64 domains.
const MAX_STATE_BYTES: u64 = 1 << 20;

/// A range of numbers, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberRange {
    pub first: u64,
    pub last: u64,
}

/// What is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportState {
    /// The UUID of the database; absent before the first export.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
    /// All accounts up to this number are exported.
    pub after: u64,
    /// The range whose files are being written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub range: Option<NumberRange>,
}

/// The locked state file of one export.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    // The kernel releases the lock when this descriptor is closed, flock(2).
    _lock: File,
}

impl StateFile {
    /// Locks the state file; `None`: another process has it.
    pub fn lock(path: PathBuf) -> io::Result<Option<Self>> {
        let mut lock_path = path.clone().into_os_string();
        lock_path.push(".lock");
        let lock = private_file::append(Path::new(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the state; that of a new export if there is no file.
    pub fn read<T: DeserializeOwned + Default>(&self) -> io::Result<T> {
        match File::open(&self.path) {
            // A device has no end.
            Ok(file) => Ok(serde_json::from_reader(file.take(MAX_STATE_BYTES))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the state; it is on disk when this returns.
    pub fn write(&self, state: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(state)?;
        write_atomically(&self.path, 0o600, |mut file| file.write_all(&bytes))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_state_without_an_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let file = StateFile::lock(path).unwrap().unwrap();
        assert!(file.read::<ExportState>().is_err());
    }

    #[test]
    fn the_state_reads_back_and_is_locked_against_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let file = StateFile::lock(path.clone()).unwrap().unwrap();
        assert_eq!(file.read::<ExportState>().unwrap(), ExportState::default());
        let range = Some(NumberRange { first: 8, last: 9 });
        let state = ExportState { database: Some("uuid".into()), after: 7, range };
        file.write(&state).unwrap();
        assert_eq!(file.read::<ExportState>().unwrap(), state);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(StateFile::lock(path.clone()).unwrap().is_none());
        drop(file);
        let again = StateFile::lock(path.clone()).unwrap().unwrap();
        fs::write(&path, "{\"after\":1,\"unknown\":2}").unwrap();
        assert!(again.read::<ExportState>().is_err(), "a file of a later version is not overwritten");
    }
}
