//! Writes of parts of blocks: each edge is read, merged and written in a task under the block's lock.

use crate::disk::{Disk, IoBuffer};
use crate::error::IoError;
use crate::planted::{Bug, is_planted};
use crate::units::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockIndex, to_u64, to_usize};
use crate::volume::Volume;
use crate::volume::engine::Engine;
use crate::volume::range_lock::BlockRange;
use crate::volume::request::{Completion, Done, Part, PartKind};
use futures_channel::oneshot;
use std::rc::Rc;
use std::sync::Arc;

/// The edges by read, merge and write under the block's lock, the middle as whole blocks.
pub(super) async fn write_unaligned<D: Disk + 'static>(
    engine: Rc<Engine<D>>,
    volume: Arc<Volume>,
    offset_bytes: u64,
    source: IoBuffer,
    (is_fua, request): (bool, Option<Completion>),
) -> Result<(), IoError> {
    let news = engine.pool.space_news();
    let end = offset_bytes + to_u64(source.len());
    let mut offset = offset_bytes;
    let mut pending = Vec::new();
    let mut result = Ok(());
    while offset < end && result.is_ok() {
        let block_end = (offset / BLOCK_SIZE_U64 + 1) * BLOCK_SIZE_U64;
        let is_whole_block = offset.is_multiple_of(BLOCK_SIZE_U64) && block_end <= end;
        let next = if is_whole_block { end / BLOCK_SIZE_U64 * BLOCK_SIZE_U64 } else { block_end.min(end) };
        let piece = source.slice(to_usize(offset - offset_bytes)..to_usize(next - offset_bytes));
        if is_whole_block {
            let (answer, receiver) = oneshot::channel();
            let done = Done::Task { answer, request };
            engine.write_blocks(&volume, offset / BLOCK_SIZE_U64, &piece, false, done);
            pending.push((None, receiver));
        } else {
            let change = BlockChange { offset_bytes: offset, len_bytes: piece.len(), request, has_waited: false };
            match engine.merge_block(&volume, change, copy_of(&piece)).await {
                Ok(receiver) => pending.push((Some((change, piece)), receiver)),
                Err(error) => result = Err(error),
            }
        }
        offset = next;
    }
    // All of them, also after an error: nothing of the request may be written behind its answer.
    for (edge, receiver) in pending {
        let mut answer = receiver.await.unwrap_or(Err(IoError::ShuttingDown));
        if let (Some((change, piece)), Err(IoError::NoSpace), Ok(())) = (edge, answer, result) {
            answer = engine.merge_with_space(&volume, change, copy_of(&piece), news).await;
        }
        result = result.and(answer);
    }
    result?;
    if is_fua { engine.flush_for_task().await } else { Ok(()) }
}

fn copy_of(piece: &IoBuffer) -> impl Fn(&mut [u8]) {
    |into| piece.with_bytes(|bytes| into.copy_from_slice(bytes))
}

/// A change of some bytes within one block.
#[derive(Clone, Copy)]
pub(super) struct BlockChange {
    /// Where in the volume.
    pub offset_bytes: u64,
    /// How many.
    pub len_bytes: usize,
    /// The request that it is for.
    pub request: Option<Completion>,
    /// It waited for space before, and asks for no more checkpoints.
    pub has_waited: bool,
}

impl<D: Disk + 'static> Engine<D> {
    /// Has `fill` change bytes of a block; the receiver tells when it is written.
    pub(super) async fn merge_block(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        change: BlockChange,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<oneshot::Receiver<Result<(), IoError>>, IoError> {
        let BlockChange { offset_bytes, len_bytes, request, has_waited } = change;
        let block = BlockIndex::new(offset_bytes / BLOCK_SIZE_U64);
        let range = BlockRange { tree: volume.tree, block, count: 1 };
        let buffer = IoBuffer::allocate(BLOCK_SIZE);
        if is_planted(Bug::MergeTrustsEarlyLook) {
            self.read_blocks(volume, block.get(), &buffer).await?;
        }
        self.lock_for_task(range).await?;
        if !is_planted(Bug::MergeTrustsEarlyLook)
            && let Err(error) = self.read_blocks(volume, block.get(), &buffer).await
        {
            self.locks.unlock(range, &self.pool);
            return Err(error);
        }
        let from = to_usize(offset_bytes % BLOCK_SIZE_U64);
        buffer.slice(from..from + len_bytes).with_bytes_mut(fill);
        let part = Part::new(0, volume, range, PartKind::Write(buffer));
        Ok(self.start_part(Part { is_merged: true, has_waited, ..part }, request))
    }
}
