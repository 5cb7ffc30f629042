//! One look at everything that a view of the metadata store holds about blocks.

use super::block_map::{BlockMap, Runs, for_each_run};
use super::leaf_group::{OpenedLeaf, assemble};
use super::repair::Leaks;
use super::report::{CheckReport, Difference, DifferenceKind, Place};
use crate::crypto::{KeyRing, SealKind};
use crate::error::{ErrorKind, Result};
use crate::format::bitmap::{self, STRETCH_WORDS, StretchBits};
use crate::format::catalog::TreeState;
use crate::format::device_header::FRONT_BLOCKS;
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::leaf::Leaf;
use crate::map::StoredLeaves;
use crate::meta::{KeyValue, MetaRead, Table};
use crate::pool::catalog::meta_error;
use crate::pool::recovery::Recovered;
use crate::pool::{Catalog, Follower, PointId};
use crate::units::{Address, AddressRun, DeviceIndex, Epoch, LeafIndex, STRETCH_BLOCKS, TreeId, to_u64, to_usize};
use std::collections::{BTreeMap, BTreeSet};

/// Entries of a table that are in memory at once: at most 6 MiB of leaves.
const PAGE: usize = 1024;

/// A stored leaf, and the entries that are its own.
struct FoundLeaf {
    tree: TreeId,
    epoch: Epoch,
    index: LeafIndex,
    /// Without those that it has from a newer epoch's copy or from its parent: they are one mapping.
    entries: std::result::Result<Vec<(u8, Entry)>, String>,
    /// Blocks that it maps, less those that were mapped before it.
    mapped_delta: i64,
    /// Whether a newer one of the same interval hides it.
    is_hidden: bool,
}

/// What was counted of a tree.
#[derive(Default)]
struct Counted {
    leaves: u64,
    index: u64,
}

