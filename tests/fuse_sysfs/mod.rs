//! A small FUSE file system whose files are computed when they are read, as in sysfs.
//!
//! Owns the mount (unmounted on drop), the content, and which paths are hidden or denied. Uses direct I/O, so that each
//! read of an open descriptor computes the content again.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};
use tempfile::TempDir;
use wattspan::clock::monotonic_ns;
use wattspan::sources::SourceSettings;

/// A file's content at an instant of the monotonic clock, from an offset on.
type FileContent = Box<dyn Fn(u64, u64) -> Vec<u8> + Send + Sync>;

enum Node {
    Folder,
    Link(PathBuf),
    File(FileContent),
}

/// The files of a machine before it is mounted.
pub struct FuseMachine {
    nodes: Vec<(PathBuf, Node)>,
}

impl FuseMachine {
    /// Creates `sys`, `proc` and `cpu`, empty.
    pub fn new() -> Self {
        let mut machine = Self { nodes: vec![(PathBuf::new(), Node::Folder)] };
        ["sys/class", "proc", "cpu"].iter().for_each(|folder| machine.folder(Path::new(folder)));
        machine
    }

    fn folder(&mut self, path: &Path) {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.folder(parent);
        }
        if !self.nodes.iter().any(|(other, _)| other == path) {
            self.nodes.push((path.into(), Node::Folder));
        }
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = Path::new(path);
        self.folder(path.parent().unwrap());
        self.nodes.push((path.into(), node));
    }

    /// Adds a file with constant content.
    pub fn text(&mut self, path: &str, text: &str) {
        let line = format!("{text}\n").into_bytes();
        self.bytes(path, move |_, _| line.clone());
    }

    /// Adds a file that shows a number computed at the time of the read.
    pub fn number(&mut self, path: &str, number: impl Fn(u64) -> u64 + Send + Sync + 'static) {
        self.bytes(path, move |now_ns, _| format!("{}\n", number(now_ns)).into_bytes());
    }

    /// Adds a file whose content depends on the instant and the offset.
    pub fn bytes(&mut self, path: &str, answer: impl Fn(u64, u64) -> Vec<u8> + Send + Sync + 'static) {
        self.add(path, Node::File(Box::new(answer)));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        let up: PathBuf = Path::new(path).parent().unwrap().components().map(|_| "..").collect();
        self.folder(Path::new(target));
        self.add(path, Node::Link(up.join(target)));
    }

    /// Adds a file with the content of another one.
    pub fn alias(&mut self, path: &str, of: &str) {
        let up: PathBuf = Path::new(path).parent().unwrap().components().map(|_| "..").collect();
        self.add(path, Node::Link(up.join(of)));
    }

    /// Mounts it; returns `None` and prints the reason where this system does not allow the mount.
    pub fn mount(self) -> Option<MountedMachine> {
        let mount_point = tempfile::tempdir().unwrap();
        let (hidden, denied, blocked) = (Arc::default(), Arc::default(), BlockedOpens::default());
        let listings = ListingCounts::default();
        let tree = Tree {
            nodes: self.nodes,
            hidden: Arc::clone(&hidden),
            denied: Arc::clone(&denied),
            blocked: Arc::clone(&blocked),
            listings: Arc::clone(&listings),
        };
        match fuser::spawn_mount(tree, mount_point.path(), &Config::default()) {
            Ok(session) => Some(MountedMachine {
                session: Some(session),
                hidden,
                denied,
                blocked,
                listings,
                mount_point,
            }),
            Err(error) => {
                crate::support::skip::skip("FUSE", format!("no mount through /dev/fuse: {error}"));
                None
            }
        }
    }
}

/// Paths, each with everything below it.
type PathSet = Arc<Mutex<BTreeSet<PathBuf>>>;

/// How often each folder was listed.
type ListingCounts = Arc<Mutex<BTreeMap<PathBuf, usize>>>;

/// Paths whose opening blocks, and the replies that are pending.
type BlockedOpens = Arc<Mutex<(BTreeSet<PathBuf>, Vec<ReplyOpen>)>>;

pub struct MountedMachine {
    session: Option<BackgroundSession>,
    hidden: PathSet,
    denied: PathSet,
    blocked: BlockedOpens,
    listings: ListingCounts,
    mount_point: TempDir,
}

impl MountedMachine {
    /// Settings that refer only to this machine.
    pub fn settings(&self, enabled: &[&str]) -> SourceSettings {
        SourceSettings {
            sysfs_root: self.mount_point.path().join("sys"),
            proc_root: self.mount_point.path().join("proc"),
            msr_root: self.mount_point.path().join("cpu"),
            enabled: enabled.iter().map(|name| (*name).to_owned()).collect(),
            ..SourceSettings::default()
        }
    }

    /// Removes a path as an unloaded driver does: open files return ENODEV.
    pub fn hide(&self, path: &str) {
        self.hidden.lock().unwrap().insert(path.into());
    }

    /// Restores a hidden path.
    pub fn show(&self, path: &str) {
        self.hidden.lock().unwrap().remove(Path::new(path));
    }

    /// How often a folder has been listed.
    pub fn listings(&self, path: &str) -> usize {
        self.listings.lock().unwrap().get(Path::new(path)).copied().unwrap_or(0)
    }

    /// Blocks every open of a path until [`Self::release`].
    pub fn block(&self, path: &str) {
        self.blocked.lock().unwrap().0.insert(path.into());
    }

    /// Completes every blocked open.
    pub fn release(&self) {
        let (paths, waiting) = std::mem::take(&mut *self.blocked.lock().unwrap());
        drop(paths);
        waiting.into_iter().for_each(opened);
    }

