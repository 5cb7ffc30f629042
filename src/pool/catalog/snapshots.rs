//! Changes of the catalog that are about snapshots: making and removing them, clones, rollback.

use super::{Catalog, CatalogStore, Change, Edit, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{HeldBlocks, Lifetime, TreeRecord, VolumeRecord};
use crate::format::snapshot::{Annotations, FILES_BYTES_MAX, ITEMS_MAX, PointRecord, SnapshotRecord, TEXT_BYTES_MAX};
use crate::units::{Epoch, Sequence};
use uuid::Uuid;

/// What a new snapshot is to be.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// A new id.
    pub id: Uuid,
    /// Its volume.
    pub volume: Uuid,
    /// Now, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// The time that its content is of, in milliseconds since 1970.
    pub time_ms: i64,
    /// When it expires, in seconds since 1970; 0 is never.
    pub expires_at: u64,
    /// What the user says of it.
    pub annotations: Annotations,
}

/// What a new clone is to be.
#[derive(Clone, Debug)]
pub struct NewClone {
    /// A new id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Now, in seconds since 1970.
    pub created_at: u64,
    /// When it expires, in seconds since 1970; 0 is never.
    pub expires_at: u64,
    /// What the user notes of it.
    pub labels: Vec<(String, String)>,
}

impl Catalog {
    /// Makes snapshots of several volumes at once, all or none. No write of these volumes is under way. `sequence` is above
    /// those of all their blocks, and `cuts_begun` counts the cuts that may have left changes of them behind.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Exists`] for a tag that the volume has already; [`ErrorKind::Usage`] for texts
    /// that are too long; the store's failure.
    pub fn add_snapshots(
        &self,
        at: CatalogStore<'_>,
        new: Vec<NewSnapshot>,
        (sequence, cuts_begun): (Sequence, u64),
    ) -> Result<Change<Vec<SnapshotRecord>>> {
        let mut edit = Edit::behind(cuts_begun);
        let mut records = Vec::new();
        for snapshot in new {
            records.push(self.add_snapshot(snapshot, sequence, &mut edit)?);
        }
        Ok(Change::new(at, edit, Vec::new(), records))
    }

    fn add_snapshot(&self, new: NewSnapshot, sequence: Sequence, edit: &mut Edit) -> Result<SnapshotRecord> {
        let mut volume = self.volume_or_error(new.volume)?.clone();
        let tree = self.trees[&volume.tree];
        let record = SnapshotRecord {
            id: new.id,
            volume: volume.id,
            number: volume.next_snapshot,
            point: (tree.id, tree.epoch),
            size_bytes: volume.size_bytes,
            created_at_ms: new.created_at_ms,
            time_ms: new.time_ms,
            lifetime: Lifetime { expires_at: new.expires_at, ..Lifetime::default() },
            annotations: new.annotations,
        };
        self.check_annotations(&record)?;
        edit.put_point(PointRecord { tree: tree.id, epoch: tree.epoch, sequence, held: tree.held, merge: None });
        let epoch = Epoch::new(tree.epoch.get() + 1);
        edit.put_tree(TreeRecord { epoch, held: HeldBlocks::default(), ..tree });
        volume.next_snapshot += 1;
        edit.put_volume(volume);
        edit.put_snapshot(record.clone());
        Ok(record)
    }

    /// Changes what is said of a snapshot, and until when it is there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], and as [`Self::add_snapshots`].
    pub fn change_snapshot(
        &self,
        at: CatalogStore<'_>,
        id: SnapshotId,
        change: impl FnOnce(&mut Annotations, &mut Lifetime),
    ) -> Result<Change<SnapshotRecord>> {
        let mut record = self.snapshot_or_error(id)?.clone();
        change(&mut record.annotations, &mut record.lifetime);
        self.check_annotations(&record)?;
        let mut edit = Edit::default();
        edit.put_snapshot(record.clone());
        Ok(Change::new(at, edit, Vec::new(), record))
    }

