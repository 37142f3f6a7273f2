//! Binding of a Unix socket to a path, safely.
//!
//! Owns the path and the lock file next to it. Refuses a path that is a symbolic link, is not a socket or
//! belongs to another user, and a directory that others can write to. A socket with a live listener is never
//! removed. The new socket gets its owner and mode inside a private directory and is renamed into place, so
//! that it never exists with other permissions.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Which users may open the socket. Their access is decided by `service::access`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketPermissions {
    Owner,
    /// The owner and this group.
    Group(u32),
    /// Every user. A file has only one group, so members of a second group need this.
    AllUsers,
}

impl From<Option<u32>> for SocketPermissions {
    fn from(group: Option<u32>) -> Self {
        group.map_or(SocketPermissions::Owner, SocketPermissions::Group)
    }
}

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the path.
    #[error("another process listens on {}; stop it first, or use another path", path.display())]
    AddrInUse { path: PathBuf },
    /// The path or its directory is not safe.
    #[error("{} {reason}; {remedy}", path.display())]
    UnsafePath { path: PathBuf, reason: &'static str, remedy: &'static str },
    /// A system call failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
}

/// A bound socket file. Dropping this value removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    // Held, not read: the lock lives as long as the descriptor.
    _lock: File,
}

/// Listens on `path`. If the group cannot be set, only the owner can open the socket.
pub fn bind(
    path: &Path,
    permissions: impl Into<SocketPermissions>,
) -> Result<(UnixListener, SocketFile), ListenError> {
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    prepare_directory(directory)?;
    let lock = lock(path)?;
    check_path(path)?;
    let (listener, socket) = create_socket(path, directory, permissions.into())?;
    let inode = (socket.dev(), socket.ino());
    Ok((listener, SocketFile { path: path.to_owned(), inode, _lock: lock }))
}

impl SocketFile {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may have been replaced, so the inode is compared.
        let ours = |found: &Metadata| (found.dev(), found.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Creates the directory if it does not exist. Refuses one in which other users could replace the socket.
fn prepare_directory(directory: &Path) -> Result<(), ListenError> {
    let io_error = |action| {
        let path = directory.to_owned();
        move |cause| ListenError::Io { action, path, cause }
    };
    match DirBuilder::new().mode(0o755).create(directory) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("create the directory")(cause));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(io_error("inspect"))?;
    let unsafe_path =
        |reason, remedy| Err(ListenError::UnsafePath { path: directory.to_owned(), reason, remedy });
    if found.is_symlink() {
        return unsafe_path("is a symbolic link", "use the real directory");
    }
    if !is_owned_by_self(&found) && found.uid() != 0 {
        return unsafe_path("belongs to another user", "use a directory that you or root own");
    }
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    if found.mode() & OTHERS_WRITE != 0 && found.mode() & STICKY == 0 {
        return unsafe_path("can be written by others", "run chmod go-w on it, or use another path");
    }
    Ok(())
}

/// Locks the path, also while the socket file is replaced, so that only one process binds it.
fn lock(path: &Path) -> Result<File, ListenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let io_error =
        |cause: io::Error| ListenError::Io { action: "open the lock file", path: lock_path.clone(), cause };
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&lock_path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| io_error(errno.into()))?;
    let file = File::from(file);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ListenError::AddrInUse { path: path.to_owned() }),
        Err(errno) => Err(io_error(errno.into())),
    }
}

/// Refuses a path that holds anything but a stale socket of this user.
fn check_path(path: &Path) -> Result<(), ListenError> {
    let unsafe_path = |reason, remedy| Err(ListenError::UnsafePath { path: path.to_owned(), reason, remedy });
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(ListenError::Io { action: "inspect", path: path.to_owned(), cause }),
    };
    if found.is_symlink() {
        return unsafe_path("is a symbolic link", "remove it, or use another path");
    }
    if !found.file_type().is_socket() {
        return unsafe_path("is not a socket", "remove it, or use another path");
    }
    if !is_owned_by_self(&found) {
        return unsafe_path("is a socket of another user", "use another path");
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::AddrInUse { path: path.to_owned() }),
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // The queue of the listener is full, so it is alive.
        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
            Err(ListenError::AddrInUse { path: path.to_owned() })
        }
        Err(cause) => Err(ListenError::Io { action: "connect to", path: path.to_owned(), cause }),
    }
}

