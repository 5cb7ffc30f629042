//! The bitmap of used blocks, which changes in the same batches as the leaves that map them.
//!
//! Invariant: a bit is set if and only if a stored leaf maps the block.

use crate::crypto::SealKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{self, replace};
use crate::format::key;
use crate::meta::{Durability, MetaOp, MetaStore, Table};
use crate::pool::catalog::{Edit, meta_error};
use crate::pool::{CatalogStore, Pool, StoredState, Turn};
use crate::units::{Address, DeviceIndex, STRETCH_BLOCKS, to_usize};
use std::collections::BTreeSet;

/// Bits that a batch sets and clears in the bitmap of used blocks.
#[derive(Default)]
pub(super) struct BitChanges {
    pub set: Vec<Address>,
    pub clear: Vec<Address>,
}

impl Pool {
    /// Commits a batch together with an edit of the catalog and the stretches of the bitmap whose bits it changes, then
    /// lays the edit over the catalog.
    ///
    /// Synced, although a checkpoint could do without: leaves and bitmap contradict each other where a batch is lost
    /// and a later one is not, and the store does not rule that out for batches that nothing synced.
    ///
    /// # Errors
    /// The store's failure, or [`ErrorKind::Integrity`] if what it held at open contradicts itself. Then nothing has
    /// changed, and but for a lack of space the pool has failed. [`ErrorKind::Other`] if it had before.
    pub(super) fn commit_with_bits(
        &self,
        turn: &Turn,
        (mut batch, edit): (Vec<MetaOp>, Edit),
        bits: &BitChanges,
        action: &str,
    ) -> Result<()> {
        assert!(turn.is_of(&self.turns), "the turn is of the same pool");
        batch.extend(edit.ops(CatalogStore { store: &*self.store, keys: &self.keys }));
        let _until_the_catalog_has_it = self.commits.lock();
        self.check_healthy()?;
        self.fail_unless_stored(self.commit_bits(batch, bits, action))?;
        self.catalog.lock().apply(edit);
        Ok(())
    }

    /// The address of one of the blocks that stored leaves map: which, is counted from 0 by address.
    #[must_use]
    pub fn used_block(&self, nth: u64) -> Option<Address> {
        let stored = self.stored.lock();
        let of_device = |(device, stretches): (DeviceIndex, &Vec<bitmap::StretchBits>)| {
            let words = stretches.iter().flatten().copied().collect::<Vec<u64>>();
            let is_set = move |block: &u64| words[to_usize(block >> 6)] >> (block & 63) & 1 == 1;
            let block_count = crate::units::to_u64(stretches.len()) * STRETCH_BLOCKS;
            (0..block_count).filter(is_set).map(move |block| Address::new(device, block))
        };
        (0..).map(DeviceIndex::new).zip(&stored.used).flat_map(of_device).nth(to_usize(nth))
    }

    fn commit_bits(&self, mut batch: Vec<MetaOp>, bits: &BitChanges, action: &str) -> Result<()> {
        let mut stored = self.stored.lock();
        let mut touched: BTreeSet<(DeviceIndex, u64)> = BTreeSet::new();
        let changes =
            bits.clear.iter().map(|address| (*address, false)).chain(bits.set.iter().map(|address| (*address, true)));
        let mut result = Ok(());
        let mut done_count = 0;
        for (address, value) in changes.clone() {
            if !stored.replace_bit(address, value) {
                result = Err(contradiction(address));
                break;
            }
            touched.insert((address.device(), address.block() / STRETCH_BLOCKS));
            done_count += 1;
        }
        if result.is_ok() {
            for (device, stretch) in touched {
                let stretch_key = key::stretch(device, stretch);
                let body = bitmap::encode(&stored.used[device.as_usize()][to_usize(stretch)]);
                let value = self.keys.seal(SealKind::Bitmap, &stretch_key, &body);
                batch.push(MetaOp::Put(Table::Used, stretch_key, value));
            }
            result = self.store.commit(&batch, Durability::Synced).map_err(|error| meta_error(action, error));
        }
        if result.is_err() {
            for (address, value) in changes.take(done_count) {
                stored.replace_bit(address, !value);
            }
        }
        result
    }
}

impl StoredState {
    /// Changes one bit; `false` if it has the value already: two places would map one block.
    ///
    /// # Panics
    /// If it has the value already in a pool that was opened: that is our own bug, not to be built upon.
    fn replace_bit(&mut self, address: Address, value: bool) -> bool {
        let bits = &mut self.used[address.device().as_usize()][to_usize(address.block() / STRETCH_BLOCKS)];
        let was = replace(bits, address.block() % STRETCH_BLOCKS, value);
        if was == value {
            assert!(!self.is_trusted, "{address} is mapped twice or not at all");
            return false;
        }
        if value {
            self.used_count += 1
        } else {
            self.used_count -= 1
        }
        true
    }
}

fn contradiction(address: Address) -> Error {
    let message = format!("meta/ contradicts itself or the log: {address} is mapped twice or not at all");
    Error::new(ErrorKind::Integrity, message)
        .with_hint("Parts of meta/ are missing; restore meta/ and the devices from the same backup")
}
