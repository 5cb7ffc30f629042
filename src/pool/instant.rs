//! The catalog and the metadata store as they are at one instant.

use super::{Catalog, Pool};
use crate::meta::MetaRead;

impl Pool {
    /// Gives `look` the store as it is at one instant, and what `ask` says of the catalog, and of all else that is changed
    /// with the store, at the same instant. Nobody waits for `look`. Never on a lane.
    ///
    /// # Panics
    /// If the store does not call back, which is its contract.
    pub fn at_one_instant<T, R>(&self, ask: impl FnOnce(&Catalog) -> T, look: impl FnOnce(T, &dyn MetaRead) -> R) -> R {
        // A change is in the store before it is in the catalog: between the two nobody looks.
        let nothing_half_done = self.commits.lock();
        let asked = ask(&self.catalog.lock());
        let mut parts = Some((asked, nothing_half_done, look));
        let mut result = None;
        self.store().view(&mut |view| {
            let Some((asked, nothing_half_done, look)) = parts.take() else { return };
            drop(nothing_half_done);
            result = Some(look(asked, view));
        });
        result.expect("the store calls back once")
    }
}
