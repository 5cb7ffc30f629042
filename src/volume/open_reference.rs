//! Opening what a reference names: a volume, or one of its snapshots for reads.

use super::{OpenVolume, Reference, Volumes, find_selected};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::VolumeRecord;

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
        let opened = self.open_snapshot(id)?;
        // It may have gone to the trash since it was found. From here on it cannot: it is open.
        self.pool().with_catalog(|catalog, _| {
            let is_trashed = |volume: &VolumeRecord| volume.lifetime.is_trashed();
            if catalog.snapshot_or_error(id)?.lifetime.is_trashed() || catalog.volume(id.0).is_none_or(is_trashed) {
                return Err(Error::new(ErrorKind::NotFound, format!("{text} was removed meanwhile")));
            }
            Ok(opened)
        })
    }
}
