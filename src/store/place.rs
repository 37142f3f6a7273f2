//! The state directory: made, judged, and locked for one daemon.
//!
//! Owns what may be there: a directory that only its owner can write, a lock, and regular files of our own. Refuses a
//! link, somebody else's directory or file, a file with a second name. Invariant: whoever holds a [`Place`] is the only
//! daemon that writes there, for the lock lives as long as the value.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The database's name; SQLite adds `-wal` for what is not yet in it.
pub(super) const FILE: &str = "ledger.sqlite";

/// Files that SQLite puts beside the database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// How many damaged databases are kept beside the good one, for whoever wants to save something from them.
const KEPT_ASIDE: usize = 2;

const LOCK: &str = "lock";

/// The high-water mark's name: see [`super::mark`].
pub(super) const MARK: &str = "ledger.mark";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("another wattspand keeps its ledger in {}", .0.display())]
    Locked(PathBuf),
    #[error("{} {what}; {mend}", path.display())]
    Unsafe { path: PathBuf, what: &'static str, mend: &'static str },
    #[error("{} was taken away", .0.display())]
    Gone(PathBuf),
    #[error("cannot {action} {}: {cause}", path.display())]
    Denied { action: &'static str, path: PathBuf, cause: io::Error },
}

/// Which files are open, by device and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub database: (u64, u64),
    pub log: Option<(u64, u64)>,
}

/// The directory, locked.
#[derive(Debug)]
pub(super) struct Place {
    /// Without links in it.
    directory: PathBuf,
    // The lock lives as long as the descriptor.
    lock: File,
}

impl Place {
    /// Makes the directory if it is not there, and locks it.
    pub fn take(directory: &Path) -> Result<Self, Unfit> {
        let denied = |action| {
            let path = directory.to_owned();
            move |cause| Unfit::Denied { action, path, cause }
        };
        match DirBuilder::new().mode(0o700).recursive(true).create(directory) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(denied("make")(cause)),
            _ => {}
        }
        let found = fs::symlink_metadata(directory).map_err(denied("look at"))?;
        let refused = |what, mend| Err(Unfit::Unsafe { path: directory.to_owned(), what, mend });
        if found.is_symlink() {
            return refused("is a symbolic link", "give the real directory as state_dir");
        }
        if !found.is_dir() {
            return refused("is no directory", "move it away, or choose another state_dir");
        }
        if !is_ours(&found) {
            return refused("belongs to another user", "choose a state_dir of the daemon's own user");
        }
        if found.mode() & 0o022 != 0 {
            return refused("can be written by others", "take that away with chmod go-w");
        }
        let directory = directory.canonicalize().map_err(denied("look at"))?;
        let lock = lock(&directory)?;
        Ok(Self { directory, lock })
    }

    /// Whether the directory is still the one that was locked: what is written into a removed one helps nobody.
    pub fn check(&self) -> Result<(), Unfit> {
        let inode = |found: Metadata| (found.dev(), found.ino());
        let there = fs::symlink_metadata(self.directory.join(LOCK)).map(inode);
        let file = fs::symlink_metadata(self.directory.join(FILE));
        match (there, self.lock.metadata().map(inode)) {
            (Ok(there), Ok(held)) if there == held && file.is_ok() => Ok(()),
            _ => Err(Unfit::Gone(self.directory.clone())),
        }
    }

    /// The database's path, with an empty file there if there was none.
    pub fn file(&self) -> Result<PathBuf, Unfit> {
        let path = self.directory.join(FILE);
        for companion in COMPANIONS.map(|ending| self.directory.join(format!("{FILE}{ending}"))) {
            judge(&companion)?;
        }
        if !judge(&path)? {
            // Before SQLite does, which would let others read it; its companions take their mode from it.
            open(&path, OFlags::CREATE | OFlags::EXCL)?;
        }
        Ok(path)
    }

    /// The file of the high-water mark, made if it is not there.
    pub fn mark(&self) -> Result<File, Unfit> {
        let path = self.directory.join(MARK);
        judge(&path)?;
        open(&path, OFlags::CREATE)
    }

    /// Which files the database and its log are, whatever their paths; the log is made with the first commit.
    pub fn identity(&self) -> Result<Identity, Unfit> {
        let path = self.directory.join(FILE);
        let inode = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
        let database = match inode(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Err(Unfit::Gone(path)),
            found => found.map_err(|cause| Unfit::Denied { action: "look at", path: path.clone(), cause })?,
        };
        Ok(Identity { database, log: inode(&with_ending(&path, "-wal")).ok() })
    }

    /// Moves a damaged database out of the way, with what belongs to it; gives its new name. Of those moved before, the
    /// oldest go, so that a failing disk does not fill up with them.
    pub fn put_aside(&self, unix_s: u64) -> Result<PathBuf, Unfit> {
        const ASIDE: &str = "ledger.damaged-";
        let mut before: Vec<PathBuf> = fs::read_dir(&self.directory)
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        before.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(ASIDE) && name.bytes().all(|byte| byte != b'w')
        });
        before.sort();
        for old in before.iter().rev().skip(KEPT_ASIDE - 1) {
            let _ = fs::remove_file(old);
            let _ = fs::remove_file(with_ending(old, "-wal"));
        }
        let path = self.directory.join(FILE);
        let aside = self.directory.join(format!("{ASIDE}{unix_s}"));
        fs::rename(&path, &aside).map_err(|cause| Unfit::Denied {
            action: "move away",
            path: path.clone(),
            cause,
        })?;
        // What SQLite had not yet put into the database belongs to it; a new one must not find it.
        let _ = fs::rename(with_ending(&path, "-wal"), with_ending(&aside, "-wal"));
        for companion in COMPANIONS {
            let _ = fs::remove_file(with_ending(&path, companion));
        }
        Ok(aside)
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Whether a file is there; refuses one that is not ours alone.
fn judge(path: &Path) -> Result<bool, Unfit> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(cause) => return Err(Unfit::Denied { action: "look at", path: path.to_owned(), cause }),
    };
    let refused = |what| {
        let mend = "move it away: the daemon makes its own";
        Err(Unfit::Unsafe { path: path.to_owned(), what, mend })
    };
    match () {
        () if found.is_symlink() => refused("is a symbolic link"),
        () if !found.is_file() => refused("is no regular file"),
        () if !is_ours(&found) => refused("belongs to another user"),
        () if found.nlink() > 1 => refused("has a second name (a hard link)"),
        () => Ok(true),
    }
}

