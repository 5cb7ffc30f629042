//! Leaves in the metadata store: reading what an epoch sees, and encoding what a checkpoint stores.
//!
//! Each frame of a value is sealed with its key and its position among the frames as associated data, and
//! changes also with the nonce of the leaf that they follow, so that none passes for another. A part is sealed with its level
//! too; it names the epoch that it builds on, so that a leaf which is missing in between is noticed.

use super::stack::{Stack, StackedPart, is_worth_it};
use crate::crypto::{KeyRing, SealKind};
use crate::error::{Error, ErrorKind, Result};
use crate::format::key;
use crate::format::leaf::{
    LEAF_CHANGES_MAX, Leaf, LeafChange, Level, Part, frames, level_of, part_value, push_frame, sealed_part,
};
use crate::meta::{KeyValue, MetaOp, MetaRead, Table};
use crate::planted::{Bug, is_planted};
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
    /// The leaf, parts and changes applied.
    pub leaf: Leaf,
    /// Changes behind the whole leaf, or the part, in its value.
    pub change_count: usize,
    /// Names the seal of the whole leaf, or of the part.
    base_id: Vec<u8>,
    /// What it is made of.
    stack: Stack,
}

/// One value of the table of leaves, opened: a whole leaf, or a part of one.
pub struct OneLeaf {
    /// The epoch that put it.
    pub epoch: Epoch,
    /// Where it stands among the leaves of its tree.
    pub level: Level,
    /// What it holds, changes applied: a whole leaf's entries, or those that differ from its base.
    pub change: LeafChange,
    /// The epoch that a part names as the one it builds on.
    named_base: Option<Epoch>,
    change_count: usize,
    base_id: Vec<u8>,
}

