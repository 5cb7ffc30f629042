//! A file system that loses what was not synced, at a moment that the test chooses: mounted with FUSE, in memory.
//!
//! The kernel sends each write and each sync here before whoever made it goes on, so that nothing is "on disk" but what
//! `tree.rs` says. When the moment has come, requests are kept waiting; the test kills those who wait, has the rest of their
//! requests refused, and takes the tree out to lose what may be lost and to mount it again.

mod content;
mod tree;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

use tree::{Directory, File, Kind, Node};
pub use tree::{Lies, Losses, Scope, Tree};

/// How long the kernel may go by what it was told. Nobody else changes anything.
const KNOWN_FOR: Duration = Duration::from_secs(1);
const BLOCK_BYTES: u32 = 4096;
/// What it says that it has.
const CAPACITY_BYTES: u64 = 4 << 30;
const SECTOR_BYTES: u64 = 512;

/// Whether requests are served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    /// They are; after so many changes and syncs no more, if it is known how many.
    On { changes_left: Option<u64> },
    /// They wait.
    Waiting,
    /// They are refused.
    Off,
}

struct Inner {
    tree: Tree,
    power: Power,
}

#[derive(Clone)]
struct Shared {
    inner: Arc<(Mutex<Inner>, Condvar)>,
}

/// The mounted file system. Dropped, it is unmounted.
pub struct Mounted {
    place: PathBuf,
    shared: Shared,
    _session: BackgroundSession,
}

impl Mounted {
    /// Mounts a tree at an empty directory.
    ///
    /// # Errors
    /// Without `/dev/fuse`, or the right to mount.
    pub fn new(tree: Tree, place: &Path) -> std::io::Result<Self> {
        let inner = Inner { tree, power: Power::On { changes_left: None } };
        let shared = Shared { inner: Arc::new((Mutex::new(inner), Condvar::new())) };
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("lossy".to_owned()), MountOption::NoAtime];
        let session = fuser::spawn_mount(shared.clone(), place, &config)?;
        Ok(Self { place: place.to_owned(), shared, _session: session })
    }

    /// The tree, as it is.
    pub fn tree(&self) -> impl std::ops::DerefMut<Target = Tree> + '_ {
        MutexGuard::map(self.shared.inner.0.lock(), |inner| &mut inner.tree)
    }

    /// Has requests wait after so many more changes and syncs.
    pub fn stop_after(&self, changes: u64) {
        self.shared.inner.0.lock().power = Power::On { changes_left: Some(changes) };
    }

    /// Has requests wait from now on.
    pub fn stop(&self) {
        self.shared.inner.0.lock().power = Power::Waiting;
    }

    /// Whether requests wait; waits for that for a while.
    pub fn is_stopped_within(&self, time_max: Duration) -> bool {
        let (mutex, condition) = &*self.shared.inner;
        let mut inner = mutex.lock();
        condition.wait_while_for(&mut inner, |inner| matches!(inner.power, Power::On { .. }), time_max);
        !matches!(inner.power, Power::On { .. })
    }

    /// Refuses those that wait and all later ones.
    pub fn refuse(&self) {
        let (mutex, condition) = &*self.shared.inner;
        mutex.lock().power = Power::Off;
        condition.notify_all();
    }

    /// Unmounts it; what it held. What of it is synced is another matter.
    pub fn take(self) -> Tree {
        self.refuse();
        std::mem::take(&mut self.shared.inner.0.lock().tree)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.refuse();
        // Lazily: the kernel still closes the files of a process that is gone. Without this right the session does it.
        let mut command = Command::new("umount");
        let _is_unmounted = command.arg("--lazy").arg(&self.place).status().is_ok_and(|status| status.success());
    }
}

