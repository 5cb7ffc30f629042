//! What the requests of a connection are answered from.

use super::users::ConnectionPlace;
use crate::volume::OpenVolume;
use std::sync::Arc;

/// The name of the export that stores nothing. No volume has it: a volume's name has no colon.
pub(super) const NULL_EXPORT: &str = "rok:null";

/// What an export is made of.
pub(super) enum ExportTarget {
    /// Nothing, of a size in bytes: reads as zeros, and forgets what is written. Tells what the protocol costs by itself.
    Null(u64),
    /// A volume, or one of its snapshots.
    Volume(Arc<OpenVolume>),
}

impl ExportTarget {
    /// The volume or snapshot, if it is made of one.
    pub(super) fn volume(&self) -> Option<&OpenVolume> {
        match self {
            Self::Null(_) => None,
            Self::Volume(open) => Some(open),
        }
    }

    /// What clients see as its size.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Null(size_bytes) => *size_bytes,
            Self::Volume(open) => open.volume().size_bytes(),
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.volume().is_some_and(|open| open.volume().is_read_only())
    }
}

/// An export that a client has found.
pub(super) struct Found {
    pub target: ExportTarget,
    /// Its place among the connections that have the export open.
    pub place: ConnectionPlace,
    pub name: String,
    pub is_read_only: bool,
}
