//! Requests under way on a lane, and what they wait for.

use crate::disk::IoBuffer;
use crate::error::IoError;
use crate::format::entry::Entry;
use crate::pool::FlushStart;
use crate::units::{BlockIndex, ChainSequence, Sequence};
use crate::volume::Volume;
use crate::volume::range_lock::BlockRange;
use futures_channel::oneshot;
use std::sync::Arc;

/// What a request was named by who made it, given back with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Completion {
    /// Which connection or device of the lane.
    pub owner: u32,
    /// Its own name for the request: a ublk tag, the slot of an NBD cookie.
    pub cookie: u64,
}

/// What a removal of blocks means for the edges of an unaligned range, and for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveMode {
    /// A hint: whole blocks become absent, edges are left.
    Discard,
    /// Zeros are read afterwards; whole blocks become absent.
    Zero,
    /// Zeros are read afterwards, and the blocks stay provisioned.
    ZeroProvisioned,
}

/// Whom to tell.
pub(super) enum Done {
    /// The connection or device.
    Frontend(Completion),
    /// A task of the lane, which works for a request if that is said.
    Task { answer: oneshot::Sender<Result<(), IoError>>, request: Option<Completion> },
    /// Nobody: it was told already (planted bug).
    Nobody,
}

impl Done {
    /// The request that it is about, if a connection or device made it.
    pub const fn request(&self) -> Option<Completion> {
        match self {
            Self::Frontend(completion) => Some(*completion),
            Self::Task { request, .. } => *request,
            Self::Nobody => None,
        }
    }
}

/// A request with parts under way.
pub(super) struct Request {
    pub done: Done,
    pub parts_left: u32,
    pub result: Result<(), IoError>,
    pub is_fua: bool,
}

/// What a part does once its range is locked.
pub(super) enum PartKind {
    /// Writes the blocks of the range from the buffer.
    Write(IoBuffer),
    /// Removes the given blocks (offset into the range, count).
    Remove(Vec<(u32, u32)>),
}

/// The part of a write or removal that lies in one leaf.
pub(super) struct Part {
    pub request: u32,
    pub volume: Arc<Volume>,
    pub range: BlockRange,
    pub kind: PartKind,
    /// Blocks (or removals) that are in batches already.
    pub appended: usize,
    /// Batches that hold some of it.
    pub batches_left: u32,
    /// It waits in the backlog or for a checkpoint.
    pub is_queued: bool,
    /// Why the rest will not be appended.
    pub failure: Option<IoError>,
    /// It overwrites only what is mapped, or frees: it may use the reserve.
    pub is_privileged: bool,
    /// It only moves blocks: it takes nothing of the reserve and waits for no space.
    pub is_move: bool,
    /// Its block was merged with what the map had when it was locked: it does not wait without the lock.
    pub is_merged: bool,
    /// It is to wait for space as soon as nothing of it is in a batch.
    pub is_pausing: bool,
    /// It waits for space, or did so: its request is counted.
    pub is_paused: bool,
    /// It waited for space: it asks for no more checkpoints, each of which is news for it.
    pub has_waited: bool,
    /// Its range is locked, or will be before it does anything.
    pub holds_range: bool,
    /// The news of space that it has seen before it looked last.
    pub news_seen: Option<u64>,
    /// What a lookup said: whether what is left overwrites only what is mapped.
    pub lookup: Option<bool>,
    /// From which sequence on blocks were the head's alone when `lookup` or `is_privileged` was found.
    pub judged_from: Sequence,
    /// Checkpoints that it waited for in vain.
    pub space_attempts: u32,
    /// What [`Pool::reserve_use`](crate::pool::Pool::reserve_use) told when it began to wait last.
    pub seen_progress: u64,
    /// Of its batches, those that were appended since it is privileged.
    pub privileged_batches: u32,
}

