//! The scrub: every block that stored leaves map is read and verified, each once, while the pool is used.
//!
//! A pass goes through the stored leaves by tree and leaf, and within a leaf from the oldest epoch to the newest. What
//! checkpoints move between leaves they move forwards in that order (from a parent to a child, from an epoch to the one that
//! follows), so a pass misses nothing that was stored when it began and is mapped still. A block is taken where it comes
//! first: not where the next older epoch or the parent maps it too.
//!
//! [`Scrub`] has no thread and no clock: who runs it has a lane read each part, and stores now and then how far it is. A crash
//! repeats what came behind that.

mod damage;
mod part;

pub use damage::Suspect;
pub use part::{ScrubBlock, ScrubPart};

use crate::crypto::SealKind;
use crate::error::Result;
use crate::format::key;
use crate::format::scrub::{DAMAGES_MAX, Damage, ScrubPlace, ScrubRecord};
use crate::meta::{MetaOp, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use crate::pool::catalog::meta_error;
use crate::units::LeafIndex;
use std::sync::Arc;

/// Which part of a pass to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubWish {
    /// Where it begins.
    pub from: ScrubPlace,
    /// Blocks to be read, about: those of one stored leaf may come on top.
    pub blocks_max: usize,
    /// Of what is damaged, name only one who has it.
    pub is_brief: bool,
}

/// What came of one part of a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Where the next part begins; `None` if this was the last.
    pub next: Option<ScrubPlace>,
    /// Blocks that were read.
    pub read_blocks: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
}

/// The scrub of an open pool: where it is, and what it has found.
pub struct Scrub {
    pool: Arc<Pool>,
    record: ScrubRecord,
    is_stored: bool,
}

impl Scrub {
    /// As it was stored last. A record that cannot be read counts as none, which is logged: nothing depends on it.
    ///
    /// # Errors
    /// The store's failure.
    pub fn load(pool: Arc<Pool>) -> Result<Self> {
        let stored =
            pool.store().get(Table::Catalog, key::SCRUB).map_err(|error| meta_error("Reading meta/", error))?;
        let open = |value: &Vec<u8>| {
            let body = pool.keys().open(SealKind::Scrub, key::SCRUB, value).map_err(|error| error.to_string())?;
            ScrubRecord::decode(&body).map_err(|error| error.to_string())
        };
        let mut record = match stored.as_ref().map(open).transpose() {
            Ok(record) => record.unwrap_or_default(),
            Err(reason) => {
                tracing::warn!(reason, "the record of the scrub in meta/ is damaged: it begins anew");
                ScrubRecord::default()
            }
        };
        if is_planted(Bug::ScrubResumesTooFar)
            && let Some(place) = &mut record.place
        {
            place.leaf = LeafIndex::new(place.leaf.get() + 1);
        }
        Ok(Self { pool, record, is_stored: true })
    }

    /// Where it is, and what it has found.
    #[must_use]
    pub const fn record(&self) -> &ScrubRecord {
        &self.record
    }

    /// Begins a pass, unless one is under way: that goes on. Everything that the pass is to find was stored by a checkpoint
    /// before. `now` is in seconds since 1970.
    pub fn begin(&mut self, now: u64, rate_bytes: u64) {
        self.is_stored = false;
        self.record.rate_bytes = rate_bytes;
        self.record.pause_blocks = 0;
        if self.record.place.is_some() {
            return;
        }
        self.record.place = Some(ScrubPlace::default());
        (self.record.began_at, self.record.read_blocks, self.record.unlisted_blocks) = (now, 0, 0);
        self.record.damages.iter_mut().for_each(|damage| damage.is_of_before = true);
    }

    /// Has the pass pause when it has read so many more blocks.
    pub fn pause_after(&mut self, blocks: u64) {
        self.is_stored = false;
        self.record.pause_blocks = self.record.read_blocks + blocks;
    }

    /// Whether the pass has read as much as it was to.
    #[must_use]
    pub const fn is_pause_due(&self) -> bool {
        self.record.pause_blocks > 0 && self.record.read_blocks >= self.record.pause_blocks
    }

    /// Gives the pass up: the next one begins at the start. What it has found stays listed.
    pub fn give_up(&mut self) {
        self.is_stored = false;
        self.record.place = None;
    }

    /// Whether a part that is looked at now need not name everybody who has what is damaged: nothing more is listed.
    #[must_use]
    pub const fn is_list_full(&self) -> bool {
        self.record.damages.len() >= DAMAGES_MAX
    }

    /// Takes what came of the part at the pass's place; says whether the pass is at its end. `now` is in seconds since 1970.
    pub fn take(&mut self, step: ScrubStep, now: u64) -> bool {
        self.is_stored = false;
        let record = &mut self.record;
        record.read_blocks += step.read_blocks;
        record.place = step.next;
        // What the pass before found up to here is found again, or is well.
        record.damages.retain(|damage| {
            let is_ahead = |next: ScrubPlace| (damage.tree, damage.first.leaf()) >= (next.tree, next.leaf);
            !damage.is_of_before || step.next.is_some_and(is_ahead) || is_planted(Bug::ScrubKeepsOldFindings)
        });
        for damage in step.damages {
            record.damages.retain(|other| (other.tree, other.first) != (damage.tree, damage.first));
            if record.damages.len() < DAMAGES_MAX {
                record.damages.push(damage);
            } else {
                record.unlisted_blocks += u64::from(damage.count);
            }
        }
        record.damages.sort_by_key(|damage| (damage.tree, damage.first));
        if step.next.is_none() {
            record.pass_count += 1;
            record.ended_at = now;
        }
        step.next.is_none()
    }

    /// Stores how far it is, if that has changed. Never on a lane, and never by who has a turn.
    ///
    /// # Errors
    /// The store's failure; then the next call tries again. The failure of a flush, or of the pool before.
    pub fn store(&mut self) -> Result<()> {
        if self.is_stored {
            return Ok(());
        }
        self.flush()?;
        let value = self.pool.keys().seal(SealKind::Scrub, key::SCRUB, &self.record.encode());
        let put = MetaOp::Put(Table::Catalog, key::SCRUB.to_vec(), value);
        self.pool.commit_beside(&[put]).map_err(|error| meta_error("Storing how far the scrub is", error))?;
        self.is_stored = true;
        Ok(())
    }

    /// Makes durable what the pass has met: a power cut could bring back a damaged block which it passed over since a write
    /// had replaced it.
    fn flush(&self) -> Result<()> {
        let need = self.pool.flush_need();
        while !self.pool.is_flushed(need) {
            self.pool.check_healthy()?;
            if !self.pool.flush_devices()? {
                self.pool.await_flush_end();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
