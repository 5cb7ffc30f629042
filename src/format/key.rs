//! Keys of the metadata store: big-endian, so that byte order is number order.

use crate::format::FormatError;
use crate::format::codec::Reader;
use crate::units::{Address, DeviceIndex, DomainId, Epoch, LeafIndex, SessionId, TreeId};
use uuid::Uuid;

/// Key of the one checkpoint record in the catalog.
pub const CHECKPOINT: &[u8] = b"C";
/// Key of the one record of the scrub in the catalog.
pub const SCRUB: &[u8] = b"U";
/// Prefix of volumes in the catalog.
pub const VOLUME_PREFIX: &[u8] = b"V";
/// Prefix of trees in the catalog.
pub const TREE_PREFIX: &[u8] = b"T";
/// Prefix of domains in the catalog.
pub const DOMAIN_PREFIX: &[u8] = b"D";
/// Prefix of jobs in the catalog.
pub const JOB_PREFIX: &[u8] = b"J";
/// Prefix of policies in the catalog.
pub const POLICY_PREFIX: &[u8] = b"R";
/// Prefix of frozen epochs in the catalog.
pub const POINT_PREFIX: &[u8] = b"P";
/// Prefix of snapshots in the catalog.
pub const SNAPSHOT_PREFIX: &[u8] = b"S";
/// Blocks whose owners share a value: 1 MiB of a device.
pub const OWNER_GROUP_SHIFT: u32 = 8;

/// Key of a volume in the catalog.
#[must_use]
pub fn volume(id: Uuid) -> Vec<u8> {
    [VOLUME_PREFIX, id.as_bytes()].concat()
}

/// Key of a tree in the catalog.
#[must_use]
pub fn tree(id: TreeId) -> Vec<u8> {
    [TREE_PREFIX, &id.get().to_be_bytes()].concat()
}

/// Key of a frozen epoch in the catalog.
#[must_use]
pub fn point(tree: TreeId, epoch: Epoch) -> Vec<u8> {
    [POINT_PREFIX, &tree.get().to_be_bytes(), &epoch.get().to_be_bytes()].concat()
}

/// Key of a snapshot in the catalog.
#[must_use]
pub fn snapshot(volume: Uuid, number: u64) -> Vec<u8> {
    [SNAPSHOT_PREFIX, volume.as_bytes(), &number.to_be_bytes()].concat()
}

/// Key of a domain in the catalog.
#[must_use]
pub fn domain(id: DomainId) -> Vec<u8> {
    [DOMAIN_PREFIX, &id.get().to_be_bytes()].concat()
}

/// Key of a job in the catalog.
#[must_use]
pub fn job(id: u64) -> Vec<u8> {
    [JOB_PREFIX, &id.to_be_bytes()].concat()
}

/// Key of a policy in the catalog.
#[must_use]
pub fn policy(name: &str) -> Vec<u8> {
    [POLICY_PREFIX, name.as_bytes()].concat()
}

/// Key of a session.
#[must_use]
pub fn session(id: SessionId) -> Vec<u8> {
    id.get().to_be_bytes().to_vec()
}

/// Key of a leaf: newest epoch first within (tree, leaf).
#[must_use]
pub fn leaf(tree: TreeId, leaf: LeafIndex, epoch: Epoch) -> Vec<u8> {
    [tree.get().to_be_bytes(), leaf.get().to_be_bytes(), (!epoch.get()).to_be_bytes()].concat()
}

/// What all epochs of a leaf share: the first 16 bytes of [`leaf`].
#[must_use]
pub fn leaf_prefix(tree: TreeId, leaf: LeafIndex) -> Vec<u8> {
    [tree.get().to_be_bytes(), leaf.get().to_be_bytes()].concat()
}

/// The parts of a [`leaf`] key.
///
/// # Errors
/// [`FormatError`] if the length differs.
pub fn parse_leaf(key: &[u8]) -> Result<(TreeId, LeafIndex, Epoch), FormatError> {
    let mut reader = Reader::new(key);
    let tree = u64::from_be_bytes(reader.array()?);
    let leaf = u64::from_be_bytes(reader.array()?);
    let epoch = !u64::from_be_bytes(reader.array()?);
    reader.finish()?;
    Ok((TreeId::new(tree), LeafIndex::new(leaf), Epoch::new(epoch)))
}

/// Key of a leaf in the index by epoch.
#[must_use]
pub fn epoch_leaf(tree: TreeId, epoch: Epoch, leaf: LeafIndex) -> Vec<u8> {
    [tree.get().to_be_bytes(), epoch.get().to_be_bytes(), leaf.get().to_be_bytes()].concat()
}

/// The parts of an [`epoch_leaf`] key.
///
/// # Errors
/// [`FormatError`] if the length differs.
pub fn parse_epoch_leaf(key: &[u8]) -> Result<(TreeId, Epoch, LeafIndex), FormatError> {
    let mut reader = Reader::new(key);
    let [tree, epoch, leaf] = [reader.array()?, reader.array()?, reader.array()?].map(u64::from_be_bytes);
    reader.finish()?;
    Ok((TreeId::new(tree), Epoch::new(epoch), LeafIndex::new(leaf)))
}

/// The first key behind all of a tree, in the tables of leaves and of leaves by epoch.
#[must_use]
pub fn tree_end(tree: TreeId) -> Vec<u8> {
    (tree.get() + 1).to_be_bytes().to_vec()
}

/// The first key of a tree, in the tables of leaves and of leaves by epoch.
#[must_use]
pub fn tree_start(tree: TreeId) -> Vec<u8> {
    tree.get().to_be_bytes().to_vec()
}

/// Key of a stretch in the bitmaps: device, then number of the stretch.
#[must_use]
pub fn stretch(device: DeviceIndex, stretch: u64) -> Vec<u8> {
    [&[device.get()][..], &stretch.to_be_bytes()].concat()
}

/// The parts of a [`stretch`] key.
///
/// # Errors
/// [`FormatError`] if the length differs.
pub fn parse_stretch(key: &[u8]) -> Result<(DeviceIndex, u64), FormatError> {
    let mut reader = Reader::new(key);
    let device = reader.u8()?;
    let stretch = u64::from_be_bytes(reader.array()?);
    reader.finish()?;
    Ok((DeviceIndex::new(device), stretch))
}

/// Key of the owners of 256 consecutive addresses.
#[must_use]
pub fn owner_group(address: Address) -> Vec<u8> {
    stretch(address.device(), address.block() >> OWNER_GROUP_SHIFT)
}
