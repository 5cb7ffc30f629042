//! Whom what is damaged belongs to, and whether anybody has it still.

use super::part::ScrubBlock;
use crate::error::{ErrorKind, Result};
use crate::format::entry::Entry;
use crate::format::scrub::{Damage, DamageKind, DamageReader, READER_SNAPSHOTS_MAX, READERS_MAX};
use crate::map::{Lineage, StoredLeaves, TakenChanges};
use crate::meta::MetaRead;
use crate::planted::{Bug, is_planted};
use crate::pool::{Catalog, Pool};
use crate::units::{BlockIndex, Epoch, LEAF_ENTRIES, LeafIndex, TreeId};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Something that looked damaged when it was read. It may have been replaced, and its place reused, meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Suspect {
    tree: TreeId,
    /// The block; of a leaf that cannot be read, its first.
    block: BlockIndex,
    /// `None` for a leaf.
    entry: Option<Entry>,
    kind: DamageKind,
}

impl Suspect {
    /// A block.
    #[must_use]
    pub const fn of_block(block: &ScrubBlock, kind: DamageKind) -> Self {
        Self { tree: block.tree, block: block.block, entry: Some(block.entry), kind }
    }

    /// A leaf that cannot be read.
    #[must_use]
    pub const fn of_leaf(tree: TreeId, leaf: LeafIndex) -> Self {
        Self { tree, block: leaf.first_block(), entry: None, kind: DamageKind::Map }
    }

    /// How many blocks it is about.
    fn count(&self) -> u16 {
        if self.entry.is_some() { 1 } else { LEAF_ENTRIES.try_into().expect("a leaf has 256 entries") }
    }
}

/// A head or a snapshot.
struct Reader {
    volume: Uuid,
    snapshot: Option<u64>,
    lineage: Lineage,
    /// All trees that it builds on.
    trees: BTreeSet<TreeId>,
}

/// What was in memory when the view was made.
#[derive(Default)]
struct Instant {
    readers: Vec<Reader>,
    /// Trees of suspects that are gone: what lived in them went into trees that built on them, and which those were nobody knows.
    gone: BTreeSet<TreeId>,
    changes: TakenChanges,
}

impl Instant {
    /// Who may have what a tree had.
    fn readers_of(&self, tree: TreeId) -> impl Iterator<Item = &Reader> {
        let is_gone = self.gone.contains(&tree);
        self.readers.iter().filter(move |reader| is_gone || reader.trees.contains(&tree))
    }
}

type Suspects = BTreeMap<(TreeId, LeafIndex), Vec<Suspect>>;

impl Pool {
    /// Which of these blocks and leaves are damaged: those that a head or a snapshot sees now. What nobody sees may have
    /// been replaced, and its place reused, before it was read. Where `is_brief`, one of who sees it is named only. Never on a
    /// lane.
    ///
    /// # Errors
    /// The failure of the metadata store.
    pub fn damages_of(&self, suspects: Vec<Suspect>, is_brief: bool) -> Result<Vec<Damage>> {
        let mut by_leaf = Suspects::new();
        for suspect in suspects {
            by_leaf.entry((suspect.tree, suspect.block.leaf())).or_default().push(suspect);
        }
        self.at_one_instant(
            |catalog| self.readers_of(catalog, &by_leaf),
            |instant, view| {
                let mut damages = Vec::new();
                for ((tree, leaf), suspects) in &by_leaf {
                    let of_leaf = self.damages_of_leaf((*tree, *leaf), suspects, (&instant, view), is_brief)?;
                    damages.extend(of_leaf);
                }
                Ok(damages)
            },
        )
    }