/// A check under way.
pub(super) struct Walk<'a> {
    pub(super) view: &'a dyn MetaRead,
    pub(super) keys: &'a KeyRing,
    pub(super) catalog: &'a Catalog,
    block_counts: &'a [u64],
    /// Blocks that leaves map.
    live: BlockMap,
    counted: BTreeMap<TreeId, Counted>,
    /// What the leaves of each interval hold; of one that is being merged it counts for the one that takes it in.
    held: BTreeMap<PointId, (u64, i64)>,
    /// Blocks of which it is to be told who maps them.
    doubtful: BTreeMap<Address, DifferenceKind>,
    /// Blocks that are marked as used, and nothing maps them.
    pub(super) leaks: Leaks,
    /// Blocks marked as used.
    pub(super) used_count: u64,
    pub(super) report: CheckReport,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        view: &'a dyn MetaRead,
        keys: &'a KeyRing,
        catalog: &'a Catalog,
        block_counts: &'a [u64],
    ) -> Self {
        Self {
            view,
            keys,
            catalog,
            block_counts,
            live: BlockMap::empty(block_counts),
            counted: catalog.trees().map(|tree| (tree.id, Counted::default())).collect(),
            held: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            leaks: Leaks::new(),
            used_count: 0,
            report: CheckReport { tree_count: to_u64(catalog.trees().count()), ..CheckReport::default() },
        }
    }

    /// Marks what the leaves map.
    pub(super) fn leaves(&mut self) -> Result<()> {
        let (view, keys, catalog) = (self.view, self.keys, self.catalog);
        for_each_leaf(view, keys, catalog, |leaf| self.take_leaf(leaf))
    }

    fn take_leaf(&mut self, leaf: FoundLeaf) -> Result<()> {
        let FoundLeaf { tree, epoch, index, entries, mapped_delta, is_hidden } = leaf;
        self.report.leaf_count += 1;
        if let Some(reason) = stray(self.catalog, tree, index) {
            self.report
                .add(Difference::new(DifferenceKind::StrayLeaf, format!("leaf {index} of tree {tree}: {reason}")));
            return Ok(());
        }
        self.counted.entry(tree).or_default().leaves += 1;
        if is_hidden && self.catalog.is_living(tree) {
            let message = format!("leaf {index} of tree {tree}, epoch {epoch}: nothing sees it");
            self.report.add(Difference::new(DifferenceKind::StrayLeaf, message));
        }
        let interval = self.catalog.interval_of(tree, epoch);
        self.held.entry(self.taken_in(interval)).or_default().1 += mapped_delta;
        let index_key = key::epoch_leaf(tree, epoch, index);
        if self.view.get(Table::EpochLeaves, &index_key).map_err(|error| meta_error("Reading meta/", error))?.is_none()
        {
            let message = format!("leaf {index} of tree {tree}, epoch {epoch}, is not in the index");
            self.report.add(Difference::new(DifferenceKind::Index, message));
        }
        let entries = match entries {
            Ok(entries) => entries,
            Err(reason) => {
                let message =
                    format!("leaf {index} of tree {tree} cannot be read, so that what it maps looks lost: {reason}");
                let place = self.place(tree, epoch, index, 0);
                self.report.add(Difference::new(DifferenceKind::DamagedLeaf, message).of(place));
                return Ok(());
            }
        };
        for (_, entry) in &entries {
            let owner = self.catalog.owner_of(tree, entry.sequence());
            self.held.entry(self.taken_in(owner)).or_default().0 += 1;
        }
        self.report.mapped_block_count += to_u64(entries.len());
        for (slot, entry) in entries {
            let address = entry.address();
            if !self.exists(address) {
                let message = format!("{address} is mapped, and there is no such block");
                let run = AddressRun { start: address, count: 1 };
                let place = self.place(tree, epoch, index, slot);
                self.report.add(Difference::new(DifferenceKind::OutOfRange, message).at(run).of(place));
            } else if !self.live.mark(address) {
                self.doubt(address, DifferenceKind::MappedTwice);
            }
        }
        Ok(())
    }

    /// Counts what the index has of each tree.
    pub(super) fn index(&mut self) -> Result<()> {
        let mut strays = BTreeSet::new();
        for_each(self.view, Table::EpochLeaves, |(index_key, _)| {
            let tree = index_key.first_chunk().map(|bytes| TreeId::new(u64::from_be_bytes(*bytes)));
            match tree.and_then(|tree| self.counted.get_mut(&tree)) {
                Some(counted) => counted.index += 1,
                None => drop(strays.insert(tree)),
            }
            Ok(())
        })?;
        for tree in strays.into_iter().flatten() {
            let message = format!("the index has leaves of tree {tree}, which is not there");
            self.report.add(Difference::new(DifferenceKind::Index, message));
        }
        Ok(())
    }

    /// Looks for blocks of the log that leaves map too: a record nowhere, a change only if it is stored already.
    pub(super) fn log(&mut self, recovered: &Recovered) -> Result<()> {
        self.report.record_count = recovered.report.record_count;
        let records = recovered.record_runs.iter().flat_map(|run| (0..run.count).map(|step| run.start.plus(step)));
        for address in records.filter(|address| self.live.is_marked(*address)).collect::<Vec<_>>() {
            self.doubt(address, DifferenceKind::Log);
        }
        let mut written = BTreeSet::new();
        let stored = StoredLeaves { store: self.view, keys: self.keys };
        for (place, change) in &recovered.changes {
            let Some(entry) = change.entry else { continue };
            let address = entry.address();
            let is_again = !written.insert(address);
            let is_stored = || {
                let leaf = stored.newest(place.tree, place.epoch, place.block.leaf()).ok().flatten();
                leaf.is_some_and(|stored| stored.leaf.get(place.block.slot()) == Some(entry))
            };
            if is_again || self.live.is_marked(address) && !is_stored() {
                let slot = place.block.slot();
                let place = self.place(place.tree, place.epoch, place.block.leaf(), slot);
                let message = format!("{address} was written for a block of the log, and has another holder");
                let run = AddressRun { start: address, count: 1 };
                self.report.add(Difference::new(DifferenceKind::Log, message).at(run).of(place));
            }
        }
        Ok(())
    }

    /// Compares what leaves map with the stored bitmap, and that with the one in memory.
    pub(super) fn bitmap(&mut self, memory: Option<&[Vec<StretchBits>]>) -> Result<()> {
        // What is left of it is mapped and not marked as used.
        let mut not_marked = self.live.clone();
        let mut leaked = Runs::default();
        let (view, keys) = (self.view, self.keys);
        for_each(view, Table::Used, |(stretch_key, value)| {
            let Some((device, stretch, bits)) = self.open_stretch(keys, &stretch_key, &value) else {
                let message = format!("a part of the bitmap cannot be read: key {stretch_key:02x?}");
                self.report.add(Difference::new(DifferenceKind::DamagedBitmap, message));
                return Ok(());
            };
            let (at_device, at_stretch) = (device.as_usize(), to_usize(stretch));
            if memory.is_some_and(|memory| memory[at_device][at_stretch] != bits) {
                let message =
                    format!("the bitmap of stretch {stretch} of device {device} in memory is not the stored one");
                self.report.add(Difference::new(DifferenceKind::Memory, message));
            }
            let live = &self.live.0[at_device][at_stretch];
            for (index, (word, live)) in (0..).zip(bits.iter().zip(live)) {
                self.used_count += u64::from(word.count_ones());
                not_marked.0[at_device][at_stretch][to_usize(index)] &= !word;
                let first = stretch * STRETCH_BLOCKS + index * 64;
                leaked.take(device, first, word & !live, &mut |run| self.report.add(leak(run)));
                if word & !live != 0 {
                    let of_stretch = self.leaks.entry((device, stretch)).or_insert([0; STRETCH_WORDS]);
                    of_stretch[to_usize(index)] = word & !live;
                }
            }
            Ok(())
        })?;
        leaked.last.into_iter().for_each(|run| self.report.add(leak(run)));
        for_each_run(&not_marked, |run| {
            (0..run.count).for_each(|step| self.doubt(run.start.plus(step), DifferenceKind::NotMarked));
        });
        Ok(())
    }

    fn open_stretch(
        &self,
        keys: &KeyRing,
        stretch_key: &[u8],
        value: &[u8],
    ) -> Option<(DeviceIndex, u64, StretchBits)> {
        let (device, stretch) = key::parse_stretch(stretch_key).ok()?;
        self.live.stretch(device, stretch)?;
        let body = keys.open(SealKind::Bitmap, stretch_key, value).ok()?;
        Some((device, stretch, bitmap::decode(&body).ok()?))
    }

    /// Compares a count with what was found.
    pub(super) fn count(&mut self, what: &str, counted: u64, found: u64) {
        if counted != found {
            let message = format!("{what}: {counted}; found: {found}");
            self.report.add(Difference::new(DifferenceKind::Count, message));
        }
    }

    /// Compares the counts of the trees, and names who maps what is doubtful.
    pub(super) fn finish(mut self) -> Result<CheckReport> {
        let mut expected: BTreeMap<PointId, (u64, i64)> = BTreeMap::new();
        let of_points = self.catalog.points().map(|point| ((point.tree, point.epoch), point.held));
        let of_trees = self.catalog.trees().filter(|tree| self.catalog.point((tree.id, tree.epoch)).is_none());
        for (at, held) in of_trees.map(|tree| ((tree.id, tree.epoch), tree.held)).chain(of_points) {
            let sum = expected.entry(self.taken_in(at)).or_default();
            *sum = (sum.0 + held.own_count, sum.1 + held.mapped_delta);
        }
        for (at, (own, mapped)) in &expected {
            let (tree, epoch) = at;
            let found = self.held.remove(at).unwrap_or_default();
            self.count(&format!("blocks that tree {tree}, epoch {epoch}, holds, as counted"), *own, found.0);
            let is_deleting = self.catalog.tree(*tree).is_some_and(|tree| tree.state != TreeState::Living);
            // Of a merge into nothing the leaves that are gone are counted still.
            let is_ending = self.catalog.point(*at).is_some_and(|point| point.merge.is_some());
            if !is_deleting && !is_ending && *mapped != found.1 {
                let message = format!(
                    "blocks that tree {tree}, epoch {epoch}, maps more than before: {mapped}; found: {}",
                    found.1
                );
                self.report.add(Difference::new(DifferenceKind::Count, message));
            }
        }
        for tree in self.catalog.trees() {
            let Counted { leaves, index } = self.counted.remove(&tree.id).unwrap_or_default();
            let is_living = tree.state == TreeState::Living;
            if is_living {
                self.count(&format!("leaves of tree {} in the index", tree.id), index, leaves);
            }
            let has_points = self.catalog.points().any(|point| point.tree == tree.id);
            if is_living && !has_points && self.catalog.head_of(tree.id).is_none() {
                let message = format!("tree {} is there, and no volume needs it", tree.id);
                self.report.add(Difference::new(DifferenceKind::StrayTree, message));
            }
        }
        if !self.doubtful.is_empty() {
            self.name_doubtful()?;
        }
        Ok(self.report)
    }

    /// The interval that takes in another whose merge is under way; else that one.
    pub(super) fn taken_in(&self, at: PointId) -> PointId {
        let Some(point) = self.catalog.point(at).filter(|point| point.merge.is_some()) else { return at };
        match self.catalog.followers((point.tree, point.epoch)).first() {
            None => at,
            Some(Follower::Interval(end)) => (point.tree, *end),
            Some(Follower::Child(child)) => (*child, self.catalog.first_interval(*child).unwrap_or_default()),
        }
    }

    fn name_doubtful(&mut self) -> Result<()> {
        let (view, keys, catalog) = (self.view, self.keys, self.catalog);
        let mut places: BTreeMap<Address, Vec<Place>> = BTreeMap::new();
        for_each_leaf(view, keys, catalog, |leaf| {
            for (slot, entry) in leaf.entries.into_iter().flatten() {
                if self.doubtful.contains_key(&entry.address()) && stray(catalog, leaf.tree, leaf.index).is_none() {
                    let place = self.place(leaf.tree, leaf.epoch, leaf.index, slot);
                    places.entry(entry.address()).or_default().push(place);
                }
            }
            Ok(())
        })?;
        for (address, kind) in std::mem::take(&mut self.doubtful) {
            let what = match kind {
                DifferenceKind::MappedTwice => "is mapped by more than one place",
                DifferenceKind::Log => "holds a record of the log and is mapped",
                _ => "is mapped and not marked as used, so that another write may take it",
            };
            let run = AddressRun { start: address, count: 1 };
            let difference = Difference::new(kind, format!("{address} {what}")).at(run);
            let places = places.remove(&address).unwrap_or_default();
            // It was counted when it was found.
            self.report.difference_count -= 1;
            self.report.add(places.into_iter().fold(difference, Difference::of));
        }
        Ok(())
    }

    fn doubt(&mut self, address: Address, kind: DifferenceKind) {
        if self.doubtful.contains_key(&address) {
            return;
        }
        self.report.difference_count += 1;
        if self.report.has_room() && self.doubtful.len() < PAGE {
            self.doubtful.insert(address, kind);
        }
    }

    fn exists(&self, address: Address) -> bool {
        let count = self.block_counts.get(address.device().as_usize());
        address.block() >= FRONT_BLOCKS && count.is_some_and(|count| address.block() < *count)
    }

    fn place(&self, tree: TreeId, epoch: Epoch, index: LeafIndex, slot: u8) -> Place {
        let volume = self.catalog.volumes().find(|volume| volume.tree == tree).map(|volume| volume.name.clone());
        Place { tree, volume, epoch, block: index.block(slot) }
    }
}

