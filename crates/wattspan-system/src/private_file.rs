//! Files that contain figures, prompts or answers.
//!
//! Creates files with mode 0600 and directories with mode 0700. Invariant: a regular file is never opened through a
//! symbolic link in its last component, and never written if another user owns it or if it has a second name. Devices,
//! FIFOs and this process's own descriptors (`/dev/stderr`, `/dev/fd/63`) stay usable as outputs.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// An output that is open for writing and still has its previous content.
#[derive(Debug)]
pub struct OpenOutput {
    file: File,
    /// Whether the parent process opened it: what a redirected file has stays.
    is_inherited: bool,
}

impl OpenOutput {
    /// Opens an output: a new file, an own file, a device or a FIFO.
    ///
    /// # Errors
    /// The system call fails, or the path is a link or a file of another user.
    pub fn open(path: &Path) -> io::Result<Self> {
        if is_own_descriptor(path) {
            let file = OpenOptions::new().append(true).open(path)?;
            return Ok(OpenOutput { file, is_inherited: true });
        }
        let file = match open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW) {
            Err(Errno::LOOP) => open_linked_device(path)?,
            opened => opened?,
        };
        // Not O_TRUNC, which would empty the file before its owner is known.
        check_ownership(&file.metadata()?)?;
        Ok(OpenOutput { file, is_inherited: false })
    }

    /// Removes the previous content of a file.
    ///
    /// # Errors
    /// The system call fails.
    pub fn emptied(self) -> io::Result<File> {
        if !self.is_inherited && self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        Ok(self.file)
    }
}

/// Opens an output for writing: a new file, an own file without its previous content, a device or a FIFO.
///
/// # Errors
/// As for [`OpenOutput::open`].
pub fn create(path: &Path) -> io::Result<File> {
    OpenOutput::open(path)?.emptied()
}

/// Opens a regular file to read it and to add to its end; creates it where it is missing.
///
/// # Errors
/// As for [`create`], and where the path is no regular file.
pub fn append(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match open(path, flags) {
        Err(Errno::LOOP) => return Err(symlink_error()),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    check_ownership(&metadata)?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(permission_error("is not a regular file", "name another file"))
    }
}

/// Writes a whole file.
///
/// # Errors
/// As for [`create`], and where the file cannot be written.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    create(path)?.write_all(bytes.as_ref())
}

/// Writes a file that appears under its name only when it is complete and on disk.
///
/// # Errors
/// As for [`create`], and where the file cannot be written, synced or renamed.
pub fn write_atomically(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    // A killed process leaves this file, and its next run replaces it.
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = directory.join(temporary);
    let file = create(&temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    write(&file)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(directory)
}

/// Waits until an output is on disk; a device, a FIFO or a pipe has nothing to wait for.
///
/// # Errors
/// The system call fails.
pub fn sync_output(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.sync_all() } else { Ok(()) }
}

/// Waits until the names in a directory are on disk. Some file systems (9p, SMB) cannot sync a directory; there they are on
/// disk when the file system decides.
///
/// # Errors
/// The system call fails.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    match File::open(directory)?.sync_all() {
        Err(cause) if matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Creates a directory and its missing parents.
///
/// # Errors
/// The system call fails, or the path itself is a link.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)?;
    // Without a trailing slash, which would follow the link.
    let bare: PathBuf = path.components().collect();
    if fs::symlink_metadata(bare)?.is_symlink() {
        return Err(permission_error("is a symbolic link", "name the directory itself"));
    }
    Ok(())
}

/// Whether the path names a device, a FIFO or a descriptor, which is written directly and never replaced.
pub fn is_stream(path: &Path) -> bool {
    is_own_descriptor(path)
        || fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Refuses a path that a finished file must not be renamed to: a link, or a file of another user.
///
/// # Errors
/// The path is one of these, or its metadata cannot be read.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(cause),
        Ok(metadata) if metadata.is_symlink() => Err(symlink_error()),
        Ok(metadata) => check_ownership(&metadata),
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// A link to a device (`out -> /dev/null`) is a name for that device; any other link is refused.
fn open_linked_device(path: &Path) -> io::Result<File> {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device()) {
        return Err(symlink_error());
    }
    let file = open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(symlink_error());
    }
    Ok(file)
}

