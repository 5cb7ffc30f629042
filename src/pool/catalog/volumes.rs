//! Changes of the catalog that are about volumes.

use super::change::KeyChange;
use super::{Catalog, CatalogStore, Change, Edit};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{
    DomainRecord, HeldBlocks, LABELS_MAX, NAME_BYTES_MAX, TreeRecord, TreeState, VolumeRecord,
};
use crate::format::key;
use crate::format::snapshot::{PointRecord, TEXT_BYTES_MAX};
use crate::meta::{Durability, MetaOp, Table};
use crate::planted::{Bug, is_planted};
use crate::units::{DomainId, Epoch, LeafIndex, Sequence, TreeId};
use uuid::Uuid;

impl Catalog {
    /// Makes a volume with a tree of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] for a name that is taken, [`ErrorKind::Usage`] for one that cannot be.
    pub fn create(&self, at: CatalogStore<'_>, volume: VolumeRecord) -> Result<Change<VolumeRecord>> {
        self.create_with(at, volume, DomainId::POOL, Vec::new())
    }

    /// Makes a volume with a tree and a domain of its own; the domain has the number of [`Self::next_tree`].
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_in_domain(
        &self,
        at: CatalogStore<'_>,
        volume: VolumeRecord,
        domain: &DomainRecord,
    ) -> Result<Change<VolumeRecord>> {
        assert!(domain.id.get() == self.next_tree, "trees, and thus domains, never come back");
        self.create_with(at, volume, domain.id, vec![at.put_domain(domain)])
    }

    fn create_with(
        &self,
        at: CatalogStore<'_>,
        mut volume: VolumeRecord,
        domain: DomainId,
        more: Vec<MetaOp>,
    ) -> Result<Change<VolumeRecord>> {
        self.check_name(&volume.name)?;
        let mut edit = Edit::default();
        volume.tree = self.add_tree(&mut edit, None, domain);
        edit.put_volume(volume.clone());
        Ok(Change::new(at, edit, more, volume))
    }

    /// Puts a new tree into an edit; further ones of the same edit get further numbers.
    pub(super) fn add_tree(&self, edit: &mut Edit, parent: Option<(TreeId, Epoch)>, domain: DomainId) -> TreeId {
        let id = TreeId::new(edit.next_tree.max(self.next_tree));
        edit.next_tree = id.get() + 1;
        edit.put_tree(TreeRecord {
            id,
            epoch: Epoch::new(1),
            parent,
            domain,
            state: TreeState::Living,
            own_before: LeafIndex::new(0),
            held: HeldBlocks::default(),
        });
        id
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// As [`Self::create`], and [`ErrorKind::NotFound`].
    pub fn rename(&self, at: CatalogStore<'_>, from: &str, to: &str) -> Result<Change<VolumeRecord>> {
        let id = self.find(from)?.id;
        self.check_name(to)?;
        self.change_volume(at, id, |volume| to.clone_into(&mut volume.name))
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn set_size(&self, at: CatalogStore<'_>, name: &str, size_bytes: u64) -> Result<Change<VolumeRecord>> {
        let id = self.find(name)?.id;
        self.change_volume(at, id, |volume| volume.size_bytes = size_bytes)
    }

    /// Changes what is said of a volume, but for its id, tree and sector size.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Usage`] for too long a label; the store's failure.
    pub fn change_volume(
        &self,
        at: CatalogStore<'_>,
        id: Uuid,
        change: impl FnOnce(&mut VolumeRecord),
    ) -> Result<Change<VolumeRecord>> {
        let old = self.volumes.get(&id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no volume {id}")).with_hint("`rok-blk ls` lists them")
        })?;
        let mut volume = old.clone();
        change(&mut volume);
        assert!(
            (volume.id, volume.tree, volume.sector_size) == (old.id, old.tree, old.sector_size),
            "these stay for a volume's life"
        );
        if volume.labels.len() > LABELS_MAX {
            return Err(Error::new(ErrorKind::Usage, format!("A volume has at most {LABELS_MAX} labels")));
        }
        super::snapshots::check_texts(volume.labels.iter().flat_map(|(key, value)| [key, value]), TEXT_BYTES_MAX)?;
        let mut edit = Edit::default();
        edit.put_volume(volume.clone());
        Ok(Change::new(at, edit, Vec::new(), volume))
    }

    /// Removes a volume with its snapshots, and its key if that is its own and nothing else needs it; its leaves are deleted
    /// by the next checkpoints. No write of it is under way, and none will be. `sequence` is above all of its blocks', and
    /// `cuts_begun` counts the cuts that may have left changes of it behind.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the store's failure.
    pub fn remove(
        &self,
        at: CatalogStore<'_>,
        id: Uuid,
        (sequence, cuts_begun): (Sequence, u64),
    ) -> Result<Change<VolumeRecord>> {
        self.remove_with(at, id, (sequence, cuts_begun), Vec::new())
    }

    /// Forgets a volume as [`Self::remove`] does, and stores `wrapped`, the other domains under another shred key, with it.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub(in crate::pool) fn shred(
        &self,
        at: CatalogStore<'_>,
        id: Uuid,
        end: (Sequence, u64),
        wrapped: Vec<MetaOp>,
    ) -> Result<Change<VolumeRecord>> {
        let change = self.remove_with(at, id, end, wrapped)?;
        let is_lazy = is_planted(Bug::ShredNotSynced);
        Ok(if is_lazy { change.stored_as(Durability::Buffered) } else { change })
    }