/// What a leaf is stored over.
#[derive(Clone, Copy)]
pub enum Onto<'a> {
    /// Its tree has none there: the whole leaf is put.
    Nothing,
    /// One of the same interval, which it takes the place of.
    Own(&'a StoredLeaf),
    /// One of an older interval, which stays.
    Older(&'a StoredLeaf),
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
        let (tree, _, epoch) =
            key::parse_leaf(&found_key).map_err(|error| damaged(lineage.0[0].0, leaf, &error.to_string()))?;
        if level_of(&value) == Level::WHOLE {
            let opened = self.open(&found_key, epoch, &value).map_err(|reason| damaged(tree, leaf, &reason))?;
            return Ok(opened.change.entries);
        }
        // A part comes with what it builds on, in one look at the store.
        for (tree, epoch) in lineage.0.iter().skip_while(|(before, _)| *before != tree) {
            if let Some(stored) = self.newest(*tree, *epoch, leaf)? {
                return Ok(stored.leaf);
            }
        }
        Ok(Leaf::default())
    }

    /// The leaf that `epoch` of one tree sees, without its parents.
    ///
    /// # Errors
    /// The store's failure, or [`ErrorKind::Integrity`] if the leaf is damaged.
    pub fn newest(&self, tree: TreeId, epoch: Epoch, leaf: LeafIndex) -> Result<Option<StoredLeaf>> {
        let values = self.values(tree, epoch, leaf)?;
        self.assemble_values(&values).map_err(|reason| damaged(tree, leaf, &reason))
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
        Ok(self.newest(tree, epoch, leaf)?.filter(|stored| stored.epoch == epoch))
    }

    /// What removes the leaf that an epoch of a tree put.
    #[must_use]
    pub fn delete((tree, epoch, leaf): (TreeId, Epoch, LeafIndex)) -> [MetaOp; 2] {
        let leaf_key = key::leaf(tree, leaf, epoch);
        let index_key = key::epoch_leaf(tree, epoch, leaf);
        [MetaOp::Delete(Table::Leaves, leaf_key), MetaOp::Delete(Table::EpochLeaves, index_key)]
    }

    /// The value of the leaf that `epoch` of one tree sees, and those that it builds on, in one look at the store: a merge may
    /// take a leaf away at any time. Behind each comes the next older one with a smaller depth, up to a whole leaf.
    fn values(&self, tree: TreeId, epoch: Epoch, leaf: LeafIndex) -> Result<Vec<KeyValue>> {
        let from = key::leaf(tree, leaf, epoch);
        let mut values: Vec<KeyValue> = Vec::new();
        let walked = self.store.walk(Table::Leaves, &key::leaf_prefix(tree, leaf), &from, &mut |found_key, value| {
            let level = level_of(value);
            if values.last().is_none_or(|(_, newer)| level.depth < level_of(newer).depth) {
                values.push((found_key.to_vec(), value.to_vec()));
            }
            level.depth > 0
        });
        walked.map_err(store_error).map(|()| values)
    }

    fn assemble_values(&self, values: &[KeyValue]) -> std::result::Result<Option<StoredLeaf>, String> {
        if values.is_empty() {
            return Ok(None);
        }
        let open = |(leaf_key, value): &KeyValue| {
            let (_, _, epoch) = key::parse_leaf(leaf_key).map_err(|error| error.to_string())?;
            self.open(leaf_key, epoch, value)
        };
        let opened = values.iter().map(open).collect::<std::result::Result<Vec<OneLeaf>, String>>()?;
        Self::assemble(&opened.iter().collect::<Vec<_>>()).map(Some)
    }

    /// The leaf that a part and what it builds on are together, the newest first.
    ///
    /// # Errors
    /// What is missing.
    ///
    /// # Panics
    /// If there is none.
    pub fn assemble(chain: &[&OneLeaf]) -> std::result::Result<StoredLeaf, String> {
        let (newest, oldest) = (chain[0], chain[chain.len() - 1]);
        let mut parts = Vec::new();
        for (part, base) in chain.iter().zip(&chain[1..]) {
            // What was merged into a newer leaf is in that one.
            if part.named_base.is_none_or(|named| named > base.epoch) {
                return Err(format!("the part of epoch {} builds on a leaf that is missing", part.epoch));
            }
            parts.push(StackedPart { level: part.level, change: part.change.clone(), base: base.epoch });
        }
        if oldest.level != Level::WHOLE {
            return Err(format!("the part of epoch {} builds on a leaf that is missing", oldest.epoch));
        }
        let mut leaf = oldest.change.entries.clone();
        if is_planted(Bug::PartWithoutBase) && newest.level != Level::WHOLE {
            leaf = Leaf::default();
        }
        parts.iter().rev().for_each(|part| leaf.apply(&part.change));
        let (epoch, change_count, base_id) = (newest.epoch, newest.change_count, newest.base_id.clone());
        Ok(StoredLeaf { epoch, leaf, change_count, base_id, stack: Stack(parts) })
    }

    /// What a value of the table of leaves holds by itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, leaf_key: &[u8], epoch: Epoch, value: &[u8]) -> std::result::Result<OneLeaf, String> {
        let (level, frames) = frames(value).map_err(|error| error.to_string())?;
        let (mut change, named_base, base_id) = if level == Level::WHOLE {
            let base_id = frames[0].get(..SEAL_ID_BYTES).ok_or("its seal is cut short")?.to_vec();
            let body = self.keys.open(SealKind::Leaf, leaf_key, frames[0]).map_err(|error| error.to_string())?;
            let entries = Leaf::decode(&body).map_err(|error| error.to_string())?;
            (LeafChange { entries, ..LeafChange::default() }, None, base_id)
        } else {
            let sealed = sealed_part(frames[0]).map_err(|error| error.to_string())?;
            let base_id = sealed.get(..SEAL_ID_BYTES).ok_or("its seal is cut short")?.to_vec();
            let body = self.keys.open(SealKind::Leaf, &part_associated(leaf_key, level), &sealed);
            let part = Part::decode(&body.map_err(|error| error.to_string())?, epoch);
            let part = part.map_err(|error| error.to_string())?;
            (part.change, Some(part.base), base_id)
        };
        for (position, frame) in frames[1..].iter().enumerate() {
            let associated = change_associated(leaf_key, &base_id, position);
            let body = self.keys.open(SealKind::LeafChange, &associated, frame).map_err(|error| error.to_string())?;
            let later = LeafChange::decode(&body).map_err(|error| error.to_string())?;
            if level == Level::WHOLE {
                change.entries.apply(&later);
            } else {
                change.append(&later);
            }
        }
        Ok(OneLeaf { epoch, level, change, named_base, change_count: frames.len() - 1, base_id })
    }

    /// Appends to `batch` what stores `leaf` as `(tree, epoch)`'s, which is what it is stored over with `change`. Returns the level
    /// of the part that it puts, if it puts one.
    ///
    /// The first change in an interval puts a part or the whole leaf, also when it is empty, and its key in the index. What it
    /// takes the place of, in an older epoch of the interval, is the caller's to delete in the same batch.
    pub fn store(
        &self,
        place: (TreeId, Epoch, LeafIndex),
        onto: Onto<'_>,
        leaf: &Leaf,
        change: &LeafChange,
        batch: &mut Vec<MetaOp>,
    ) -> Option<Level> {
        let (tree, epoch, index) = place;
        let leaf_key = key::leaf(tree, index, epoch);
        let part = match onto {
            Onto::Own(own) if own.epoch == epoch && own.change_count < LEAF_CHANGES_MAX => {
                let associated = change_associated(&leaf_key, &own.base_id, own.change_count);
                let mut value = Vec::new();
                push_frame(&mut value, &self.keys.seal(SealKind::LeafChange, &associated, &change.encode()));
                batch.push(MetaOp::Append(Table::Leaves, leaf_key, value));
                return None;
            }
            Onto::Nothing => None,
            Onto::Own(own) => own.stack.changed(change),
            Onto::Older(older) => older.stack.next(older.epoch, change),
        };
        let level = self.put(place, part, leaf, batch);
        if !matches!(onto, Onto::Own(own) if own.epoch == epoch) {
            batch.push(MetaOp::Put(Table::EpochLeaves, key::epoch_leaf(tree, epoch, index), Vec::new()));
        }
        level
    }

    /// Appends to `batch` what a leaf becomes when the next older one of its tree, which is merged into it, is deleted; nothing
    /// if it does not build on that one. Returns whether it does.
    pub fn rebase(
        &self,
        (tree, index): (TreeId, LeafIndex),
        (going, follower): (&StoredLeaf, &StoredLeaf),
        batch: &mut Vec<MetaOp>,
    ) -> bool {
        if follower.stack.level().depth <= going.stack.level().depth || is_planted(Bug::MergeDropsBase) {
            return false;
        }
        self.put((tree, follower.epoch, index), follower.stack.without(&going.stack), &follower.leaf, batch);
        true
    }

    /// Puts a part, or the whole leaf if that is not much larger; returns the part's level.
    fn put(
        &self,
        (tree, epoch, index): (TreeId, Epoch, LeafIndex),
        part: Option<(Level, Part)>,
        leaf: &Leaf,
        batch: &mut Vec<MetaOp>,
    ) -> Option<Level> {
        let leaf_key = key::leaf(tree, index, epoch);
        let part = part.map(|(level, part)| (level, part.encode(epoch))).filter(|(_, body)| is_worth_it(body, leaf));
        let Some((level, body)) = part else {
            let mut value = Vec::new();
            push_frame(&mut value, &self.keys.seal(SealKind::Leaf, &leaf_key, &leaf.encode()));
            batch.push(MetaOp::Put(Table::Leaves, leaf_key, value));
            return None;
        };
        let sealed = self.keys.seal(SealKind::Leaf, &part_associated(&leaf_key, level), &body);
        batch.push(MetaOp::Put(Table::Leaves, leaf_key, part_value(level, &sealed)));
        Some(level)
    }
}

fn part_associated(leaf_key: &[u8], level: Level) -> Vec<u8> {
    [leaf_key, &level.bytes()].concat()
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
    let kind = if error.is_out_of_space {
        ErrorKind::NoSpace
    } else if error.is_damaged {
        ErrorKind::Integrity
    } else {
        ErrorKind::Other
    };
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
    fn damage_that_the_store_finds_is_told_from_other_failures() {
        let kind = |is_out_of_space, is_damaged| {
            store_error(crate::meta::MetaError { is_out_of_space, is_damaged, message: String::new() }).kind()
        };
        assert_eq!(kind(true, false), ErrorKind::NoSpace);
        assert_eq!(kind(false, true), ErrorKind::Integrity);
        assert_eq!(kind(false, false), ErrorKind::Other);
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
            let onto = before.as_ref().map_or(Onto::Nothing, Onto::Own);
            leaves.store((tree, epoch, index), onto, leaf, change, &mut batch);
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
