//! A disk that fails when it is told to: one folder of files in memory, mounted through FUSE.
//!
//! Owns the mount (unmounted when dropped), and what the disk does with a write: take it, refuse it with an I/O error, or
//! not answer.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

/// What the disk does with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    /// Takes it.
    Sound,
    /// Refuses it: EIO.
    Failing,
    /// Gives no answer until the mood changes, at most [`SILENCE`]: a test that fails meanwhile must end.
    Hanging,
}

/// The longest that nothing is answered.
pub const SILENCE: Duration = Duration::from_secs(15);

/// The mounted disk.
pub struct Disk {
    session: Option<BackgroundSession>,
    mood: Arc<AtomicU8>,
    place: TempDir,
}

impl Disk {
    /// Mounts it; `None`, with the reason printed, where this system lets nobody mount.
    pub fn mount() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let mood = Arc::new(AtomicU8::new(Mood::Sound as u8));
        let files = Files { mood: Arc::clone(&mood), inside: Mutex::default() };
        match fuser::spawn_mount(files, place.path(), &Config::default()) {
            Ok(session) => Some(Self { session: Some(session), mood, place }),
            Err(error) => {
                crate::support::skip::skip("FUSE", format!("no mount through /dev/fuse: {error}"));
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// What it does with writes from now on.
    pub fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.set(Mood::Sound);
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

#[derive(Default)]
struct Inside {
    names: BTreeMap<OsString, u64>,
    files: BTreeMap<u64, Vec<u8>>,
    last: u64,
}

struct Files {
    mood: Arc<AtomicU8>,
    inside: Mutex<Inside>,
}

impl Files {
    /// Whether a write is taken.
    fn takes(&self) -> bool {
        let until = Instant::now() + SILENCE;
        loop {
            if Instant::now() > until {
                self.mood.store(Mood::Sound as u8, Ordering::SeqCst);
            }
            match self.mood.load(Ordering::SeqCst) {
                mood if mood == Mood::Sound as u8 => return true,
                mood if mood == Mood::Failing as u8 => return false,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn attributes(ino: u64, size: u64) -> FileAttr {
    let folder = ino == 1;
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

impl Inside {
    fn of(&self, ino: u64) -> Option<FileAttr> {
        match ino {
            1 => Some(attributes(1, 0)),
            ino => self.files.get(&ino).map(|bytes| attributes(ino, bytes.len() as u64)),
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inside = self.inside.lock().unwrap();
        match inside.names.get(name).and_then(|ino| inside.of(*ino)) {
            Some(found) => reply.entry(&Duration::ZERO, &found, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inside.lock().unwrap().of(ino.into()) {
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
        if size.is_some() && !self.takes() {
            return reply.error(Errno::EIO);
        }
        let mut inside = self.inside.lock().unwrap();
        if let (Some(bytes), Some(size)) = (inside.files.get_mut(&ino.into()), size) {
            bytes.resize(size as usize, 0);
        }
        match inside.of(ino.into()) {
            Some(found) => reply.attr(&Duration::ZERO, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        if !self.takes() {
            return reply.error(Errno::EIO);
        }
        let mut inside = self.inside.lock().unwrap();
        inside.last = inside.last.max(1) + 1;
        let ino = inside.last;
        inside.names.insert(name.to_owned(), ino);
        inside.files.insert(ino, Vec::new());
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        reply.created(&Duration::ZERO, &attributes(ino, 0), Generation(0), FileHandle(0), direct);
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
        let inside = self.inside.lock().unwrap();
        let bytes = inside.files.get(&ino.into()).map_or(&[][..], Vec::as_slice);
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
        if !self.takes() {
            return reply.error(Errno::EIO);
        }
        let mut inside = self.inside.lock().unwrap();
        let Some(bytes) = inside.files.get_mut(&ino.into()) else { return reply.error(Errno::ENOENT) };
        let end = offset as usize + data.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[offset as usize..end].copy_from_slice(data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if self.takes() { reply.ok() } else { reply.error(Errno::EIO) }
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.takes() {
            return reply.error(Errno::EIO);
        }
        // Whoever has it open goes on with it.
        let gone = self.inside.lock().unwrap().names.remove(name);
        if gone.is_some() { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut inside = self.inside.lock().unwrap();
        match inside.names.remove(name) {
            Some(ino) => {
                inside.names.insert(newname.to_owned(), ino);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let inside = self.inside.lock().unwrap();
        for (at, (name, ino)) in inside.names.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*ino), at as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}