impl Shared {
    /// The tree, for a request that changes nothing.
    fn read(&self) -> Result<MutexGuard<'_, Inner>, Errno> {
        self.serve(false)
    }

    /// The tree, for a request that changes or syncs something.
    fn change(&self) -> Result<MutexGuard<'_, Inner>, Errno> {
        self.serve(true)
    }

    fn serve(&self, is_change: bool) -> Result<MutexGuard<'_, Inner>, Errno> {
        let (mutex, condition) = &*self.inner;
        let mut inner = mutex.lock();
        if is_change && let Power::On { changes_left: Some(left) } = &mut inner.power {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => {
                    inner.power = Power::Waiting;
                    condition.notify_all();
                }
            }
        }
        condition.wait_while(&mut inner, |inner| inner.power == Power::Waiting);
        if inner.power == Power::Off { Err(Errno::EIO) } else { Ok(inner) }
    }

    fn with<T>(&self, is_change: bool, work: impl FnOnce(&mut Tree) -> Result<T, i32>) -> Result<T, Errno> {
        let mut inner = if is_change { self.change()? } else { self.read()? };
        work(&mut inner.tree).map_err(Errno::from_i32)
    }
}

fn attributes(tree: &Tree, number: u64) -> Result<FileAttr, i32> {
    let node = tree.node(number).ok_or(libc::ENOENT)?;
    let (kind, size, allocated) = match &node.kind {
        Kind::File(file) => (FileType::RegularFile, file.now.size(), file.now.allocated_bytes()),
        Kind::Directory(_) => (FileType::Directory, 0, 0),
    };
    let time = SystemTime::UNIX_EPOCH;
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: allocated / SECTOR_BYTES,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: node.mode,
        nlink: 1,
        uid: node.owner.0,
        gid: node.owner.1,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    })
}

