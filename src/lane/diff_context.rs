//! The metadata contexts `rok:diff:REF`: where an export differs from a snapshot of its volume, or of what that is a clone of.
//!
//! A client has one only by its name; none is listed. `REF` means one snapshot, which stays the same, and cannot be
//! removed, as long as the connection lives. What is no such snapshot, or not for this client, is no context.

use super::exports::{Client, ExportTable};
use crate::error::ErrorKind;
use crate::volume::{DiffKind, OpenVolume, Reference};

/// What the names of these contexts begin with.
const PREFIX: &str = "rok:diff:";
/// Of one connection: each keeps a snapshot open, and makes replies longer.
pub(super) const DIFF_CONTEXTS_MAX: usize = 4;

/// The block was written or discarded since. The bit by which qemu tells what is dirty in `qemu:dirty-bitmap:NAME`.
const STATE_CHANGED: u64 = 1;
/// With [`STATE_CHANGED`]: the export has nothing there any more, and it reads as zeros.
const STATE_ZERO: u64 = 2;

/// What such a context says of bytes that differ so.
pub(super) const fn status(kind: Option<DiffKind>) -> u64 {
    match kind {
        None => 0,
        Some(DiffKind::Added | DiffKind::Rewritten) => STATE_CHANGED,
        Some(DiffKind::Removed) => STATE_CHANGED | STATE_ZERO,
    }
}

/// Whether it is the name of such a context, which may be none for some export or client.
pub(super) fn is_diff_name(name: &str) -> bool {
    name.starts_with(PREFIX)
}

impl ExportTable {
    /// The snapshot that the context of this name compares an export with, if there is such a context for the client.
    pub(super) fn open_base(&self, name: &str, export: &OpenVolume, client: &Client) -> Option<OpenVolume> {
        let text = name.strip_prefix(PREFIX)?;
        text.parse::<Reference>().ok()?.selector()?;
        let base = self.volumes.open_reference(text).inspect_err(|error| {
            if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Usage) {
                tracing::warn!(%error, "a client cannot compare with a snapshot");
            }
        });
        let base = base.ok()?;
        let (of_export, of_base) = (export.volume(), base.volume());
        let is_own = of_export.id() == of_base.id();
        let is_origin = of_export.builds_on(of_base) && self.may_open(of_base.id(), client);
        (is_own || is_origin).then_some(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_that_are_documented() {
        let kinds = [None, Some(DiffKind::Added), Some(DiffKind::Rewritten), Some(DiffKind::Removed)];

        assert_eq!(kinds.map(status), [0, 1, 1, 3]);
    }
}
