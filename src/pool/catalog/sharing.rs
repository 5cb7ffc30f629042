//! Who builds on the same data as a head: what comes before it, and what branches off there.

use super::{Catalog, PointId, SnapshotId};
use crate::units::TreeId;
use uuid::Uuid;

/// A snapshot, or the head of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharer {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// The head of a volume.
    Head(Uuid),
}

impl Catalog {
    /// Snapshots and heads that build on what the head of a tree builds on, the nearest first, at most so many.
    pub(in crate::pool) fn sharers(&self, tree: TreeId, count_max: usize) -> Vec<Sharer> {
        let mut sharers = Vec::new();
        let Some(head) = self.tree(tree) else { return sharers };
        let mut at = (tree, head.epoch);
        while let Some(base) = self.base(at).filter(|_| sharers.len() < count_max) {
            let came_from = std::mem::replace(&mut at, (base.tree, base.epoch));
            sharers.extend(self.snapshot_at(at).map(|snapshot| Sharer::Snapshot((snapshot.volume, snapshot.number))));
            let mut branches: Vec<PointId> = self.ends_behind(at);
            branches.retain(|branch| *branch != came_from);
            while let Some(branch) = branches.pop().filter(|_| sharers.len() < count_max) {
                if self.point(branch).is_some() {
                    let snapshot = self.snapshot_at(branch);
                    sharers.extend(snapshot.map(|snapshot| Sharer::Snapshot((snapshot.volume, snapshot.number))));
                    branches.extend(self.ends_behind(branch));
                } else {
                    sharers.extend(self.head_of(branch.0).map(|volume| Sharer::Head(volume.id)));
                }
            }
        }
        sharers
    }

    /// The ends of all intervals that build on a frozen epoch; none follows a head.
    pub(in crate::pool) fn ends_behind(&self, at: PointId) -> Vec<PointId> {
        let of_children = self.children_of(at).filter_map(|child| Some((child, self.first_interval(child)?)));
        let interval = self.point(at).and_then(|_| self.next_interval(at)).map(|end| (at.0, end));
        interval.into_iter().chain(of_children).collect()
    }
}
