//! Ownership checks of configuration files and of the libraries that they name, for a privileged process.
//!
//! Resolves a path from `/`, link by link. Invariant: every directory, link and file on an accepted path is owned by root and
//! writable by root only, so that no other user can exchange any of them, before the check or after it. A sticky directory
//! of root (`/tmp`) is accepted where the next component is a directory of root, which others can neither rename nor
//! replace. A file or link there is rejected, because another user may have moved it there.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::system_dirs::is_system_daemon;
use crate::privileges;

const GROUP_OR_OTHER_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// The kernel's limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The accepted owner of configuration files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedOwner {
    /// For an unprivileged process that serves its own user only.
    Any,
    /// For a process that has privileges or serves other users: files that only root can write.
    Root,
}

impl AcceptedOwner {
    /// The rule for this process. Call it before privileges are dropped; the result holds for every later reload.
    pub fn for_this_process() -> Self {
        let privileged = is_system_daemon() || !privileges::current_privileges().capabilities.is_empty();
        if privileged { Self::Root } else { Self::Any }
    }
}

/// The reason why a path is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum UntrustedPathError {
    /// The path cannot be resolved or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another user can change the target of the path.
    #[error(
        "{} {reason}; a privileged process accepts only files and directories that root owns and no other user can \
         write: {remedy}",
        path.display()
    )]
    Writable {
        /// The component of the path.
        path: PathBuf,
        /// The owner or mode that is not accepted.
        reason: String,
        /// The command that corrects it.
        remedy: String,
    },
}

/// Reads a configuration file that has an accepted owner.
pub(super) fn read(path: &Path, owner: AcceptedOwner) -> Result<String, UntrustedPathError> {
    if owner == AcceptedOwner::Any {
        return Ok(fs::read_to_string(path)?);
    }
    let resolved = resolve(path)?;
    // NONBLOCK: opening a FIFO must not block; it is rejected below.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::open(&resolved, flags, Mode::empty()).map_err(io::Error::from)?);
    let metadata = file.metadata()?;
    check_component(&resolved, &metadata, false)?;
    if !metadata.is_file() && !is_null_device(&metadata) {
        return Err(io::Error::other("is not a regular file").into());
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Resolves all links of a path and checks every component.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, UntrustedPathError> {
    let mut resolved = PathBuf::from("/");
    let mut sticky = check_component(&resolved, &fs::symlink_metadata(&resolved)?, false)?;
    let mut pending = Vec::new();
    push_components(&mut pending, &std::path::absolute(path)?);
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            resolved.pop();
            sticky = check_component(&resolved, &fs::symlink_metadata(&resolved)?, false)?;
            continue;
        }
        let next = resolved.join(name);
        let metadata = fs::symlink_metadata(&next)?;
        let next_sticky = check_component(&next, &metadata, sticky)?;
        if !metadata.is_symlink() {
            (resolved, sticky) = (next, next_sticky);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::from(rustix::io::Errno::LOOP).into());
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            resolved = PathBuf::from("/");
            sticky = false;
        }
        push_components(&mut pending, &target);
    }
    Ok(resolved)
}

/// Whether the file is `/dev/null`, which stands for an empty configuration.
fn is_null_device(metadata: &Metadata) -> bool {
    let null = fs::metadata("/dev/null").ok();
    metadata.file_type().is_char_device() && null.is_some_and(|null| null.rdev() == metadata.rdev())
}

/// Pushes the components of a path onto the stack of pending ones, the first on top.
fn push_components(pending: &mut Vec<OsString>, path: &Path) {
    let named = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    let named: Vec<OsString> = named.map(|part| part.as_os_str().to_owned()).collect();
    pending.extend(named.into_iter().rev());
}

