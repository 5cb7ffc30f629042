//! The block map: changes that no checkpoint holds yet, over cached leaves, over stored ones.
//!
//! A lookup asks the changes, then the leaf. Changes move to the stored leaves only by a checkpoint,
//! which replaces cached leaves before it drops the changes, so the order of the two questions suffices.

mod cache;
mod changes;
mod packed;
#[cfg(test)]
mod parts_tests;
mod stack;
mod stored;
mod taken;

pub use cache::LeafCache;
pub use changes::{Change, ChangeKey, Changes, DroppedSet, LayGuard};
pub use packed::PackedLeaf;
pub use stored::{Lineage, OneLeaf, Onto, StoredLeaf, StoredLeaves};
pub use taken::TakenChanges;
