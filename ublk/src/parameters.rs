//! The parameters of a device, checked here by the driver's own rules, so that a mistake gets a sentence and not
//! `EINVAL`.

use libublk_rs_sys as sys;

use crate::request::SECTOR_BYTES;

/// Most tags of a queue. The driver allows 4096; with no more than this the first commands of a queue fit in a ring at once, by
/// which a device survives that its server is killed between them.
pub const QUEUE_DEPTH_MAX: u16 = 512;
/// Most queues of a device (a limit of the driver, which also takes no more queues than there are processors).
pub const QUEUE_COUNT_MAX: u16 = 4096;
/// Largest request with data, in bytes (a limit of the driver).
pub const IO_BYTES_MAX: u32 = 32 << 20;
/// Smallest value of `io_bytes_max`: a page.
pub const IO_BYTES_MIN: u32 = 4096;
/// Largest optimal or physical block, in bytes (a limit of the driver).
pub const PHYSICAL_BLOCK_BYTES_MAX: u32 = 256 << 20;

/// What a device is like. All sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceParameters {
    /// Size, above 0, a multiple of the logical block size.
    pub size_bytes: u64,
    /// Smallest unit of a request: 512 or 4096.
    pub logical_block_bytes: u32,
    /// Unit without read-modify-write: a power of two, at least the logical block.
    pub physical_block_bytes: u32,
    /// Request size that suits best: a power of two, at least the physical block.
    pub optimal_io_bytes: u32,
    /// Number of queues, 1 to [`QUEUE_COUNT_MAX`]. The driver lowers it to the number of processors.
    pub queue_count: u16,
    /// Tags of each queue, 1 to [`QUEUE_DEPTH_MAX`].
    pub queue_depth: u16,
    /// Largest request with data: a multiple of 4096 up to [`IO_BYTES_MAX`].
    pub io_bytes_max: u32,
    /// Writes are refused by the block layer.
    pub is_read_only: bool,
    /// Completed writes may be lost until a flush. Without it the block layer never flushes, so that every write has to
    /// be durable when it is completed.
    pub has_volatile_cache: bool,
    /// Writes flagged so are durable when completed. The driver ignores it without a volatile cache.
    pub has_fua: bool,
    /// Longest discard, a multiple of 4096; 0: no discards.
    pub discard_bytes_max: u64,
    /// Longest write of zeros without data, a multiple of 4096; 0: the block layer writes zeros as data.
    pub write_zeroes_bytes_max: u64,
    /// Unit in which discards have an effect: a multiple of the logical block.
    pub discard_granularity_bytes: u32,
}

