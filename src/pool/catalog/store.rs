//! The catalog's records in the metadata store: sealing and opening them, and what its failures mean.

use crate::crypto::{KeyRing, SealKind};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{TreeRecord, VolumeRecord};
use crate::format::key;
use crate::format::snapshot::{PointRecord, SnapshotRecord};
use crate::meta::{Durability, MetaOp, MetaRead, MetaStore, Table};

/// What seals the catalog, and where it is.
#[derive(Clone, Copy)]
pub struct CatalogStore<'a> {
    /// The store.
    pub store: &'a dyn MetaStore,
    /// The keys.
    pub keys: &'a KeyRing,
}

impl CatalogStore<'_> {
    /// What stores a tree's record.
    #[must_use]
    pub fn put_tree(&self, tree: &TreeRecord) -> MetaOp {
        self.put(SealKind::Tree, key::tree(tree.id), &tree.encode())
    }

    pub(super) fn put_volume(&self, volume: &VolumeRecord) -> MetaOp {
        self.put(SealKind::Volume, key::volume(volume.id), &volume.encode())
    }

    pub(super) fn put_point(&self, point: &PointRecord) -> MetaOp {
        self.put(SealKind::Point, key::point(point.tree, point.epoch), &point.encode())
    }

    pub(super) fn put_snapshot(&self, snapshot: &SnapshotRecord) -> MetaOp {
        self.put(SealKind::Snapshot, key::snapshot(snapshot.volume, snapshot.number), &snapshot.encode())
    }

    fn put(&self, kind: SealKind, record_key: Vec<u8>, body: &[u8]) -> MetaOp {
        let value = self.keys.seal(kind, &record_key, body);
        MetaOp::Put(Table::Catalog, record_key, value)
    }

    pub(super) fn commit_as(&self, batch: &[MetaOp], durability: Durability) -> Result<()> {
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

pub(super) fn open(keys: &KeyRing, kind: SealKind, record_key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    keys.open(kind, record_key, value).map_err(|error| damaged("catalog", &error.to_string()))
}

pub(super) fn scan(store: &dyn MetaRead, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let end = [prefix[0] + 1];
    let found = store.scan(Table::Catalog, prefix, &end, usize::MAX);
    found.map_err(|error| meta_error("Reading the catalog", error))
}

pub(super) fn damaged(what: &str, reason: &str) -> Error {
    Error::new(ErrorKind::Integrity, format!("A {what} record in meta/ is damaged: {reason}"))
        .with_hint("Restore meta/ and the devices from the same backup")
}
