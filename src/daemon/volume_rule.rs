//! What names and sizes of volumes are allowed. The daemon checks every request; the command line asks here first, so
//! that a slip is told without a daemon.

use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_SIZE_U64, VOLUME_SIZE_BYTES_MAX};

pub use crate::volume::reference::check_name;

/// Sector size of a volume whose creator names none: what every system boots from.
pub const SECTOR_SIZE_DEFAULT: u32 = 512;

/// Checks the size of a volume: a multiple of 4 KiB from 4 KiB to 1 PiB.
///
/// # Errors
/// `Usage` for anything else; the hint names the nearest size.
pub fn check_size(size_bytes: u64) -> Result<()> {
    let usage = |message: String, hint: String| Err(Error::new(ErrorKind::Usage, message).with_hint(hint));
    if size_bytes < BLOCK_SIZE_U64 {
        return usage(format!("A volume of {size_bytes} bytes is too small"), "The smallest has 4K".to_owned());
    }
    if size_bytes > VOLUME_SIZE_BYTES_MAX {
        return usage(format!("A volume of {size_bytes} bytes is too large"), "The largest has 1P".to_owned());
    }
    if !size_bytes.is_multiple_of(BLOCK_SIZE_U64) {
        let above = size_bytes.next_multiple_of(BLOCK_SIZE_U64);
        return usage(
            format!("The size of a volume must be a multiple of 4 KiB, and {size_bytes} bytes is not"),
            format!("The next one is {above}"),
        );
    }
    Ok(())
}

/// Checks the sector size that a volume shows to its users.
///
/// # Errors
/// `Usage` unless it is 512 or 4096.
pub fn check_sector_size(sector_size: u32) -> Result<()> {
    if matches!(sector_size, 512 | 4096) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("A volume cannot have sectors of {sector_size} bytes"))
        .with_hint("Choose 512 or 4096"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_blocks_from_one_block_to_one_pebibyte() {
        for size in [4096, 8192, 10 << 30, 1 << 50] {
            check_size(size).expect("a good size");
        }
        for size in [0, 1, 4095, 4097, 10_000_000_000 - 1, (1 << 50) + 4096, u64::MAX] {
            assert_eq!(check_size(size).expect_err("a bad size").kind(), ErrorKind::Usage, "{size}");
        }
    }

    #[test]
    fn the_hint_about_a_size_names_the_next_one() {
        assert_eq!(check_size(4097).expect_err("unaligned").hint(), Some("The next one is 8192"));
    }

    #[test]
    fn sectors_have_512_or_4096_bytes() {
        check_sector_size(512).expect("512");
        check_sector_size(4096).expect("4096");
        for size in [0, 1, 1024, 8192] {
            assert_eq!(check_sector_size(size).expect_err("odd").kind(), ErrorKind::Usage);
        }
    }
}
