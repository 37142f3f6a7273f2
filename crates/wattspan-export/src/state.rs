//! The state file: what was exported, and the range that is being written. Each change is a new file, fsynced and renamed.
//!
//! Invariant: a file whose checksum is wrong is refused. A changed digit would skip accounts, or export them again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wattspan_system::private_file::{self, write_atomically};

/// A state has some hundred bytes, and names of up to 64 domains.
const MAX_STATE_BYTES: u64 = 1 << 20;

/// The CRC-32 of the other fields. A state with a field of this name cannot be stored.
const CHECKSUM_FIELD: &str = "checksum";

/// A range of numbers, both included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberRange {
    pub first: u64,
    pub last: u64,
    /// The host of its files: under another one a repeated range would stand twice. Absent in states of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
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

impl ExportState {
    /// Checks that the range begins with the account after the exported ones. One that ended before them would move the state
    /// back, so that accounts are exported again; an earlier version's state has no checksum that would show the damage.
    ///
    /// # Errors
    /// The range is another one; the message ends with `remedy`.
    pub fn check(&self, remedy: &str) -> io::Result<()> {
        match &self.range {
            Some(NumberRange { first, last, .. })
                if last < first || self.after.checked_add(1) != Some(*first) =>
            {
                let after = self.after;
                Err(invalid(
                    &format!("its range {first} to {last} does not follow the account {after}"),
                    remedy,
                ))
            }
            _ => Ok(()),
        }
    }
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

    /// Reads the state; that of a new export if there is no file. `remedy` is what to do with a file that is no state.
    pub fn read<T: DeserializeOwned + Default>(&self, remedy: &str) -> io::Result<T> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            // A device has no end.
            Ok(file) => file.take(MAX_STATE_BYTES).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(error) => return Err(error),
        };
        parse(&bytes).map_err(|reason| invalid(&reason, remedy))
    }

    /// Replaces the state; it is on disk when this returns.
    pub fn write(&self, state: &impl Serialize) -> io::Result<()> {
        let mut state = serde_json::to_value(state)?;
        let checksum = checksum(&mut state)?;
        if let Some(fields) = state.as_object_mut() {
            fields.insert(CHECKSUM_FIELD.into(), checksum.into());
        }
        let bytes = serde_json::to_vec(&state)?;
        write_atomically(&self.path, 0o600, |mut file| file.write_all(&bytes))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The error of a state that cannot be used.
fn invalid(reason: &str, remedy: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{reason}; {remedy}"))
}

/// Parses a state. One without a checksum is that of an earlier version.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let invalid = |error: serde_json::Error| format!("it is not a valid state: {error}");
    let mut state: Value = serde_json::from_slice(bytes).map_err(invalid)?;
    let stored = state.as_object_mut().and_then(|fields| fields.remove(CHECKSUM_FIELD));
    if let Some(stored) = stored
        && stored != checksum(&mut state).map_err(invalid)?
    {
        return Err("its checksum is wrong: it was damaged or changed".into());
    }
    serde_json::from_value(state).map_err(invalid)
}

/// The CRC-32 of a state as text. Its fields are sorted, because their order depends on a feature of `serde_json`.
fn checksum(state: &mut Value) -> serde_json::Result<u32> {
    state.sort_all_objects();
    Ok(crc32fast::hash(&serde_json::to_vec(state)?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const REMEDY: &str = "restore it";

    #[test]
    fn a_state_without_an_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let file = StateFile::lock(path).unwrap().unwrap();
        assert!(file.read::<ExportState>(REMEDY).is_err());
    }

    #[test]
    fn a_state_with_one_changed_bit_is_refused_and_one_without_a_checksum_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let file = StateFile::lock(path.clone()).unwrap().unwrap();
        let range = Some(NumberRange { first: 8, last: 9, host: Some("node-7".into()) });
        let state = ExportState { database: Some("0d3c-8a".into()), after: 7, range };
        // As an earlier version wrote it.
        fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(file.read::<ExportState>(REMEDY).unwrap(), state);
        file.write(&state).unwrap();
        let intact = fs::read(&path).unwrap();
        for bit in 0..intact.len() * 8 {
            let mut damaged = intact.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            assert!(file.read::<ExportState>(REMEDY).is_err(), "{}", String::from_utf8_lossy(&damaged));
        }
    }

    #[test]
    fn the_state_reads_back_and_is_locked_against_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let file = StateFile::lock(path.clone()).unwrap().unwrap();
        assert_eq!(file.read::<ExportState>(REMEDY).unwrap(), ExportState::default());
        let range = Some(NumberRange { first: 8, last: 9, host: Some("node-7".into()) });
        let state = ExportState { database: Some("uuid".into()), after: 7, range };
        file.write(&state).unwrap();
        assert_eq!(file.read::<ExportState>(REMEDY).unwrap(), state);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(StateFile::lock(path.clone()).unwrap().is_none());
        drop(file);
        let again = StateFile::lock(path.clone()).unwrap().unwrap();
        fs::write(&path, "{\"after\":1,\"unknown\":2}").unwrap();
        assert!(again.read::<ExportState>(REMEDY).is_err(), "a file of a later version is not overwritten");
    }
}
