//! The state directory: created, checked, and locked for one daemon.
//!
//! Only its owner may write to the directory, and its files must be regular files of the daemon's user. Symbolic
//! links, files with several hard links, and files of other users are refused. Invariant: the process with a
//! [`StateDir`] is the only daemon that writes there; the lock lives as long as the value.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The file name of the database; SQLite appends `-wal` for the write-ahead log.
pub(super) const DATABASE_FILE: &str = "ledger.sqlite";

/// Suffixes of the files that SQLite creates next to the database (sqlite.org/tempfiles.html).
const SIDECAR_SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The maximum number of damaged databases that are kept, for manual recovery of their data.
const MAX_QUARANTINED: usize = 2;

const LOCK_FILE: &str = "lock";

/// The file name of the high-water mark: see [`super::high_water_mark`].
pub(super) const MARK_FILE: &str = "ledger.mark";

/// The error of an operation on the state directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateDirError {
    #[error("another wattspand uses the ledger in {}", .0.display())]
    Locked(PathBuf),
    #[error("{} {problem}; {remedy}", path.display())]
    Unsafe { path: PathBuf, problem: &'static str, remedy: &'static str },
    #[error("{} was removed or replaced", .0.display())]
    Removed(PathBuf),
    #[error("cannot {action} {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
}

/// The identities of the open files: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileIds {
    pub database: (u64, u64),
    pub wal: Option<(u64, u64)>,
}

/// The locked state directory.
#[derive(Debug)]
pub(super) struct StateDir {
    /// The canonical path, without symbolic links.
    directory: PathBuf,
    // The kernel releases the lock when this descriptor is closed, flock(2).
    lock: File,
}

