//! A disk that fails on demand: files and directories in memory, mounted through FUSE.
//!
//! Owns the mount (unmounted on drop), the result of writes (success, EIO, or no answer), and the record of all
//! operations.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod power_cut;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

use power_cut::{DiskOp, directory_of};

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteBehavior {
    Succeed,
    /// Fails with EIO.
    Fail,
    /// No answer until the behavior changes, at most [`MAX_HANG`], so that a failed test still ends.
    Hang,
    /// Succeeds, and a sync of the file fails with EIO.
    FailSync,
}

/// The longest time without an answer.
pub const MAX_HANG: Duration = Duration::from_secs(15);

pub struct FaultyDisk {
    session: Option<BackgroundSession>,
    behavior: Arc<AtomicU8>,
    is_hanging: Arc<AtomicBool>,
    record: Arc<Mutex<Vec<DiskOp>>>,
    mount_point: TempDir,
}

impl FaultyDisk {
    /// Mounts it; returns `None` and prints the reason where this system does not allow the mount.
    pub fn mount() -> Option<Self> {
        let mount_point = tempfile::tempdir().unwrap();
        let behavior = Arc::new(AtomicU8::new(WriteBehavior::Succeed as u8));
        let (is_hanging, record) = (Arc::default(), Arc::default());
        let files = Files {
            behavior: Arc::clone(&behavior),
            is_hanging: Arc::clone(&is_hanging),
            record: Arc::clone(&record),
            contents: Mutex::default(),
        };
        match fuser::spawn_mount(files, mount_point.path(), &Config::default()) {
            Ok(session) => Some(Self { session: Some(session), behavior, is_hanging, record, mount_point }),
            Err(error) => {
                crate::support::skip::skip("FUSE", format!("no mount through /dev/fuse: {error}"));
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// The number of operations so far: what is in effect now was in effect after that many.
    pub fn operations(&self) -> usize {
        self.record.lock().unwrap().len()
    }

    /// The same for another thread.
    pub fn operation_counter(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let record = Arc::clone(&self.record);
        move || record.lock().unwrap().len()
    }

    /// Whether the last operation on the file that was created under this name is a sync.
    pub fn is_synced(&self, wanted: &str) -> bool {
        let record = self.record.lock().unwrap();
        let created = record.iter().rev().find_map(|op| match op {
            DiskOp::Create { name, ino } if name == wanted => Some(*ino),
            _ => None,
        });
        let last = record.iter().rev().find(|op| match op {
            DiskOp::Write { ino, .. } | DiskOp::Resize { ino, .. } | DiskOp::Sync { ino } => {
                created == Some(*ino)
            }
            _ => false,
        });
        matches!(last, Some(DiskOp::Sync { .. }))
    }

    /// Takes the record of all operations.
    pub fn take_record(&self) -> Vec<DiskOp> {
        std::mem::take(&mut *self.record.lock().unwrap())
    }

    /// Whether an operation waits for its answer.
    pub fn is_hanging(&self) -> bool {
        self.is_hanging.load(Ordering::SeqCst)
    }

    /// Sets the result of all writes from now on.
    pub fn set(&self, behavior: WriteBehavior) {
        self.behavior.store(behavior as u8, Ordering::SeqCst);
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.set(WriteBehavior::Succeed);
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

#[derive(Default)]
struct Contents {
    /// Paths below the mount point.
    names: BTreeMap<OsString, u64>,
    files: BTreeMap<u64, Vec<u8>>,
    /// Their paths; that of the mount point is empty.
    directories: BTreeMap<u64, OsString>,
    last: u64,
}

struct Files {
    behavior: Arc<AtomicU8>,
    is_hanging: Arc<AtomicBool>,
    record: Arc<Mutex<Vec<DiskOp>>>,
    contents: Mutex<Contents>,
}

impl Files {
    fn record(&self, op: DiskOp) {
        self.record.lock().unwrap().push(op);
    }

    /// Whether a write succeeds.
    fn accepts_write(&self) -> bool {
        let accepts = self.wait_for_behavior();
        self.is_hanging.store(false, Ordering::SeqCst);
        accepts
    }

    fn wait_for_behavior(&self) -> bool {
        let until = Instant::now() + MAX_HANG;
        loop {
            if Instant::now() > until {
                self.behavior.store(WriteBehavior::Succeed as u8, Ordering::SeqCst);
            }
            match self.behavior.load(Ordering::SeqCst) {
                behavior if behavior == WriteBehavior::Fail as u8 => return false,
                behavior if behavior != WriteBehavior::Hang as u8 => return true,
                _ => {
                    self.is_hanging.store(true, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

fn attributes(ino: u64, size: u64, folder: bool) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if folder { FileType::Directory } else { FileType::RegularFile },
        perm: if folder { 0o700 } else { 0o600 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Contents {
    fn of(&self, ino: u64) -> Option<FileAttr> {
        match ino {
            1 => Some(attributes(1, 0, true)),
            ino if self.directories.contains_key(&ino) => Some(attributes(ino, 0, true)),
            ino => self.files.get(&ino).map(|bytes| attributes(ino, bytes.len() as u64, false)),
        }
    }

    fn next_ino(&mut self) -> u64 {
        self.last = self.last.max(1) + 1;
        self.last
    }

    /// The path of a name in a directory.
    fn path(&self, parent: INodeNo, name: &OsStr) -> OsString {
        PathBuf::from(self.directory(parent)).join(name).into_os_string()
    }

    fn directory(&self, ino: INodeNo) -> OsString {
        self.directories.get(&ino.into()).cloned().unwrap_or_default()
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let contents = self.contents.lock().unwrap();
        match contents.names.get(&contents.path(parent, name)).and_then(|ino| contents.of(*ino)) {
            Some(found) => reply.entry(&Duration::ZERO, &found, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.contents.lock().unwrap().of(ino.into()) {
            Some(found) => reply.attr(&Duration::ZERO, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if size.is_some() && !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        let mut contents = self.contents.lock().unwrap();
        if let (Some(bytes), Some(size)) = (contents.files.get_mut(&ino.into()), size) {
            bytes.resize(size as usize, 0);
            self.record(DiskOp::Resize { ino: ino.into(), bytes: size as usize });
        }
        match contents.of(ino.into()) {
            Some(found) => reply.attr(&Duration::ZERO, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        if !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        let mut contents = self.contents.lock().unwrap();
        let (ino, name) = (contents.next_ino(), contents.path(parent, name));
        contents.names.insert(name.clone(), ino);
        contents.files.insert(ino, Vec::new());
        self.record(DiskOp::Create { name, ino });
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        reply.created(&Duration::ZERO, &attributes(ino, 0, false), Generation(0), FileHandle(0), direct);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        if !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        let mut contents = self.contents.lock().unwrap();
        let (ino, name) = (contents.next_ino(), contents.path(parent, name));
        contents.names.insert(name.clone(), ino);
        contents.directories.insert(ino, name.clone());
        self.record(DiskOp::MakeDirectory { name });
        reply.entry(&Duration::ZERO, &attributes(ino, 0, true), Generation(0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
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
        let contents = self.contents.lock().unwrap();
        let bytes = contents.files.get(&ino.into()).map_or(&[][..], Vec::as_slice);
        let from = bytes.len().min(offset as usize);
        reply.data(&bytes[from..bytes.len().min(from + size as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        let mut contents = self.contents.lock().unwrap();
        let Some(bytes) = contents.files.get_mut(&ino.into()) else { return reply.error(Errno::ENOENT) };
        let end = offset as usize + data.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[offset as usize..end].copy_from_slice(data);
        self.record(DiskOp::Write { ino: ino.into(), offset: offset as usize, data: data.to_vec() });
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let fails = self.behavior.load(Ordering::SeqCst) == WriteBehavior::FailSync as u8;
        if fails || !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        self.record(DiskOp::Sync { ino: ino.into() });
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        let name = self.contents.lock().unwrap().directory(ino);
        self.record(DiskOp::SyncDirectory { name });
        reply.ok();
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.accepts_write() {
            return reply.error(Errno::EIO);
        }
        // Open descriptors stay valid after the removal.
        let mut contents = self.contents.lock().unwrap();
        let name = contents.path(parent, name);
        if contents.names.remove(&name).is_none() {
            return reply.error(Errno::ENOENT);
        }
        self.record(DiskOp::Unlink { name });
        reply.ok();
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut contents = self.contents.lock().unwrap();
        let (from, to) = (contents.path(parent, name), contents.path(new_parent, new_name));
        match contents.names.remove(&from) {
            Some(ino) => {
                contents.names.insert(to.clone(), ino);
                self.record(DiskOp::Rename { from, to });
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let contents = self.contents.lock().unwrap();
        let directory = contents.directory(ino);
        let inside = contents.names.iter().filter(|(name, _)| directory_of(name) == directory);
        for (at, (name, ino)) in inside.enumerate().skip(offset as usize) {
            let is_directory = contents.directories.contains_key(ino);
            let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
            let last = Path::new(name).file_name().unwrap_or_default();
            if reply.add(INodeNo(*ino), at as u64 + 1, kind, last) {
                break;
            }
        }
        reply.ok();
    }
}
