//! Content of blocks that says who wrote it where: a block of another place, an older write or a torn one never
//! passes for the right one.

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// The same, for arithmetic on offsets.
pub const BLOCK_BYTES_U64: u64 = 4096;

/// The first word of each stamp.
const MAGIC: u64 = 0x726f_6b2d_7374_616d;
const WORD_BYTES: usize = 8;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Value {
    /// Nothing but zeros.
    Zeros,
    /// What the `sequence`-th write of connection `client` put there.
    Stamp {
        /// The connection.
        client: u64,
        /// Its write.
        sequence: u64,
    },
}

/// Makes `block` hold `value`, for the place `index` (in blocks) of a volume.
pub fn fill(block: &mut [u8], index: u64, value: Value) {
    assert_eq!(block.len(), BLOCK_BYTES);
    match value {
        Value::Zeros => block.fill(0),
        Value::Stamp { client, sequence } => {
            for (word, content) in block.chunks_exact_mut(WORD_BYTES).zip(words(index, client, sequence)) {
                word.copy_from_slice(&content.to_le_bytes());
            }
        }
    }
}

/// What `block`, read from place `index`, holds; `None` if it is neither zeros nor a whole stamp of that place.
pub fn recognise(block: &[u8], index: u64) -> Option<Value> {
    assert_eq!(block.len(), BLOCK_BYTES);
    if block.iter().all(|byte| *byte == 0) {
        return Some(Value::Zeros);
    }
    let word = |position: usize| {
        let bytes = &block[position * WORD_BYTES..(position + 1) * WORD_BYTES];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    };
    let (client, sequence) = (word(2), word(3));
    let expected = words(index, client, sequence);
    let is_whole = block.chunks_exact(WORD_BYTES).zip(expected).all(|(word, content)| *word == content.to_le_bytes());
    is_whole.then_some(Value::Stamp { client, sequence })
}

/// The words of a stamp: magic number, place and writer, then what follows from them alone.
fn words(index: u64, client: u64, sequence: u64) -> impl Iterator<Item = u64> {
    let mut state = MAGIC ^ index.rotate_left(32) ^ client.rotate_left(17) ^ sequence;
    let filler = std::iter::repeat_with(move || {
        // One step of SplitMix64: neighbouring states give unlike words.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    });
    [MAGIC, index, client, sequence].into_iter().chain(filler).take(BLOCK_BYTES / WORD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_recognised_only_whole_and_at_its_place() {
        let value = Value::Stamp { client: 3, sequence: 99 };
        let mut block = [0; BLOCK_BYTES];
        assert_eq!(recognise(&block, 7), Some(Value::Zeros));
        fill(&mut block, 7, value);

        assert_eq!(recognise(&block, 7), Some(value));
        assert_eq!(recognise(&block, 8), None, "of another place");
        for position in [0, 8, 16, 24, 32, BLOCK_BYTES - 1] {
            block[position] ^= 1;
            assert_eq!(recognise(&block, 7), None, "byte {position} is wrong");
            block[position] ^= 1;
        }
        block[BLOCK_BYTES / 2..].fill(0);
        assert_eq!(recognise(&block, 7), None, "torn");
    }
}
