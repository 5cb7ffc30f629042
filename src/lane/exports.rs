//! What a server exports: every volume, unless it is hidden or being shrunk.

use super::limits::REQUEST_BYTES_MAX;
use super::status::StatusContext;
use crate::error::ErrorKind;
use crate::volume::{OpenVolume, VolumeInfo, Volumes};
use parking_lot::Mutex;
use rok_nbd::BlockSizes;
use rok_nbd::server::{Export, ExportFeatures, Exports, FindError};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// Everything that our engine does.
const FEATURES: ExportFeatures = ExportFeatures {
    is_read_only: false,
    has_flush: true,
    has_fua: true,
    has_trim: true,
    has_write_zeroes: true,
    has_fast_zero: true,
    has_cache: true,
    // One engine behind all connections, and its flush covers all lanes.
    is_multi_connection_safe: true,
    is_rotational: false,
};

/// The exports of a server.
pub(super) struct ExportTable {
    pub volumes: Arc<Volumes>,
    hidden: Mutex<BTreeSet<Uuid>>,
    /// Volumes that nobody may open now.
    closed: Mutex<BTreeSet<Uuid>>,
    is_closing: AtomicBool,
}

impl ExportTable {
    pub(super) fn new(volumes: Arc<Volumes>) -> Self {
        Self { volumes, hidden: Mutex::default(), closed: Mutex::default(), is_closing: AtomicBool::new(false) }
    }

    pub(super) fn set_exported(&self, id: Uuid, is_exported: bool) {
        let mut hidden = self.hidden.lock();
        if is_exported {
            hidden.remove(&id)
        } else {
            hidden.insert(id)
        };
    }

    pub(super) fn is_exported(&self, id: Uuid) -> bool {
        !self.hidden.lock().contains(&id)
    }

    /// Keeps clients away from a volume until the guard is dropped; `None` if somebody does so already.
    pub(super) fn close(&self, id: Uuid) -> Option<ClosedVolume<'_>> {
        self.closed.lock().insert(id).then_some(ClosedVolume { table: self, id })
    }

    /// From now on no handshake gets an export.
    pub(super) fn shut_down(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    fn exported(&self) -> Vec<VolumeInfo> {
        let mut infos = self.volumes.list();
        infos.retain(|info| self.is_exported(info.id));
        infos
    }

    fn open(&self, name: &str) -> Result<(OpenVolume, String), FindError> {
        let name = if name.is_empty() {
            match self.exported().as_slice() {
                [only] => only.name.clone(),
                _ => return Err(FindError::Unknown),
            }
        } else {
            name.to_owned()
        };
        let volume = self.volumes.open(&name).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return FindError::Unknown;
            }
            tracing::warn!(%error, "a client cannot have a volume");
            FindError::Unavailable
        })?;
        if !self.is_exported(volume.volume().id()) {
            return Err(FindError::Unknown);
        }
        // Asked after the opening: who closes the volume looks for users after it did.
        if self.closed.lock().contains(&volume.volume().id()) {
            return Err(FindError::Unavailable);
        }
        Ok((volume, name))
    }
}

/// A volume that clients cannot open while this lives.
pub(super) struct ClosedVolume<'a> {
    table: &'a ExportTable,
    id: Uuid,
}

impl Drop for ClosedVolume<'_> {
    fn drop(&mut self) {
        self.table.closed.lock().remove(&self.id);
    }
}

/// The exports as one call of a handshake sees them. Keeps what was found last, so that it is what gets served.
pub(super) struct ExportView<'a> {
    table: &'a ExportTable,
    found: RefCell<Option<OpenVolume>>,
}

impl<'a> ExportView<'a> {
    pub(super) const fn new(table: &'a ExportTable) -> Self {
        Self { table, found: RefCell::new(None) }
    }

    pub(super) fn into_found(self) -> Option<OpenVolume> {
        self.found.into_inner()
    }
}

impl Exports for ExportView<'_> {
    fn list(&self) -> Vec<String> {
        self.table.exported().into_iter().map(|info| info.name).collect()
    }

    fn find(&self, name: &str) -> Result<Export, FindError> {
        let (volume, name) = self.table.open(name)?;
        let mut export = Export::new(name, volume.volume().size_bytes(), FEATURES);
        export.block_sizes = BlockSizes::DEFAULT;
        export.payload_size_bytes_max = REQUEST_BYTES_MAX;
        export.contexts = StatusContext::ALL.map(|context| context.name().to_owned()).to_vec();
        self.found.replace(Some(volume));
        Ok(export)
    }
}
