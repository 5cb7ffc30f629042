//! A part of a pass: which blocks to read next.

use super::damage::Suspect;
use crate::error::{ErrorKind, Result};
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::leaf::Leaf;
use crate::format::scrub::{DamageKind, ScrubPlace};
use crate::map::StoredLeaves;
use crate::meta::{MetaRead, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::meta_error;
use crate::pool::check::leaf_group::{OpenedLeaf, assemble};
use crate::pool::{Catalog, Pool};
use crate::units::{BlockIndex, DomainId, Epoch, LeafIndex, TreeId};

/// Stored leaves that a part looks at, about; with them a leaf's other epochs.
const LEAVES_PER_PART: usize = 256;
/// Leaves that are read from the store at once.
const PAGE: usize = 64;

/// A block that is to be read and verified.
#[derive(Clone, Copy, Debug)]
pub struct ScrubBlock {
    /// The tree that maps it.
    pub tree: TreeId,
    /// Which block it is there.
    pub block: BlockIndex,
    /// Where it is, and what it must be.
    pub entry: Entry,
    /// What it is encrypted in.
    pub domain: DomainId,
}

/// What is to be looked at next.
#[derive(Clone, Debug, Default)]
pub struct ScrubPart {
    /// Blocks to be read, by address.
    pub blocks: Vec<ScrubBlock>,
    /// What is found to be damaged already, if anybody has it still.
    pub suspects: Vec<Suspect>,
    /// Where the part behind it begins; `None` if there is none.
    pub next: Option<ScrubPlace>,
}

impl Pool {
    /// What a scrub looks at from a place on: about `blocks_max` blocks. Never on a lane.
    ///
    /// # Errors
    /// The failure of the metadata store.
    pub fn scrub_part(&self, from: ScrubPlace, blocks_max: usize) -> Result<ScrubPart> {
        let part = self.at_one_instant(Catalog::only_trees, |catalog, view| {
            Walk::new(self, &catalog, view, blocks_max).run(from)
        })?;
        let block_counts: Vec<u64> = self.devices.read().iter().map(|device| device.block_count()).collect();
        let exists = |entry: Entry| {
            let device = block_counts.get(entry.address().device().as_usize());
            device.is_some_and(|block_count| entry.address().block() < *block_count)
        };
        let ScrubPart { blocks, mut suspects, next } = part;
        let (mut blocks, lost): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| exists(block.entry));
        suspects.extend(lost.iter().map(|block| Suspect::of_block(block, DamageKind::Unreadable)));
        blocks.sort_by_key(|block| block.entry.address());
        Ok(ScrubPart { blocks, suspects, next })
    }
}

struct Walk<'a> {
    pool: &'a Pool,
    catalog: &'a Catalog,
    stored: StoredLeaves<'a>,
    part: ScrubPart,
    leaf_count: usize,
    blocks_max: usize,
}

impl<'a> Walk<'a> {
    fn new(pool: &'a Pool, catalog: &'a Catalog, view: &'a dyn MetaRead, blocks_max: usize) -> Self {
        let stored = StoredLeaves { store: view, keys: pool.keys() };
        Self { pool, catalog, stored, part: ScrubPart::default(), leaf_count: 0, blocks_max }
    }

    /// Takes one leaf with all its epochs after the other.
    fn run(mut self, from: ScrubPlace) -> Result<ScrubPart> {
        let mut start = key::leaf_prefix(from.tree, from.leaf);
        let mut group: Vec<OpenedLeaf> = Vec::new();
        let mut of: Option<(TreeId, LeafIndex)> = None;
        loop {
            let page = self.stored.store.scan(Table::Leaves, &start, &[], PAGE);
            let page = page.map_err(|error| meta_error("Reading meta/", error))?;
            let is_last = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                // The first key behind it.
                start = [last.as_slice(), &[0]].concat();
            }
            for (leaf_key, value) in page {
                // One that is malformed has no place in the map; a check names it.
                let Ok((tree, leaf, epoch)) = key::parse_leaf(&leaf_key) else { continue };
                if let Some(before) = of.filter(|before| *before != (tree, leaf)) {
                    self.part.next = self.take_group(before, std::mem::take(&mut group), from)?;
                    if self.part.next.is_some() {
                        return Ok(self.part);
                    }
                    if self.is_full() {
                        self.part.next = Some(ScrubPlace { tree, leaf, epoch: Epoch::new(0) });
                        return Ok(self.part);
                    }
                }
                of = Some((tree, leaf));
                group.push((epoch, self.stored.open(&leaf_key, epoch, &value)));
            }
            if is_last {
                break;
            }
        }
        if let Some(of) = of {
            self.part.next = self.take_group(of, group, from)?;
        }
        Ok(self.part)
    }

    fn is_full(&self) -> bool {
        self.part.blocks.len() >= self.blocks_max || self.leaf_count >= LEAVES_PER_PART
    }

    /// Takes the epochs of a leaf, which come with the newest first, from `from` on; where it stopped if the part is full.
    fn take_group(
        &mut self,
        (tree, leaf): (TreeId, LeafIndex),
        group: Vec<OpenedLeaf>,
        from: ScrubPlace,
    ) -> Result<Option<ScrubPlace>> {
        let living = self.catalog.tree(tree).filter(|_| self.catalog.is_living(tree));
        // Of a domain without a key nobody can read anything: it is destroyed, or not there in this session.
        let readable = living.filter(|record| self.pool.keys().newest_generation(record.domain).is_some());
        let Some(record) = readable else {
            self.leaf_count += group.len();
            return Ok(None);
        };
        let mut before = match record.parent.map(|parent| self.stored.resolve(&self.catalog.ancestry(parent), leaf)) {
            Some(Ok(of_parent)) => of_parent,
            // What a damaged leaf of the parent has in common with this one is read here.
            Some(Err(error)) if error.kind() != ErrorKind::Integrity => return Err(error),
            Some(Err(_)) | None => Leaf::default(),
        };
        let group = assemble(&group);
        let newest = group.first().map(|(epoch, _)| *epoch);
        for (epoch, seen) in group.into_iter().rev() {
            let place = ScrubPlace { tree, leaf, epoch };
            if place >= from && self.is_full() {
                return Ok(Some(place));
            }
            let is_left_out = is_planted(Bug::ScrubSkipsShared) && newest != Some(epoch);
            match seen {
                Ok(seen) if place >= from => {
                    self.leaf_count += 1;
                    let own = seen.iter().filter(|(slot, entry)| before.get(*slot) != Some(*entry) && !is_left_out);
                    let domain = record.domain;
                    let blocks = own.map(|(slot, entry)| ScrubBlock { tree, block: leaf.block(slot), entry, domain });
                    self.part.blocks.extend(blocks);
                    before = seen;
                }
                Ok(seen) => before = seen,
                Err(_) if place >= from => {
                    self.leaf_count += 1;
                    self.part.suspects.push(Suspect::of_leaf(tree, leaf));
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }
}
