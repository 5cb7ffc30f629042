//! Owners of a group of addresses: what a checkpoint adds to them.

use crate::crypto::SealKind;
use crate::error::Result;
use crate::format::owner::{self, OwnerRun};
use crate::meta::{Durability, MetaOp, MetaRead, MetaStore, Table};
use crate::pool::Pool;
use crate::pool::catalog::meta_error;
use crate::units::{Address, BlockIndex, Epoch, TreeId};
use std::collections::BTreeMap;

/// For whom blocks were written.
pub(super) type Owners = BTreeMap<Address, (TreeId, Epoch, BlockIndex)>;

impl Pool {
    /// Stores the new owners of groups, each with its key.
    ///
    /// # Errors
    /// The store's failure; then none of them is stored.
    pub(super) fn store_owners(&self, groups: &[(Vec<u8>, Owners)]) -> Result<()> {
        let mut batch = Vec::new();
        for (group_key, new) in groups {
            let old = self.store.get(Table::Owners, group_key).map_err(|error| meta_error("Reading owners", error))?;
            let body = owner::encode(&merge_owners(self.read_owners(group_key, old.as_deref()), new));
            let value = self.keys.seal(SealKind::Owners, group_key, &body);
            batch.push(MetaOp::Put(Table::Owners, group_key.clone(), value));
        }
        let committed = self.store.commit(&batch, Durability::Buffered);
        committed.map_err(|error| meta_error("Storing owners", error))
    }

    /// Owners are hints: a damaged value is as good as none.
    pub(super) fn read_owners(&self, group_key: &[u8], value: Option<&[u8]>) -> Vec<OwnerRun> {
        value
            .and_then(|value| self.keys.open(SealKind::Owners, group_key, value).ok())
            .and_then(|body| owner::decode(&body).ok())
            .unwrap_or_default()
    }
}

/// The runs of a group after new owners were laid over the old ones.
fn merge_owners(old: Vec<OwnerRun>, new: &Owners) -> Vec<OwnerRun> {
    let mut owners: BTreeMap<u8, (TreeId, Epoch, BlockIndex)> = BTreeMap::new();
    for run in old {
        for step in 0..run.count {
            let offset = u8::try_from(u16::from(run.offset) + step).expect("checked when it was decoded");
            owners.insert(offset, (run.tree, run.epoch, run.block.plus(u64::from(step))));
        }
    }
    for (address, owner) in new {
        let offset = u8::try_from(address.block() & 0xff).expect("masked to 8 bits");
        owners.insert(offset, *owner);
    }
    let mut runs: Vec<OwnerRun> = Vec::new();
    for (offset, (tree, epoch, block)) in owners {
        match runs.last_mut() {
            Some(run)
                if u16::from(run.offset) + run.count == u16::from(offset)
                    && (run.tree, run.epoch) == (tree, epoch)
                    && run.block.plus(u64::from(run.count)) == block =>
            {
                run.count += 1;
            }
            _ => runs.push(OwnerRun { offset, count: 1, tree, epoch, block }),
        }
    }
    runs
}