    /// Takes the name from frozen epochs, which checkpoints then reclaim unless something else needs them. All or none.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn remove_snapshots(&self, at: CatalogStore<'_>, ids: &[SnapshotId]) -> Result<Change<()>> {
        let mut edit = Edit::default();
        for id in ids {
            self.snapshot_or_error(*id)?;
            edit.remove_snapshot(*id);
        }
        Ok(Change::new(at, edit, Vec::new(), ()))
    }

    /// Makes volumes that start as a snapshot, all or none.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`], [`ErrorKind::Usage`], or the store's failure.
    pub fn add_clones(
        &self,
        at: CatalogStore<'_>,
        source: SnapshotId,
        new: Vec<NewClone>,
    ) -> Result<Change<Vec<VolumeRecord>>> {
        let snapshot = self.snapshot_or_error(source)?.clone();
        let origin = self.volume_or_error(source.0)?.clone();
        let domain = self.trees[&snapshot.point.0].domain;
        let mut edit = Edit::default();
        let mut records: Vec<VolumeRecord> = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for clone in new {
            self.check_name(&clone.name)?;
            if !names.insert(clone.name.clone()) {
                return Err(Error::new(ErrorKind::Exists, format!("\"{}\" would be made twice", clone.name))
                    .with_hint("Put a counter such as {:03} into the name"));
            }
            check_texts(clone.labels.iter().flat_map(|(key, value)| [key, value]), TEXT_BYTES_MAX)?;
            let record = VolumeRecord {
                id: clone.id,
                name: clone.name,
                size_bytes: snapshot.size_bytes,
                sector_size: origin.sector_size,
                tree: self.add_tree(&mut edit, Some(snapshot.point), domain),
                created_at: clone.created_at,
                on_full: origin.on_full,
                next_snapshot: 1,
                origin: Some(source),
                lifetime: Lifetime { expires_at: clone.expires_at, ..Lifetime::default() },
                labels: clone.labels,
            };
            edit.put_volume(record.clone());
            records.push(record);
        }
        Ok(Change::new(at, edit, Vec::new(), records))
    }

    /// Switches a volume's head to one of its snapshots; keeps the head before as a snapshot if `keep` says what of it. No
    /// write of the volume is under way, and none to the old head will be; `end` as in [`Self::remove`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Usage`] for a snapshot of another volume, or the store's failure.
    pub fn roll_back(
        &self,
        at: CatalogStore<'_>,
        target: SnapshotId,
        keep: Option<NewSnapshot>,
        end: (Sequence, u64),
    ) -> Result<Change<(VolumeRecord, Option<SnapshotRecord>)>> {
        let snapshot = self.snapshot_or_error(target)?.clone();
        let mut volume = self.volume_or_error(target.0)?.clone();
        let old = self.trees[&volume.tree];
        let mut edit = Edit::behind(end.1);
        let kept = match keep {
            Some(new) => {
                assert!(new.volume == volume.id, "the head of the same volume is kept");
                let kept = self.add_snapshot(new, end.0, &mut edit)?;
                // The frozen epoch is the tree's last: nobody writes there any more.
                edit.put_tree(TreeRecord { held: HeldBlocks::default(), ..old });
                volume.next_snapshot += 1;
                Some(kept)
            }
            None => {
                self.end_head(old.id, end.0, &[], &mut edit);
                None
            }
        };
        volume.tree = self.add_tree(&mut edit, Some(snapshot.point), old.domain);
        volume.size_bytes = snapshot.size_bytes;
        edit.put_volume(volume.clone());
        Ok(Change::new(at, edit, Vec::new(), (volume, kept)))
    }

    fn volume_or_error(&self, id: Uuid) -> Result<&VolumeRecord> {
        self.volumes.get(&id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no volume {id}")).with_hint("`rok-blk ls` lists them")
        })
    }

    /// A snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn snapshot_or_error(&self, id: SnapshotId) -> Result<&SnapshotRecord> {
        self.snapshots.get(&id).ok_or_else(|| {
            let name = self.volumes.get(&id.0).map_or("?", |volume| &volume.name);
            Error::new(ErrorKind::NotFound, format!("There is no version {name}@{}", id.1))
                .with_hint(format!("`rok-blk log {name}` lists its versions"))
        })
    }

    fn check_annotations(&self, record: &SnapshotRecord) -> Result<()> {
        let Annotations { creator, message, tags, labels, holds, files } = &record.annotations;
        let texts =
            [creator, message].into_iter().chain(tags).chain(labels.iter().flat_map(|(key, value)| [key, value]));
        let names = files.iter().map(|(name, _)| name);
        check_texts(texts.chain(holds.iter().map(|hold| &hold.reason)).chain(names), TEXT_BYTES_MAX)?;
        let count = tags.len().max(labels.len()).max(holds.len()).max(files.len());
        if count > ITEMS_MAX {
            let message = format!("A version has at most {ITEMS_MAX} tags, labels, holds and files each");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let file_bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        if file_bytes > FILES_BYTES_MAX {
            let message =
                format!("The files kept with a version may have {FILES_BYTES_MAX} bytes together, not {file_bytes}");
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Keep large files on a volume"));
        }
        let others = || self.snapshots_of(record.volume).filter(|other| other.number != record.number);
        for tag in tags {
            if let Some(other) = others().find(|other| other.annotations.tags.contains(tag)) {
                let message = format!("The tag \"{tag}\" is at version {} already", other.number);
                return Err(Error::new(ErrorKind::Exists, message).with_hint("Move it with `rok-blk tag --move`"));
            }
        }
        Ok(())
    }
}

/// Refuses texts that are too long.
pub(super) fn check_texts<'a>(mut texts: impl Iterator<Item = &'a String>, bytes_max: usize) -> Result<()> {
    let Some(text) = texts.find(|text| text.len() > bytes_max) else { return Ok(()) };
    let message = format!("\"{}…\" is too long: {} bytes", text.chars().take(20).collect::<String>(), text.len());
    Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Use at most {bytes_max} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::Place;

    #[test]
    fn files_of_a_version_have_a_mebibyte_together_and_not_more() {
        let pool = Place::new().open();
        let id = Uuid::from_u128(3);
        let volume = VolumeRecord::new(id, "vol", 64 << 20);
        pool.change_catalog(|catalog, at| catalog.create(at, volume)).expect("a new volume");
        let snapshot_with = |file_bytes: usize| {
            let files = vec![("vm.xml".to_owned(), vec![7; 100]), ("vm.nvram".to_owned(), vec![7; file_bytes - 100])];
            let annotations = Annotations { files, ..Annotations::default() };
            let new = NewSnapshot {
                id: Uuid::new_v4(),
                volume: id,
                created_at_ms: 0,
                time_ms: 0,
                expires_at: 0,
                annotations,
            };
            let end = pool.end_of_writes();
            let made = pool.change_catalog(|catalog, at| catalog.add_snapshots(at, vec![new], end));
            made.map(|records| records.len()).map_err(|error| error.kind())
        };
        assert_eq!(snapshot_with(1 << 20), Ok(1));
        assert_eq!(snapshot_with((1 << 20) + 1), Err(ErrorKind::Usage));
    }
}
