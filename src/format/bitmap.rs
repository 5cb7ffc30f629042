//! Bitmaps of blocks, a stretch of 4096 blocks a value: bit `i` of byte `i / 8` is block `i` of the stretch.

use crate::format::FormatError;
use crate::units::{STRETCH_BLOCKS, to_usize};

/// Words of one stretch.
pub const STRETCH_WORDS: usize = (STRETCH_BLOCKS / 64) as usize;

/// The bits of one stretch, 64 blocks a word.
pub type StretchBits = [u64; STRETCH_WORDS];

/// The body of a stretch, before it is sealed: 512 bytes.
#[must_use]
pub fn encode(bits: &StretchBits) -> Vec<u8> {
    bits.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The bits in a body.
///
/// # Errors
/// [`FormatError`] if the length is not 512 bytes.
pub fn decode(body: &[u8]) -> Result<StretchBits, FormatError> {
    if body.len() != STRETCH_WORDS * 8 {
        return Err(FormatError::Field("bitmap length"));
    }
    let mut bits = [0; STRETCH_WORDS];
    for (word, bytes) in bits.iter_mut().zip(body.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(bits)
}

/// Sets or clears the bit of `block` (its number within the stretch); returns what it was.
pub fn replace(bits: &mut StretchBits, block: u64, value: bool) -> bool {
    let word = &mut bits[to_usize(block >> 6)];
    let mask = 1 << (block & 63);
    let was = *word & mask != 0;
    if value {
        *word |= mask
    } else {
        *word &= !mask
    }
    was
}
