//! Who owns which completion of a shared ring: the layout of the 64 bits of `user_data`.
//!
//! The top 16 bits are a [`Prefix`] that the owner of the ring hands out (one for pool I/O, one for sockets, one for
//! each ublk queue); the low 48 bits are the payload and belong to the prefix's holder. A pointer of a user
//! process fits in 48 bits, a table index does anyway.

/// Number of low bits that belong to the holder of a prefix.
pub const PAYLOAD_BITS: u32 = 48;
/// Largest payload.
pub const PAYLOAD_MAX: u64 = (1 << PAYLOAD_BITS) - 1;

/// The top 16 bits of `user_data`: names one holder on one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(u16);

impl Prefix {
    /// A prefix. That no two holders of one ring get the same one is up to the owner of the ring.
    #[must_use]
    pub const fn new(value: u16) -> Self {
        Self(value)
    }

    /// The 16 bits.
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0
    }

    /// The `user_data` of this prefix with a payload.
    ///
    /// # Panics
    /// When the payload is above [`PAYLOAD_MAX`]: it would become another holder's completion.
    #[must_use]
    pub const fn pack(self, payload: u64) -> u64 {
        assert!(payload <= PAYLOAD_MAX, "payload is above 48 bits");
        (self.0 as u64) << PAYLOAD_BITS | payload
    }

    /// The prefix of a `user_data`.
    #[must_use]
    pub const fn of(user_data: u64) -> Self {
        Self((user_data >> PAYLOAD_BITS) as u16)
    }

    /// The payload of a `user_data`.
    #[must_use]
    pub const fn payload(user_data: u64) -> u64 {
        user_data & PAYLOAD_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_and_payload_come_back_from_user_data() {
        for prefix in [0, 1, 0x8000, u16::MAX] {
            for payload in [0, 1, 0x1234_5678_9abc, PAYLOAD_MAX] {
                let user_data = Prefix::new(prefix).pack(payload);
                assert_eq!(Prefix::of(user_data), Prefix::new(prefix));
                assert_eq!(Prefix::payload(user_data), payload);
            }
        }
    }

    #[test]
    fn prefixes_do_not_overlap() {
        assert!(Prefix::new(1).pack(PAYLOAD_MAX) < Prefix::new(2).pack(0));
    }

    #[test]
    #[should_panic(expected = "payload is above 48 bits")]
    fn payload_that_would_reach_into_the_prefix_is_refused() {
        assert_eq!(Prefix::new(1).pack(PAYLOAD_MAX + 1), 0);
    }
}
