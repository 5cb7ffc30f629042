//! Opening what a reference names: a volume, or one of its snapshots for reads.

use super::{OpenVolume, Reference, Volumes, find_selected};
use crate::error::Result;

impl Volumes {
    /// Opens what `text` names. Never on a lane.
    ///
    /// # Errors
    /// `Usage` for what is no reference, `NotFound`.
    pub fn open_reference(&self, text: &str) -> Result<OpenVolume> {
        let reference: Reference = text.parse()?;
        if reference.selector().is_none() {
            return self.open(reference.volume_name());
        }
        let id = self.pool().with_catalog(|catalog, _| {
            find_selected(catalog, &reference).map(|record| (record.volume, record.number))
        })?;
        self.open_snapshot(id)
    }
}
