//! Reading and verifying blocks for the scrub, wherever the map has them, without a volume and without a lock.
//!
//! What does not match may have been replaced, and its place reused, since the map was looked at. So it is asked once more
//! who has it: a block that somebody has still was never free in between, and is damaged.

use crate::disk::{Disk, IoBuffer};
use crate::error::{IoError, Result as ControlResult};
use crate::format::scrub::DamageKind;
use crate::pool::{Pool, ScrubBlock, ScrubPart, ScrubStep, ScrubWish, Suspect};
use crate::units::{AddressRun, BLOCK_SIZE, blocks_to_bytes, to_u64};
use crate::volume::engine::Engine;
use crate::volume::request::{Completion, Done};
use futures_channel::oneshot;
use parking_lot::Mutex;
use std::rc::Rc;
use std::sync::Arc;

/// Blocks of one device read: 256 KiB. One is under way at a time.
const RUN_BLOCKS_MAX: usize = 64;

/// Where a lane puts what came of a part, before it answers.
pub type ScrubResult = Arc<Mutex<ScrubStep>>;

impl<D: Disk + 'static> Engine<D> {
    /// Reads and verifies a part of a scrub, one device read at a time. Nothing is decrypted.
    pub fn scrub(self: &Rc<Self>, wish: ScrubWish, result: &ScrubResult, completion: Completion) {
        let (engine, result) = (Rc::clone(self), Arc::clone(result));
        self.spawn(Done::Frontend(completion), async move {
            let ScrubWish { from, blocks_max, is_brief } = wish;
            let part = engine.elsewhere(move |pool| pool.scrub_part(from, blocks_max)).await?;
            let ScrubPart { blocks, mut suspects, next } = part;
            engine.verify_all(&blocks, &mut suspects).await?;
            let damages = if suspects.is_empty() {
                Vec::new()
            } else {
                engine.elsewhere(move |pool| pool.damages_of(suspects, is_brief)).await?
            };
            *result.lock() = ScrubStep { next, read_blocks: to_u64(blocks.len()), damages };
            Ok(())
        });
    }

    async fn elsewhere<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pool) -> ControlResult<T> + Send + 'static,
    ) -> Result<T, IoError> {
        let (sender, receiver) = oneshot::channel();
        let pool = Arc::clone(&self.pool);
        self.blocking.run(Box::new(move || {
            // The task may be gone; then nobody wants the answer.
            drop(sender.send(work(&pool)));
        }));
        receiver.await.map_err(|_| IoError::ShuttingDown)?.map_err(|error| {
            tracing::error!(%error, "the scrub cannot read the map");
            IoError::Io
        })
    }

    /// Reads blocks, which come by address, and adds what is wrong to the suspects.
    async fn verify_all(&self, blocks: &[ScrubBlock], suspects: &mut Vec<Suspect>) -> Result<(), IoError> {
        let buffer = IoBuffer::allocate(blocks_to_bytes(RUN_BLOCKS_MAX));
        let is_next = |one: &ScrubBlock, other: &ScrubBlock| one.entry.address().plus(1) == other.entry.address();
        for run in blocks.chunk_by(is_next).flat_map(|run| run.chunks(RUN_BLOCKS_MAX)) {
            match self.verify_run(run, &buffer, suspects).await {
                Err(IoError::ShuttingDown) => return Err(IoError::ShuttingDown),
                Ok(()) => continue,
                Err(_) => {}
            }
            // One after the other, so that only those are named that the device does not give.
            for block in run {
                match self.verify_run(std::slice::from_ref(block), &buffer, suspects).await {
                    Err(IoError::ShuttingDown) => return Err(IoError::ShuttingDown),
                    Ok(()) => {}
                    Err(_) => suspects.push(Suspect::of_block(block, DamageKind::Unreadable)),
                }
            }
        }
        Ok(())
    }

    async fn verify_run(
        &self,
        run: &[ScrubBlock],
        buffer: &IoBuffer,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), IoError> {
        let target = buffer.slice(0..blocks_to_bytes(run.len()));
        let addresses = AddressRun { start: run[0].entry.address(), count: to_u64(run.len()) };
        self.read_device(addresses, &target).await?;
        let state = &mut *self.state.borrow_mut();
        target.with_bytes(|bytes| {
            for (block, content) in run.iter().zip(bytes.chunks_exact(BLOCK_SIZE)) {
                let ScrubBlock { entry, domain, .. } = *block;
                let cipher = state.ciphers.get(self.pool.keys(), domain, entry.generation(), entry.sequence());
                if !cipher.is_some_and(|cipher| cipher.verify(entry.sequence(), content, entry.mac())) {
                    suspects.push(Suspect::of_block(block, DamageKind::Content));
                }
            }
        });
        Ok(())
    }
}
