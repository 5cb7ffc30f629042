//! The simulated disk: deterministic, single-threaded, as hostile as real ones.
//!
//! Durable is what a flush covered; a completed write is visible but may be lost, in part or whole, at a power
//! loss; a write in flight may be anything. Every choice comes from the caller's generator, all iteration is in
//! a fixed order, and there is no clock and no thread: the same calls give the same bytes.
//!
//! It lies, loses a write or puts it elsewhere on command. What is not simulated is latency: the scheduler decides what
//! completes when.

mod content;
mod lane_disk;
mod state;
#[cfg(test)]
mod tests;

pub use lane_disk::SimDisk;

use super::{Device, check_range};
use crate::units::{BLOCK_SIZE_U64, to_usize};
use content::Write;
use parking_lot::{Mutex, MutexGuard};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use state::{State, with_own_random};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What an operation does, for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
}

/// How everything ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// The process dies, the machine stays, and what had completed gets to the medium in time: it is durable.
    /// Each write in flight is kept, dropped or torn.
    Kill,
    /// As [`Self::Kill`], but what had completed (and what is kept of the writes in flight) is still not durable: a
    /// power loss before the next flush may take it. The harder case: recovery must flush before it relies on anything.
    KillBeforeWriteback,
    /// The machine dies. Each write that no flush covered, completed or in flight, is kept, dropped or torn at sectors
    /// of 512 bytes, whatever its age: an older write may survive where a newer one to the same sector does not.
    PowerLoss,
}

/// What happened to a device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounters {
    /// Reads that ended, failed ones too.
    pub reads: u64,
    /// Writes that were acknowledged and went nowhere, or elsewhere.
    pub strays: u64,
    /// Flushes that were acknowledged and made nothing durable.
    pub lies: u64,
    /// Flushes that failed.
    pub failed_flushes: u64,
    /// Writes that ended, failed ones too.
    pub writes: u64,
    /// Flushes that ended, failed ones too.
    pub flushes: u64,
    /// Crashes.
    pub crashes: u64,
    /// Writes of which a crash kept some sectors and not others.
    pub torn_writes: u64,
    /// Writes of which a crash or a failed flush kept nothing.
    pub dropped_writes: u64,
    /// Operations that failed because of [`SimDevice::fail_nth`].
    pub injected_errors: u64,
    /// Ranges that were discarded.
    pub discards: u64,
    /// Reads that failed because of [`SimDevice::bad_block`].
    pub bad_block_reads: u64,
}

impl SimCounters {
    const fn of(&self, kind: OpKind) -> u64 {
        match kind {
            OpKind::Read => self.reads,
            OpKind::Write => self.writes,
            OpKind::Flush => self.flushes,
        }
    }

    const fn of_mut(&mut self, kind: OpKind) -> &mut u64 {
        match kind {
            OpKind::Read => &mut self.reads,
            OpKind::Write => &mut self.writes,
            OpKind::Flush => &mut self.flushes,
        }
    }

    /// The sums of both, for pools of several devices.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            flushes: self.flushes + other.flushes,
            crashes: self.crashes + other.crashes,
            torn_writes: self.torn_writes + other.torn_writes,
            dropped_writes: self.dropped_writes + other.dropped_writes,
            strays: self.strays + other.strays,
            lies: self.lies + other.lies,
            failed_flushes: self.failed_flushes + other.failed_flushes,
            injected_errors: self.injected_errors + other.injected_errors,
            discards: self.discards + other.discards,
            bad_block_reads: self.bad_block_reads + other.bad_block_reads,
        }
    }
}

/// A write that the device took, in the order of completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRange {
    /// Where.
    pub offset_bytes: u64,
    /// What; of a failed write, what was asked for.
    pub bytes: Arc<[u8]>,
}

/// A handle on a simulated device. Clones are the same device.
///
/// As a [`Device`] its calls end at once; they draw choices from a generator of the device ([`Self::reseed`]).
#[derive(Clone)]
pub struct SimDevice {
    name: Arc<str>,
    /// The generation with which the handle dies, if it does.
    bound_to: Option<u64>,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SimDevice({}, {} bytes)", self.name, self.size_bytes())
    }
}

