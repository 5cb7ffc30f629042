//! Differences as the API tells of them.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::resource::{ApiVersion, Kind};
use crate::volume;

/// What is to be compared, and how much of the answer is wanted.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffOptions {
    /// A volume, or one of its snapshots: what was before.
    pub from: String,
    /// A volume, or one of its snapshots: what is there now.
    pub to: String,
    /// The byte to begin at: `next_offset` of the page before.
    #[serde(default)]
    #[param(required = false)]
    pub offset: u64,
    /// At most so many ranges, up to 100,000. The default is 10,000.
    #[serde(default)]
    #[param(required = false)]
    pub limit: Option<u64>,
    /// Only the sums, without ranges.
    #[serde(default)]
    #[param(required = false)]
    pub summary: bool,
}

/// How the bytes of a range differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiffKind {
    /// Only `to` has data there.
    Added,
    /// Only `from` has data there; in `to` they read as zeros, or are behind its end.
    Removed,
    /// Both have data there, written at different times.
    Rewritten,
}

impl From<volume::DiffKind> for DiffKind {
    fn from(kind: volume::DiffKind) -> Self {
        match kind {
            volume::DiffKind::Added => Self::Added,
            volume::DiffKind::Removed => Self::Removed,
            volume::DiffKind::Rewritten => Self::Rewritten,
        }
    }
}

/// A range of bytes that differs in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffRange {
    /// Its first byte, a multiple of 4096.
    pub offset: u64,
    /// Its bytes, a multiple of 4096.
    pub length: u64,
    /// How it differs.
    pub kind: DiffKind,
}

/// Where two volumes or snapshots differ: a page of it. Each 4 KiB block whose content differs is told of; one that was
/// written again with what it held before may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Diff`.
    pub kind: Kind,
    /// What was before, as commands call it: `vol1@7`, or a volume's name. Further pages must ask for this one.
    pub from: String,
    /// What is there now, likewise.
    pub to: String,
    /// Bytes of `from`.
    pub from_size: u64,
    /// Bytes of `to`.
    pub to_size: u64,
    /// The byte that the page begins at.
    pub offset: u64,
    /// The byte that the next page begins at; null if this is the last.
    pub next_offset: Option<u64>,
    /// Bytes of the page that only `to` has data for.
    pub added: u64,
    /// Bytes of the page that only `from` has data for.
    pub removed: u64,
    /// Bytes of the page that both have data for, written at different times.
    pub rewritten: u64,
    /// The ranges, in order; none if only sums were asked for.
    pub ranges: Vec<DiffRange>,
}

impl Diff {
    /// Counts a range to the sums.
    pub fn count(&mut self, range: &DiffRange) {
        match range.kind {
            DiffKind::Added => self.added += range.length,
            DiffKind::Removed => self.removed += range.length,
            DiffKind::Rewritten => self.rewritten += range.length,
        }
    }
}

impl DiffRange {
    /// Puts it behind others, as a part of the last one if nothing is between them and they differ alike.
    pub fn append_to(self, ranges: &mut Vec<Self>) {
        match ranges.last_mut() {
            Some(last) if last.kind == self.kind && last.offset + last.length == self.offset => {
                last.length += self.length;
            }
            _ => ranges.push(self),
        }
    }
}