/// Refuses what another user owns, devices apart, and a regular file with a second name: a directory of another user may
/// hold a hard link to a file that this user wants to keep.
fn check_ownership(metadata: &Metadata) -> io::Result<()> {
    let own_uid = rustix::process::geteuid().as_raw();
    if metadata.file_type().is_char_device() {
        return Ok(());
    }
    if metadata.uid() != own_uid {
        let what = format!("belongs to user {}, not to user {own_uid}", metadata.uid());
        return Err(permission_error(&what, "name another file, or remove this one"));
    }
    if metadata.is_file() && metadata.nlink() > 1 {
        return Err(permission_error(
            "has a second name (a hard link)",
            "name another file, or remove this one",
        ));
    }
    Ok(())
}

fn symlink_error() -> io::Error {
    permission_error("is a symbolic link", "name the file itself")
}

fn permission_error(what: &str, remedy: &str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, format!("{what}; {remedy}"))
}

/// Whether the path names a descriptor of this process: the system shows these as links.
fn is_own_descriptor(path: &Path) -> bool {
    const STANDARD_STREAMS: [&str; 3] = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];
    const DESCRIPTOR_DIRS: [&str; 3] = ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"];
    let is_numbered = || {
        let number = path.file_name()?.to_str()?;
        let folder = path.parent()?;
        Some(DESCRIPTOR_DIRS.iter().any(|own| folder == Path::new(own)) && number.parse::<u32>().is_ok())
    };
    STANDARD_STREAMS.iter().any(|own| path == Path::new(own)) || is_numbered() == Some(true)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    /// The ways to write a file at a path.
    const WRITERS: [fn(&Path) -> io::Result<()>; 3] =
        [|path| create(path).map(drop), |path| append(path).map(drop), |path| write(path, "new")];

    #[test]
    fn files_and_directories_are_created_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (number, way) in WRITERS.iter().enumerate() {
            let path = dir.path().join(number.to_string());
            way(&path).unwrap();
            assert_eq!(mode(&path), 0o600);
        }
        let deep = dir.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        create_dir_all(&deep).unwrap();
        for made in ["a", "a/b", "a/b/c"] {
            assert_eq!(mode(&dir.path().join(made)), 0o700, "{made}");
        }
    }

    #[test]
    fn an_own_file_is_overwritten_or_continued_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.csv");
        write(&path, "a long first content").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        write(&path, "one").unwrap();
        append(&path).unwrap().write_all(b" two").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap(), mode(&path)), ("one two".into(), 0o640));
    }

    #[test]
    fn a_link_to_a_present_or_missing_file_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, link) = (dir.path().join("precious"), dir.path().join("link"));
        fs::write(&precious, "kept").unwrap();
        symlink(&precious, &link).unwrap();
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("made"), &dangling).unwrap();
        for path in [&link, &dangling] {
            for way in WRITERS {
                assert!(way(path).unwrap_err().to_string().contains("symbolic link"));
            }
            assert!(check_replaceable(path).is_err());
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        assert!(!dir.path().join("made").exists());
        fs::create_dir(dir.path().join("real")).unwrap();
        let folder = dir.path().join("folder");
        symlink(dir.path().join("real"), &folder).unwrap();
        assert!(create_dir_all(&folder).is_err() && create_dir_all(&folder.join("")).is_err());
    }

    #[test]
    fn a_file_with_a_second_name_keeps_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, other) = (dir.path().join("precious"), dir.path().join("other"));
        fs::write(&precious, "kept").unwrap();
        fs::hard_link(&precious, &other).unwrap();
        for way in WRITERS {
            assert!(way(&other).unwrap_err().to_string().contains("second name"));
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
    }

    #[test]
    fn a_file_or_fifo_of_another_user_is_not_written() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: giving a file to another user needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "kept").unwrap();
        chown(&file, Some(12_345), None).unwrap();
        for way in WRITERS {
            assert!(way(&file).unwrap_err().to_string().contains("user 12345"));
        }
        assert!(check_replaceable(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }

    #[test]
    fn devices_fifos_and_own_descriptors_are_written_to() {
        write(Path::new("/dev/null"), "gone").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/dev/null", &link).unwrap();
        write(&link, "gone").unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // Both ends, so that neither open waits for the other.
        let mut reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        write(&fifo, "through").unwrap();
        let mut read = [0; 7];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"through");
        // A descriptor redirected by a shell, which the system shows as a link.
        let redirected = dir.path().join("redirected");
        fs::write(&redirected, "first ").unwrap();
        let open = OpenOptions::new().append(true).open(&redirected).unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", open.as_raw_fd()));
        assert!(is_stream(&path) && is_stream(&fifo) && !is_stream(&redirected));
        write(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&redirected).unwrap(), "first second");
        assert!(
            !is_own_descriptor(Path::new("/dev/fd/../shm")) && !is_own_descriptor(Path::new("/tmp/fd/1"))
        );
    }
}
