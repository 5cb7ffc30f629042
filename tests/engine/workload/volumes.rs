//! Volumes that come and go in the middle of a seed's life.

use super::{Pending, VOLUME_COUNT, Workload};
use crate::model::Model;
use crate::world::{End, Life};
use rand::Rng;
use rok_blk::error::{ErrorKind, Result};
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{NewVolume, VolumeInfo};
use uuid::Uuid;

impl Workload {
    pub(super) fn begin_life(&mut self, life: Life) {
        self.has_failed = false;
        self.faults_before_life = self.faults_met();
        self.failed_flushes_before_life = self.world.device_counters().failed_flushes;
        self.closed.clear();
        self.life = Some(life);
        self.open_volumes();
        self.resume_scrub();
    }

    /// Opens every volume of a new life; makes those that a crash may have taken.
    pub(super) fn open_volumes(&mut self) {
        for volume in 0..VOLUME_COUNT {
            if self.life().volumes.find(&name(volume)).is_err() {
                assert!(self.doubtful.contains(&volume), "volume {volume} is gone");
                self.renew(volume);
                self.create(volume).expect("nothing is injected");
            }
            self.check_size(volume);
            self.check_on_full(volume);
            self.open_volume(volume);
        }
        self.doubtful.clear();
    }

    /// Removes a volume and makes another one of the same name, while a checkpoint may be at work on its changes.
    pub(super) fn replace_volume(&mut self) {
        let volume = self.random_volume();
        self.await_answers(volume);
        self.note(|| format!("volume {volume} is replaced"));
        let life = self.life();
        drop(life.handles.remove(volume));
        let id = life.volumes.find(&name(volume)).expect("the volume is there").id;
        let is_shredded = self.world.random.random_bool(0.7);
        let removed = if is_shredded { self.shred(volume, id) } else { self.remove_volume(id) };
        if self.life().volumes.find(&name(volume)).is_ok() {
            self.open_volume(volume);
            let error = removed.expect_err("it is still there");
            if error.kind() == ErrorKind::Busy {
                // A snapshot of it is being read.
                return;
            }
            self.not_changed(volume, error.kind());
            return self.forget_snapshots(id, false);
        }
        self.world.counts.volumes_removed += 1;
        self.forget_snapshots(id, true);
        self.renew(volume);
        if self.world.random.random_bool(0.2) {
            // What was acknowledged as removed does not come back.
            self.doubtful.insert(volume);
            return self.crash(End::PowerLoss);
        }
        let mut created = self.clone_into(volume).unwrap_or_else(|| self.create(volume).map(|_| ()));
        if created.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
            self.world.store.fill_after(None);
            self.renew(volume);
            created = self.create(volume).map(|_| ());
        }
        match created {
            Ok(()) => {
                self.open_volume(volume);
                self.walk_over(volume);
            }
            Err(error) => {
                self.not_changed(volume, error.kind());
                self.doubtful.insert(volume);
                self.crash(End::PowerLoss);
            }
        }
    }

    /// Removes a volume that nobody has open, once its moves are over.
    pub(super) fn remove_volume(&mut self, id: Uuid) -> Result<()> {
        let frozen = self.freeze(&[id])?;
        self.life().volumes.remove_frozen(&frozen)
    }

    /// Lets every request on the volume end: who has it open could not remove it.
    pub(super) fn await_answers(&mut self, volume: usize) {
        while self.pending.values().any(|pending| self.is_of_volume(pending, volume)) {
            self.step();
            if self.world.random.random_bool(0.01) {
                self.drain();
            }
        }
    }

    fn is_of_volume(&self, pending: &Pending, volume: usize) -> bool {
        match pending {
            Pending::Write { volume: of, .. }
            | Pending::Read { volume: of, .. }
            | Pending::Walk { volume: of, .. }
            | Pending::Cache { volume: of } => *of == volume,
            Pending::Piece { group, .. } => self.pieces[group].volume == volume,
            Pending::Diff(comparison) => comparison.sides.iter().any(|side| side.head == Some(volume)),
            Pending::Flush { .. } | Pending::Clean | Pending::Scrub { .. } => false,
            Pending::ReadSnapshot { .. } | Pending::WalkSnapshot { .. } => false,
        }
    }

    /// A change of the catalog failed. Without space nothing happened; after another error a crash decides.
    fn not_changed(&mut self, volume: usize, kind: ErrorKind) {
        if matches!(kind, ErrorKind::NoSpace | ErrorKind::Usage) {
            return;
        }
        // If the pool goes on, only a file failed that is written before anything is changed.
        if self.life().pool.check_writable().is_err() {
            self.doubtful.insert(volume);
        }
        self.failed();
    }

    /// The next volume of this name is empty and has a size of its own.
    fn renew(&mut self, volume: usize) {
        self.models[volume] = Model::default();
        self.other_sizes.forget(volume);
        self.sizes[volume] = self.world.random.random_range(300..1500_u64) * BLOCK_SIZE_U64;
    }

    fn create(&mut self, volume: usize) -> Result<VolumeInfo> {
        let (id, size_bytes) = (Uuid::from_u128(self.next_volume_id), self.sizes[volume]);
        self.next_volume_id += 1;
        let (name, has_own_key) = (name(volume), self.world.random.random_bool(0.6));
        let new = NewVolume { on_full: self.any_on_full(), ..NewVolume::new(id, &name, size_bytes) };
        self.on_full[volume] = None;
        if has_own_key && self.is_encrypted() {
            self.create_with_own_key(&new)
        } else {
            self.life().volumes.create(&new)
        }
    }

    pub(super) fn open_volume(&mut self, volume: usize) {
        let life = self.life();
        life.handles.insert(volume, life.volumes.open(&name(volume)).expect("the volume is there"));
    }
}

pub(super) fn name(volume: usize) -> String {
    format!("vol{volume}")
}
