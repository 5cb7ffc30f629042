//! The catalog and the metadata store as they are at one instant.

use super::{Catalog, Pool};
use crate::meta::MetaRead;

impl Pool {
    /// Gives `look` the store as it is at one instant, and what `ask` says of the catalog at the same instant: a checkpoint
    /// changes both in one commit, under the lock of the catalog. Nobody waits for `look`. Never on a lane.
    ///
    /// # Panics
    /// If the store does not call back, which is its contract.
    pub fn at_one_instant<T, R>(&self, ask: impl FnOnce(&Catalog) -> T, look: impl FnOnce(T, &dyn MetaRead) -> R) -> R {
        let guard = self.catalog.lock();
        let mut parts = Some((ask(&guard), guard, look));
        let mut result = None;
        self.store().view(&mut |view| {
            let Some((asked, guard, look)) = parts.take() else { return };
            drop(guard);
            result = Some(look(asked, view));
        });
        result.expect("the store calls back once")
    }
}
