//! Parts over a whole leaf: which of them a leaf is made of, and what the next one is to hold.
//!
//! The leaves of one index in one tree, from the oldest on, build on each other as the nodes of a tree in preorder do: each on
//! the next older one with a smaller depth. **Invariant**: a part has every slot that any leaf between it and its base has. So
//! a part may be applied to any of those as well; and when a leaf is merged into the next newer one, that one takes over its
//! depth and what it holds, and no other leaf changes.
//!
//! How the next part is chosen: over the newest leaf as long as the depth allows, with the new entries alone. At the greatest
//! depth it is put beside an older part instead, with all that this one and what lies over it hold: beside the newest that has
//! fewer restarts than what it lies over (a whole leaf counts as 2). So of the parts over one leaf the first have few
//! over them, since each later one repeats what they hold: no entry is stored more than three times. If the part takes less
//! than half of a whole leaf, it is stored; else the whole leaf is. With one entry a part, a whole leaf comes behind 164 parts
//! with 2.6 entries on average; with fewer entries no more parts are possible eight deep.

use crate::format::leaf::{Leaf, LeafChange, Level, PART_DEPTH_MAX, Part};
use crate::units::Epoch;

/// Restarts over a whole leaf.
const RESTARTS_MAX: u8 = 2;
/// A part takes at most this part of what the whole leaf takes.
const WHOLE_DIVISOR: usize = 2;

/// One of the parts that a leaf is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StackedPart {
    pub level: Level,
    pub change: LeafChange,
    /// The epoch of what it lies over.
    pub base: Epoch,
}

/// The parts that a leaf is made of, the newest first; none if it is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stack(pub Vec<StackedPart>);

impl Stack {
    /// The level of the newest.
    pub fn level(&self) -> Level {
        self.0.first().map_or(Level::WHOLE, |newest| newest.level)
    }

    /// The part that the leaf's own becomes with a change; `None` if the leaf is whole.
    pub fn changed(&self, change: &LeafChange) -> Option<(Level, Part)> {
        let own = self.0.first()?;
        let mut sum = own.change.clone();
        sum.append(change);
        Some((own.level, Part { base: own.base, change: sum }))
    }

    /// The part that a change becomes in an epoch behind this leaf's; `None` if the whole leaf is to be put.
    pub fn next(&self, epoch: Epoch, change: &LeafChange) -> Option<(Level, Part)> {
        let depth = self.level().depth;
        if depth < PART_DEPTH_MAX {
            return Some((Level { depth: depth + 1, restarts: 0 }, Part { base: epoch, change: change.clone() }));
        }
        let restarts_max = self.0.iter().skip(1).map(|base| base.level.restarts).chain([RESTARTS_MAX]);
        let beside = self.0.iter().zip(restarts_max).position(|(part, max)| part.level.restarts < max)?;
        let StackedPart { level, base, .. } = self.0[beside];
        let mut sum = LeafChange::default();
        self.0[..=beside].iter().rev().for_each(|part| sum.append(&part.change));
        sum.append(change);
        Some((Level { restarts: level.restarts + 1, ..level }, Part { base, change: sum }))
    }

    /// The part that this leaf becomes when the next older one, whose stack is `going`, goes; `None` if it becomes whole.
    ///
    /// # Panics
    /// If it does not build on that one.
    pub fn without(&self, going: &Self) -> Option<(Level, Part)> {
        assert!(self.level().depth > going.level().depth, "nothing changes for who does not build on what goes");
        going.changed(&self.0[0].change)
    }
}

/// Whether a part takes so much less than the whole leaf that it is worth to be stored.
pub(super) fn is_worth_it(body: &[u8], leaf: &Leaf) -> bool {
    body.len() * WHOLE_DIVISOR <= leaf.encoded_len()
}
