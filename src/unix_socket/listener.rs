//! Where a program listens: the socket's path, taken safely.
//!
//! Owns the path and the lock beside it. Refuses whatever it did not make: a path that is a link, another thing than a
//! socket, or somebody else's; a directory that others may write to. Never removes a socket that answers. The new
//! socket gets its owner and mode inside a private directory and is then renamed into place, so that it is never
//! there with the wrong ones.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Which users may open the socket; what they may request there is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The owner only.
    Owner,
    /// And this group.
    Group(u32),
    /// Every user: a file has one group only, so that members of a second group need this.
    Everybody,
}

impl From<Option<u32>> for Reach {
    fn from(group: Option<u32>) -> Self {
        group.map_or(Reach::Owner, Reach::Group)
    }
}

/// Why the path cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Taken {
    /// Another daemon listens there.
    #[error("another process listens on {}; stop it first, or choose another path", path.display())]
    Running {
        /// Where.
        path: PathBuf,
    },
    /// Something is there that is not ours to replace.
    #[error("{} {what}; {mend}", path.display())]
    Unsafe {
        /// What is in the way.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What would help.
        mend: &'static str,
    },
    /// The system refuses.
    #[error("cannot {action} {}: {cause}", path.display())]
    Denied {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// A socket that is listened on; taken away with this value.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    inode: (u64, u64),
    // Held, not read: the lock lives as long as the descriptor.
    _lock: File,
}

/// Listens at `path`, which a group may open only where this process may give it away.
pub fn bind(path: &Path, reach: impl Into<Reach>) -> Result<(UnixListener, Listening), Taken> {
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    prepare(directory)?;
    let lock = lock(path)?;
    check_place(path)?;
    let (listener, socket) = create(path, directory, reach.into())?;
    let inode = (socket.dev(), socket.ino());
    Ok((listener, Listening { path: path.to_owned(), inode, _lock: lock }))
}

impl Listening {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Only our own: somebody may have put another in its place by hand.
        let ours = |found: &Metadata| (found.dev(), found.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the directory if it is not there, and refuses one in which others could replace the socket.
fn prepare(directory: &Path) -> Result<(), Taken> {
    let denied = |action| {
        let path = directory.to_owned();
        move |cause| Taken::Denied { action, path, cause }
    };
    match DirBuilder::new().mode(0o755).create(directory) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(denied("make the directory")(cause));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(denied("look at"))?;
    let refused = |what, mend| Err(Taken::Unsafe { path: directory.to_owned(), what, mend });
    if found.is_symlink() {
        return refused("is a symbolic link", "give the real directory");
    }
    if !is_ours(&found) && found.uid() != 0 {
        return refused("belongs to another user", "choose a path in a directory of root or of your own");
    }
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    if found.mode() & OTHERS_WRITE != 0 && found.mode() & STICKY == 0 {
        return refused("can be written by others", "take that away with chmod go-w, or choose another path");
    }
    Ok(())
}

/// One daemon for each path: the lock stands even while the socket is being replaced.
fn lock(path: &Path) -> Result<File, Taken> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let place = PathBuf::from(name);
    let denied = |cause: io::Error| Taken::Denied { action: "open the lock", path: place.clone(), cause };
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(&place, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| denied(errno.into()))?;
    let file = File::from(file);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Taken::Running { path: path.to_owned() }),
        Err(errno) => Err(denied(errno.into())),
    }
}

/// Refuses a path with something at it that is not a dead socket of ours.
fn check_place(path: &Path) -> Result<(), Taken> {
    let refused = |what, mend| Err(Taken::Unsafe { path: path.to_owned(), what, mend });
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(Taken::Denied { action: "look at", path: path.to_owned(), cause }),
    };
    if found.is_symlink() {
        return refused("is a symbolic link", "remove it, or choose another path");
    }
    if !found.file_type().is_socket() {
        return refused("is not a socket", "remove it, or choose another path");
    }
    if !is_ours(&found) {
        return refused("is a socket of another user", "find out whose, or choose another path");
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Taken::Running { path: path.to_owned() }),
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // Somebody's queue is full, so somebody is there.
        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
            Err(Taken::Running { path: path.to_owned() })
        }
        Err(cause) => Err(Taken::Denied { action: "ask who listens on", path: path.to_owned(), cause }),
    }
}

