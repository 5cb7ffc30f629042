//! Reads of the store in RocksDB: what an iterator is to look at, and what it found.

use rocksdb::{DBRawIterator, ReadOptions};

use super::rocks::{LEAF_PREFIX_BYTES, failure};
use super::{KeyValue, MetaError, Table};

/// A scan for so many entries reads this far ahead.
const LONG_SCAN_ENTRIES: usize = 1024;
const LONG_SCAN_READAHEAD_BYTES: usize = 1 << 20;

pub(super) fn seek_options(table: Table, prefix: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    // The filter knows whole prefixes only.
    let is_filtered = table == Table::Leaves && prefix.len() >= LEAF_PREFIX_BYTES;
    options.set_total_order_seek(!is_filtered);
    options.set_prefix_same_as_start(is_filtered);
    if let Some(end) = prefix_end(prefix) {
        options.set_iterate_upper_bound(end);
    }
    options
}

/// Of an iterator for places with different prefixes, whole ones in the table that has a filter for them.
pub(super) fn many_seeks_options(table: Table) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(table != Table::Leaves);
    options.set_prefix_same_as_start(table == Table::Leaves);
    options
}

/// To make an iterator takes longer than a seek that the filter answers.
pub(super) fn seek_one_after_the_other(
    mut iterator: DBRawIterator<'_>,
    places: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
) -> Result<Option<KeyValue>, MetaError> {
    for (prefix, from) in places {
        iterator.seek(&from);
        if let Some((found, value)) = iterator.item() {
            if found.starts_with(&prefix) {
                return Ok(Some((found.to_vec(), value.to_vec())));
            }
        } else {
            iterator.status().map_err(|error| failure(&error))?;
        }
    }
    Ok(None)
}

pub(super) fn found_by_seek(
    found: Result<Vec<KeyValue>, MetaError>,
    prefix: &[u8],
) -> Result<Option<KeyValue>, MetaError> {
    Ok(found?.into_iter().next().filter(|(key, _)| key.starts_with(prefix)))
}

/// `None` if nothing is between the two.
pub(super) fn scan_options(from: &[u8], end: &[u8], limit: usize) -> Option<ReadOptions> {
    if !end.is_empty() && from >= end {
        return None;
    }
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    if limit >= LONG_SCAN_ENTRIES {
        // By itself the store begins with 8 KiB and never reads more than 256 KiB ahead.
        options.set_readahead_size(LONG_SCAN_READAHEAD_BYTES);
    }
    if !end.is_empty() {
        options.set_iterate_upper_bound(end);
    }
    Some(options)
}

/// At most `limit` entries from `from` on, as far as the iterator goes.
pub(super) fn collect(mut iterator: DBRawIterator<'_>, from: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
    let mut found = Vec::new();
    iterator.seek(from);
    while found.len() < limit {
        let Some((key, value)) = iterator.item() else { break };
        found.push((key.to_vec(), value.to_vec()));
        if found.len() < limit {
            iterator.next();
        }
    }
    // The end of the entries and an error look alike until the status is read.
    iterator.status().map_err(|error| failure(&error))?;
    Ok(found)
}

pub(super) fn visit_from(
    mut iterator: DBRawIterator<'_>,
    (prefix, from): (&[u8], &[u8]),
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), MetaError> {
    iterator.seek(from);
    while let Some((key, value)) = iterator.item() {
        if !key.starts_with(prefix) || !visit(key, value) {
            break;
        }
        iterator.next();
    }
    // The end of the entries and an error look alike until the status is read.
    iterator.status().map_err(|error| failure(&error))
}

/// The first key behind all that start with `prefix`; `None` if there is none.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