impl DeviceParameters {
    /// Parameters of a device of ours with a size: blocks of 4096, one queue of 128 tags, requests of up to 512 KiB,
    /// volatile cache and FUA, discards and zeros of up to 1 GiB.
    #[must_use]
    pub const fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            logical_block_bytes: 4096,
            physical_block_bytes: 4096,
            optimal_io_bytes: 4096,
            queue_count: 1,
            queue_depth: 128,
            io_bytes_max: 512 << 10,
            is_read_only: false,
            has_volatile_cache: true,
            has_fua: true,
            discard_bytes_max: 1 << 30,
            write_zeroes_bytes_max: 1 << 30,
            discard_granularity_bytes: 4096,
        }
    }

    /// Checks the parameters by the driver's rules.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ParameterError> {
        self.validate_blocks()?;
        self.validate_queues()?;
        self.validate_ranges()
    }

    fn validate_blocks(&self) -> Result<(), ParameterError> {
        if !matches!(self.logical_block_bytes, 512 | 4096) {
            return Err(ParameterError::LogicalBlock(self.logical_block_bytes));
        }
        let is_ordered =
            self.logical_block_bytes <= self.physical_block_bytes && self.physical_block_bytes <= self.optimal_io_bytes;
        let is_aligned = self.physical_block_bytes.is_power_of_two() && self.optimal_io_bytes.is_power_of_two();
        if !is_ordered || !is_aligned || self.optimal_io_bytes > PHYSICAL_BLOCK_BYTES_MAX {
            return Err(ParameterError::PhysicalBlock(self.physical_block_bytes, self.optimal_io_bytes));
        }
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(u64::from(self.logical_block_bytes)) {
            return Err(ParameterError::Size(self.size_bytes, self.logical_block_bytes));
        }
        if self.has_fua && !self.has_volatile_cache {
            return Err(ParameterError::FuaWithoutCache);
        }
        Ok(())
    }

    fn validate_queues(&self) -> Result<(), ParameterError> {
        if !(1..=QUEUE_COUNT_MAX).contains(&self.queue_count) {
            return Err(ParameterError::QueueCount(self.queue_count));
        }
        if !(1..=QUEUE_DEPTH_MAX).contains(&self.queue_depth) {
            return Err(ParameterError::QueueDepth(self.queue_depth));
        }
        if !(IO_BYTES_MIN..=IO_BYTES_MAX).contains(&self.io_bytes_max) || !self.io_bytes_max.is_multiple_of(4096) {
            return Err(ParameterError::IoBytes(self.io_bytes_max));
        }
        Ok(())
    }

    fn validate_ranges(&self) -> Result<(), ParameterError> {
        for bytes in [self.discard_bytes_max, self.write_zeroes_bytes_max] {
            if !bytes.is_multiple_of(4096) || u32::try_from(bytes / SECTOR_BYTES).is_err() {
                return Err(ParameterError::RangeBytes(bytes));
            }
        }
        let granularity = self.discard_granularity_bytes;
        if granularity == 0 || !granularity.is_multiple_of(self.logical_block_bytes) {
            return Err(ParameterError::DiscardGranularity(granularity, self.logical_block_bytes));
        }
        Ok(())
    }

    /// The driver's structure. The parameters must have been validated.
    pub(crate) fn to_driver(self) -> Result<sys::ublk_params, ParameterError> {
        self.validate()?;
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).map_err(|_| ParameterError::RangeBytes(bytes));
        let shift =
            |bytes: u32| u8::try_from(bytes.trailing_zeros()).map_err(|_| ParameterError::PhysicalBlock(bytes, bytes));
        let mut attrs = 0;
        for (is_set, bit) in [
            (self.is_read_only, sys::UBLK_ATTR_READ_ONLY),
            (self.has_volatile_cache, sys::UBLK_ATTR_VOLATILE_CACHE),
            (self.has_fua, sys::UBLK_ATTR_FUA),
        ] {
            if is_set {
                attrs |= bit;
            }
        }
        let mut driver = sys::ublk_params {
            len: u32::try_from(size_of::<sys::ublk_params>()).map_err(|_| ParameterError::RangeBytes(0))?,
            types: sys::UBLK_PARAM_TYPE_BASIC,
            ..Default::default()
        };
        driver.basic = sys::ublk_param_basic {
            attrs,
            logical_bs_shift: shift(self.logical_block_bytes)?,
            physical_bs_shift: shift(self.physical_block_bytes)?,
            io_opt_shift: shift(self.optimal_io_bytes)?,
            io_min_shift: shift(self.physical_block_bytes)?,
            max_sectors: sectors(u64::from(self.io_bytes_max))?,
            dev_sectors: self.size_bytes / SECTOR_BYTES,
            ..Default::default()
        };
        if self.discard_bytes_max > 0 || self.write_zeroes_bytes_max > 0 {
            driver.types |= sys::UBLK_PARAM_TYPE_DISCARD;
            driver.discard = sys::ublk_param_discard {
                discard_granularity: self.discard_granularity_bytes,
                max_discard_sectors: sectors(self.discard_bytes_max)?,
                max_write_zeroes_sectors: sectors(self.write_zeroes_bytes_max)?,
                // The driver takes one range a discard.
                max_discard_segments: 1,
                ..Default::default()
            };
        }
        Ok(driver)
    }
}