fn leak(run: AddressRun) -> Difference {
    let message = format!("{} blocks from {} on are marked as used, and nothing maps them", run.count, run.start);
    Difference::new(DifferenceKind::Leaked, message).at(run)
}

/// Why there should be no such leaf.
fn stray(catalog: &Catalog, tree: TreeId, index: LeafIndex) -> Option<&'static str> {
    match catalog.tree(tree).map(|tree| tree.state) {
        None => Some("the tree is not there"),
        Some(TreeState::Deleting(cursor)) if index < cursor => Some("it was deleted"),
        Some(_) => None,
    }
}

/// Calls `visit` with every entry of a table.
fn for_each(view: &dyn MetaRead, table: Table, mut visit: impl FnMut(KeyValue) -> Result<()>) -> Result<()> {
    let mut from = Vec::new();
    loop {
        let page = view.scan(table, &from, &[], PAGE).map_err(|error| meta_error("Reading meta/", error))?;
        let is_last = page.len() < PAGE;
        if let Some((last, _)) = page.last() {
            // The first key behind it.
            from = [last.as_slice(), &[0]].concat();
        }
        page.into_iter().try_for_each(&mut visit)?;
        if is_last {
            return Ok(());
        }
    }
}

/// Calls `visit` with every stored leaf. Epochs of a leaf come one after the other, the newest first.
fn for_each_leaf(
    view: &dyn MetaRead,
    keys: &KeyRing,
    catalog: &Catalog,
    mut visit: impl FnMut(FoundLeaf) -> Result<()>,
) -> Result<()> {
    let stored = StoredLeaves { store: view, keys };
    let mut group: Vec<OpenedLeaf> = Vec::new();
    let mut of: Option<(TreeId, LeafIndex)> = None;
    for_each(view, Table::Leaves, |(leaf_key, value)| {
        let Ok((tree, index, epoch)) = key::parse_leaf(&leaf_key) else {
            let entries = Err(format!("its key is malformed: {leaf_key:02x?}"));
            let (tree, epoch, index) = (TreeId::new(0), Epoch::new(0), LeafIndex::new(0));
            return visit(FoundLeaf { tree, epoch, index, entries, mapped_delta: 0, is_hidden: false });
        };
        if of != Some((tree, index))
            && let Some(of) = of.replace((tree, index))
        {
            visit_group(&stored, catalog, of, std::mem::take(&mut group), &mut visit)?;
        }
        group.push((epoch, stored.open(&leaf_key, epoch, &value)));
        Ok(())
    })?;
    of.map_or(Ok(()), |of| visit_group(&stored, catalog, of, group, &mut visit))
}

