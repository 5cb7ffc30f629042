//! Volumes that come and go in the middle of a seed's life.

use super::{Pending, VOLUME_COUNT, Workload};
use crate::model::Model;
use crate::world::End;
use rand::Rng;
use rok_blk::error::{ErrorKind, Result};
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::{NewVolume, VolumeInfo};
use uuid::Uuid;

impl Workload {
    /// Opens every volume of a new life; makes those that a crash may have taken.
    pub(super) fn open_volumes(&mut self) {
        for volume in 0..VOLUME_COUNT {
            if self.life().volumes.find(&name(volume)).is_err() {
                assert!(self.doubtful.contains(&volume), "volume {volume} is gone");
                self.renew(volume);
                self.create(volume).expect("nothing is injected");
            }
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
        if let Err(error) = life.volumes.remove(&name(volume)) {
            self.open_volume(volume);
            return self.not_changed(volume, error.kind());
        }
        self.world.counts.volumes_removed += 1;
        self.renew(volume);
        let mut created = self.create(volume);
        if created.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
            self.world.store.fill_after(None);
            created = self.create(volume);
        }
        match created {
            Ok(_) => self.open_volume(volume),
            Err(error) => {
                self.not_changed(volume, error.kind());
                self.crash(End::PowerLoss);
            }
        }
    }

    /// Lets every request on the volume end: who has it open could not remove it.
    fn await_answers(&mut self, volume: usize) {
        let is_of_volume = |pending: &Pending| match pending {
            Pending::Write { volume: of, .. } | Pending::Read { volume: of, .. } => *of == volume,
            Pending::Flush { .. } => false,
        };
        while self.pending.values().any(is_of_volume) {
            self.step();
            if self.world.random.random_bool(0.01) {
                self.drain();
            }
        }
    }

    /// A change of the catalog failed. Without space nothing happened; after another error a crash decides.
    fn not_changed(&mut self, volume: usize, kind: ErrorKind) {
        if kind != ErrorKind::NoSpace {
            self.doubtful.insert(volume);
            self.failed();
        }
    }

    /// The next volume of this name is empty and has a size of its own.
    fn renew(&mut self, volume: usize) {
        self.models[volume] = Model::default();
        self.sizes[volume] = self.world.random.random_range(300..1500_u64) * BLOCK_SIZE_U64;
    }

    fn create(&mut self, volume: usize) -> Result<VolumeInfo> {
        let (id, size_bytes) = (Uuid::from_u128(self.next_volume_id), self.sizes[volume]);
        self.next_volume_id += 1;
        self.life().volumes.create(&NewVolume::new(id, &name(volume), size_bytes))
    }

    fn open_volume(&mut self, volume: usize) {
        let life = self.life();
        life.handles.insert(volume, life.volumes.open(&name(volume)).expect("the volume is there"));
    }
}

fn name(volume: usize) -> String {
    format!("vol{volume}")
}
