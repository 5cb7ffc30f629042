//! BLOCK_STATUS: what the metadata contexts of a volume say of what a walk over its map found.

use crate::volume::{MapRun, MapRuns};
use rok_nbd::server::{SelectedContext, StatusRequest};
use rok_nbd::{ReplyTo, StatusExtent};

/// `base:allocation`: nothing is provisioned there (specification, "base:allocation metadata context").
const STATE_HOLE: u64 = 1;
/// `base:allocation`: reads as zeros.
const STATE_ZERO: u64 = 2;

/// A metadata context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StatusContext {
    /// What is provisioned, and what reads as zeros.
    Allocation,
    /// How many layers down the data is; 0 is absent, 1 the volume itself.
    Depth,
}

impl StatusContext {
    /// All that a volume has.
    pub(super) const ALL: [Self; 2] = [Self::Allocation, Self::Depth];

    /// Its name, with its namespace.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Depth => "qemu:allocation-depth",
        }
    }

    /// The context that a client chose; `None` if there is none of that name.
    pub(super) fn named(selected: &SelectedContext) -> Option<Self> {
        Self::ALL.into_iter().find(|context| context.name() == selected.name)
    }

    const fn status(self, run: MapRun) -> u64 {
        match self {
            Self::Allocation if run.is_mapped => 0,
            Self::Allocation => STATE_HOLE | STATE_ZERO,
            Self::Depth if run.is_mapped => 1,
            Self::Depth => 0,
        }
    }
}

/// A BLOCK_STATUS that the engine works on.
pub(super) struct PendingStatus {
    /// Ids and contexts to report.
    contexts: Vec<(u32, StatusContext)>,
    wants_one_extent: bool,
    runs: MapRuns,
}

impl PendingStatus {
    /// What `asked` wants of the contexts that the client chose, whose ids count from 1.
    pub(super) fn new(asked: StatusRequest, chosen: &[StatusContext], wants_one_extent: bool) -> Self {
        let context = |id: u32| chosen[usize::try_from(id - 1).expect("a pointer has at least 32 bits")];
        let contexts = asked.context_ids.into_iter().map(|id| (id, context(id))).collect();
        Self { contexts, wants_one_extent, runs: MapRuns::default() }
    }

    /// Where the engine puts what it finds.
    pub(super) fn runs(&self) -> MapRuns {
        MapRuns::clone(&self.runs)
    }

    /// The whole reply, once the engine has answered with success.
    pub(super) fn reply(&self, to: ReplyTo) -> Vec<u8> {
        let runs = self.runs.borrow();
        let mut bytes = Vec::new();
        for (index, (id, context)) in self.contexts.iter().enumerate() {
            let extents =
                runs.iter().map(|run| StatusExtent { size_bytes: run.size_bytes, status: context.status(*run) });
            let count_max = if self.wants_one_extent { 1 } else { usize::MAX };
            to.append_status(&mut bytes, *id, extents.take(count_max), index + 1 == self.contexts.len());
        }
        bytes
    }
}
