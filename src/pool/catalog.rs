//! The catalog in memory: volumes and trees, and their changes in the metadata store.
//!
//! Each change is committed and synced before it is visible. It calls the store, so never on a lane.

use crate::crypto::{KeyRing, SealKind};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{DomainRecord, NAME_BYTES_MAX, OnFull, TreeRecord, TreeState, VolumeRecord};
use crate::format::key;
use crate::map::Lineage;
use crate::meta::{Durability, MetaOp, MetaRead, MetaStore, Table};
use crate::planted::{Bug, is_planted};
use crate::units::{DomainId, Epoch, LeafIndex, TreeId};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Volumes and trees of an open pool.
#[derive(Clone, Default)]
pub struct Catalog {
    volumes: BTreeMap<Uuid, VolumeRecord>,
    trees: BTreeMap<TreeId, TreeRecord>,
    next_tree: u64,
}

/// What seals the catalog, and where it is.
#[derive(Clone, Copy)]
pub struct CatalogStore<'a> {
    /// The store.
    pub store: &'a dyn MetaStore,
    /// The keys.
    pub keys: &'a KeyRing,
}

impl Catalog {
    /// Reads all volumes and trees.
    ///
    /// # Errors
    /// The store's failure, or [`ErrorKind::Integrity`] naming the record that is damaged.
    pub fn load(store: &dyn MetaRead, keys: &KeyRing, next_tree: TreeId) -> Result<Self> {
        let mut catalog = Self { next_tree: next_tree.get().max(1), ..Self::default() };
        for (record_key, value) in scan(store, key::TREE_PREFIX)? {
            let record = TreeRecord::decode(&open(keys, SealKind::Tree, &record_key, &value)?);
            let record = record.map_err(|error| damaged("tree", &error.to_string()))?;
            catalog.next_tree = catalog.next_tree.max(record.id.get() + 1);
            catalog.trees.insert(record.id, record);
        }
        for (record_key, value) in scan(store, key::VOLUME_PREFIX)? {
            let record = VolumeRecord::decode(&open(keys, SealKind::Volume, &record_key, &value)?);
            let record = record.map_err(|error| damaged("volume", &error.to_string()))?;
            if !catalog.trees.contains_key(&record.tree) {
                return Err(damaged("volume", &format!("tree {} of \"{}\" is missing", record.tree, record.name)));
            }
            catalog.volumes.insert(record.id, record);
        }
        Ok(catalog)
    }

    /// Refuses living trees that nothing could be read from, or written to; where there is no shred key, not those of
    /// volumes with a key of their own.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] naming a tree whose domain has no key.
    pub(super) fn check_domains(&self, keys: &KeyRing, is_shred_key_there: bool) -> Result<()> {
        let is_needed = |tree: &&TreeRecord| is_shred_key_there || tree.domain.is_pool();
        let mut living = self.trees.values().filter(|tree| tree.state == TreeState::Living).filter(is_needed);
        living.find(|tree| keys.newest_generation(tree.domain).is_none()).map_or(Ok(()), |tree| {
            Err(damaged("tree", &format!("tree {} is of domain {}, whose key is missing", tree.id, tree.domain)))
        })
    }

    /// Above every tree that was ever made.
    #[must_use]
    pub const fn next_tree(&self) -> TreeId {
        TreeId::new(self.next_tree)
    }

    /// Whether it has the same volumes and trees as the other.
    #[must_use]
    pub(super) fn has_same_records(&self, other: &Self) -> bool {
        self.volumes == other.volumes && self.trees == other.trees
    }

    /// All trees.
    pub(super) fn trees(&self) -> impl Iterator<Item = &TreeRecord> {
        self.trees.values()
    }