/// Which rule the parameters of a device break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Size and logical block size.
    #[error("Device size of {0} bytes must be above 0 and a multiple of the logical block size of {1} bytes")]
    Size(u64, u32),
    /// Logical block size.
    #[error("Logical block size of {0} bytes must be 512 or 4096")]
    LogicalBlock(u32),
    /// Physical block size and optimal request size.
    #[error(
        "Physical block size of {0} and optimal request size of {1} bytes must be powers of two up to 256 MiB, \
         with logical block <= physical block <= optimal size"
    )]
    PhysicalBlock(u32, u32),
    /// FUA was asked for without a volatile cache.
    #[error("FUA needs a volatile cache: without one every write has to be durable anyway, and the driver ignores FUA")]
    FuaWithoutCache,
    /// Number of queues.
    #[error("Queue count of {0} must be 1 to 4096")]
    QueueCount(u16),
    /// Tags of a queue.
    #[error("Queue depth of {0} must be 1 to 4096")]
    QueueDepth(u16),
    /// Largest request with data.
    #[error("Largest request of {0} bytes must be a multiple of 4096 from 4096 bytes to 32 MiB")]
    IoBytes(u32),
    /// Longest discard or write of zeros.
    #[error("Longest discard or write of zeros, {0} bytes, must be a multiple of 4096 below 2 TiB")]
    RangeBytes(u64),
    /// Unit of discards.
    #[error("Discard granularity of {0} bytes must be above 0 and a multiple of the logical block size of {1} bytes")]
    DiscardGranularity(u32, u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: DeviceParameters = DeviceParameters::new(1 << 30);

    #[test]
    fn default_parameters_become_the_driver_structure() {
        let driver = GOOD.to_driver().expect("defaults are good");
        // Basic and discard; volatile cache and FUA.
        assert_eq!((driver.types, driver.basic.attrs), (0b11, 0b1100));
        assert_eq!((driver.basic.logical_bs_shift, driver.basic.physical_bs_shift), (12, 12));
        assert_eq!((driver.basic.max_sectors, driver.basic.dev_sectors), (1024, 2 << 20));
        assert_eq!((driver.discard.max_discard_sectors, driver.discard.max_discard_segments), (2 << 20, 1));
        assert_eq!(usize::try_from(driver.len).expect("small"), size_of::<sys::ublk_params>());
    }

    #[test]
    fn sectors_of_512_bytes_and_no_discards_are_possible() {
        let parameters = DeviceParameters {
            logical_block_bytes: 512,
            is_read_only: true,
            has_fua: false,
            has_volatile_cache: false,
            discard_bytes_max: 0,
            write_zeroes_bytes_max: 0,
            ..GOOD
        };
        let driver = parameters.to_driver().expect("good");
        assert_eq!((driver.types, driver.basic.attrs, driver.basic.logical_bs_shift), (0b1, 0b1, 9));
    }

    #[test]
    fn each_broken_rule_is_named() {
        let bad = [
            (DeviceParameters { size_bytes: 0, ..GOOD }, ParameterError::Size(0, 4096)),
            (DeviceParameters { size_bytes: 4608, ..GOOD }, ParameterError::Size(4608, 4096)),
            (DeviceParameters { logical_block_bytes: 1024, ..GOOD }, ParameterError::LogicalBlock(1024)),
            (DeviceParameters { physical_block_bytes: 512, ..GOOD }, ParameterError::PhysicalBlock(512, 4096)),
            (DeviceParameters { optimal_io_bytes: 5000, ..GOOD }, ParameterError::PhysicalBlock(4096, 5000)),
            (DeviceParameters { has_volatile_cache: false, ..GOOD }, ParameterError::FuaWithoutCache),
            (DeviceParameters { queue_count: 0, ..GOOD }, ParameterError::QueueCount(0)),
            (DeviceParameters { queue_depth: 0, ..GOOD }, ParameterError::QueueDepth(0)),
            (DeviceParameters { queue_depth: 513, ..GOOD }, ParameterError::QueueDepth(513)),
            (DeviceParameters { io_bytes_max: 512, ..GOOD }, ParameterError::IoBytes(512)),
            (DeviceParameters { io_bytes_max: 4097, ..GOOD }, ParameterError::IoBytes(4097)),
            (DeviceParameters { io_bytes_max: 33 << 20, ..GOOD }, ParameterError::IoBytes(33 << 20)),
            (DeviceParameters { discard_bytes_max: 512, ..GOOD }, ParameterError::RangeBytes(512)),
            (DeviceParameters { write_zeroes_bytes_max: 2 << 40, ..GOOD }, ParameterError::RangeBytes(2 << 40)),
            (DeviceParameters { discard_granularity_bytes: 0, ..GOOD }, ParameterError::DiscardGranularity(0, 4096)),
        ];
        for (parameters, error) in bad {
            assert_eq!(parameters.validate(), Err(error));
        }
    }
}