/// Visits all epochs of a leaf, which come with the newest first.
fn visit_group(
    stored: &StoredLeaves<'_>,
    catalog: &Catalog,
    (tree, index): (TreeId, LeafIndex),
    group: Vec<OpenedLeaf>,
    visit: &mut impl FnMut(FoundLeaf) -> Result<()>,
) -> Result<()> {
    let group = assemble(&group);
    let of_parent = match catalog.tree(tree).and_then(|tree| tree.parent) {
        // Of a whole parent that is being merged leaves have gone, and what it shared with its own parents is theirs still.
        Some(parent) => match stored.resolve(&catalog.ancestry(parent), index) {
            Err(error) if error.kind() == ErrorKind::Integrity => Err(format!("what it builds on: {error}")),
            found => Ok(found?),
        },
        None => Ok(Leaf::default()),
    };
    let len_of = |leaf: &std::result::Result<Leaf, String>| leaf.as_ref().map_or(0, Leaf::len);
    let found = group.iter().enumerate().map(|(position, (epoch, leaf))| {
        let newer = position.checked_sub(1).map(|newer| &group[newer]);
        let of_newer = newer.and_then(|(_, leaf)| leaf.as_ref().ok());
        let is_own = |(slot, entry): &(u8, Entry)| {
            let is_newer = of_newer.is_some_and(|newer| newer.get(*slot) == Some(*entry));
            !is_newer && of_parent.as_ref().is_ok_and(|parent| parent.get(*slot) != Some(*entry))
        };
        let before = group.get(position + 1).map_or(len_of(&of_parent), |(_, leaf)| len_of(leaf));
        let interval = |epoch| catalog.interval_of(tree, epoch);
        FoundLeaf {
            tree,
            epoch: *epoch,
            index,
            entries: match (leaf, &of_parent) {
                (Ok(leaf), Ok(_)) => Ok(leaf.iter().filter(is_own).collect()),
                (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
            },
            mapped_delta: i64::try_from(len_of(leaf)).unwrap_or_default() - i64::try_from(before).unwrap_or_default(),
            is_hidden: newer.is_some_and(|(newer, _)| interval(*newer) == interval(*epoch)),
        }
    });
    found.collect::<Vec<_>>().into_iter().try_for_each(visit)
}
