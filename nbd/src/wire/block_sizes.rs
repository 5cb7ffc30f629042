//! The block sizes of an export: what a request must be a multiple of, and how long it may be.

use std::fmt;

/// Minimum, preferred and maximum block size in bytes, valid by construction (specification, "Block size constraints").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    min: u32,
    preferred: u32,
    max: u32,
}

/// Why three numbers are no block sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockSizeError {
    /// The minimum is no power of two from 1 to 65536.
    Minimum(u32),
    /// The preferred size is no power of two, or below 512 or the minimum.
    Preferred(u32),
    /// The maximum is below the preferred size, or no multiple of the minimum.
    Maximum(u32),
}

impl BlockSizes {
    /// What a client assumes that was told nothing, apart from the minimum: 1 byte, 4 KiB, 32 MiB.
    pub const DEFAULT: Self = Self { min: 1, preferred: 4096, max: 32 * 1024 * 1024 };

    /// # Errors
    /// If the sizes, in bytes, break the rules of the specification.
    pub const fn new(min: u32, preferred: u32, max: u32) -> Result<Self, BlockSizeError> {
        if !min.is_power_of_two() || min > 65_536 {
            return Err(BlockSizeError::Minimum(min));
        }
        if !preferred.is_power_of_two() || preferred < 512 || preferred < min {
            return Err(BlockSizeError::Preferred(preferred));
        }
        // The specification allows all ones for "no bound" beside multiples of the minimum.
        if max < preferred || (max != u32::MAX && !max.is_multiple_of(min)) {
            return Err(BlockSizeError::Maximum(max));
        }
        Ok(Self { min, preferred, max })
    }

    /// Offsets and lengths are multiples of this, in bytes; a power of two. 1 means that every request is served.
    #[must_use]
    pub const fn min(self) -> u32 {
        self.min
    }

    /// Requests of multiples of this are fast, in bytes; a power of two.
    #[must_use]
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// The longest READ or WRITE that a client should send, in bytes.
    #[must_use]
    pub const fn max(self) -> u32 {
        self.max
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for BlockSizeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minimum(size) => {
                write!(formatter, "Minimum block size {size} is not a power of two from 1 to 65536; choose one")
            }
            Self::Preferred(size) => write!(
                formatter,
                "Preferred block size {size} is not a power of two of at least 512 and the minimum; choose one"
            ),
            Self::Maximum(size) => write!(
                formatter,
                "Maximum block size {size} is not a multiple of the minimum of at least the preferred size; choose one"
            ),
        }
    }
}

impl std::error::Error for BlockSizeError {}
