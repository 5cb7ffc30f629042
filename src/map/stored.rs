//! Leaves in the metadata store: reading what an epoch sees, and encoding what a checkpoint stores.
//!
//! Each frame of a value is sealed with its key and its position among the frames as associated data, and
//! changes also with the nonce of the leaf that they follow, so that none passes for another.

use crate::crypto::{KeyRing, SealKind};
use crate::error::{Error, ErrorKind, Result};
use crate::format::key;
use crate::format::leaf::{LEAF_CHANGES_MAX, Leaf, LeafChange, frames, push_frame};
use crate::meta::{MetaOp, MetaRead, Table};
use crate::units::{Epoch, LeafIndex, TreeId};

/// Bytes of a sealed value that name its session and count in it: unique for each seal.
const SEAL_ID_BYTES: usize = 16;

/// A tree and epoch, then the ones that answer where it has no leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage(pub Vec<(TreeId, Epoch)>);

/// A leaf as one tree has it.
pub struct StoredLeaf {
    /// The newest epoch that wrote it.
    pub epoch: Epoch,
    /// The leaf, changes applied.
    pub leaf: Leaf,
    /// Changes behind the whole leaf in its value.
    pub change_count: usize,
    /// Names the seal of the whole leaf.
    base_id: Vec<u8>,
}

/// The stored leaves of a pool.
pub struct StoredLeaves<'a> {
    /// Where they are.
    pub store: &'a dyn MetaRead,
    /// What opens them.
    pub keys: &'a KeyRing,
}

impl StoredLeaves<'_> {
    /// The leaf that a lineage sees; an empty one if no tree of it has it.
    ///
    /// # Errors
    /// The store's failure, or [`ErrorKind::Integrity`] if the leaf is damaged.
    pub fn resolve(&self, lineage: &Lineage, leaf: LeafIndex) -> Result<Leaf> {
        if let [(tree, epoch)] = lineage.0[..] {
            return Ok(self.newest(tree, epoch, leaf)?.map(|stored| stored.leaf).unwrap_or_default());
        }
        let mut places = lineage.0.iter().map(|(tree, epoch)| {
            let prefix = key::leaf_prefix(*tree, leaf);
            (prefix, key::leaf(*tree, leaf, *epoch))
        });
        let found = self.store.seek_first(Table::Leaves, &mut places).map_err(store_error)?;
        let Some((found_key, value)) = found else { return Ok(Leaf::default()) };
        Ok(self.open_found((&found_key, &value), leaf)?.leaf)
    }

    /// The leaf that `epoch` of one tree sees, without its parents.
    ///
    /// # Errors
    /// The store's failure, or [`ErrorKind::Integrity`] if the leaf is damaged.
    pub fn newest(&self, tree: TreeId, epoch: Epoch, leaf: LeafIndex) -> Result<Option<StoredLeaf>> {
        let prefix = key::leaf_prefix(tree, leaf);
        let from = key::leaf(tree, leaf, epoch);
        let found = self.store.seek(Table::Leaves, &prefix, &from).map_err(store_error)?;
        found.map(|(found_key, value)| self.open_found((&found_key, &value), leaf)).transpose()
    }

    fn open_found(&self, (found_key, value): (&[u8], &[u8]), leaf: LeafIndex) -> Result<StoredLeaf> {
        let (tree, _, epoch) =
            key::parse_leaf(found_key).map_err(|error| damaged(TreeId::new(0), leaf, &error.to_string()))?;
        self.open(found_key, epoch, value).map_err(|reason| damaged(tree, leaf, &reason))
    }

    /// The epoch of the leaf that `epoch` of one tree sees, without its parents and without opening it.
    ///
    /// # Errors
    /// As [`Self::newest`].
    pub fn newest_epoch(&self, tree: TreeId, epoch: Epoch, leaf: LeafIndex) -> Result<Option<Epoch>> {
        let from = key::leaf(tree, leaf, epoch);
        let found = self.store.seek(Table::Leaves, &key::leaf_prefix(tree, leaf), &from).map_err(store_error)?;
        let Some((found_key, _)) = found else { return Ok(None) };
        let parsed = key::parse_leaf(&found_key).map_err(|error| damaged(tree, leaf, &error.to_string()))?;
        Ok(Some(parsed.2))
    }

    /// The leaf that an epoch of a tree put.
    ///
    /// # Errors
    /// As [`Self::newest`].
    pub fn exactly(&self, (tree, epoch, leaf): (TreeId, Epoch, LeafIndex)) -> Result<Option<StoredLeaf>> {
        let leaf_key = key::leaf(tree, leaf, epoch);
        let value = self.store.get(Table::Leaves, &leaf_key).map_err(store_error)?;
        let opened = value.map(|value| self.open(&leaf_key, epoch, &value));
        opened.transpose().map_err(|reason| damaged(tree, leaf, &reason))
    }

    /// What removes the leaf that an epoch of a tree put.
    #[must_use]
    pub fn delete((tree, epoch, leaf): (TreeId, Epoch, LeafIndex)) -> [MetaOp; 2] {
        let leaf_key = key::leaf(tree, leaf, epoch);
        let index_key = key::epoch_leaf(tree, epoch, leaf);
        [MetaOp::Delete(Table::Leaves, leaf_key), MetaOp::Delete(Table::EpochLeaves, index_key)]
    }

    /// The leaf in a value of the table of leaves.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, leaf_key: &[u8], epoch: Epoch, value: &[u8]) -> std::result::Result<StoredLeaf, String> {
        let frames = frames(value).map_err(|error| error.to_string())?;
        let base_id = frames[0].get(..SEAL_ID_BYTES).ok_or("its seal is cut short")?.to_vec();
        let body = self.keys.open(SealKind::Leaf, leaf_key, frames[0]).map_err(|error| error.to_string())?;
        let mut leaf = Leaf::decode(&body).map_err(|error| error.to_string())?;
        for (position, frame) in frames[1..].iter().enumerate() {
            let associated = change_associated(leaf_key, &base_id, position);
            let body = self.keys.open(SealKind::LeafChange, &associated, frame).map_err(|error| error.to_string())?;
            leaf.apply(&LeafChange::decode(&body).map_err(|error| error.to_string())?);
        }
        Ok(StoredLeaf { epoch, leaf, change_count: frames.len() - 1, base_id })
    }

    /// Appends to `batch` what stores `leaf` as `(tree, epoch)`'s, given what `(tree, epoch)` sees now.
    ///
    /// The first change in an epoch puts the whole leaf, also when it is empty, and its key in the index.
    pub fn store(
        &self,
        place: (TreeId, Epoch, LeafIndex),
        before: Option<&StoredLeaf>,
        leaf: &Leaf,
        change: &LeafChange,
        batch: &mut Vec<MetaOp>,
    ) {
        let (tree, epoch, index) = place;
        let leaf_key = key::leaf(tree, index, epoch);
        let mut value = Vec::new();
        match before {
            Some(before) if before.epoch == epoch && before.change_count < LEAF_CHANGES_MAX => {
                let associated = change_associated(&leaf_key, &before.base_id, before.change_count);
                push_frame(&mut value, &self.keys.seal(SealKind::LeafChange, &associated, &change.encode()));
                batch.push(MetaOp::Append(Table::Leaves, leaf_key, value));
            }
            _ => {
                push_frame(&mut value, &self.keys.seal(SealKind::Leaf, &leaf_key, &leaf.encode()));
                batch.push(MetaOp::Put(Table::Leaves, leaf_key, value));
                if before.is_none_or(|before| before.epoch != epoch) {
                    batch.push(MetaOp::Put(Table::EpochLeaves, key::epoch_leaf(tree, epoch, index), Vec::new()));
                }
            }
        }
    }
}