/// Makes a node; its attributes.
fn make(tree: &mut Tree, request: &Request, parent: u64, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, i32> {
    let mode = u16::try_from(mode & 0o7777).expect("twelve bits");
    let number = tree.make(parent, name, Node { kind, mode, owner: (request.uid(), request.gid()) })?;
    attributes(tree, number)
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&KNOWN_FOR, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Shared {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.with(false, |tree| {
            let number = tree.lookup(parent.0, name)?;
            attributes(tree, number)
        });
        answer_entry(reply, result);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(false, |tree| attributes(tree, number.0)) {
            Ok(attributes) => reply.attr(&KNOWN_FOR, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        user: Option<u32>,
        group: Option<u32>,
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
        let result = self.with(size.is_some(), |tree| {
            if let Some(size) = size {
                tree.file(number.0)?.resize(size);
            }
            let node = tree.node_mut(number.0).ok_or(libc::ENOENT)?;
            if let Some(mode) = mode {
                node.mode = u16::try_from(mode & 0o7777).expect("twelve bits");
            }
            node.owner = (user.unwrap_or(node.owner.0), group.unwrap_or(node.owner.1));
            attributes(tree, number.0)
        });
        match result {
            Ok(attributes) => reply.attr(&KNOWN_FOR, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let kind = Kind::Directory(Directory::default());
        answer_entry(reply, self.with(true, |tree| make(tree, request, parent.0, name, kind, mode & !umask)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let kind = Kind::File(File::default());
        match self.with(true, |tree| make(tree, request, parent.0, name, kind, mode & !umask)) {
            Ok(attributes) => {
                reply.created(&KNOWN_FOR, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.with(true, |tree| tree.remove(parent.0, name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.with(true, |tree| tree.remove(parent.0, name)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        from: &OsStr,
        new_parent: INodeNo,
        to: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = self.with(true, |tree| {
            // Nothing here needs an exchange, or a refusal where the name is taken.
            if flags.is_empty() { tree.rename((parent.0, new_parent.0), from, to) } else { Err(libc::EINVAL) }
        });
        answer(reply, result);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with(false, |tree| Ok(tree.file(number.0)?.now.read(offset, u64::from(size)))) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let result = self.with(true, |tree| {
            tree.file(number.0)?.write(offset, data);
            Ok(())
        });
        match result {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("the kernel bounds it")),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.with(true, |tree| tree.sync(number.0)));
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.with(true, |tree| tree.sync(number.0)));
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.with(false, |tree| {
            let names: Vec<_> =
                tree.directory(number.0)?.now.iter().map(|(name, number)| (name.clone(), *number)).collect();
            for (place, (name, number)) in (0_u64..).zip(names).skip(usize::try_from(offset).map_err(|_| libc::EINVAL)?)
            {
                let kind = attributes(tree, number)?.kind;
                if reply.add(INodeNo(number), place + 1, kind, name) {
                    break;
                }
            }
            Ok(())
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.with(false, |tree| Ok(tree.allocated_bytes())) {
            Ok(used) => {
                let block = u64::from(BLOCK_BYTES);
                let (all, free) = (CAPACITY_BYTES / block, CAPACITY_BYTES.saturating_sub(used) / block);
                reply.statfs(all, free, free, all, all, BLOCK_BYTES, 255, BLOCK_BYTES);
            }
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset.saturating_add(length);
        let result = self.with(true, |tree| {
            let file = tree.file(number.0)?;
            let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
            match mode & !libc::FALLOC_FL_KEEP_SIZE {
                0 => {}
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => file.punch(offset..end),
                _ => return Err(libc::EOPNOTSUPP),
            }
            if !keeps_size && end > file.now.size() {
                file.resize(end);
            }
            Ok(())
        });
        answer(reply, result);
    }

    fn lseek(&self, _: &Request, number: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let result = self.with(false, |tree| {
            let content = &tree.file(number.0)?.now;
            let at = u64::try_from(offset).ok().filter(|at| *at < content.size()).ok_or(libc::ENXIO)?;
            let found = match whence {
                libc::SEEK_DATA => content.next_data(at).ok_or(libc::ENXIO)?,
                libc::SEEK_HOLE => content.next_hole(at),
                _ => return Err(libc::EINVAL),
            };
            i64::try_from(found).map_err(|_| libc::EOVERFLOW)
        });
        match result {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::support::skip;

    /// What a power loss leaves of two files of which one was synced, by that and by the other one.
    fn synced_and_other(seed: u64) -> Option<[Option<Vec<u8>>; 2]> {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mounted = match Mounted::new(Tree::default(), place.path()) {
            Ok(mounted) => mounted,
            Err(error) => {
                skip(&format!("no file system can be mounted: {error}"));
                return None;
            }
        };
        let files = ["synced", "other"].map(|name| place.path().join(name));
        for file in &files {
            fs::File::create(file).expect("a file").write_all(&[7; 5000]).expect("it takes them");
        }
        fs::File::open(&files[0]).expect("it is there").sync_all().expect("it is synced");
        fs::File::open(place.path()).expect("it is there").sync_all().expect("it is synced");

        let mut tree = mounted.take();
        tree.lose_power(Scope::All, &mut SmallRng::seed_from_u64(seed));
        let mounted = Mounted::new(tree, place.path()).expect("as before");
        let found = files.map(|file| fs::read(file).ok());
        drop(mounted);
        Some(found)
    }

    #[test]
    fn what_is_synced_stays_and_other_data_may_be_gone() {
        let mut lost = 0;
        for seed in 0..8 {
            let Some([synced, other]) = synced_and_other(seed) else { return };
            assert_eq!(synced, Some(vec![7; 5000]));
            lost += u32::from(other.expect("its name is synced") != [7; 5000]);
        }
        assert!(lost > 0);
    }

    #[test]
    fn a_process_that_is_kept_waiting_ends_when_it_is_killed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mounted = match Mounted::new(Tree::default(), place.path()) {
            Ok(mounted) => mounted,
            Err(error) => return skip(&format!("no file system can be mounted: {error}")),
        };
        mounted.stop_after(1);
        let mut command = Command::new("dd");
        command
            .args(["if=/dev/zero", "bs=4k", "count=100", "status=none"])
            .arg(format!("of={}", place.path().join("a").display()));
        let mut child = command.spawn().expect("dd starts");
        assert!(mounted.is_stopped_within(crate::support::WAIT_MAX));
        child.kill().expect("it was not waited for yet");
        mounted.refuse();
        assert!(!child.wait().expect("it can be waited for").success());

        let mut tree = mounted.take();
        let number = tree.lookup(tree::ROOT, OsStr::new("a")).expect("it was made");
        assert_eq!(tree.file(number).expect("a file").now.size(), 0, "what waited was not done");
    }
}
