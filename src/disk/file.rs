//! A device that is a preallocated file or a block device.
//!
//! I/O bypasses the page cache (`O_DIRECT`), so that a completed write is in the device and only its cache is to be
//! flushed; file systems that refuse this are served through the page cache. Invariant: while a
//! [`FileDevice`] exists, its open file is locked against every other one.

#![expect(unsafe_code, reason = "system calls for which the standard library has no safe form")]

mod holes;
mod lock;
#[cfg(test)]
mod tests;

use super::{Device, IoBuffer, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, to_u64, to_usize};
use std::ffi::CString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Bytes of one write of zeros when a file is created. Larger ones are not faster on any device measured.
const ZERO_CHUNK_BYTES: usize = 4 << 20;
/// Bytes that go through aligned memory at once when the caller's is not aligned.
const BOUNCE_BYTES_MAX: usize = 1 << 20;
/// How often, and after which pauses, a lock or claim is tried that no process can be seen to hold: two seconds.
const UNOWNED_LOCK_TRIES: u32 = 400;
const UNOWNED_LOCK_PAUSE: Duration = Duration::from_millis(5);
const MIB: u64 = 1 << 20;

/// An open, locked file or block device.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    name: String,
    /// Grows by [`Self::extend`] and [`Self::measure`] only.
    size_bytes: AtomicU64,
    is_block_device: bool,
    is_direct: bool,
}

