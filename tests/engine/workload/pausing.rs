//! Volumes whose writes wait for space, or fail, and change from one to the other.

use super::Workload;
use super::volumes::name;
use rand::Rng;
use rok_blk::error::ErrorKind;
use rok_blk::volume::OnFull;

impl Workload {
    pub(super) fn any_on_full(&mut self) -> OnFull {
        if self.world.random.random_bool(0.5) { OnFull::Pause } else { OnFull::Error }
    }

    pub(super) fn set_on_full(&mut self) {
        let (volume, on_full) = (self.random_volume(), self.any_on_full());
        self.note(|| format!("volume {volume} is to {on_full:?} when the pool is full"));
        self.world.counts.set_to_error += u64::from(on_full == OnFull::Error);
        let set = self.life().volumes.set_on_full(&name(volume), on_full);
        match set {
            Ok(info) => {
                assert_eq!(info.on_full, on_full);
                self.on_full[volume] = Some(on_full);
            }
            Err(error) if error.kind() == ErrorKind::NoSpace => {}
            Err(_) => {
                // A crash decides.
                self.on_full[volume] = None;
                self.failed();
            }
        }
    }

    /// Whether "no space" is no answer to a write that begins now, as long as nothing is changed.
    pub(super) fn is_pausing(&mut self, volume: usize) -> bool {
        self.life().volumes.find(&name(volume)).is_ok_and(|info| info.on_full == OnFull::Pause)
    }

    /// After an opening: what was set is there still.
    pub(super) fn check_on_full(&mut self, volume: usize) {
        let found = self.life().volumes.find(&name(volume)).expect("the volume is there").on_full;
        assert!(self.on_full[volume].is_none_or(|wanted| wanted == found), "volume {volume} is found to {found:?}");
        self.on_full[volume] = Some(found);
    }

    /// After something that may have set volumes to fail.
    pub(super) fn learn_on_full(&mut self) {
        let is_known = self.life().pool.check_writable().is_ok();
        for volume in 0..self.on_full.len() {
            let found = self.life().volumes.find(&name(volume)).ok();
            self.on_full[volume] = found.filter(|_| is_known).map(|info| info.on_full);
        }
    }
}
