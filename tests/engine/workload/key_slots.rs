//! Changes of the key slots, some of which are cut off.

use super::Workload;
use crate::world::End;
use rand::Rng;

const TRIES_MAX: usize = 4;

impl Workload {
    /// Adds, rotates or removes a slot. Who sees that fail may try again at once; or the machine crashes.
    pub(super) fn change_key_slots(&mut self) {
        if !self.is_encrypted() {
            return;
        }
        for _ in 0..TRIES_MAX {
            if self.world.change_key_slots() {
                self.world.counts.key_changes += 1;
                return;
            }
            self.world.counts.key_changes_cut_off += 1;
            self.note(|| "a change of key slots failed".to_owned());
            match self.world.random.random_range(0..8) {
                0 => return self.crash(End::Kill),
                1 | 2 => return self.crash(End::PowerLoss),
                3 => return,
                _ => {}
            }
        }
    }
}
