//! How far the damage of one flipped bit reaches.

use super::structure::{Place, Spot, Structure};
use rok_blk::format::key;
use rok_blk::pool::Pool;
use rok_blk::units::{BlockIndex, Epoch, LeafIndex, TreeId};
use std::collections::BTreeSet;

/// Blocks by the name of their volume or version.
pub type Blocks = BTreeSet<(String, u64)>;

/// What is not as before in an open pool.
#[derive(Default)]
pub struct Found {
    pub unreadable: Blocks,
    /// They hold what they held before the last writes.
    pub older: Blocks,
}

/// What a flip may hit at most.
#[derive(Clone, Debug)]
pub enum Limit {
    /// The pool may be refused, and blocks be anything that is allowed.
    Any,
    /// There is a second copy, or no read needs it.
    Nothing,
    /// One block, in each volume and version that shares it.
    Block,
    /// The blocks of a leaf, in each volume and version that sees its epoch of its tree.
    Leaf(TreeId, LeafIndex, Epoch),
}

impl Limit {
    pub fn of(spot: &Spot) -> Self {
        match (spot.structure(), &spot.place) {
            (Structure::Superblock | Structure::DeviceHeader | Structure::ShredKey | Structure::Owners, _) => {
                Self::Nothing
            }
            (Structure::DataBlock, _) => Self::Block,
            (Structure::Leaf, Place::Value(_, key)) => {
                let (tree, leaf, epoch) = key::parse_leaf(key).expect("the key of a leaf");
                Self::Leaf(tree, leaf, epoch)
            }
            _ => Self::Any,
        }
    }

    /// Whether the pool may be refused.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_refused(&self) -> Result<(), String> {
        if matches!(self, Self::Any) { Ok(()) } else { Err(format!("the pool is refused, limit {self:?}")) }
    }

    /// Whether what was found is within the limit.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self, pool: &Pool, found: &Found) -> Result<(), String> {
        let hit: Blocks = found.unreadable.union(&found.older).cloned().collect();
        let indexes: BTreeSet<u64> = hit.iter().map(|(_, block)| *block).collect();
        let is_within = match self {
            Self::Any => true,
            Self::Nothing => hit.is_empty(),
            Self::Block => {
                let families = hit.iter().map(|(name, _)| ancestry(pool, name).last().copied().map(|(tree, _)| tree));
                indexes.len() <= 1 && families.collect::<BTreeSet<_>>().len() <= 1
            }
            Self::Leaf(tree, leaf, epoch) => {
                let sees = |(seen_tree, seen): &(TreeId, Epoch)| seen_tree == tree && seen >= epoch;
                found.older.is_empty()
                    && indexes.iter().all(|block| BlockIndex::new(*block).leaf() == *leaf)
                    && hit.iter().all(|(name, _)| ancestry(pool, name).iter().any(sees))
            }
        };
        if is_within { Ok(()) } else { Err(format!("damage is not within {self:?}: {hit:?}")) }
    }
}

/// The trees that a volume or version reads from, each with the epoch up to which it does.
fn ancestry(pool: &Pool, name: &str) -> Vec<(TreeId, Epoch)> {
    pool.with_catalog(|catalog, _| {
        let (volume, version) = name.split_once('@').unzip();
        let volume = catalog.find(volume.unwrap_or(name)).expect("it is there");
        let number = version.map(|number| number.parse().expect("a version's number"));
        let of_version = number.map(|number| catalog.snapshot((volume.id, number)).expect("it is there").point);
        catalog.ancestry(of_version.unwrap_or((volume.tree, Epoch::NEWEST))).0
    })
}
