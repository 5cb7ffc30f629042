//! Changes of some leaves as they were at one moment, for who reads the leaves in a view of the store that is made behind it.

use super::changes::Changes;
use super::stored::{Lineage, StoredLeaves};
use crate::error::Result;
use crate::format::entry::Entry;
use crate::format::leaf::Leaf;
use crate::units::{Epoch, LEAF_ENTRIES, LeafIndex, TreeId};
use std::collections::BTreeMap;

/// Changes of a leaf: slots, and what is there then.
type LeafChanges = Vec<(u8, Option<Entry>)>;

/// Changes that were taken, by leaf and by the tree and epoch that see them.
#[derive(Default)]
pub struct TakenChanges(BTreeMap<(LeafIndex, TreeId, Epoch), LeafChanges>);

impl TakenChanges {
    /// Takes the changes of a leaf that an epoch of a tree sees.
    pub fn take(&mut self, changes: &Changes, leaf: LeafIndex, (tree, epoch): (TreeId, Epoch)) {
        let mut taken = LeafChanges::new();
        changes.of_range(tree, epoch, (leaf.first_block(), LEAF_ENTRIES), |slot, change| {
            taken.push((u8::try_from(slot).expect("a leaf has 256 slots"), change.entry));
        });
        if !taken.is_empty() {
            self.0.insert((leaf, tree, epoch), taken);
        }
    }

    /// A leaf as a lineage sees it: of the first tree that has it, with the changes of that tree and of those before it.
    /// Those of all levels of the lineage must have been taken.
    ///
    /// # Errors
    /// As [`StoredLeaves::newest`].
    pub fn leaf_of(&self, stored: &StoredLeaves<'_>, lineage: &Lineage, leaf: LeafIndex) -> Result<Leaf> {
        let mut found = Leaf::default();
        let mut level_count = lineage.0.len();
        for (level, (tree, epoch)) in lineage.0.iter().enumerate() {
            if let Some(newest) = stored.newest(*tree, *epoch, leaf)? {
                found = newest.leaf;
                level_count = level + 1;
                break;
            }
        }
        for (tree, epoch) in lineage.0[..level_count].iter().rev() {
            for (slot, entry) in self.0.get(&(leaf, *tree, *epoch)).into_iter().flatten() {
                found.set(*slot, *entry);
            }
        }
        Ok(found)
    }
}
