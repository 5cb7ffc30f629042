//! Where two volumes or snapshots differ.

use super::Control;
use crate::daemon::diff_resource::{Diff, DiffKind, DiffOptions, DiffRange};
use crate::daemon::resource::{ApiVersion, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Catalog;
use crate::units::{to_u64, to_usize};
use crate::volume::{DiffSide, Reference, diff, find_selected};

/// Ranges of a page, if nobody says how many.
const RANGES_DEFAULT: u64 = 10_000;
/// Ranges of a page at most: 6 MB of JSON.
const RANGES_MAX: u64 = 100_000;
/// Leaves that a page compares at most: a second.
const PAGE_LEAVES_MAX: usize = 16_384;
/// Leaves that one view of the store is kept for.
const STEP_LEAVES_MAX: usize = 1024;

/// One of the two.
struct Side {
    reference: String,
    size_bytes: u64,
    at: DiffSide,
}

impl Control {
    /// A page of the differences between two volumes or snapshots.
    ///
    /// # Errors
    /// `Usage` for what is no reference, for a limit that cannot be, and for an offset behind both ends; `NotFound`.
    pub fn diff(&self, options: &DiffOptions) -> Result<Diff> {
        let limit = options.limit.unwrap_or(RANGES_DEFAULT);
        if limit == 0 || limit > RANGES_MAX {
            return Err(Error::new(ErrorKind::Usage, format!("A page cannot have {limit} ranges"))
                .with_hint(format!("Ask for 1 to {RANGES_MAX}")));
        }
        let (from, to) =
            self.with_catalog(|catalog| Ok::<_, Error>((side(catalog, &options.from)?, side(catalog, &options.to)?)))?;
        let end = from.size_bytes.max(to.size_bytes);
        if options.offset >= end {
            let message = format!("Byte {} is behind the end of both, which have {end}", options.offset);
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Begin at offset 0"));
        }
        let mut page = Diff {
            api: ApiVersion::V1,
            kind: Kind::Diff,
            from_size: from.size_bytes,
            to_size: to.size_bytes,
            from: from.reference,
            to: to.reference,
            offset: options.offset,
            next_offset: Some(options.offset),
            added: 0,
            removed: 0,
            rewritten: 0,
            ranges: Vec::new(),
        };
        let mut ranges = Vec::new();
        let mut leaf_count = 0;
        while let Some(start) = page.next_offset
            && leaf_count < PAGE_LEAVES_MAX
            && to_u64(ranges.len()) < limit
        {
            let step = diff(self.server.pool(), (from.at, to.at), start..end, STEP_LEAVES_MAX)?;
            leaf_count += step.leaf_count;
            page.next_offset = Some(step.end_bytes).filter(|next| *next < end);
            for run in step.runs {
                let range =
                    DiffRange { offset: run.offset_bytes, length: run.size_bytes, kind: DiffKind::from(run.kind) };
                if options.summary { page.count(&range) } else { range.append_to(&mut ranges) }
            }
        }
        if let Some(first_left) = ranges.get(to_usize(limit)) {
            page.next_offset = Some(first_left.offset);
            ranges.truncate(to_usize(limit));
        }
        ranges.iter().for_each(|range| page.count(range));
        page.ranges = ranges;
        Ok(page)
    }
}

/// What a reference means: a volume's name alone is its head.
fn side(catalog: &Catalog, text: &str) -> Result<Side> {
    let reference: Reference = text.parse()?;
    let volume = catalog.find(reference.volume_name())?;
    if reference.selector().is_none() {
        let at = DiffSide { volume: volume.id, snapshot: None };
        return Ok(Side { reference: volume.name.clone(), size_bytes: volume.size_bytes, at });
    }
    let record = find_selected(catalog, &reference)?;
    let at = DiffSide { volume: volume.id, snapshot: Some(record.number) };
    Ok(Side { reference: format!("{}@{}", volume.name, record.number), size_bytes: record.size_bytes, at })
}