    fn readers_of(&self, catalog: &Catalog, suspects: &Suspects) -> Instant {
        let reader = |volume, snapshot, at| Reader {
            volume,
            snapshot,
            lineage: catalog.lineage(at),
            trees: catalog.origins(at.0).into_iter().collect(),
        };
        let heads = catalog.volumes().map(|volume| reader(volume.id, None, (volume.tree, Epoch::NEWEST)));
        let snapshots = catalog.snapshots();
        let snapshots = snapshots.map(|snapshot| reader(snapshot.volume, Some(snapshot.number), snapshot.point));
        let trees: BTreeSet<TreeId> = suspects.keys().map(|(tree, _)| *tree).collect();
        let gone: BTreeSet<TreeId> = trees.iter().copied().filter(|tree| catalog.tree(*tree).is_none()).collect();
        let is_concerned = |reader: &Reader| !gone.is_empty() || !reader.trees.is_disjoint(&trees);
        let readers: Vec<Reader> = heads.chain(snapshots).filter(is_concerned).collect();
        let levels: BTreeSet<(TreeId, Epoch)> =
            readers.iter().flat_map(|reader| reader.lineage.0.iter().copied()).collect();
        let mut changes = TakenChanges::default();
        for leaf in suspects.keys().map(|(_, leaf)| *leaf).collect::<BTreeSet<_>>() {
            for level in &levels {
                changes.take(&self.changes, leaf, *level);
            }
        }
        Instant { readers, gone, changes }
    }

    fn damages_of_leaf(
        &self,
        (tree, leaf): (TreeId, LeafIndex),
        suspects: &[Suspect],
        (instant, view): (&Instant, &dyn MetaRead),
        is_brief: bool,
    ) -> Result<Vec<Damage>> {
        let stored = StoredLeaves { store: view, keys: &self.keys };
        let mut seen_by: Vec<Vec<DamageReader>> = vec![Vec::new(); suspects.len()];
        for reader in instant.readers_of(tree) {
            let seen = match instant.changes.leaf_of(&stored, &reader.lineage, leaf) {
                Err(error) if error.kind() != ErrorKind::Integrity => return Err(error),
                other => other.ok(),
            };
            for (suspect, readers) in suspects.iter().zip(&mut seen_by) {
                let has_it = match (suspect.entry, &seen) {
                    (Some(entry), Some(seen)) => seen.get(suspect.block.slot()) == Some(entry),
                    (entry, seen) => entry.is_none() && seen.is_none(),
                };
                if has_it || is_planted(Bug::ScrubTrustsFirstLook) {
                    note(readers, reader);
                }
            }
            if is_brief && seen_by.iter().all(|readers| !readers.is_empty()) {
                break;
            }
        }
        Ok(join(suspects.iter().zip(seen_by).filter(|(_, readers)| !readers.is_empty())))
    }
}

/// Notes one more that has it. They come by volume, snapshots in the order of their numbers.
fn note(readers: &mut Vec<DamageReader>, reader: &Reader) {
    let position = readers.iter().position(|other| other.volume == reader.volume);
    let position = position.unwrap_or(readers.len());
    if position == READERS_MAX {
        return;
    }
    if position == readers.len() {
        let (volume, snapshots) = (reader.volume, Vec::new());
        readers.push(DamageReader { volume, is_head: false, snapshot_count: 0, snapshots });
    }
    let of_volume = &mut readers[position];
    match reader.snapshot {
        None => of_volume.is_head = true,
        Some(number) => {
            of_volume.snapshot_count += 1;
            if of_volume.snapshots.len() < READER_SNAPSHOTS_MAX {
                of_volume.snapshots.push(number);
            }
        }
    }
}

/// Joins what is side by side, damaged in the same way, and had by the same.
fn join<'a>(found: impl Iterator<Item = (&'a Suspect, Vec<DamageReader>)>) -> Vec<Damage> {
    let mut found: Vec<(&Suspect, Vec<DamageReader>)> = found.collect();
    found.sort_by_key(|(suspect, _)| (suspect.kind, suspect.block));
    found.dedup_by_key(|(suspect, _)| (suspect.kind, suspect.block));
    let mut damages: Vec<Damage> = Vec::new();
    for (suspect, readers) in found {
        let (tree, first, kind) = (suspect.tree, suspect.block, suspect.kind);
        match damages.last_mut() {
            Some(last)
                if last.kind == kind && last.first.plus(u64::from(last.count)) == first && last.readers == readers =>
            {
                last.count += suspect.count();
            }
            _ => damages.push(Damage { tree, first, count: suspect.count(), kind, is_of_before: false, readers }),
        }
    }
    damages
}
