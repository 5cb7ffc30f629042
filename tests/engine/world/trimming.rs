//! Free space that is given back to the devices and taken again, in the middle of everything else.

use super::{Life, World};
use rand::Rng;

impl World {
    /// What the thread for free space does.
    pub(super) fn trim_step(&mut self, life: &Life) {
        if self.random.random_bool(0.5) {
            self.restock_step(life);
        } else if life.pool.check_writable().is_ok() {
            life.pool.trim_step();
        }
    }

    pub(super) fn restock_step(&mut self, life: &Life) {
        if life.pool.check_writable().is_ok() {
            self.counts.restock_failures += u64::from(life.pool.restock_step().is_err());
        }
    }
}
