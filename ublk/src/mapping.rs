//! A range of mapped memory: the driver's descriptors.
//!
//! Invariant: `pointer` is a mapping of `len` bytes made by `mmap` and not yet unmapped. Owned by a queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// A mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    pointer: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Memory of a device, shared with the kernel, read only. `len` in bytes, above 0; `offset` a multiple of a page.
    pub(crate) fn of_device(file: &File, len: usize, offset: libc::off_t) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: no address is asked for, so no other memory of the process is replaced.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pointer = NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { pointer, len })
    }

    /// First byte.
    pub(crate) fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and whole; nobody keeps a reference into it beyond its owner.
        let result = unsafe { libc::munmap(self.pointer.as_ptr().cast(), self.len) };
        assert!(result == 0, "a whole mapping can be unmapped");
    }
}

/// Bytes of a page of this machine.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf only reads.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}