/// Rejects a component that another user owns or can exchange. Returns whether it is a sticky directory that others can
/// write. `in_sticky`: the parent is such a directory.
fn check_component(path: &Path, metadata: &Metadata, in_sticky: bool) -> Result<bool, UntrustedPathError> {
    let refused = |reason: String, remedy: String| {
        Err(UntrustedPathError::Writable { path: path.to_owned(), reason, remedy })
    };
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != 0 {
        let own = if metadata.is_symlink() { "chown -h root" } else { "chown root" };
        return refused(
            format!("belongs to user {} (mode {mode:04o})", metadata.uid()),
            format!("{own} {}", path.display()),
        );
    }
    if in_sticky && !metadata.is_dir() {
        let reason = "lies in a directory into which every user can move files".to_owned();
        return refused(reason, "move it to a directory that only root can write".to_owned());
    }
    let sticky = metadata.is_dir() && mode & STICKY != 0;
    // The mode of a link has no meaning, and that of a device does not control its content.
    let is_device = metadata.file_type().is_char_device();
    if !metadata.is_symlink() && !is_device && mode & GROUP_OR_OTHER_WRITE != 0 && !sticky {
        let who =
            if mode & 0o002 != 0 { "every user".to_owned() } else { format!("group {}", metadata.gid()) };
        return refused(
            format!("can be written by {who} (owner 0, mode {mode:04o})"),
            format!("chmod go-w {}", path.display()),
        );
    }
    Ok(sticky && mode & GROUP_OR_OTHER_WRITE != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// A directory of root below `/tmp`; `None` where the test cannot make one.
    fn folder() -> Option<tempfile::TempDir> {
        if rustix::process::geteuid().is_root() {
            return Some(tempfile::tempdir().unwrap());
        }
        eprintln!("skipped: files of root need root");
        None
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn read_error(path: &Path) -> String {
        match read(path, AcceptedOwner::Root) {
            Err(error @ UntrustedPathError::Writable { .. }) => error.to_string(),
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    #[test]
    fn a_file_of_root_below_directories_of_root_is_accepted_through_links_of_root_too() {
        let Some(dir) = folder() else { return };
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        fs::write(real.join("a.toml"), "text").unwrap();
        symlink("real/../real", dir.path().join("relative")).unwrap();
        symlink(&real, dir.path().join("absolute")).unwrap();
        for path in ["real/a.toml", "relative/a.toml", "absolute/a.toml", "real/../real/a.toml"] {
            assert_eq!(read(&dir.path().join(path), AcceptedOwner::Root).unwrap(), "text", "{path}");
        }
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(matches!(resolve(&dir.path().join("loop")), Err(UntrustedPathError::Io(_))));
    }

    #[test]
    fn every_component_that_others_could_change_is_refused_with_the_command_that_corrects_it() {
        let Some(dir) = folder() else { return };
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("upper/lower"));
        let file = lower.join("a.toml");
        fs::create_dir_all(&lower).unwrap();
        fs::write(&file, "text").unwrap();
        let parts = [(&upper, 0o755), (&lower, 0o755), (&file, 0o644)];
        for (part, sound) in parts {
            for mode in [sound | 0o020, sound | 0o002] {
                chmod(part, mode);
                let error = read_error(&file);
                let expected = format!("mode {mode:04o})");
                assert!(error.starts_with(part.to_str().unwrap()) && error.contains(&expected), "{error}");
                assert!(error.ends_with(&format!("chmod go-w {}", part.display())), "{error}");
                assert_eq!(read(&file, AcceptedOwner::Any).unwrap(), "text");
            }
            chmod(part, sound);
            chown(part, Some(12_345), None).unwrap();
            let error = read_error(&file);
            assert!(error.contains(&format!("{} belongs to user 12345", part.display())), "{error}");
            assert!(error.ends_with(&format!("chown root {}", part.display())), "{error}");
            chown(part, Some(0), None).unwrap();
            read(&file, AcceptedOwner::Root).unwrap();
        }
    }

    #[test]
    fn a_link_of_another_user_and_one_to_a_directory_of_others_are_refused() {
        let Some(dir) = folder() else { return };
        let (open, link) = (dir.path().join("open"), dir.path().join("link"));
        fs::create_dir(&open).unwrap();
        fs::write(open.join("a.toml"), "text").unwrap();
        symlink(&open, &link).unwrap();
        chmod(&open, 0o777);
        assert!(read_error(&link.join("a.toml")).contains("open can be written by every user"));
        chmod(&open, 0o755);
        std::os::unix::fs::lchown(&link, Some(12_345), None).unwrap();
        assert!(read_error(&link.join("a.toml")).contains("chown -h root"));
    }

    #[test]
    fn in_a_sticky_directory_only_directories_of_root_are_accepted() {
        let Some(dir) = folder() else { return };
        let sticky = dir.path().join("sticky");
        fs::create_dir(&sticky).unwrap();
        chmod(&sticky, 0o1777);
        fs::create_dir(sticky.join("sound")).unwrap();
        for file in ["a.toml", "sound/a.toml"] {
            fs::write(sticky.join(file), "text").unwrap();
        }
        assert!(read_error(&sticky.join("a.toml")).contains("every user can move files"));
        read(&sticky.join("sound/a.toml"), AcceptedOwner::Root).unwrap();
        symlink("sound", sticky.join("link")).unwrap();
        assert!(read_error(&sticky.join("link/a.toml")).contains("every user can move files"));
        chown(sticky.join("sound"), Some(12_345), None).unwrap();
        read_error(&sticky.join("sound/a.toml"));
        // Sticky, and owned by another user: that one may replace everything in it.
        chown(sticky.join("sound"), Some(0), None).unwrap();
        chown(&sticky, Some(12_345), None).unwrap();
        read_error(&sticky.join("sound/a.toml"));
    }

    #[test]
    fn the_null_device_is_an_empty_file_and_other_devices_are_none() {
        assert_eq!(read(Path::new("/dev/null"), AcceptedOwner::Root).unwrap(), "");
        assert!(read(Path::new("/dev/zero"), AcceptedOwner::Root).is_err());
    }
}