    /// All volumes, by id.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// The volume of a name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn find(&self, name: &str) -> Result<&VolumeRecord> {
        self.volumes.values().find(|volume| volume.name == name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no volume \"{name}\""))
                .with_hint("`rok-blk ls` lists them")
        })
    }

    /// A tree's record, if the tree is not gone.
    #[must_use]
    pub fn tree(&self, id: TreeId) -> Option<&TreeRecord> {
        self.trees.get(&id)
    }

    /// The tree and epoch, then their parents.
    #[must_use]
    pub fn lineage(&self, newest: (TreeId, Epoch)) -> Lineage {
        let mut lineage = vec![newest];
        let mut tree = newest.0;
        while let Some(parent) = self.tree(tree).and_then(|record| record.parent) {
            lineage.push(parent);
            tree = parent.0;
        }
        Lineage(lineage)
    }

    /// Whether writes to the tree count: it is there and is not being deleted.
    #[must_use]
    pub fn is_living(&self, id: TreeId) -> bool {
        self.trees.get(&id).is_some_and(|tree| tree.state == TreeState::Living)
    }

    /// A tree whose leaves are to be deleted, if there is one.
    #[must_use]
    pub fn deleting(&self) -> Option<TreeRecord> {
        self.trees.values().find(|tree| tree.state != TreeState::Living).copied()
    }

    /// Makes a volume with a tree of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] for a name that is taken, [`ErrorKind::Usage`] for one that cannot be.
    pub fn create(&mut self, at: CatalogStore<'_>, volume: VolumeRecord) -> Result<VolumeRecord> {
        self.create_with(at, volume, DomainId::POOL, None)
    }

    /// Makes a volume with a tree and a domain of its own; the domain has the number of [`Self::next_tree`].
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_in_domain(
        &mut self,
        at: CatalogStore<'_>,
        volume: VolumeRecord,
        domain: &DomainRecord,
    ) -> Result<VolumeRecord> {
        assert!(domain.id.get() == self.next_tree, "trees, and thus domains, never come back");
        self.create_with(at, volume, domain.id, Some(at.put_domain(domain)))
    }

    fn create_with(
        &mut self,
        at: CatalogStore<'_>,
        mut volume: VolumeRecord,
        domain: DomainId,
        put_domain: Option<MetaOp>,
    ) -> Result<VolumeRecord> {
        self.check_name(&volume.name)?;
        let tree = TreeRecord {
            id: TreeId::new(self.next_tree),
            epoch: Epoch::new(1),
            parent: None,
            domain,
            state: TreeState::Living,
            mapped_block_count: 0,
        };
        volume.tree = tree.id;
        let mut batch = vec![at.put_tree(&tree), at.put_volume(&volume)];
        batch.extend(put_domain);
        at.commit(&batch)?;
        self.next_tree += 1;
        self.trees.insert(tree.id, tree);
        self.volumes.insert(volume.id, volume.clone());
        Ok(volume)
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// As [`Self::create`], and [`ErrorKind::NotFound`].
    pub fn rename(&mut self, at: CatalogStore<'_>, from: &str, to: &str) -> Result<VolumeRecord> {
        let mut volume = self.find(from)?.clone();
        self.check_name(to)?;
        to.clone_into(&mut volume.name);
        self.update(at, volume)
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn set_size(&mut self, at: CatalogStore<'_>, name: &str, size_bytes: u64) -> Result<VolumeRecord> {
        let mut volume = self.find(name)?.clone();
        volume.size_bytes = size_bytes;
        self.update(at, volume)
    }

    /// Says what writes of a volume do that find no space.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn set_on_full(&mut self, at: CatalogStore<'_>, name: &str, on_full: OnFull) -> Result<VolumeRecord> {
        let mut volume = self.find(name)?.clone();
        volume.on_full = on_full;
        self.update(at, volume)
    }

    /// Forgets a volume, and its key if that is its own; its tree is deleted by the next checkpoints.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn remove(&mut self, at: CatalogStore<'_>, name: &str) -> Result<VolumeRecord> {
        self.remove_with(at, name, Vec::new(), Durability::Synced)
    }

    /// Forgets a volume as [`Self::remove`] does, and stores `wrapped`, the other domains under another shred key, with it.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub(super) fn shred(&mut self, at: CatalogStore<'_>, name: &str, wrapped: Vec<MetaOp>) -> Result<VolumeRecord> {
        let is_lazy = is_planted(Bug::ShredNotSynced);
        let durability = if is_lazy { Durability::Buffered } else { Durability::Synced };
        self.remove_with(at, name, wrapped, durability)
    }

    fn remove_with(
        &mut self,
        at: CatalogStore<'_>,
        name: &str,
        mut batch: Vec<MetaOp>,
        durability: Durability,
    ) -> Result<VolumeRecord> {
        let volume = self.find(name)?.clone();
        let mut tree = *self.trees.get(&volume.tree).expect("each volume has a tree");
        let domain = self.domain_of_only(tree.id);
        tree.state = TreeState::Deleting(LeafIndex::new(0));
        batch.push(at.put_tree(&tree));
        batch.push(MetaOp::Delete(Table::Catalog, key::volume(volume.id)));
        batch.extend(domain.map(|domain| MetaOp::Delete(Table::Catalog, key::domain(domain))));
        at.commit_as(&batch, durability)?;
        if let Some(domain) = domain {
            at.keys.forget_domain(domain);
        }
        self.trees.insert(tree.id, tree);
        self.volumes.remove(&volume.id);
        Ok(volume)
    }

    /// The domain of a tree, if it is a volume's and no other living tree is encrypted in it.
    pub(super) fn domain_of_only(&self, id: TreeId) -> Option<DomainId> {
        let domain = self.trees.get(&id)?.domain;
        let mut others = self.trees.values().filter(|tree| tree.id != id && tree.state == TreeState::Living);
        let is_shared = domain.is_pool() || others.any(|tree| tree.domain == domain);
        (!is_shared).then_some(domain)
    }

    /// A tree's record with another count of mapped blocks; [`Self::count_mapped`] takes it once it is committed.
    #[must_use]
    pub fn with_mapped(&self, id: TreeId, delta: i64) -> Option<TreeRecord> {
        let tree = self.trees.get(&id)?;
        let count = tree.mapped_block_count.checked_add_signed(delta).expect("a tree maps no less than nothing");
        Some(TreeRecord { mapped_block_count: count, ..*tree })
    }

    /// Takes records that [`Self::with_mapped`] made.
    pub fn count_mapped(&mut self, records: Vec<TreeRecord>) {
        for record in records {
            self.trees.insert(record.id, record);
        }
    }

    /// Takes what a deletion step committed: `None` is the end of the tree.
    pub fn deletion_advanced(&mut self, tree: TreeId, record: Option<TreeRecord>) {
        match record {
            Some(record) => self.trees.insert(tree, record),
            None => self.trees.remove(&tree),
        };
    }

    fn update(&mut self, at: CatalogStore<'_>, volume: VolumeRecord) -> Result<VolumeRecord> {
        at.commit(&[at.put_volume(&volume)])?;
        self.volumes.insert(volume.id, volume.clone());
        Ok(volume)
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
        let is_well_formed = name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'));
        if !starts_well || !is_well_formed || name.len() > NAME_BYTES_MAX {
            let message = format!("\"{}\" cannot be a volume's name", name.escape_default());
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("A name begins with a letter and has at most 63 letters, digits, \"-\" and \"_\""));
        }
        if self.volumes.values().any(|volume| volume.name == name) {
            return Err(Error::new(ErrorKind::Exists, format!("There is a volume \"{name}\" already"))
                .with_hint("Choose another name, or `rok-blk show` it"));
        }
        Ok(())
    }
}

