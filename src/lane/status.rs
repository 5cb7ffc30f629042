//! BLOCK_STATUS: what the metadata contexts of a volume say of what a walk over its map found.

use super::diff_context;
use crate::volume::{ChangedRun, ChangedRuns, MapRun, MapRuns, OpenVolume, StatusWanted};
use rok_nbd::server::{SelectedContext, StatusRequest};
use rok_nbd::{ReplyTo, StatusExtent};
use std::sync::Arc;

/// `base:allocation`: nothing is provisioned there (specification, "base:allocation metadata context").
const STATE_HOLE: u64 = 1;
/// `base:allocation`: reads as zeros.
const STATE_ZERO: u64 = 2;

/// A metadata context.
pub(super) enum StatusContext {
    /// What is provisioned, and what reads as zeros.
    Allocation,
    /// How many layers down the data is; 0 is absent, 1 the volume itself.
    Depth,
    /// What differs from a snapshot.
    Diff(OpenVolume),
}

impl StatusContext {
    /// Those that every volume has, by name.
    pub(super) const LISTED: [(&'static str, Self); 2] =
        [("base:allocation", Self::Allocation), ("qemu:allocation-depth", Self::Depth)];

    /// The context that a client chose, if it is one that every volume has.
    pub(super) fn named(selected: &SelectedContext) -> Option<Self> {
        Self::LISTED.into_iter().find(|(name, _)| *name == selected.name).map(|(_, context)| context)
    }
}

/// What a context says of the runs that the engine finds.
enum Found {
    Allocation(MapRuns),
    Depth(MapRuns),
    Diff(ChangedRuns),
}

impl Found {
    fn extents(&self) -> Vec<StatusExtent> {
        let of_map = |runs: &MapRuns, status: fn(&MapRun) -> u64| {
            let runs = runs.borrow();
            runs.iter().map(|run| StatusExtent { size_bytes: run.size_bytes, status: status(run) }).collect()
        };
        match self {
            Self::Allocation(runs) => of_map(runs, |run| if run.is_mapped { 0 } else { STATE_HOLE | STATE_ZERO }),
            Self::Depth(runs) => of_map(runs, |run| u64::from(run.is_mapped)),
            Self::Diff(runs) => {
                let extent = |run: &ChangedRun| StatusExtent {
                    size_bytes: run.size_bytes,
                    status: diff_context::status(run.kind),
                };
                runs.borrow().iter().map(extent).collect()
            }
        }
    }
}

/// A BLOCK_STATUS that the engine works on.
pub(super) struct PendingStatus {
    /// Ids of contexts to report, and what is found for each.
    contexts: Vec<(u32, Found)>,
    wants_one_extent: bool,
    wanted: StatusWanted,
}

impl PendingStatus {
    /// What `asked` wants of the contexts that the client chose, whose ids count from 1.
    pub(super) fn new(asked: StatusRequest, chosen: &[StatusContext], wants_one_extent: bool) -> Self {
        let mut wanted = StatusWanted::default();
        let mut found = |id: u32| match &chosen[usize::try_from(id - 1).expect("a pointer has at least 32 bits")] {
            StatusContext::Allocation => Found::Allocation(MapRuns::clone(wanted.mapped.get_or_insert_default())),
            StatusContext::Depth => Found::Depth(MapRuns::clone(wanted.mapped.get_or_insert_default())),
            StatusContext::Diff(base) => {
                let runs = ChangedRuns::default();
                wanted.changed.push((Arc::clone(base.volume()), ChangedRuns::clone(&runs)));
                Found::Diff(runs)
            }
        };
        let contexts = asked.context_ids.into_iter().map(|id| (id, found(id))).collect();
        Self { contexts, wants_one_extent, wanted }
    }

    /// What the engine is to find, and where it puts that.
    pub(super) fn wanted(&self) -> StatusWanted {
        self.wanted.clone()
    }

    /// The whole reply, once the engine has answered with success.
    pub(super) fn reply(&self, to: ReplyTo) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, (id, found)) in self.contexts.iter().enumerate() {
            let count_max = if self.wants_one_extent { 1 } else { usize::MAX };
            let extents = found.extents().into_iter().take(count_max);
            to.append_status(&mut bytes, *id, extents, index + 1 == self.contexts.len());
        }
        bytes
    }
}
