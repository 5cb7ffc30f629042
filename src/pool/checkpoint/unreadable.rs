//! Trees with leaves that cannot be read, which reclaim leaves as they are, so that the pool goes on without them.

use super::Checkpoint;
use crate::error::{ErrorKind, Result};
use crate::pool::Catalog;
use crate::units::TreeId;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// The trees that were found so since the pool was opened; the next opening tries them again.
#[derive(Default)]
pub(in crate::pool) struct UnreadableTrees(Mutex<BTreeSet<TreeId>>);

impl UnreadableTrees {
    pub(super) fn contains(&self, tree: TreeId) -> bool {
        self.0.lock().contains(&tree)
    }

    pub(in crate::pool) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Trees that reclaim leaves as they are: those that cannot be read, and where a merge under way ends at one, all that have an
/// origin in common with it, since they may build on what is half merged.
pub(super) struct HeldBack<'a, F> {
    catalog: &'a Catalog,
    is_unreadable: F,
    origins: BTreeSet<TreeId>,
}

impl<'a, F: Fn(TreeId) -> bool> HeldBack<'a, F> {
    pub fn new(catalog: &'a Catalog, is_unreadable: F) -> Self {
        let stuck = catalog.merging().filter(|point| is_unreadable(point.tree));
        let origins = stuck.map(|point| catalog.origin(point.tree)).collect();
        Self { catalog, is_unreadable, origins }
    }

    pub fn contains(&self, tree: TreeId) -> bool {
        (self.is_unreadable)(tree) || self.origins.contains(&self.catalog.origin(tree))
    }
}

impl Checkpoint {
    /// What a step of reclaim has read; `None` if something of its tree is damaged, which is set aside then.
    ///
    /// # Errors
    /// All that is no damage.
    pub(super) fn unless_damaged<T>(&self, tree: TreeId, read: Result<T>) -> Result<Option<T>> {
        match read {
            Err(error) if error.kind() == ErrorKind::Integrity => {
                self.pool.unreadable.0.lock().insert(tree);
                tracing::error!(%error, %tree, "metadata cannot be read: the space of what was removed there does not come back");
                Ok(None)
            }
            read => read.map(Some),
        }
    }
}