impl CatalogStore<'_> {
    /// What stores a tree's record.
    #[must_use]
    pub fn put_tree(&self, tree: &TreeRecord) -> MetaOp {
        let record_key = key::tree(tree.id);
        let value = self.keys.seal(SealKind::Tree, &record_key, &tree.encode());
        MetaOp::Put(Table::Catalog, record_key, value)
    }

    fn put_volume(&self, volume: &VolumeRecord) -> MetaOp {
        let record_key = key::volume(volume.id);
        let value = self.keys.seal(SealKind::Volume, &record_key, &volume.encode());
        MetaOp::Put(Table::Catalog, record_key, value)
    }

    fn commit(&self, batch: &[MetaOp]) -> Result<()> {
        self.commit_as(batch, Durability::Synced)
    }

    fn commit_as(&self, batch: &[MetaOp], durability: Durability) -> Result<()> {
        self.store.commit(batch, durability).map_err(|error| meta_error("Writing the catalog", error))
    }
}

/// A failure of the metadata store while doing `action`.
pub(crate) fn meta_error(action: &str, error: crate::meta::MetaError) -> Error {
    if error.is_out_of_space {
        return Error::new(ErrorKind::NoSpace, format!("{action} failed: the file system that holds meta/ is full"))
            .with_hint("Free space there; nothing is lost")
            .with_source(error);
    }
    if error.is_damaged {
        return Error::new(ErrorKind::Integrity, format!("{action} failed: meta/ is damaged: {}", error.message))
            .with_hint("Restore meta/ and the devices from the same backup")
            .with_source(error);
    }
    Error::new(ErrorKind::Other, format!("{action} failed: {}", error.message)).with_source(error)
}

fn open(keys: &KeyRing, kind: SealKind, record_key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    keys.open(kind, record_key, value).map_err(|error| damaged("catalog", &error.to_string()))
}

fn scan(store: &dyn MetaRead, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let end = [prefix[0] + 1];
    let found = store.scan(Table::Catalog, prefix, &end, usize::MAX);
    found.map_err(|error| meta_error("Reading the catalog", error))
}

fn damaged(what: &str, reason: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("A {what} record in meta/ is damaged: {reason}"))
        .with_hint("Restore meta/ and the devices from the same backup")
}