fn create(path: &Path, directory: &Path, reach: Reach) -> Result<(UnixListener, Metadata), Taken> {
    let private = directory.join(format!(".wattspan-{}", std::process::id()));
    let denied = |action| move |cause| Taken::Denied { action, path: path.to_owned(), cause };
    // Left behind by a process of the same number that was killed here.
    let _ = fs::remove_file(private.join("s"));
    let _ = fs::remove_dir(&private);
    DirBuilder::new().mode(0o700).create(&private).map_err(denied("make a directory beside"))?;
    let made = make(&private.join("s"), path, reach);
    let _ = fs::remove_file(private.join("s"));
    let _ = fs::remove_dir(&private);
    made.map_err(denied("listen on"))
}

fn make(private: &Path, path: &Path, reach: Reach) -> io::Result<(UnixListener, Metadata)> {
    let listener = UnixListener::bind(private)?;
    let mode = match reach {
        Reach::Everybody => 0o666,
        Reach::Group(group) if chown(private, None, Some(group)).is_ok() => 0o660,
        Reach::Group(_) | Reach::Owner => 0o600,
    };
    fs::set_permissions(private, Permissions::from_mode(mode))?;
    let metadata = fs::symlink_metadata(private)?;
    fs::rename(private, path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, metadata))
}

fn is_ours(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("wattspan.sock");
        (dir, path)
    }

    fn what(taken: Taken) -> &'static str {
        match taken {
            Taken::Unsafe { what, .. } => what,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_socket_is_there_with_its_mode_and_goes_with_its_owner() {
        let (_dir, path) = place();
        let (_listener, listening) = bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(listening);
        assert!(!path.exists());
    }

    #[test]
    fn a_group_that_this_process_may_give_it_to_may_open_the_socket() {
        let (_dir, path) = place();
        let own = rustix::process::getegid().as_raw();
        let bound = bind(&path, Some(own)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.gid()), (0o660, own));
        drop(bound);
        let _bound = bind(&path, Reach::Everybody).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
    }

    #[test]
    fn a_second_one_is_refused_and_a_dead_one_replaced() {
        let (_dir, path) = place();
        let first = bind(&path, None).unwrap();
        assert!(matches!(bind(&path, None).unwrap_err(), Taken::Running { .. }));
        drop(first);
        // As after kill -9: the socket is still there, its listener and its lock are not.
        drop(UnixListener::bind(&path).unwrap());
        assert!(fs::symlink_metadata(&path).is_ok());
        let _second = bind(&path, None).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_live_socket_without_a_lock_is_never_taken_away() {
        let (_dir, path) = place();
        fs::create_dir(path.parent().unwrap()).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path, None).unwrap_err(), Taken::Running { .. }));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_link_or_a_file_in_its_place_is_refused_and_left_alone() {
        let (dir, path) = place();
        fs::create_dir(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(what(bind(&path, None).unwrap_err()), "is a symbolic link");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(what(bind(&path, None).unwrap_err()), "is not a socket");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused_unless_sticky() {
        let (_dir, path) = place();
        let directory = path.parent().unwrap();
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(what(bind(&path, None).unwrap_err()), "can be written by others");
        fs::set_permissions(directory, Permissions::from_mode(0o1777)).unwrap();
        assert!(bind(&path, None).is_ok());
    }

    #[test]
    fn a_linked_directory_is_refused() {
        let (dir, path) = place();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), path.parent().unwrap()).unwrap();
        assert_eq!(what(bind(&path, None).unwrap_err()), "is a symbolic link");
    }
}