fn change_associated(leaf_key: &[u8], base_id: &[u8], position: usize) -> Vec<u8> {
    let position = u8::try_from(position).expect("a leaf has at most 64 changes");
    [leaf_key, base_id, &[position]].concat()
}

fn damaged(tree: TreeId, leaf: LeafIndex, reason: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("Leaf {leaf} of tree {tree} in meta/ is damaged: {reason}"))
        .with_hint("The blocks that it maps read as errors; restore meta/ and the devices from the same backup")
}

fn store_error(error: crate::meta::MetaError) -> Error {
    let kind = if error.is_out_of_space { ErrorKind::NoSpace } else { ErrorKind::Other };
    Error::new(kind, format!("Reading meta/ failed: {}", error.message)).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crypto::Suite;
    use crate::format::golden_tests::{self as golden, LEAF_PLACE};
    use crate::meta::{Durability, MemoryStore, MetaStore as _};
    use crate::units::Sequence;

    /// The keys of the session that sealed the golden images.
    fn keys() -> KeyRing {
        let keys = KeyRing::new(Suite::XtsGmac, Arc::new(golden::master()));
        keys.begin_session(golden::SESSION, Sequence::new(1), golden::SALT);
        keys
    }

    fn store_with(key: &str, value: &str) -> MemoryStore {
        let store = MemoryStore::new();
        let put = MetaOp::Put(Table::Leaves, golden::golden(key), golden::golden(value));
        store.commit(&[put], Durability::Synced).expect("memory takes it");
        store
    }

    fn changed_leaf() -> Leaf {
        let mut leaf = golden::leaf();
        leaf.apply(&golden::leaf_change());
        leaf
    }

    #[test]
    fn the_golden_value_is_read_as_its_leaf_with_its_change() {
        let (tree, index, epoch) = LEAF_PLACE;
        let (store, keys) = (store_with("key-leaf", "leaf-value"), keys());
        let leaves = StoredLeaves { store: &store, keys: &keys };

        let stored = leaves.newest(tree, epoch, index).expect("it opens").expect("it is there");

        assert_eq!((stored.epoch, stored.change_count), (epoch, 1));
        assert_ne!(stored.leaf, golden::leaf(), "the change is applied");
        assert_eq!(stored.leaf, changed_leaf());
    }

    #[test]
    fn storing_the_golden_leaf_and_its_change_gives_the_golden_value() {
        let (tree, index, epoch) = LEAF_PLACE;
        let (store, keys) = (MemoryStore::new(), keys());
        let leaves = StoredLeaves { store: &store, keys: &keys };
        let store_after = |leaf: &Leaf, change: &LeafChange| {
            let before = leaves.newest(tree, epoch, index).expect("it opens");
            let mut batch = Vec::new();
            leaves.store((tree, epoch, index), before.as_ref(), leaf, change, &mut batch);
            store.commit(&batch, Durability::Synced).expect("memory takes it");
        };

        store_after(&golden::leaf(), &LeafChange::default());
        store_after(&changed_leaf(), &golden::leaf_change());

        let value = store.get(Table::Leaves, &golden::golden("key-leaf")).expect("memory answers");
        assert_eq!(value, Some(golden::golden("leaf-value")));
        let index_entry = store.get(Table::EpochLeaves, &golden::golden("key-epoch-leaf")).expect("memory answers");
        assert_eq!(index_entry, Some(Vec::new()));
    }
}
