//! What a check found.

use crate::units::{AddressRun, BlockIndex, Epoch, TreeId};

/// Differences that a report lists; it counts the others.
const DIFFERENCES_MAX: usize = 1000;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// Blocks are marked as used, and nothing maps them.
    Leaked,
    /// A mapped block is not marked as used.
    NotMarked,
    /// Two places map one block.
    MappedTwice,
    /// A place maps a block that no device has.
    OutOfRange,
    /// A leaf cannot be read.
    DamagedLeaf,
    /// A part of the bitmap cannot be read.
    DamagedBitmap,
    /// A leaf of a tree that is not there, or one that was deleted.
    StrayLeaf,
    /// A tree for which nobody looks in its parents lacks a leaf that they have.
    MissingLeaf,
    /// A tree that nothing needs.
    StrayTree,
    /// The index of leaves differs from the leaves.
    Index,
    /// Something was counted wrongly.
    Count,
    /// The log uses a block that is mapped.
    Log,
    /// What is in memory differs from what is stored.
    Memory,
}

impl DifferenceKind {
    /// A stable word.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Leaked => "leaked",
            Self::NotMarked => "not-marked",
            Self::MappedTwice => "mapped-twice",
            Self::OutOfRange => "out-of-range",
            Self::DamagedLeaf => "damaged-leaf",
            Self::DamagedBitmap => "damaged-bitmap",
            Self::StrayLeaf => "stray-leaf",
            Self::MissingLeaf => "missing-leaf",
            Self::StrayTree => "stray-tree",
            Self::Index => "index",
            Self::Count => "count",
            Self::Log => "log",
            Self::Memory => "memory",
        }
    }
}

/// A block of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The tree.
    pub tree: TreeId,
    /// Whose head it is.
    pub volume: Option<String>,
    /// The epoch of the leaf.
    pub epoch: Epoch,
    /// The block.
    pub block: BlockIndex,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What is wrong.
    pub kind: DifferenceKind,
    /// Which blocks of a device it is about.
    pub blocks: Option<AddressRun>,
    /// Who maps them.
    pub places: Vec<Place>,
    /// The same as a sentence.
    pub message: String,
}

impl Difference {
    pub(super) fn new(kind: DifferenceKind, message: impl Into<String>) -> Self {
        Self { kind, blocks: None, places: Vec::new(), message: message.into() }
    }

    pub(super) fn at(self, blocks: AddressRun) -> Self {
        Self { blocks: Some(blocks), ..self }
    }

    pub(super) fn of(mut self, place: Place) -> Self {
        self.places.push(place);
        self
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Trees.
    pub tree_count: u64,
    /// Leaves of the map.
    pub leaf_count: u64,
    /// Blocks that they map.
    pub mapped_block_count: u64,
    /// Records of the log that were followed; none in an open pool.
    pub record_count: u64,
    /// Blocks that are marked as used, and nothing maps them.
    pub leaked_block_count: u64,
    /// Differences.
    pub difference_count: u64,
    /// Of these, runs of leaked blocks.
    pub(super) leak_count: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

impl CheckReport {
    /// Whether everything is as it should be.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.difference_count == 0
    }

    /// Whether there are leaked blocks, and no other difference.
    #[must_use]
    pub const fn has_only_leaks(&self) -> bool {
        self.leak_count > 0 && self.leak_count == self.difference_count
    }

    pub(super) fn add(&mut self, difference: Difference) {
        self.difference_count += 1;
        if difference.kind == DifferenceKind::Leaked {
            self.leak_count += 1;
            self.leaked_block_count += difference.blocks.map_or(0, |run| run.count);
        }
        if self.has_room() {
            self.differences.push(difference);
        }
    }

    /// Whether further differences are listed.
    pub(super) const fn has_room(&self) -> bool {
        self.differences.len() < DIFFERENCES_MAX
    }
}