fn open(path: &Path, more: OFlags) -> Result<File, Unfit> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
    let opened = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    opened.map(File::from).map_err(|errno| Unfit::Denied {
        action: "open",
        path: path.to_owned(),
        cause: errno.into(),
    })
}

fn lock(directory: &Path) -> Result<File, Unfit> {
    let path = directory.join(LOCK);
    judge(&path)?;
    let file = open(&path, OFlags::CREATE)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Unfit::Locked(directory.to_owned())),
        Err(errno) => Err(Unfit::Denied { action: "lock", path, cause: errno.into() }),
    }
}

fn is_ours(found: &Metadata) -> bool {
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
    fn directory_and_files_are_the_owners_alone_and_one_daemon_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let place = Place::take(&state).unwrap();
        let file = place.file().unwrap();
        assert_eq!((mode(&state), mode(&file)), (0o700, 0o600));
        assert!(matches!(Place::take(&state), Err(Unfit::Locked(_))));
        drop(place);
        Place::take(&state).unwrap().file().unwrap();
    }

    #[test]
    fn links_others_and_what_others_can_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path, told: &str| {
            let wrong = Place::take(path).and_then(|place| place.file()).unwrap_err().to_string();
            assert!(wrong.contains(told), "{wrong}");
        };
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        Place::take(&real).unwrap();
        symlink(&real, &link).unwrap();
        refused(&link, "symbolic link");
        symlink("/etc/passwd", real.join(FILE)).unwrap();
        refused(&real, "symbolic link");
        fs::remove_file(real.join(FILE)).unwrap();
        fs::write(real.join("other"), "").unwrap();
        fs::hard_link(real.join("other"), real.join("ledger.sqlite-wal")).unwrap();
        refused(&real, "second name");
        fs::remove_file(real.join("ledger.sqlite-wal")).unwrap();
        fs::set_permissions(&real, PermissionsExt::from_mode(0o770)).unwrap();
        refused(&real, "written by others");
        fs::write(dir.path().join("file"), "").unwrap();
        refused(&dir.path().join("file"), "is no directory");
        if rustix::process::geteuid().is_root() {
            let foreign = dir.path().join("foreign");
            fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
            refused(&foreign, "another user");
        }
    }

    #[test]
    fn a_directory_that_was_taken_away_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let place = Place::take(&state).unwrap();
        place.file().unwrap();
        place.check().unwrap();
        fs::rename(&state, dir.path().join("other")).unwrap();
        assert!(matches!(place.check(), Err(Unfit::Gone(_))));
        Place::take(&state).unwrap().file().unwrap();
        assert!(matches!(place.check(), Err(Unfit::Gone(_))), "another directory in its place is not it");
    }

    #[test]
    fn of_damaged_databases_the_latest_two_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(&dir.path().join("state")).unwrap();
        for second in 10..15 {
            let file = place.file().unwrap();
            fs::write(with_ending(&file, "-wal"), "").unwrap();
            place.put_aside(second).unwrap();
            assert!(!file.exists() && !with_ending(&file, "-wal").exists());
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
