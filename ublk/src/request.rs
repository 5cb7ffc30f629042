//! A request of the block layer, parsed from the driver's descriptor.
//!
//! Owned by nobody: a request is a plain value. The data is copied by the queue, see [`crate::queue`].

use libublk_rs_sys as sys;

/// Bytes of a sector, the driver's unit of offset and length, whatever the device's logical block size.
pub const SECTOR_BYTES: u64 = 512;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// To be given data.
    Read,
    /// Its data is to be stored.
    Write,
    /// Make every write that was completed before this request came durable. Offset and length are 0.
    Flush,
    /// The content of the range is not needed any more. No data.
    Discard,
    /// The range reads as zeros afterwards. No data.
    WriteZeroes,
}

impl RequestKind {
    /// True when data belongs to the request.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// One request of the block layer. To be answered exactly once with [`crate::Queue::complete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Number of the request in its queue, 0 to depth - 1; free for the next request once answered.
    pub tag: u16,
    /// What is asked for.
    pub kind: RequestKind,
    /// First byte on the device, a multiple of the logical block size.
    pub offset_bytes: u64,
    /// Length, a multiple of the logical block size; 0 for a flush. With data at most the device's `io_bytes_max`.
    pub len_bytes: u64,
    /// The write must be durable before it is answered. Comes only when the device says that it supports this.
    pub is_fua: bool,
    /// Of [`RequestKind::WriteZeroes`]: the range must stay allocated.
    pub is_nounmap: bool,
}

/// Why a descriptor is no request that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// An operation that no device of ours announces (zones, write same, or one to come).
    Operation,
    /// A range that overflows, or more data than the device takes at once.
    Range,
}

impl Malformed {
    /// Error number that the block layer is answered.
    pub(crate) const fn errno(self) -> i32 {
        match self {
            Self::Operation => libc::EOPNOTSUPP,
            Self::Range => libc::EIO,
        }
    }
}

/// Parses a descriptor. `io_bytes_max`: the most data that the device takes at once.
pub(crate) fn parse(tag: u16, descriptor: &sys::ublksrv_io_desc, io_bytes_max: u64) -> Result<Request, Malformed> {
    let kind = match descriptor.op_flags & 0xff {
        sys::UBLK_IO_OP_READ => RequestKind::Read,
        sys::UBLK_IO_OP_WRITE => RequestKind::Write,
        sys::UBLK_IO_OP_FLUSH => RequestKind::Flush,
        sys::UBLK_IO_OP_DISCARD => RequestKind::Discard,
        sys::UBLK_IO_OP_WRITE_ZEROES => RequestKind::WriteZeroes,
        _ => return Err(Malformed::Operation),
    };
    let (offset_bytes, len_bytes) = if kind == RequestKind::Flush {
        // A flush concerns the whole device; its sector is whatever the block layer left there.
        (0, 0)
    } else {
        let offset = descriptor.start_sector.checked_mul(SECTOR_BYTES).ok_or(Malformed::Range)?;
        (offset, u64::from(descriptor.nr_sectors) * SECTOR_BYTES)
    };
    offset_bytes.checked_add(len_bytes).ok_or(Malformed::Range)?;
    if kind.has_data() && (len_bytes == 0 || len_bytes > io_bytes_max) {
        return Err(Malformed::Range);
    }
    let is_fua = descriptor.op_flags & sys::UBLK_IO_F_FUA != 0;
    let is_nounmap = kind == RequestKind::WriteZeroes && descriptor.op_flags & sys::UBLK_IO_F_NOUNMAP != 0;
    Ok(Request { tag, kind, offset_bytes, len_bytes, is_fua, is_nounmap })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IO_BYTES_MAX: u64 = 512 * 1024;

    fn descriptor(op_flags: u32, start_sector: u64, nr_sectors: u32) -> sys::ublksrv_io_desc {
        sys::ublksrv_io_desc { op_flags, nr_sectors, start_sector, addr: 0 }
    }

    #[test]
    fn write_with_fua_is_parsed() {
        // Operation 1 is a write, flag bit 13 is FUA; bit 11 (metadata) means nothing to us.
        let request = parse(7, &descriptor(1 | 1 << 13 | 1 << 11, 16, 8), IO_BYTES_MAX).expect("a good write");
        let wanted = Request {
            tag: 7,
            kind: RequestKind::Write,
            offset_bytes: 8192,
            len_bytes: 4096,
            is_fua: true,
            is_nounmap: false,
        };
        assert_eq!(request, wanted);
    }

    #[test]
    fn each_operation_number_has_its_kind() {
        let kinds = [
            (0, RequestKind::Read),
            (1, RequestKind::Write),
            (2, RequestKind::Flush),
            (3, RequestKind::Discard),
            (5, RequestKind::WriteZeroes),
        ];
        for (number, kind) in kinds {
            assert_eq!(parse(0, &descriptor(number, 0, 8), IO_BYTES_MAX).expect("known").kind, kind);
        }
    }

    #[test]
    fn unknown_operations_are_answered_as_unsupported() {
        for number in [4, 6, 10, 15, 18, 0xff] {
            let refused = parse(0, &descriptor(number, 0, 8), IO_BYTES_MAX);
            assert_eq!(refused.map_err(Malformed::errno), Err(libc::EOPNOTSUPP), "operation {number}");
        }
    }

    #[test]
    fn flush_has_no_range() {
        let request = parse(0, &descriptor(2, u64::MAX, 3), IO_BYTES_MAX).expect("a flush");
        assert_eq!((request.offset_bytes, request.len_bytes), (0, 0));
    }

    #[test]
    fn nounmap_counts_for_write_zeroes_only() {
        let is_nounmap =
            |number: u32| parse(0, &descriptor(number | 1 << 15, 0, 8), IO_BYTES_MAX).expect("good").is_nounmap;
        assert!(is_nounmap(5));
        assert!(!is_nounmap(3));
    }

    #[test]
    fn discard_may_be_longer_than_the_most_data() {
        let request = parse(0, &descriptor(3, 0, u32::MAX), IO_BYTES_MAX).expect("a long discard");
        assert_eq!(request.len_bytes, u64::from(u32::MAX) * 512);
    }

    #[test]
    fn ranges_that_overflow_or_have_too_much_data_are_refused() {
        let sectors_max = u32::try_from(IO_BYTES_MAX / 512).expect("small");
        let bad = [
            descriptor(0, u64::MAX / 512 + 1, 8),
            descriptor(3, u64::MAX / 512, u32::MAX),
            descriptor(0, 0, sectors_max + 1),
            descriptor(1, 0, 0),
        ];
        for descriptor in bad {
            assert_eq!(parse(0, &descriptor, IO_BYTES_MAX), Err(Malformed::Range), "{descriptor:?}");
        }
        assert!(parse(0, &descriptor(0, 0, sectors_max), IO_BYTES_MAX).is_ok());
    }
}