fn create_socket(
    path: &Path,
    directory: &Path,
    permissions: SocketPermissions,
) -> Result<(UnixListener, Metadata), ListenError> {
    let temporary = directory.join(format!(".wattspan-{}", std::process::id()));
    let io_error = |action| move |cause| ListenError::Io { action, path: path.to_owned(), cause };
    // Left by a killed process with the same id.
    let _ = fs::remove_file(temporary.join("s"));
    let _ = fs::remove_dir(&temporary);
    DirBuilder::new().mode(0o700).create(&temporary).map_err(io_error("create a directory next to"))?;
    let result = bind_and_rename(&temporary.join("s"), path, permissions);
    let _ = fs::remove_file(temporary.join("s"));
    let _ = fs::remove_dir(&temporary);
    result.map_err(io_error("listen on"))
}

fn bind_and_rename(
    temporary: &Path,
    path: &Path,
    permissions: SocketPermissions,
) -> io::Result<(UnixListener, Metadata)> {
    let listener = UnixListener::bind(temporary)?;
    let mode = match permissions {
        SocketPermissions::AllUsers => 0o666,
        SocketPermissions::Group(group) if chown(temporary, None, Some(group)).is_ok() => 0o660,
        SocketPermissions::Group(_) | SocketPermissions::Owner => 0o600,
    };
    fs::set_permissions(temporary, Permissions::from_mode(mode))?;
    let metadata = fs::symlink_metadata(temporary)?;
    fs::rename(temporary, path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, metadata))
}

fn is_owned_by_self(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp_path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("wattspan.sock");
        (dir, path)
    }

    fn unsafe_path_reason(error: ListenError) -> &'static str {
        match error {
            ListenError::UnsafePath { reason, .. } => reason,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_socket_file_has_its_mode_and_is_removed_on_drop() {
        let (_dir, path) = temp_path();
        let (_listener, socket_file) = bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket_file);
        assert!(!path.exists());
    }

    #[test]
    fn the_socket_file_gets_its_group_and_mode() {
        let (_dir, path) = temp_path();
        let own = rustix::process::getegid().as_raw();
        let bound = bind(&path, Some(own)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.gid()), (0o660, own));
        drop(bound);
        let _bound = bind(&path, SocketPermissions::AllUsers).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
    }

    #[test]
    fn a_second_listener_is_rejected_and_a_stale_socket_is_replaced() {
        let (_dir, path) = temp_path();
        let first = bind(&path, None).unwrap();
        assert!(matches!(bind(&path, None).unwrap_err(), ListenError::AddrInUse { .. }));
        drop(first);
        // As after kill -9: the socket file exists, without a listener and without a lock.
        drop(UnixListener::bind(&path).unwrap());
        assert!(fs::symlink_metadata(&path).is_ok());
        let _second = bind(&path, None).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_live_socket_without_a_lock_is_never_replaced() {
        let (_dir, path) = temp_path();
        fs::create_dir(path.parent().unwrap()).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path, None).unwrap_err(), ListenError::AddrInUse { .. }));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_symlink_or_regular_file_is_rejected_and_kept() {
        let (dir, path) = temp_path();
        fs::create_dir(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(unsafe_path_reason(bind(&path, None).unwrap_err()), "is a symbolic link");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(unsafe_path_reason(bind(&path, None).unwrap_err()), "is not a socket");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_directory_writable_by_others_is_rejected_unless_sticky() {
        let (_dir, path) = temp_path();
        let directory = path.parent().unwrap();
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(unsafe_path_reason(bind(&path, None).unwrap_err()), "can be written by others");
        fs::set_permissions(directory, Permissions::from_mode(0o1777)).unwrap();
        assert!(bind(&path, None).is_ok());
    }

    #[test]
    fn a_symlinked_directory_is_rejected() {
        let (dir, path) = temp_path();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), path.parent().unwrap()).unwrap();
        assert_eq!(unsafe_path_reason(bind(&path, None).unwrap_err()), "is a symbolic link");
    }
}
