//! Which numbers are block sizes.

use crate::{BlockSizeError, BlockSizes};

#[test]
fn legal_block_sizes_are_accepted_as_given() {
    for (min, preferred, max) in [(1, 512, 512), (1, 4096, u32::MAX), (65_536, 65_536, 65_536), (4096, 4096, 1 << 25)] {
        let sizes = BlockSizes::new(min, preferred, max).expect("legal sizes");
        assert_eq!((sizes.min(), sizes.preferred(), sizes.max()), (min, preferred, max));
    }
}

#[test]
fn default_block_sizes_are_legal() {
    let sizes = BlockSizes::DEFAULT;
    assert_eq!(BlockSizes::new(sizes.min(), sizes.preferred(), sizes.max()), Ok(sizes));
}

#[test]
fn minimum_above_64_kib_or_no_power_of_two_is_illegal() {
    for min in [0, 3, 131_072] {
        assert_eq!(BlockSizes::new(min, 1 << 20, 1 << 25), Err(BlockSizeError::Minimum(min)));
    }
}

#[test]
fn preferred_size_below_512_or_the_minimum_is_illegal() {
    for (min, preferred) in [(1, 256), (4096, 2048), (1, 4095), (1, 0)] {
        assert_eq!(BlockSizes::new(min, preferred, 1 << 25), Err(BlockSizeError::Preferred(preferred)));
    }
}

#[test]
fn maximum_below_the_preferred_size_or_no_multiple_of_the_minimum_is_illegal() {
    for max in [2048, 4096 + 512] {
        assert_eq!(BlockSizes::new(4096, 4096, max), Err(BlockSizeError::Maximum(max)));
    }
}
