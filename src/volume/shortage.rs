//! Writes that find no space: who may take from the reserve, who waits for a checkpoint, and for how long.
//!
//! What overwrites only blocks that the head alone maps, and what frees, needs no space in the end: it is privileged, takes
//! from the reserve, and waits as long as checkpoints help anybody like it. A snapshot takes the blocks from the head, and
//! with them the privilege of writes under way (`Part::forget_old_judgement`). Everything else gets "no space", or pauses if
//! its volume says so, after checkpoints that brought it none, unless free space is about to be made fit for use.

use crate::disk::Disk;
use crate::units::to_usize;
use crate::volume::engine::{Engine, State};
use crate::volume::request::{Done, Part, Starved};
use std::rc::Rc;
use std::sync::Arc;

/// Checkpoints that a write waits for before it gets "no space" or pauses: the first may have begun before what it hopes for.
const SPACE_ATTEMPTS_MAX: u32 = 3;

impl<D: Disk + 'static> Engine<D> {
    /// What a part does that finds no space. `true` if it waits: for a leaf, or for a checkpoint; else it goes on, with a
    /// privilege or with a failure.
    pub(super) fn wait_for_space(&self, state: &mut State<D>, index: u32) -> bool {
        let Some(is_privileged) = self.is_privileged(state, index) else { return true };
        let part = &mut state.parts[to_usize(u64::from(index))];
        if is_privileged && !std::mem::replace(&mut part.is_privileged, true) {
            return false;
        }
        let (is_under_way, progress) = self.pool.reserve_use();
        if is_privileged && (is_under_way || part.seen_progress != progress) {
            // What others like it replace comes back, though not yet with the last checkpoint.
            part.space_attempts = 0;
        }
        part.seen_progress = progress;
        // What comes fit for use is news for those that have waited before.
        let restocked = (self.pool.is_restock_coming() && !part.has_waited).then(|| self.pool.restocked());
        if restocked.is_none() {
            if part.space_attempts == SPACE_ATTEMPTS_MAX || part.has_waited && !is_privileged {
                return self.pause_or_fail(state, index);
            }
            part.space_attempts += 1;
        }
        part.is_queued = true;
        part.lookup = None;
        state.starved.push(Starved { part: index, checkpoint: self.pool.cuts_begun() + 1, restocked });
        self.pool.want_checkpoint();
        self.pool.want_stock();
        true
    }

    /// Whether a part may take from the reserve: it is said so already, or every block still to be written replaces a
    /// mapped one that no snapshot has. Its range is locked, so that this stays so until there is another snapshot. `None` if
    /// the part waits for a leaf that says it.
    pub(super) fn is_privileged(&self, state: &mut State<D>, index: u32) -> Option<bool> {
        let part = &mut state.parts[to_usize(u64::from(index))];
        if part.is_privileged {
            return Some(true);
        }
        if let Some(is_overwrite) = part.lookup {
            return Some(is_overwrite);
        }
        let entries = self.cached_entries(&part.volume, part.next_block(), part.total() - part.appended);
        if let Some(entries) = entries {
            part.judged_from = part.volume.own_from();
            return Some(part.volume.owns_all(&entries));
        }
        part.is_queued = true;
        state.lookups.push(index);
        None
    }

    /// Loads the leaves that parts wait for.
    pub(super) fn spawn_lookups(self: &Rc<Self>) {
        let lookups = std::mem::take(&mut self.state.borrow_mut().lookups);
        for index in lookups {
            let (volume, first, count) = {
                let part = &self.state.borrow().parts[to_usize(u64::from(index))];
                (Arc::clone(&part.volume), part.next_block(), part.total() - part.appended)
            };
            let engine = Rc::clone(self);
            self.spawn(Done::Nobody, async move {
                let entries = engine.load_entries(&volume, first.get(), count).await;
                let state = &mut *engine.state.borrow_mut();
                let part = &mut state.parts[to_usize(u64::from(index))];
                part.judged_from = volume.own_from();
                part.lookup = Some(entries.is_ok_and(|entries| volume.owns_all(&entries)));
                part.is_queued = false;
                engine.append_part(state, index);
                Ok(())
            });
        }
    }

    /// Notes that a part found space for a batch.
    pub(super) fn note_space(&self, part: &mut Part) {
        part.space_attempts = 0;
        if part.is_privileged {
            part.privileged_batches += 1;
            self.pool.begin_reserve_use();
        }
    }

    /// Notes that a batch of a part is over.
    pub(super) fn note_batch_end(&self, part: &mut Part) {
        if part.privileged_batches > 0 {
            part.privileged_batches -= 1;
            self.pool.end_reserve_use();
        }
    }

    /// Tries the parts again for which there may be space now.
    pub(super) fn retry_starved(&self) {
        let state = &mut *self.state.borrow_mut();
        if state.starved.is_empty() {
            return;
        }
        let done = self.pool.checkpoints_done();
        let is_failed = self.pool.check_writable().is_err();
        let restocked = self.pool.is_restock_coming().then(|| self.pool.restocked());
        let is_ready = |starved: &Starved| {
            is_failed || starved.checkpoint <= done || starved.restocked.is_some() && starved.restocked != restocked
        };
        let ready: Vec<u32> =
            state.starved.extract_if(.., |starved| is_ready(starved)).map(|starved| starved.part).collect();
        for part in ready {
            state.parts[to_usize(u64::from(part))].is_queued = false;
            self.append_part(state, part);
        }
    }
}
