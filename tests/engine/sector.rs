//! Contents of sectors that say who wrote them.

use std::array::from_fn;

/// Fills whole sectors with what says who wrote them.
pub fn fill(bytes: &mut [u8], write: u64) {
    let content = content_of(write);
    bytes.chunks_exact_mut(512).for_each(|sector| sector.copy_from_slice(content.as_flattened()));
}

/// Who wrote a sector; `None` if it is neither zeros nor what [`fill`] writes.
pub fn parse(sector: &[u8]) -> Option<u64> {
    let write = u64::from_le_bytes(*sector.first_chunk()?);
    let expected = if write == 0 { [[0; 8]; 64] } else { content_of(write) };
    (sector == expected.as_flattened()).then_some(write)
}

/// The words of a sector: the first is the number of the write.
fn content_of(write: u64) -> [[u8; 8]; 64] {
    let seed = write.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut words = from_fn(|index| (seed ^ (index as u64).wrapping_mul(0xff51)).to_le_bytes());
    words[0] = write.to_le_bytes();
    words
}
