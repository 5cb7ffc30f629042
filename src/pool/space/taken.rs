//! From which stretches something was taken since the pool was opened, by lanes or to be given back: in all others nothing
//! holds a block but what was stored before, and what recovery found.

use super::Space;
use crate::units::{Address, STRETCH_BLOCKS, to_usize};

impl Space {
    /// Whether something was taken from the stretch of this block since the pool was opened.
    #[must_use]
    pub fn was_taken_from(&self, address: Address) -> bool {
        let stretch = to_usize(address.block() / STRETCH_BLOCKS);
        let device = self.devices.get(address.device().as_usize());
        device.is_none_or(|device| device.is_taken_from.get(stretch).is_none_or(|is_taken| *is_taken))
    }
}