impl FileDevice {
    /// Creates a file of `size_bytes`, readable by the owner only, and writes all of it with zeros: unwritten extents
    /// would make every flush a commit of the file system. Takes as long as the device needs to write
    /// this much. File and directory entry are durable at the end; after an error the file is gone.
    ///
    /// # Errors
    /// `Usage` if the size is 0 or not a multiple of the block size, `Exists` if anything has the path already,
    /// `NoSpace` naming what is free, else the system's.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_SIZE_U64) || i64::try_from(size_bytes).is_err() {
            let message = format!("{size_bytes} bytes is no size for {}", path.display());
            return Err(Error::new(ErrorKind::Usage, message).with_hint("It must be a positive multiple of 4 KiB"));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(|source| Error::from_io("Creating", path, source))?;
        let partial = PartialFile { path: Some(path.to_path_buf()) };
        // Asked first, since the preallocation would take all that is there before it fails.
        let free_bytes =
            free_space_bytes(path).map_err(|source| Error::from_io("Reading the free space at", path, source))?;
        if free_bytes < size_bytes {
            return Err(no_space(path, size_bytes, free_bytes));
        }
        let device = Self::lock_and_adopt(file, path, (size_bytes, false))?;
        device.fill_with_zeros(0, size_bytes).map_err(|source| creation_error(path, size_bytes, source))?;
        sync_directory_of(path).map_err(|source| Error::from_io("Flushing the directory of", path, source))?;
        partial.keep();
        Ok(device)
    }

    /// Opens an existing file or block device (also through a symbolic link) and locks it.
    ///
    /// # Errors
    /// `Busy` if another process has it, `Usage` if it is neither a file nor a block device, `Integrity` if it is
    /// empty, `Unsupported` if its sectors are larger than a block, `NotFound`, `Permission`, else the system's.
    pub fn open(path: &Path) -> Result<Self> {
        // Looked at before the opening, which can have effects on other kinds of file.
        let metadata = fs::metadata(path).map_err(|source| Error::from_io("Opening", path, source))?;
        let is_block_device = check_kind(path, &metadata)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if is_block_device {
            // On a block device this means: not while it is mounted or otherwise claimed.
            options.custom_flags(libc::O_EXCL);
        }
        let file = open_patiently(|| options.open(path)).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => claimed(path),
            _ => Error::from_io("Opening", path, source),
        })?;
        let metadata = file.metadata().map_err(|source| Error::from_io("Opening", path, source))?;
        check_kind(path, &metadata)?;
        let end = end_of(&file, path)?;
        let size_bytes = whole_blocks(end);
        if size_bytes == 0 {
            return Err(Error::new(ErrorKind::Integrity, format!("{} has a size of {end} bytes", path.display())));
        }
        let device = Self::lock_and_adopt(file, path, (size_bytes, is_block_device))?;
        device.probe(path)
    }

    /// Makes a file larger and writes the part from `from_bytes` on with zeros, also where the file has it already: an
    /// earlier attempt may have ended anywhere. All of it is durable at the end. I/O on the rest goes on. After an error
    /// the file has its size of before.
    ///
    /// # Errors
    /// `NoSpace` naming what is free, else the system's.
    ///
    /// # Panics
    /// If it is a block device, or a size is not made of whole blocks.
    pub fn extend(&self, from_bytes: u64, size_bytes: u64) -> Result<()> {
        assert!(!self.is_block_device, "a block device grows by itself");
        assert!(from_bytes.is_multiple_of(BLOCK_SIZE_U64) && size_bytes.is_multiple_of(BLOCK_SIZE_U64));
        let path = Path::new(&self.name);
        let before = end_of(&self.file, path)?;
        let free_bytes =
            free_space_bytes(path).map_err(|source| Error::from_io("Reading the free space at", path, source))?;
        let more_bytes = size_bytes.saturating_sub(before);
        if free_bytes < more_bytes {
            return Err(no_space(path, more_bytes, free_bytes));
        }
        if let Err(source) = self.fill_with_zeros(from_bytes, size_bytes) {
            if size_bytes > before
                && let Err(error) = self.file.set_len(before)
            {
                tracing::warn!(path = self.name, %error, "a file that could not be extended keeps its new part");
            }
            return Err(creation_error(path, more_bytes, source));
        }
        self.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Looks how large it is now, and lets I/O use that.
    ///
    /// # Errors
    /// The system's; `Integrity` if it has shrunk.
    pub fn measure(&self) -> Result<u64> {
        let now = whole_blocks(end_of(&self.file, Path::new(&self.name))?);
        let before = self.size_bytes.fetch_max(now, Ordering::AcqRel);
        if now < before {
            let message = format!("{} has shrunk: it had {before} bytes and has {now}", self.name);
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore it to its full size"));
        }
        Ok(now)
    }

    /// Whether it is a block device, not a file.
    #[must_use]
    pub const fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Whether I/O bypasses the page cache. If not, the file system refused, and I/O is slower.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// The descriptor, for rings. It stays open as long as this lives.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// One call to the kernel, which may read less; 0 at the end of the file. The caller has checked the range, and
    /// `target` is fit for direct I/O.
    pub(super) fn read_some(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(target, offset_bytes)
    }

    /// One call to the kernel, which may write less. The caller has checked the range, and `source` is fit for direct I/O.
    pub(super) fn write_some(&self, offset_bytes: u64, source: &[u8]) -> io::Result<usize> {
        self.file.write_at(source, offset_bytes)
    }

    /// One call to the kernel, never tried again: what an interrupted flush dropped would count as durable.
    pub(super) fn flush_once(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open as long as `self` is borrowed; the call has no pointers.
        if unsafe { libc::fdatasync(self.file.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn lock_and_adopt(file: File, path: &Path, (size_bytes, is_block_device): (u64, bool)) -> Result<Self> {
        let mut tries_left = UNOWNED_LOCK_TRIES;
        while !lock::try_lock(&file).map_err(|source| Error::from_io("Locking", path, source))? {
            let holder = lock::holder(&file);
            // Without an owner it is most likely a daemon that was just killed: the kernel takes down its rings, and
            // the I/O in them, after the process is gone.
            if holder.is_some() || tries_left == 0 {
                return Err(in_use(path, holder));
            }
            tries_left -= 1;
            thread::sleep(UNOWNED_LOCK_PAUSE);
        }
        // Set after the opening: some file systems create the file and only then refuse the flag.
        let is_direct = match set_direct(&file, true) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => return Err(Error::from_io("Setting direct I/O on", path, error)),
        };
        let (name, size_bytes) = (path.display().to_string(), AtomicU64::new(size_bytes));
        Ok(Self { file, name, size_bytes, is_block_device, is_direct })
    }

    /// Reads a block, since some refuse direct I/O of this size only when it comes.
    fn probe(mut self, path: &Path) -> Result<Self> {
        let block = IoBuffer::allocate(BLOCK_SIZE);
        let mut result = block.with_bytes_mut(|bytes| self.read_at(0, bytes));
        let is_refused = result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
        if self.is_direct && is_refused {
            if self.is_block_device {
                let message = format!("{} has sectors larger than 4 KiB", path.display());
                return Err(Error::new(ErrorKind::Unsupported, message).with_hint("Use a file on it instead"));
            }
            set_direct(&self.file, false).map_err(|source| Error::from_io("Setting buffered I/O on", path, source))?;
            self.is_direct = false;
            result = block.with_bytes_mut(|bytes| self.read_at(0, bytes));
        }
        result.map_err(|source| Error::from_io("Reading", path, source))?;
        Ok(self)
    }

    /// The file may not have the range yet.
    fn fill_with_zeros(&self, from_bytes: u64, end_bytes: u64) -> io::Result<()> {
        preallocate(&self.file, from_bytes, end_bytes - from_bytes)?;
        let zeros = IoBuffer::allocate(ZERO_CHUNK_BYTES);
        let mut offset_bytes = from_bytes;
        while offset_bytes < end_bytes {
            let len_bytes = (end_bytes - offset_bytes).min(to_u64(ZERO_CHUNK_BYTES));
            zeros.slice(0..to_usize(len_bytes)).with_bytes(|bytes| self.file.write_all_at(bytes, offset_bytes))?;
            offset_bytes += len_bytes;
        }
        self.file.sync_all()
    }

    /// Whether the kernel takes this memory as it is.
    fn is_fit(&self, memory: *const u8) -> bool {
        !self.is_direct || memory.addr().is_multiple_of(BLOCK_SIZE)
    }
}

impl Device for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        check_range(self.size_bytes(), offset_bytes, target.len(), io::ErrorKind::UnexpectedEof)?;
        if self.is_fit(target.as_ptr()) {
            return self.file.read_exact_at(target, offset_bytes);
        }
        let bounce = IoBuffer::allocate(target.len().min(BOUNCE_BYTES_MAX));
        for (index, chunk) in target.chunks_mut(bounce.len()).enumerate() {
            bounce.slice(0..chunk.len()).with_bytes_mut(|bytes| {
                self.file.read_exact_at(bytes, offset_bytes + to_u64(index * bounce.len()))?;
                chunk.copy_from_slice(bytes);
                Ok::<_, io::Error>(())
            })?;
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        check_range(self.size_bytes(), offset_bytes, source.len(), io::ErrorKind::InvalidInput)?;
        if self.is_fit(source.as_ptr()) {
            return self.file.write_all_at(source, offset_bytes);
        }
        let bounce = IoBuffer::allocate(source.len().min(BOUNCE_BYTES_MAX));
        for (index, chunk) in source.chunks(bounce.len()).enumerate() {
            let part = bounce.slice(0..chunk.len());
            part.with_bytes_mut(|bytes| bytes.copy_from_slice(chunk));
            part.with_bytes(|bytes| self.file.write_all_at(bytes, offset_bytes + to_u64(index * bounce.len())))?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        check_range(self.size_bytes(), offset_bytes, to_usize(len_bytes), io::ErrorKind::InvalidInput)?;
        holes::punch(&self.file, offset_bytes, len_bytes, self.is_block_device)
    }

    fn is_thin(&self) -> bool {
        !self.is_block_device
    }

    fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        if self.is_block_device { Ok(Vec::new()) } else { holes::holes(&self.file, self.size_bytes()) }
    }
}

/// Tries again while a block device is claimed: the I/O that a killed daemon left in the kernel holds its claim for a
/// moment, as it holds the lock of a file.
fn open_patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..UNOWNED_LOCK_TRIES {
        match open() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(UNOWNED_LOCK_PAUSE),
            result => return result,
        }
    }
    open()
}

