//! The CPU time of a control group, with all its current and former processes: `cpu.stat` of cgroup2.
//!
//! Keeps the file open, so that it refers to the same group when another is created under the same name. Paths are those of
//! `/proc/PID/cgroup`; none leads out of the hierarchy.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

const MAX_PATH_BYTES: usize = 1024;

/// An open control group.
#[derive(Debug)]
pub struct Cgroup {
    stat: File,
    /// The path below the root of the hierarchy, as given.
    pub path: String,
    /// The inode number, unique among existing groups.
    pub inode: u64,
    pub uid: u32,
}

impl Cgroup {
    /// Opens the group at this path.
    ///
    /// # Errors
    /// The reason why the path is not valid, as text for the client.
    pub fn open(mount: Option<&Path>, path: &str) -> Result<Self, String> {
        let relative = relative_path(path)?;
        let Some(mount) = mount else {
            return Err("no cgroup2 hierarchy is mounted here".into());
        };
        let absent =
            |_| format!("there is no control group {path:?}; /proc/PID/cgroup shows that of a process");
        let folder = mount.join(relative).canonicalize().map_err(absent)?;
        if !mount.canonicalize().is_ok_and(|root| folder.starts_with(root)) {
            return Err("leads outside the hierarchy of control groups".into());
        }
        let found = folder.metadata().map_err(absent)?;
        let unreadable = |error| format!("its cpu.stat cannot be read: {error}");
        let stat = File::open(folder.join("cpu.stat")).map_err(unreadable)?;
        let group = Self { stat, path: path.to_owned(), inode: found.ino(), uid: found.uid() };
        group.cpu_time_ns().map(|_| group).ok_or_else(|| "its cpu.stat has no usage_usec".into())
    }

    /// The CPU time since the group was created; `None` where it has been removed.
    pub fn cpu_time_ns(&self) -> Option<u64> {
        let mut text = [0; 4096];
        let length = self.stat.read_at(&mut text, 0).ok()?;
        sum_cpu_stat_ns(std::str::from_utf8(&text[..length]).ok()?, &["usage_usec"])
    }

    /// Whether `other` is the path of this group or of a descendant.
    pub fn contains(&self, other: &str) -> bool {
        Path::new(other).starts_with(&self.path)
    }
}

/// The sum of the named values of a `cpu.stat`.
pub fn sum_cpu_stat_ns(text: &str, names: &[&str]) -> Option<u64> {
    let value = |name: &&str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(*name)?.strip_prefix(' '))?;
        line.trim().parse::<u64>().ok()?.checked_mul(1000)
    };
    names.iter().try_fold(0_u64, |sum, name| sum.checked_add(value(name)?))
}

/// The mount point of cgroup2: alone, or beside the hierarchies of cgroup v1.
pub fn cgroup2_mount(sysfs_root: &Path) -> Option<PathBuf> {
    let mounts = [sysfs_root.join("fs/cgroup"), sysfs_root.join("fs/cgroup/unified")];
    mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists())
}

/// The path without its leading slash, if it stays inside the hierarchy.
fn relative_path(path: &str) -> Result<&Path, String> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err("must begin with /, as in /proc/PID/cgroup".into());
    };
    if path.len() > MAX_PATH_BYTES {
        return Err(format!("must be at most {MAX_PATH_BYTES} bytes long"));
    }
    let relative = Path::new(rest);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.contains('\0') || rest.split('/').any(|part| part == ".") {
        return Err("must not contain . or .. or a NUL byte".into());
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy_with(group: &str, stat: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join(group)).unwrap();
        std::fs::write(root.path().join(group).join("cpu.stat"), stat).unwrap();
        root
    }

    #[test]
    fn a_path_that_leaves_the_hierarchy_is_refused() {
        let root = hierarchy_with("a", "usage_usec 5\n");
        std::fs::write(root.path().join("cpu.stat"), "usage_usec 9\n").unwrap();
        std::os::unix::fs::symlink("/", root.path().join("out")).unwrap();
        for path in ["a", "", "/..", "/a/../a", "/./a", "/../../etc", "/a\0b", "/out/etc", "/out"] {
            assert!(Cgroup::open(Some(root.path()), path).is_err(), "{path:?}");
        }
        assert!(Cgroup::open(Some(root.path()), &format!("/{}", "a/".repeat(600))).is_err());
        assert_eq!(Cgroup::open(Some(root.path()), "/a").unwrap().cpu_time_ns(), Some(5_000));
    }

    #[test]
    fn an_open_cgroup_survives_a_rename() {
        let root = hierarchy_with("a", "usage_usec 5\nuser_usec 3\n");
        let group = Cgroup::open(Some(root.path()), "/a").unwrap();
        std::fs::rename(root.path().join("a"), root.path().join("b")).unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/cpu.stat"), "usage_usec 999\n").unwrap();
        assert_eq!(group.cpu_time_ns(), Some(5_000));
        assert!(group.contains("/a/b") && group.contains("/a") && !group.contains("/ab"));
    }

    #[test]
    fn times_whose_sum_is_too_large_are_unknown() {
        let text = "user_usec 18446744073709551\nsystem_usec 18446744073709551\n";
        assert_eq!(sum_cpu_stat_ns(text, &["user_usec"]), Some(18_446_744_073_709_551_000));
        assert_eq!(sum_cpu_stat_ns(text, &["user_usec", "system_usec"]), None);
    }

    #[test]
    fn a_missing_hierarchy_and_a_missing_usage_are_distinct_errors() {
        assert!(Cgroup::open(None, "/a").unwrap_err().contains("cgroup2"));
        let root = hierarchy_with("a", "nr_periods 5\n");
        assert!(Cgroup::open(Some(root.path()), "/a").unwrap_err().contains("usage_usec"));
    }
}