impl StateDir {
    /// Creates the directory if it is missing, checks it, and locks it.
    pub fn acquire(directory: &Path) -> Result<Self, StateDirError> {
        let io_error = |action| {
            let path = directory.to_owned();
            move |cause| StateDirError::Io { action, path, cause }
        };
        match DirBuilder::new().mode(0o700).recursive(true).create(directory) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create")(cause));
            }
            _ => {}
        }
        let found = fs::symlink_metadata(directory).map_err(io_error("read the attributes of"))?;
        let unsafe_dir =
            |problem, remedy| Err(StateDirError::Unsafe { path: directory.to_owned(), problem, remedy });
        if found.is_symlink() {
            return unsafe_dir("is a symbolic link", "set state_dir to the real directory");
        }
        if !found.is_dir() {
            return unsafe_dir("is not a directory", "move it away, or choose another state_dir");
        }
        if !is_own(&found) {
            return unsafe_dir("belongs to another user", "choose a state_dir of the daemon's own user");
        }
        const STICKY: u32 = 0o1000;
        if found.mode() & 0o022 != 0 {
            return if found.mode() & STICKY != 0 {
                unsafe_dir("is for the files of all users", "set state_dir to a directory in it")
            } else {
                unsafe_dir("can be written by others", "remove the write permission: chmod go-w")
            };
        }
        let directory = directory.canonicalize().map_err(io_error("read the attributes of"))?;
        let lock = acquire_lock(&directory)?;
        Ok(Self { directory, lock })
    }

    /// Checks that the path still leads to the locked directory: data written to a removed directory is lost.
    pub fn check_unchanged(&self) -> Result<(), StateDirError> {
        let inode = |found: Metadata| (found.dev(), found.ino());
        let current = fs::symlink_metadata(self.directory.join(LOCK_FILE)).map(inode);
        let file = fs::symlink_metadata(self.directory.join(DATABASE_FILE));
        match (current, self.lock.metadata().map(inode)) {
            (Ok(current), Ok(held)) if current == held && file.is_ok() => Ok(()),
            _ => Err(StateDirError::Removed(self.directory.clone())),
        }
    }

    /// Returns the path of the database; creates an empty file if it is missing.
    pub fn database_path(&self) -> Result<PathBuf, StateDirError> {
        let path = self.directory.join(DATABASE_FILE);
        for sidecar in SIDECAR_SUFFIXES.map(|suffix| self.directory.join(format!("{DATABASE_FILE}{suffix}")))
        {
            check_file(&sidecar)?;
        }
        if !check_file(&path)? {
            // SQLite would create it readable by other users. It gives the other files the mode of the database.
            open_file(&path, OFlags::CREATE | OFlags::EXCL)?;
        }
        Ok(path)
    }

    /// Opens the file of the high-water mark; creates it if it is missing.
    pub fn open_mark_file(&self) -> Result<File, StateDirError> {
        let path = self.directory.join(MARK_FILE);
        let exists = check_file(&path)?;
        let file = open_file(&path, OFlags::CREATE)?;
        if !exists {
            // SQLite syncs the directory for its own files only.
            let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
            synced.map_err(|cause| StateDirError::Io {
                action: "sync",
                path: self.directory.clone(),
                cause,
            })?;
        }
        Ok(file)
    }

    /// Opens the write-ahead log, for syncs; `None` while there is none.
    pub fn open_log(&self) -> Result<Option<File>, StateDirError> {
        let path = with_suffix(&self.directory.join(DATABASE_FILE), "-wal");
        if check_file(&path)? { open_file(&path, OFlags::empty()).map(Some) } else { Ok(None) }
    }

    /// The inodes at the paths of the database and its write-ahead log; the first commit creates the log.
    pub fn file_ids(&self) -> Result<FileIds, StateDirError> {
        let path = self.directory.join(DATABASE_FILE);
        let inode = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
        let database = match inode(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Err(StateDirError::Removed(path));
            }
            found => found.map_err(|cause| StateDirError::Io {
                action: "read the attributes of",
                path: path.clone(),
                cause,
            })?,
        };
        Ok(FileIds { database, wal: inode(&with_suffix(&path, "-wal")).ok() })
    }

    /// Renames a damaged database and its write-ahead log; returns the new path. Deletes the oldest quarantined
    /// databases above [`MAX_QUARANTINED`], so that they do not fill a failing disk.
    pub fn quarantine(&self, unix_s: u64) -> Result<PathBuf, StateDirError> {
        const QUARANTINE_PREFIX: &str = "ledger.damaged-";
        let mut quarantined: Vec<PathBuf> = fs::read_dir(&self.directory)
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        quarantined.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(QUARANTINE_PREFIX) && name.bytes().all(|byte| byte != b'w')
        });
        quarantined.sort();
        for old in quarantined.iter().rev().skip(MAX_QUARANTINED - 1) {
            let _ = fs::remove_file(old);
            let _ = fs::remove_file(with_suffix(old, "-wal"));
        }
        let path = self.directory.join(DATABASE_FILE);
        let target = self.directory.join(format!("{QUARANTINE_PREFIX}{unix_s}"));
        fs::rename(&path, &target).map_err(|cause| StateDirError::Io {
            action: "rename",
            path: path.clone(),
            cause,
        })?;
        // The write-ahead log has data of the old database; SQLite must not apply it to a new one.
        let _ = fs::rename(with_suffix(&path, "-wal"), with_suffix(&target, "-wal"));
        for suffix in SIDECAR_SUFFIXES {
            let _ = fs::remove_file(with_suffix(&path, suffix));
        }
        Ok(target)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether a file exists; an error if it is not a regular file of the daemon's user with one link.
fn check_file(path: &Path) -> Result<bool, StateDirError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(cause) => {
            return Err(StateDirError::Io { action: "read the attributes of", path: path.to_owned(), cause });
        }
    };
    let unsafe_file = |problem| {
        let remedy = "move it away; the daemon creates a new one";
        Err(StateDirError::Unsafe { path: path.to_owned(), problem, remedy })
    };
    match () {
        () if found.is_symlink() => unsafe_file("is a symbolic link"),
        () if !found.is_file() => unsafe_file("is not a regular file"),
        () if !is_own(&found) => unsafe_file("belongs to another user"),
        () if found.nlink() > 1 => unsafe_file("has a second hard link"),
        () => Ok(true),
    }
}

