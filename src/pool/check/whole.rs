//! Whether trees that are whole have the leaves of their parents, as copying down promises.

use super::walk::Walk;
use super::{Difference, DifferenceKind};
use crate::error::{ErrorKind, Result};
use crate::map::StoredLeaves;
use crate::pool::checkpoint::ParentLeaves;
use crate::units::{Epoch, LeafIndex, TreeId};

impl Walk<'_> {
    /// Looks for leaves that nobody finds any more, since nobody looks for them where they are.
    pub(super) fn whole_trees(&mut self) -> Result<()> {
        let stored = StoredLeaves { store: self.view, keys: self.keys };
        for tree in self.catalog.trees().filter(|tree| tree.is_whole()) {
            let (Some(parent), Some(first)) = (tree.parent, self.first_seen(tree.id)) else { continue };
            let parents = self.catalog.lineage(parent);
            let mut leaves = ParentLeaves::new(self.view, &parents, LeafIndex::new(0))?;
            while let Some(index) = leaves.next()? {
                if stored.newest_epoch(tree.id, first, index)?.is_some() {
                    continue;
                }
                match stored.resolve(&parents, index) {
                    Ok(leaf) if leaf.is_empty() => {}
                    Ok(_) => {
                        let message = format!("leaf {index} of tree {}, which its parents have, is missing", tree.id);
                        self.report.add(Difference::new(DifferenceKind::MissingLeaf, message));
                    }
                    // It was told when all leaves were read.
                    Err(error) if error.kind() == ErrorKind::Integrity => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// The end of the first interval of a tree that somebody may see: not of one of which a merge has taken leaves. `None` if
    /// there is no other.
    fn first_seen(&self, tree: TreeId) -> Option<Epoch> {
        let first = self.catalog.first_interval(tree)?;
        if self.catalog.point((tree, first)).is_none_or(|point| point.merge.is_none()) {
            return Some(first);
        }
        let (taken_in, end) = self.taken_in((tree, first));
        (taken_in == tree && end != first).then_some(end)
    }
}