    fn remove_with(
        &self,
        at: CatalogStore<'_>,
        id: Uuid,
        end: (Sequence, u64),
        mut more: Vec<MetaOp>,
    ) -> Result<Change<VolumeRecord>> {
        let volume = self.volumes.get(&id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no volume {id}")).with_hint("`rok-blk ls` lists them")
        })?;
        let mut edit = Edit::behind(end.1);
        edit.remove_volume(id);
        let mut points = vec![];
        for snapshot in self.snapshots_of(id) {
            edit.remove_snapshot((id, snapshot.number));
            points.push(snapshot.point);
        }
        let domain = self.domain_only_of(id);
        self.end_head(volume.tree, end.0, &points, &mut edit);
        // What is left of other trees has no head: after rollbacks the volume's snapshots may be in several.
        let others: std::collections::BTreeSet<TreeId> = points.iter().map(|(tree, _)| *tree).collect();
        for tree in others.into_iter().filter(|tree| !self.heads.contains_key(tree)) {
            if self.would_be_dead(tree, &points) {
                self.put_deleting(tree, &mut edit);
            }
        }
        more.extend(domain.map(|domain| MetaOp::Delete(Table::Catalog, key::domain(domain))));
        let keys = domain.map_or(KeyChange::Nothing, KeyChange::Forgotten);
        Ok(Change::new(at, edit, more, volume).with_key(keys))
    }

    /// Puts into an edit what becomes of a tree whose newest epoch is nobody's head any more: it is deleted if nothing in it
    /// lives without `unnamed`, else its newest epoch is frozen, for nobody.
    pub(super) fn end_head(&self, id: TreeId, sequence: Sequence, unnamed: &[(TreeId, Epoch)], edit: &mut Edit) {
        if self.would_be_dead(id, unnamed) {
            return self.put_deleting(id, edit);
        }
        let tree = self.trees[&id];
        edit.put_tree(TreeRecord { held: HeldBlocks::default(), ..tree });
        edit.put_point(PointRecord { tree: id, epoch: tree.epoch, sequence, held: tree.held, merge: None });
    }

    /// Whether nothing in a tree lives once it has no head and `unnamed` have no names.
    fn would_be_dead(&self, id: TreeId, unnamed: &[(TreeId, Epoch)]) -> bool {
        let mut points = self.points.range((id, Epoch::new(0))..=(id, Epoch::new(u64::MAX)));
        points.all(|(at, _)| {
            let is_named = self.named.contains_key(at) && !unnamed.contains(at);
            !is_named && !self.children.contains_key(at)
        })
    }

    fn put_deleting(&self, id: TreeId, edit: &mut Edit) {
        let mut held = HeldBlocks::default();
        for (at, point) in self.points.range((id, Epoch::new(0))..=(id, Epoch::new(u64::MAX))) {
            held = held.plus(point.held);
            edit.remove_point(*at);
        }
        let tree = self.trees[&id];
        let state = TreeState::Deleting(LeafIndex::new(0));
        let own_before = LeafIndex::new(0);
        edit.put_tree(TreeRecord { state, own_before, held: held.plus(tree.held), ..tree });
    }

    /// Whether a name may be given to a volume.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(super) fn check_name(&self, name: &str) -> Result<()> {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
        let is_well_formed = name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'));
        if !starts_well || !is_well_formed || name.len() > NAME_BYTES_MAX {
            let message = format!("\"{}\" cannot be a volume's name", name.escape_default());
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("A name begins with a letter and has at most 63 letters, digits, \"-\" and \"_\""));
        }
        if self.find(name).is_ok() {
            return Err(Error::new(ErrorKind::Exists, format!("There is a volume \"{name}\" already"))
                .with_hint("Choose another name, or `rok-blk show` it"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::Place;

    #[test]
    fn a_name_is_a_letter_and_up_to_62_letters_digits_and_signs() {
        let pool = Place::new().open();
        let refusal = |name: &str| {
            let checked = pool.with_catalog(|catalog, _| catalog.check_name(name));
            checked.err().map(|error| error.kind())
        };
        let (longest, too_long) = ("a".repeat(63), "a".repeat(64));
        for name in ["a", "Z9", "vm-1_data", longest.as_str()] {
            assert_eq!(refusal(name), None, "{name}");
        }
        // Each breaks one rule alone.
        for name in ["", "1a", "-a", "_a", "a b", "a/b", "a\n", "a\u{e9}", too_long.as_str()] {
            assert_eq!(refusal(name), Some(ErrorKind::Usage), "{name:?}");
        }
    }
}