fn open_file(path: &Path, extra: OFlags) -> Result<File, StateDirError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
    let opened = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    opened.map(File::from).map_err(|errno| StateDirError::Io {
        action: "open",
        path: path.to_owned(),
        cause: errno.into(),
    })
}

fn acquire_lock(directory: &Path) -> Result<File, StateDirError> {
    let path = directory.join(LOCK_FILE);
    check_file(&path)?;
    let file = open_file(&path, OFlags::CREATE)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateDirError::Locked(directory.to_owned())),
        Err(errno) => Err(StateDirError::Io { action: "lock", path, cause: errno.into() }),
    }
}

fn is_own(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn directory_and_files_are_private_and_locked_by_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let state_dir = StateDir::acquire(&state).unwrap();
        let file = state_dir.database_path().unwrap();
        assert_eq!((mode(&state), mode(&file)), (0o700, 0o600));
        assert!(matches!(StateDir::acquire(&state), Err(StateDirError::Locked(_))));
        drop(state_dir);
        StateDir::acquire(&state).unwrap().database_path().unwrap();
    }

    #[test]
    fn links_foreign_owners_and_writable_directories_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let assert_rejected = |path: &Path, expected: &str| {
            let error = StateDir::acquire(path)
                .and_then(|state_dir| state_dir.database_path())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        };
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        StateDir::acquire(&real).unwrap();
        symlink(&real, &link).unwrap();
        assert_rejected(&link, "symbolic link");
        symlink("/etc/passwd", real.join(DATABASE_FILE)).unwrap();
        assert_rejected(&real, "symbolic link");
        fs::remove_file(real.join(DATABASE_FILE)).unwrap();
        fs::write(real.join("other"), "").unwrap();
        fs::hard_link(real.join("other"), real.join("ledger.sqlite-wal")).unwrap();
        assert_rejected(&real, "second hard link");
        fs::remove_file(real.join("ledger.sqlite-wal")).unwrap();
        fs::set_permissions(&real, PermissionsExt::from_mode(0o770)).unwrap();
        assert_rejected(&real, "written by others; remove the write permission");
        fs::set_permissions(&real, PermissionsExt::from_mode(0o1777)).unwrap();
        assert_rejected(&real, "files of all users; set state_dir to a directory in it");
        fs::write(dir.path().join("file"), "").unwrap();
        assert_rejected(&dir.path().join("file"), "is not a directory");
        if rustix::process::geteuid().is_root() {
            let foreign = dir.path().join("foreign");
            fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
            assert_rejected(&foreign, "another user");
        }
    }

    #[test]
    fn a_removed_directory_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let state_dir = StateDir::acquire(&state).unwrap();
        state_dir.database_path().unwrap();
        state_dir.check_unchanged().unwrap();
        fs::rename(&state, dir.path().join("other")).unwrap();
        assert!(matches!(state_dir.check_unchanged(), Err(StateDirError::Removed(_))));
        StateDir::acquire(&state).unwrap().database_path().unwrap();
        assert!(
            matches!(state_dir.check_unchanged(), Err(StateDirError::Removed(_))),
            "another directory in its place is not it"
        );
    }

    #[test]
    fn the_latest_two_quarantined_databases_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::acquire(&dir.path().join("state")).unwrap();
        for second in 10..15 {
            let file = state_dir.database_path().unwrap();
            fs::write(with_suffix(&file, "-wal"), "").unwrap();
            state_dir.quarantine(second).unwrap();
            assert!(!file.exists() && !with_suffix(&file, "-wal").exists());
        }
        let mut left: Vec<String> = fs::read_dir(dir.path().join("state"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let expected =
            ["ledger.damaged-13", "ledger.damaged-13-wal", "ledger.damaged-14", "ledger.damaged-14-wal"];
        assert_eq!(left, [&expected[..], &["lock"]].concat());
    }
}
