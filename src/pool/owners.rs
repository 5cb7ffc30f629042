//! Owners of a group of addresses: what a checkpoint adds to them.

use crate::format::owner::OwnerRun;
use crate::units::{Address, BlockIndex, Epoch, TreeId};
use std::collections::BTreeMap;

/// The runs of a group after new owners were laid over the old ones.
pub(super) fn merge_owners(old: Vec<OwnerRun>, new: &BTreeMap<Address, (TreeId, Epoch, BlockIndex)>) -> Vec<OwnerRun> {
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