impl Part {
    /// A part of which nothing is appended yet.
    pub fn new(request: u32, volume: &Arc<Volume>, range: BlockRange, kind: PartKind) -> Self {
        Self {
            request,
            volume: Arc::clone(volume),
            range,
            is_privileged: matches!(kind, PartKind::Remove(_)),
            kind,
            appended: 0,
            batches_left: 0,
            is_queued: false,
            failure: None,
            is_move: false,
            is_merged: false,
            is_pausing: false,
            is_paused: false,
            has_waited: false,
            holds_range: true,
            news_seen: None,
            lookup: None,
            judged_from: Sequence::default(),
            space_attempts: 0,
            seen_progress: 0,
            privileged_batches: 0,
        }
    }

    /// Blocks or removals to append in all.
    pub fn total(&self) -> usize {
        match &self.kind {
            PartKind::Write(_) => crate::units::to_usize(u64::from(self.range.count)),
            PartKind::Remove(runs) => runs.len(),
        }
    }

    /// The first block that is not in a batch yet.
    pub fn next_block(&self) -> BlockIndex {
        self.range.block.plus(crate::units::to_u64(self.appended))
    }

    /// Forgets what is known of a write if its volume has another snapshot since: what it overwrites may be that snapshot's
    /// now, so that it takes space for good. To be called before each look for space.
    pub fn forget_old_judgement(&mut self) {
        let is_judged = self.is_privileged || self.lookup.is_some();
        if is_judged && matches!(self.kind, PartKind::Write(_)) && self.volume.own_from() != self.judged_from {
            self.is_privileged = false;
            self.lookup = None;
        }
    }

    /// Forgets what was appended of a write: the rest is all of it.
    pub fn keep_rest(&mut self) {
        let PartKind::Write(source) = &self.kind else { return };
        let rest = source.slice(crate::units::blocks_to_bytes(self.appended)..source.len());
        let appended = u32::try_from(self.appended).expect("a leaf has 256 blocks");
        self.range = BlockRange { block: self.next_block(), count: self.range.count - appended, ..self.range };
        self.kind = PartKind::Write(rest);
        self.appended = 0;
    }

    /// Whether nothing is left to append or to wait for.
    pub fn is_over(&self) -> bool {
        self.batches_left == 0 && !self.is_queued && (self.failure.is_some() || self.appended == self.total())
    }
}

/// A part that found no space, and what it waits for: whatever comes first.
pub(super) struct Starved {
    pub part: u32,
    /// A checkpoint with this number is done.
    pub checkpoint: u64,
    /// More stretches are fit for use than these; `None` if no more were to come.
    pub restocked: Option<u64>,
}

/// A read with device reads under way, all of whose leaves were cached.
pub(super) struct Read {
    pub done: Done,
    pub volume: Arc<Volume>,
    pub first_block: u64,
    pub target: IoBuffer,
    pub entries: Vec<Option<Entry>>,
    pub device_reads_left: u32,
    /// A block's mac did not match: a task finds out why.
    pub is_doubtful: bool,
    pub result: Result<(), IoError>,
}

/// What a device operation belongs to.
pub(super) enum Operation {
    /// A write of a batch.
    Batch(ChainSequence),
    /// A read of some blocks of a [`Read`].
    Read { read: u32, first: usize, count: usize },
    /// A read of a task.
    Task(oneshot::Sender<std::io::Result<()>>),
    /// The running flush.
    Flush,
}

/// A request for a flush, and what it must reach.
pub(super) struct FlushWaiter {
    pub done: Done,
    pub need: u64,
}

/// A device flush under way.
#[derive(Default)]
pub(super) struct RunningFlush {
    pub start: FlushStart,
    pub devices_left: u32,
    pub waiters: Vec<FlushWaiter>,
}

/// Whom a granted range lock is for.
pub(super) enum Ticket {
    /// A part.
    Part(u32),
    /// A task.
    Task(BlockRange, oneshot::Sender<Result<(), IoError>>),
    /// Nobody any more: it is given back at once.
    Nobody(BlockRange),
}