impl SimDevice {
    /// A device full of zeros.
    ///
    /// # Panics
    /// If the size is not a multiple of the block size.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64) -> Self {
        assert!(size_bytes.is_multiple_of(BLOCK_SIZE_U64), "a device has whole blocks");
        Self { name: name.into(), bound_to: None, state: Arc::new(Mutex::new(State::new(size_bytes))) }
    }

    /// Another device with the same bytes, durable and not; without what is in flight, faults and counters. For
    /// pools that were copied or rolled back.
    #[must_use]
    pub fn duplicate(&self, name: &str) -> Self {
        let state = Arc::new(Mutex::new(self.lock().duplicate()));
        Self { name: name.into(), bound_to: None, state }
    }

    /// As [`Self::duplicate`], with what is in flight: for several crashes at the same point.
    #[must_use]
    pub fn image(&self) -> Self {
        let state = Arc::new(Mutex::new(self.lock().image()));
        Self { name: Arc::clone(&self.name), bound_to: None, state }
    }

    /// Makes the device larger, durably; what is new are zeros.
    ///
    /// # Panics
    /// If the size is not a multiple of the block size, or below the present one.
    pub fn grow(&self, size_bytes: u64) {
        assert!(size_bytes.is_multiple_of(BLOCK_SIZE_U64), "a device has whole blocks");
        let mut state = self.lock();
        assert!(size_bytes >= state.size_bytes, "a device only grows");
        state.size_bytes = size_bytes;
    }

    /// A handle as a process holds it: from the next crash on its calls as a [`Device`] fail and change nothing.
    /// (Other handles live on; they are the test's.)
    #[must_use]
    pub fn process_handle(&self) -> Self {
        Self { bound_to: Some(self.generation()), ..self.clone() }
    }

    /// Starts the generator anew that calls without a generator of their own draw from. It begins with seed 0.
    pub fn reseed(&self, seed: u64) {
        self.lock().own_random = SmallRng::seed_from_u64(seed);
    }

    /// The process or the machine dies: see [`CrashMode`]. Lanes' queues on this device are dead
    /// afterwards. Faults not met yet stay. `random` gives a number below its argument; it must not touch the device.
    pub fn crash(&self, mode: CrashMode, random: &mut dyn FnMut(u64) -> u64) {
        self.lock().crash(mode, random);
    }

    /// The machine dies as with [`CrashMode::PowerLoss`]. For each write of [`Self::unflushed`], in that order, `choose` gets which
    /// sectors may still reach the medium, and says of some of them that they do not.
    pub fn lose_power(&self, choose: &mut dyn FnMut(&mut [bool])) {
        self.lock().lose_power(choose);
    }

    /// Makes the `nth` operation of this kind to end from now on fail with EIO, once; 1 is the next.
    ///
    /// A failed write leaves a random subset of its sectors written. A failed flush makes a random subset of the
    /// completed writes never become durable, whatever flush follows; reads see them until a crash.
    ///
    /// # Panics
    /// If `nth` is 0.
    pub fn fail_nth(&self, kind: OpKind, nth: u64) {
        assert!(nth > 0, "1 is the next operation");
        self.lock().fail_nth(kind, nth);
    }

    /// Makes the `nth` write to end from now on go nowhere, although it is acknowledged; 1 is the next.
    ///
    /// # Panics
    /// If `nth` is 0.
    pub fn lose_nth_write(&self, nth: u64) {
        assert!(nth > 0, "1 is the next write");
        self.lock().lead_astray(nth, None);
    }

    /// Makes the `nth` write to end from now on go elsewhere, as far as the device has space there; 1 is the next.
    ///
    /// # Panics
    /// If `nth` is 0, or the place is not that of a block of the device.
    pub fn misdirect_nth_write(&self, nth: u64, offset_bytes: u64) {
        assert!(nth > 0, "1 is the next write");
        assert!(
            offset_bytes.is_multiple_of(BLOCK_SIZE_U64) && offset_bytes < self.size_bytes(),
            "a block of the device"
        );
        self.lock().lead_astray(nth, Some(offset_bytes));
    }

    /// Whether flushes are acknowledged without making anything durable.
    pub fn set_lying(&self, is_lying: bool) {
        self.lock().is_lying = is_lying;
    }

    /// Makes every read of a block fail with EIO until it is written again, also after crashes: an unreadable sector.
    ///
    /// # Panics
    /// If the block is behind the end.
    pub fn bad_block(&self, block: u64) {
        assert!(block < self.size_bytes() / BLOCK_SIZE_U64, "the block is on the device");
        self.lock().spoil(block);
    }

    /// Makes every bad block readable.
    pub fn heal(&self) {
        self.lock().heal();
    }

    /// Offset in bytes and bytes of each write that a power loss now may take, in part or whole: completed ones, then
    /// those in flight.
    #[must_use]
    pub fn unflushed(&self) -> Vec<(u64, Arc<[u8]>)> {
        self.lock().unflushed()
    }

    /// Whether the device is like a file, whose discarded ranges are to be written before they are used. It is not at first.
    pub fn set_thin(&self, is_thin: bool) {
        self.lock().is_thin = is_thin;
    }

    /// Takes back every fault not met yet; flushes tell the truth again.
    pub fn clear_faults(&self) {
        self.lock().clear_faults();
    }

    /// Inverts a bit on the medium and in what is not durable yet.
    ///
    /// # Panics
    /// If the byte is behind the end or `bit` is not below 8.
    pub fn flip_bit(&self, offset_bytes: u64, bit: u8) {
        assert!(offset_bytes < self.size_bytes(), "the byte is on the device");
        assert!(bit < 8, "a byte has 8 bits");
        self.lock().flip_bit(offset_bytes, bit);
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> SimCounters {
        self.lock().counters
    }

    /// Completed writes of which some part may be lost at a power loss.
    #[must_use]
    pub fn pending_count(&self) -> usize {
        self.lock().pending_count()
    }

    /// BLAKE3 of all that is on the device, durable and not. Two runs with one seed must agree.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.lock().digest()
    }

    /// Shows all content that is not zeros as (offset in bytes, bytes): durable, visible, waiting and in flight. A
    /// range may come more than once, with different bytes. `look` must not touch the device.
    pub fn scan(&self, mut look: impl FnMut(u64, &[u8])) {
        self.lock().scan(&mut look);
    }

    /// What a scan shows of the block at an offset, each content once.
    ///
    /// # Panics
    /// If the offset is not that of a block.
    #[must_use]
    pub fn contents_of(&self, offset_bytes: u64) -> Vec<Vec<u8>> {
        assert!(offset_bytes.is_multiple_of(BLOCK_SIZE_U64), "no block begins at {offset_bytes}");
        self.lock().contents_of(offset_bytes / BLOCK_SIZE_U64).into_iter().map(<[u8]>::to_vec).collect()
    }

    /// Starts (with an empty log) or ends remembering every completed write. Off at first.
    pub fn set_written_log(&self, is_on: bool) {
        self.lock().written_log = is_on.then(Vec::new);
    }

    /// The writes since the last call, in completion order; nothing if the log is off.
    #[must_use]
    pub fn take_written_log(&self) -> Vec<WrittenRange> {
        self.lock().written_log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn generation(&self) -> u64 {
        self.lock().generation
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn lock_alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if self.bound_to.is_some_and(|generation| generation != state.generation) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the process that opened the device has died"));
        }
        Ok(state)
    }
}

impl Device for SimDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.lock().size_bytes
    }

    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        check_range(self.size_bytes(), offset_bytes, target.len(), io::ErrorKind::UnexpectedEof)?;
        let mut state = self.lock_alive()?;
        with_own_random(&mut state, |state, random| state.read(offset_bytes, target, random))
    }

    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        check_range(self.size_bytes(), offset_bytes, source.len(), io::ErrorKind::InvalidInput)?;
        let mut state = self.lock_alive()?;
        let write = Write::new(offset_bytes, source.into());
        with_own_random(&mut state, |state, random| state.write(write, random))
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.lock_alive()?;
        let mark = state.flush_mark();
        with_own_random(&mut state, |state, random| state.flush(mark, random))
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        check_range(self.size_bytes(), offset_bytes, to_usize(len_bytes), io::ErrorKind::InvalidInput)?;
        self.lock_alive()?.discard(offset_bytes, len_bytes);
        Ok(())
    }

    fn is_thin(&self) -> bool {
        self.lock().is_thin
    }

    fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(self.lock_alive()?.holes())
    }
}