    /// Fails every open of a path with EACCES.
    pub fn deny(&self, path: &str) {
        self.denied.lock().unwrap().insert(path.into());
    }
}

impl Drop for MountedMachine {
    fn drop(&mut self) {
        self.release();
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

struct Tree {
    nodes: Vec<(PathBuf, Node)>,
    hidden: PathSet,
    denied: PathSet,
    blocked: BlockedOpens,
    listings: ListingCounts,
}

/// Direct I/O, so that each read of an open descriptor computes the content again.
fn opened(reply: ReplyOpen) {
    reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
}

impl Tree {
    fn node(&self, ino: INodeNo) -> Option<&(PathBuf, Node)> {
        self.nodes.get(usize::try_from(u64::from(ino)).ok()?.checked_sub(1)?)
    }

    fn holds(paths: &PathSet, path: &Path) -> bool {
        paths.lock().unwrap().iter().any(|above| path.starts_with(above))
    }

    fn attributes(&self, nth: usize) -> FileAttr {
        let (kind, size) = match &self.nodes[nth].1 {
            Node::Folder => (FileType::Directory, 0),
            Node::Link(target) => (FileType::Symlink, target.as_os_str().len() as u64),
            Node::File(_) => (FileType::RegularFile, 4096),
        };
        FileAttr {
            ino: INodeNo(nth as u64 + 1),
            size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: if kind == FileType::Directory { 0o755 } else { 0o444 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Tree {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.node(parent).map(|(folder, _)| folder.join(name)).unwrap_or_default();
        let found = self.nodes.iter().position(|(other, _)| *other == path);
        match found.filter(|_| !Self::holds(&self.hidden, &path)) {
            Some(nth) => reply.entry(&Duration::ZERO, &self.attributes(nth), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Some(_) => reply.attr(&Duration::ZERO, &self.attributes(u64::from(ino) as usize - 1)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino) {
            Some((_, Node::Link(target))) => reply.data(target.as_os_str().as_encoded_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.node(ino) {
            Some((path, _)) if Self::holds(&self.denied, path) => reply.error(Errno::EACCES),
            Some((path, _)) => {
                let mut blocked = self.blocked.lock().unwrap();
                if blocked.0.contains(path) { blocked.1.push(reply) } else { opened(reply) }
            }
            None => opened(reply),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.node(ino) {
            Some((path, Node::File(_))) if Self::holds(&self.hidden, path) => reply.error(Errno::ENODEV),
            Some((path, Node::File(answer))) => {
                let bytes = answer(monotonic_ns(), offset);
                // An MSR file interprets the offset as a register; all others have plain content.
                let from = if path.ends_with("msr") { 0 } else { bytes.len().min(offset as usize) };
                reply.data(&bytes[from..bytes.len().min(from + size as usize)]);
            }
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let folder = self.node(ino).map(|(path, _)| path.clone()).unwrap_or_default();
        if offset == 0 {
            *self.listings.lock().unwrap().entry(folder.clone()).or_default() += 1;
        }
        let inside = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, (path, _))| path.parent() == Some(&folder) && !Self::holds(&self.hidden, path));
        for (turn, (nth, (path, _))) in inside.enumerate().skip(offset as usize) {
            let kind = self.attributes(nth).kind;
            if reply.add(INodeNo(nth as u64 + 1), turn as u64 + 1, kind, path.file_name().unwrap()) {
                break;
            }
        }
        reply.ok();
    }
}

/// A square wave of power, whose energy is known in closed form at every instant.
#[derive(Debug, Clone, Copy)]
pub struct SquareWave {
    /// The power outside the pulse.
    pub low_mw: u64,
    /// Added during the first part of each period.
    pub extra_mw: u64,
    pub period_ns: u64,
    /// The length of that first part.
    pub on_ns: u64,
}

impl SquareWave {
    pub const fn steady(low_mw: u64) -> Self {
        Self { low_mw, extra_mw: 0, period_ns: 1_000_000, on_ns: 0 }
    }

    pub const fn new(low_mw: u64, high_mw: u64, period_ns: u64, on_ns: u64) -> Self {
        Self { low_mw, extra_mw: high_mw - low_mw, period_ns, on_ns }
    }

    /// Energy since the clock's zero, in picojoules.
    pub fn energy_pj(&self, at_ns: u64) -> u128 {
        let (whole, rest) = (at_ns / self.period_ns, at_ns % self.period_ns);
        let on_ns = u128::from(whole) * u128::from(self.on_ns) + u128::from(rest.min(self.on_ns));
        u128::from(self.low_mw) * u128::from(at_ns) + u128::from(self.extra_mw) * on_ns
    }

    /// Energy since the clock's zero, in whole microjoules.
    pub fn energy_uj(&self, at_ns: u64) -> u64 {
        (self.energy_pj(at_ns) / 1_000_000) as u64
    }

    /// Power at an instant, in microwatts.
    pub fn power_uw(&self, at_ns: u64) -> u64 {
        let on = at_ns % self.period_ns < self.on_ns;
        (self.low_mw + if on { self.extra_mw } else { 0 }) * 1_000
    }

    /// Mean power over the `window_ns` before an instant, in microwatts.
    pub fn mean_uw(&self, at_ns: u64, window_ns: u64) -> u64 {
        ((self.energy_pj(at_ns) - self.energy_pj(at_ns - window_ns)) / u128::from(window_ns)) as u64 * 1_000
    }

    /// The count of a register that moves every `update_ns`, in units of 2^-`shift` J.
    pub fn counts(&self, at_ns: u64, update_ns: u64, shift: u32) -> u64 {
        let updated_ns = at_ns / update_ns * update_ns;
        ((self.energy_pj(updated_ns) << shift) / 1_000_000_000_000) as u64
    }
}
