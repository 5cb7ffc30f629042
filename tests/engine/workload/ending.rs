//! How a seed ends: everything read and stored, space counted, and a bit that rots, of the data or of the map.

use super::volumes::name;
use super::{Outcome, VOLUME_COUNT, Workload};
use crate::model::Model;
use crate::world::End;
use rand::Rng;
use rok_blk::crypto::end_pairs;
use rok_blk::disk::Device;
use rok_blk::pool::{Checkpoint, Effort, Removals};
use rok_blk::units::BLOCK_SIZE_U64;
use std::collections::BTreeSet;

/// Checkpoints after which what lives no more is gone.
const CHECKPOINTS_MAX: usize = 2000;

impl Workload {
    /// The end of a seed: everything is read, stored, checked for leaks, and at last a bit rots.
    pub(super) fn finish(mut self) -> Outcome {
        self.drain();
        self.end_rot();
        self.reopen_cleanly();
        if !self.world.leaked.is_empty() {
            self.repair_everything();
            self.reopen_cleanly();
        }
        self.verify_snapshots();
        self.remove_what_was_forecast();
        self.remove_a_volume();
        self.check_liveness();
        match self.world.random.random_range(0..8) {
            0..4 if self.models.len() == VOLUME_COUNT => self.rot_a_leaf(),
            4..6 if self.models.len() == VOLUME_COUNT => self.end_faithless(),
            _ => self.rot(),
        }
        for device in &self.world.devices {
            self.world.trace.update(&device.digest());
        }
        self.world.trace.update(&self.world.store.digest());
        self.world.trace.update(&self.world.shred_key.digest());
        let counters = self.world.device_counters();
        self.world.counts.injected_errors = counters.injected_errors;
        self.world.counts.meta_failures = self.world.store.failed_commit_count();
        self.world.counts.torn_writes = counters.torn_writes;
        self.world.counts.dropped_writes = counters.dropped_writes;
        self.world.counts.bad_block_reads = counters.bad_block_reads;
        self.world.counts.discards = counters.discards;
        self.world.counts.reserves_used = self.world.reserves_used();
        self.world.counts.key_pairs = end_pairs();
        Outcome { trace: *self.world.trace.finalize().as_bytes(), counts: self.world.counts }
    }

    /// Removing some snapshots, in any order, frees what was said before.
    fn remove_what_was_forecast(&mut self) {
        self.reclaim_all();
        let chosen: Vec<_> = self.snapshots.iter().map(|snapshot| snapshot.id()).collect();
        let chosen: Vec<_> = chosen.into_iter().filter(|_| self.world.random.random_bool(0.5)).collect();
        let removals = Removals { snapshots: chosen.iter().copied().collect(), ..Removals::default() };
        let pool = self.life().pool.clone();
        let forecast = pool.would_free(&removals, &mut Effort::whatever_it_takes(&|| false));
        let forecast = forecast.expect("nothing is being reclaimed").expect("it looks at all leaves");
        let before = pool.status().used_bytes;
        for id in chosen {
            self.life().volumes.remove_snapshots(&[id]).expect("nobody reads it");
            self.snapshots.retain(|snapshot| snapshot.id() != id);
            if self.world.random.random_bool(0.5) {
                Checkpoint::begin(pool.clone()).run().expect("nothing is injected any more");
            }
        }
        self.reclaim_all();
        let freed = (before - pool.status().used_bytes) / BLOCK_SIZE_U64;
        assert_eq!(freed, forecast, "blocks freed, and blocks that were forecast");
        self.world.counts.forecast_blocks += forecast;
    }

    fn reclaim_all(&mut self) {
        let mut life = self.life.take().expect("a life was begun");
        self.world.drain(&mut life, &mut Vec::new());
        self.world.finish_checkpoint(&mut life);
        for _ in 0..CHECKPOINTS_MAX {
            Checkpoint::begin(life.pool.clone()).run().expect("nothing is injected any more");
            if !life.pool.is_reclaiming() {
                break;
            }
        }
        assert!(!life.pool.is_reclaiming(), "something lives no more and is not reclaimed");
        self.life = Some(life);
    }

    /// Space of a removed volume comes back, all of it.
    fn remove_a_volume(&mut self) {
        if self.world.random.random_bool(0.5) {
            return;
        }
        let life = self.life();
        life.handles.pop();
        let id = life.volumes.find("vol1").expect("it is there").id;
        life.volumes.remove("vol1").expect("nobody has it open");
        self.forget_snapshots(id, true);
        self.models.pop();
        self.sizes.pop();
    }

    /// After a clean close the bitmap holds exactly what the leaves map, no block twice, and each block that is not free has
    /// one holder.
    fn check_liveness(&mut self) {
        let mut life = self.life.take().expect("a life was begun");
        let mut done = Vec::new();
        self.world.drain(&mut life, &mut done);
        self.life = Some(life);
        self.reclaim_all();
        let life = self.life.take().expect("a life was begun");
        life.check();
        self.world.check_closed();
        let status = life.pool.status();
        let windows = status.quarantined_bytes / BLOCK_SIZE_U64;
        let window_max = 4 * life.lanes.len() as u64 * 400;
        assert!(windows <= window_max, "{windows} blocks are neither used nor free");
        self.life = Some(life);
    }

    /// Flips one bit of a device of a closed pool: at most one block reads as an error, for all who share it, and everything
    /// else as before.
    fn rot(&mut self) {
        let life = self.life.take().expect("a life was begun");
        let mut done = Vec::new();
        assert!(self.world.close(life, None, &mut done), "nothing is injected any more");
        self.world.crash(None, End::Kill);
        self.models.iter_mut().for_each(Model::killed);
        let device = self.world.any_device().clone();
        let mut places = Vec::new();
        device.scan(|offset, bytes| places.push((offset, bytes.len() as u64)));
        let (offset, len) = places[self.world.random.random_range(0..places.len())];
        let byte = offset + self.world.random.random_range(0..len);
        let bit = self.world.random.random_range(0..8);
        device.flip_bit(byte, bit);
        self.note(|| format!("bit {bit} of byte {byte} of {} rots", device.name()));
        // There is a second header, and nothing of the log is needed.
        let mut life = self.world.open().expect("a bit of a device keeps no pool from being opened");
        for volume in 0..self.models.len() {
            life.handles.push(life.volumes.open(&name(volume)).expect("the volume is there"));
        }
        self.life = Some(life);
        let mut hit = BTreeSet::new();
        for volume in 0..self.models.len() {
            let handle = self.life().handles.remove(volume);
            let contents = self.read_all(&handle, &self.models[volume].touched());
            self.life().handles.insert(volume, handle);
            for (block, content) in contents {
                let values = self.models[volume].visible_values(block);
                hit.extend(content.is_err().then_some(block));
                self.check_beside_rot(true, &format!("block {block} of volume {volume}"), block, &content, &values);
            }
        }
        for index in 0..self.snapshots.len() {
            let id = self.snapshots[index].id();
            let handle = self.life().volumes.open_snapshot(id).expect("the snapshot is there");
            for (block, content) in self.read_all(&handle, &self.snapshots[index].touched()) {
                let values = self.snapshots[index].values(block);
                hit.extend(content.is_err().then_some(block));
                let place = format!("block {block} of snapshot {} of {}", id.1, id.0);
                self.check_beside_rot(true, &place, block, &content, &values);
            }
        }
        assert!(hit.len() <= 1, "a bit of one block is in the way of reading {hit:?}");
    }
}
