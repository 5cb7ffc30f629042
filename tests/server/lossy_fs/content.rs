//! Bytes of a file in memory: pages where something was written, holes elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

/// What a hole is the lack of.
pub const PAGE_BYTES: u64 = 4096;
/// The same, of a slice.
const PAGE_LEN: usize = 4096;

/// A page; none has nothing but zeros, which pools are full of.
type Page = Option<Box<[u8; PAGE_LEN]>>;

/// A file's bytes.
#[derive(Clone, Default)]
pub struct Content {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    /// Bytes up to its end.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are no holes.
    pub fn allocated_bytes(&self) -> u64 {
        u64::try_from(self.pages.len()).expect("64-bit") * PAGE_BYTES
    }

    /// What is there of a range: less than asked for at the end.
    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(length));
        let mut bytes = Vec::new();
        for (page, range) in parts(offset..end.max(offset)) {
            match self.pages.get(&page) {
                Some(Some(page)) => bytes.extend_from_slice(&page[range]),
                Some(None) | None => bytes.resize(bytes.len() + range.len(), 0),
            }
        }
        bytes
    }

    /// Writes; the file grows if it has to.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + u64::try_from(data.len()).expect("64-bit");
        let mut rest = data;
        for (page, range) in parts(offset..end) {
            let (now, later) = rest.split_at(range.len());
            let page = self.pages.entry(page).or_default();
            if page.is_some() || now.iter().any(|byte| *byte != 0) {
                page.get_or_insert_with(|| Box::new([0; PAGE_LEN]))[range].copy_from_slice(now);
            }
            rest = later;
        }
        self.size = self.size.max(end);
    }

    /// Cuts it off, or has it end with a hole.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.punch(size..self.size);
        }
        self.size = size;
    }

    /// Makes a range read as zeros, with holes for its whole pages.
    pub fn punch(&mut self, range: Range<u64>) {
        for (page, range) in parts(range) {
            if range.len() == PAGE_LEN {
                self.pages.remove(&page);
            } else if let Some(Some(page)) = self.pages.get_mut(&page) {
                page[range].fill(0);
            }
        }
    }

    /// Where the next bytes are that are no hole, at `offset` or behind.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let (page, _) = self.pages.range(offset / PAGE_BYTES..).next()?;
        let at = offset.max(page * PAGE_BYTES);
        (at < self.size).then_some(at)
    }

    /// Where the next hole is, at `offset` or behind: the end of the file is one.
    pub fn next_hole(&self, offset: u64) -> u64 {
        let mut page = offset / PAGE_BYTES;
        while self.pages.contains_key(&page) {
            page += 1;
        }
        offset.max(page * PAGE_BYTES).min(self.size)
    }
}

/// The pages of a range, and what of each belongs to it.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (page, first) = (at / PAGE_BYTES, at % PAGE_BYTES);
        let length = (PAGE_BYTES - first).min(range.end - at);
        at += length;
        let first = usize::try_from(first).expect("64-bit");
        Some((page, first..first + usize::try_from(length).expect("64-bit")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_the_rest_is_zeros() {
        let mut content = Content::default();
        content.write(4090, &[1; 10]);
        assert_eq!(content.size(), 4100);
        assert_eq!(content.allocated_bytes(), 8192);
        assert_eq!(content.read(4088, 100), [&[0; 2][..], &[1; 10]].concat());
        assert!(content.read(4100, 1).is_empty());
        assert!(content.read(9000, 1).is_empty());

        content.resize(4093);
        content.resize(20_000);
        assert_eq!(content.read(4089, 6), [0, 1, 1, 1, 0, 0], "what was cut off does not come back");
    }

    #[test]
    fn zeros_that_were_written_are_no_hole() {
        let mut content = Content::default();
        content.write(0, &[0; 8192]);
        assert_eq!((content.allocated_bytes(), content.next_hole(0)), (8192, 8192));
        content.write(1, &[1]);
        content.write(1, &[0]);
        assert_eq!(content.read(0, 8192), [0; 8192]);
    }

    #[test]
    fn holes_are_found() {
        let mut content = Content::default();
        content.write(8192, &[1; 4097]);
        content.resize(40_960);
        assert_eq!((content.next_data(0), content.next_hole(0)), (Some(8192), 0));
        assert_eq!((content.next_data(9000), content.next_hole(9000)), (Some(9000), 16_384));
        assert_eq!((content.next_data(16_384), content.next_hole(40_000)), (None, 40_000));

        content.punch(8192..12_288);
        assert_eq!(content.next_data(0), Some(12_288));
        content.punch(12_288..12_289);
        assert_eq!(content.read(12_288, 1), [0]);
    }
}
