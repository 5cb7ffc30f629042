//! A leaf of the map rots while changes are in the log alone: where the checkpoint of the next opening meets it, the pool stops
//! with all of them in memory.

use super::snapshots::Snapshot;
use super::volumes::name;
use super::{VOLUME_COUNT, Workload, value_of};
use crate::model::{Model, Value};
use crate::world::End;
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::format::key;
use rok_blk::meta::{MetaRead as _, Table};
use rok_blk::units::{BlockIndex, Epoch, LeafIndex, TreeId};

/// More than the map of a seed has.
const LEAVES_MAX: usize = 100_000;

impl Workload {
    /// Blocks for which somebody has to look at the leaf read as errors, or as what they hold; all others as what they hold.
    pub(super) fn rot_a_leaf(&mut self) {
        self.change_a_little();
        self.drain();
        let is_in_doubt = !self.doubtful.is_empty() || self.snapshots.iter().any(Snapshot::is_doubtful);
        if self.has_failed || is_in_doubt {
            return;
        }
        let life = self.life.take();
        self.world.crash(life, End::Kill);
        self.models.iter_mut().for_each(Model::killed);
        let Some(rotten) = self.flip_in_a_leaf() else { return };
        self.note(|| format!("leaf {} of tree {} rots", rotten.1.get(), rotten.0));

        let life = self.world.open().expect("what the leaf has nothing to do with can be read");

        self.world.counts.stopped_by_rot += u64::from(life.pool.check_writable().is_err());
        self.begin_life(life);
        for volume in 0..VOLUME_COUNT {
            let handle = self.life().handles.remove(volume);
            let contents = self.read_all(&handle, &self.models[volume].touched());
            self.life().handles.insert(volume, handle);
            let tree =
                self.life().pool.with_catalog(|catalog, _| catalog.find(&name(volume)).expect("it is open").tree);
            let is_needed = self.needs((tree, Epoch::NEWEST), rotten);
            for (block, content) in contents {
                let values = self.models[volume].visible_values(block);
                let is_hit = is_needed && BlockIndex::new(block).leaf() == rotten.1;
                self.check_beside_rot(is_hit, &format!("block {block} of volume {volume}"), block, &content, &values);
            }
        }
        for index in 0..self.snapshots.len() {
            let id = self.snapshots[index].id();
            let handle = self.life().volumes.open_snapshot(id).expect("the snapshot is there");
            let point = self.life().pool.with_catalog(|catalog, _| catalog.snapshot(id).expect("it is open").point);
            let is_needed = self.needs(point, rotten);
            for (block, content) in self.read_all(&handle, &self.snapshots[index].touched()) {
                let values = self.snapshots[index].values(block);
                let is_hit = is_needed && BlockIndex::new(block).leaf() == rotten.1;
                let place = format!("block {block} of snapshot {} of {}", id.1, id.0);
                self.check_beside_rot(is_hit, &place, block, &content, &values);
            }
        }
    }

    /// So little that no checkpoint stores all of it.
    fn change_a_little(&mut self) {
        for _ in 0..self.world.random.random_range(1..20) {
            self.now += 1;
            let volume = self.random_volume();
            match self.world.random.random_range(0..10) {
                0 => self.snapshot(),
                1 => self.roll_back(),
                2 => self.replace_volume(),
                3 => self.remove_up_to(volume, 8),
                _ => self.write_up_to(volume, 8),
            }
        }
    }

    /// `None` if there are no leaves.
    fn flip_in_a_leaf(&mut self) -> Option<(TreeId, LeafIndex)> {
        let leaves = self.world.store.scan(Table::Leaves, &[], &[u8::MAX; 64], LEAVES_MAX).expect("a healthy machine");
        let chosen = self.world.random.random_range(0..leaves.len().max(1));
        let (key, value) = leaves.get(chosen)?;
        let bit = self.world.random.random_range(0..value.len() * 8);
        assert!(self.world.store.flip_bit(Table::Leaves, key, bit), "it is there");
        let (tree, leaf, _) = key::parse_leaf(key).expect("the key of a leaf");
        Some((tree, leaf))
    }

    /// Whether who reads a version has to look at stored leaves of the tree: none before it has one there.
    fn needs(&mut self, version: (TreeId, Epoch), (rotten, leaf): (TreeId, LeafIndex)) -> bool {
        let lineage = self.life().pool.with_catalog(|catalog, _| catalog.lineage(version));
        for (tree, epoch) in lineage.0 {
            let (from, end) = (key::leaf(tree, leaf, epoch), key::leaf_prefix(tree, LeafIndex::new(leaf.get() + 1)));
            let has_leaf = !self.world.store.scan(Table::Leaves, &from, &end, 1).expect("a healthy machine").is_empty();
            if has_leaf {
                return tree == rotten;
            }
        }
        false
    }

    /// What a block reads as that rot may have hit, or not.
    pub(super) fn check_beside_rot(
        &mut self,
        is_hit: bool,
        place: &str,
        block: u64,
        content: &Result<IoBuffer, IoError>,
        values: &[Value],
    ) {
        match content {
            Ok(content) => {
                let value = content.with_bytes(|bytes| value_of(0, block, bytes));
                assert!(values.contains(&value), "beside what rots {place} holds {value:?}, possible are {values:?}");
            }
            Err(error) => {
                assert!(is_hit, "{place} has nothing to do with what rots: {error}");
                self.world.counts.rot_detected += 1;
            }
        }
    }
}