/// Removes the file unless it was completed.
struct PartialFile {
    path: Option<PathBuf>,
}

impl PartialFile {
    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "a file that could not be completed could not be removed either");
        }
    }
}

/// Whether it is a block device; an error if it is neither that nor a file.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<bool> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    }
    let what = if kind.is_dir() { "a directory" } else { "a special file" };
    let message = format!("{} is {what}, not a file or block device", path.display());
    Err(Error::new(ErrorKind::Usage, message))
}

fn in_use(path: &Path, holder: Option<u32>) -> Error {
    let who = holder.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    let message = format!("{} is in use by another rok-blk{who}", path.display());
    Error::new(ErrorKind::Busy, message).with_hint("Stop that one first; one pool is served by one process")
}

fn claimed(path: &Path) -> Error {
    let message = format!("{} is mounted, claimed by the kernel, or in use by another rok-blk", path.display());
    Error::new(ErrorKind::Busy, message).with_hint("See who holds it with lsblk and fuser")
}

fn creation_error(path: &Path, size_bytes: u64, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            no_space(path, size_bytes, free_space_bytes(path).unwrap_or(0)).with_source(source)
        }
        _ => Error::from_io("Writing", path, source),
    }
}

fn no_space(path: &Path, size_bytes: u64, free_bytes: u64) -> Error {
    let (needed_mib, free_mib) = (size_bytes.div_ceil(MIB), free_bytes / MIB);
    let message = format!("{} needs {needed_mib} MiB, and {free_mib} MiB are free there", path.display());
    Error::new(ErrorKind::NoSpace, message).with_hint("Free some space, or choose a smaller size or another place")
}

/// The end is the size for files and block devices alike.
fn end_of(mut file: &File, path: &Path) -> Result<u64> {
    file.seek(SeekFrom::End(0)).map_err(|source| Error::from_io("Reading the size of", path, source))
}

/// What is behind the last whole block is not used.
const fn whole_blocks(end: u64) -> u64 {
    end / BLOCK_SIZE_U64 * BLOCK_SIZE_U64
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// What an unprivileged process can still take at `path`, in bytes; everything where the file system keeps no count.
///
/// # Errors
/// If there is nothing at `path`.
pub fn free_space_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut answer = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a terminated string and `answer` has room for what the kernel writes; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled the structure.
    let answer = unsafe { answer.assume_init() };
    if answer.f_blocks == 0 {
        return Ok(u64::MAX);
    }
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

fn set_direct(file: &File, is_wanted: bool) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open as long as `file` is borrowed; the command has no pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = if is_wanted { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks for contiguous space. Where the file system cannot, the zeros that are written next take it.
fn preallocate(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let offset = libc::off64_t::try_from(offset_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let len = libc::off64_t::try_from(len_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    loop {
        // SAFETY: the descriptor is open as long as `file` is borrowed; the call has no pointers.
        if unsafe { libc::fallocate64(file.as_raw_fd(), 0, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
}
