//! What a checkpoint does to one leaf: the changes grouped by leaf, and a leaf with its changes applied.

use crate::format::entry::Entry;
use crate::format::leaf::{Leaf, LeafChange};
use crate::map::{Change, ChangeKey};
use crate::units::{Address, Epoch, LeafIndex, TreeId};
use std::collections::BTreeMap;

/// The frozen changes of one leaf.
pub(super) struct LeafWork {
    pub tree: TreeId,
    pub epoch: Epoch,
    pub leaf: LeafIndex,
    pub changes: Vec<(ChangeKey, Change)>,
}

/// What applying changes to a leaf gives.
pub(super) struct AppliedLeaf {
    pub leaf: Leaf,
    pub change: LeafChange,
    /// New in the stored map.
    pub mapped: Vec<Address>,
    /// What these replace, and what was removed.
    pub unmapped: Vec<Entry>,
    /// Never stored: a later write is in the leaf already.
    pub obsolete: Vec<Address>,
}

/// Groups the changes of a stripe by leaf and epoch.
pub(super) fn leaf_work(changes: Vec<(ChangeKey, Change)>) -> Vec<LeafWork> {
    let mut works: BTreeMap<(TreeId, Epoch, LeafIndex), Vec<(ChangeKey, Change)>> = BTreeMap::new();
    for (key, change) in changes {
        works.entry((key.tree, key.epoch, key.block.leaf())).or_default().push((key, change));
    }
    works.into_iter().map(|((tree, epoch, leaf), changes)| LeafWork { tree, epoch, leaf, changes }).collect()
}

/// Applies changes to a leaf, never over a higher sequence.
pub(super) fn apply_changes(mut leaf: Leaf, changes: &[(ChangeKey, Change)]) -> AppliedLeaf {
    let mut change = LeafChange::default();
    let (mut mapped, mut unmapped, mut obsolete) = (Vec::new(), Vec::new(), Vec::new());
    for (key, new) in changes {
        let slot = key.block.slot();
        let old = leaf.get(slot);
        if let Some(old) = old.filter(|old| old.sequence() >= new.sequence) {
            // The same sequence: this very change was stored before a crash.
            obsolete.extend(new.entry.filter(|entry| *entry != old).map(Entry::address));
            continue;
        }
        leaf.set(slot, new.entry);
        match new.entry {
            Some(entry) => {
                change.entries.set(slot, Some(entry));
                mapped.push(entry.address());
            }
            None if old.is_some() => change.removed.insert(slot),
            None => {}
        }
        unmapped.extend(old);
    }
    AppliedLeaf { leaf, change, mapped, unmapped, obsolete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BlockIndex, Sequence};

    #[test]
    fn removing_what_is_not_mapped_changes_nothing() {
        let key = ChangeKey { tree: TreeId::new(1), block: BlockIndex::new(5), epoch: Epoch::new(1) };
        let removal = Change { sequence: Sequence::new(9), entry: None };

        let applied = apply_changes(Leaf::default(), &[(key, removal)]);

        assert!(applied.change.is_empty(), "a part would say more than there is to say");
        assert!(applied.unmapped.is_empty());
    }
}
