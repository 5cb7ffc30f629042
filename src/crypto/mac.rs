//! The mac of what is read before any session is known.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use super::derive::KEY_BYTES;
use crate::units::to_u64;

/// What a [`StaticMac`] authenticates; each has its own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The pool's superblock.
    Superblock,
    /// The header of a device.
    DeviceHeader,
    /// The record of a session, from which its keys follow.
    Session,
}

impl Purpose {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Superblock => "rok-blk mac superblock",
            Self::DeviceHeader => "rok-blk mac device header",
            Self::Session => "rok-blk mac session",
        }
    }
}

/// Keyed BLAKE3. It needs no nonce, so that the same bytes may be authenticated any number of times.
pub struct StaticMac(Zeroizing<[u8; KEY_BYTES]>);

impl_opaque_debug!(StaticMac);

impl StaticMac {
    pub(super) const fn new(key: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(key)
    }

    /// The mac of `parts`. Each part enters with its length: moving a byte from one to the next changes the mac.
    #[must_use]
    pub fn compute(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&to_u64(part.len()).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether `expected` is the mac of `parts`, in a time that does not tell where they differ.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], expected: &[u8; 32]) -> bool {
        verify_slices_are_equal(&self.compute(parts), expected).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;

    #[test]
    fn verify_accepts_only_the_same_parts_key_and_purpose() {
        let master = MasterKey::from_bytes([3; 32]);
        let mac = master.static_mac(Purpose::Superblock);
        let expected = mac.compute(&[b"pool", b"bytes"]);

        assert!(master.static_mac(Purpose::Superblock).verify(&[b"pool", b"bytes"], &expected));
        assert!(!mac.verify(&[b"poolb", b"ytes"], &expected));
        assert!(!mac.verify(&[b"poolbytes"], &expected));
        assert!(!mac.verify(&[b"pool", b"bytes", b""], &expected));
        assert!(!master.static_mac(Purpose::DeviceHeader).verify(&[b"pool", b"bytes"], &expected));
        assert!(!master.static_mac(Purpose::Session).verify(&[b"pool", b"bytes"], &expected));
        assert!(
            !MasterKey::from_bytes([4; 32]).static_mac(Purpose::Superblock).verify(&[b"pool", b"bytes"], &expected)
        );
    }

    #[test]
    fn every_flipped_bit_of_the_mac_is_detected() {
        let mac = MasterKey::from_bytes([3; 32]).static_mac(Purpose::Session);
        let expected = mac.compute(&[b"x"]);

        for bit in 0..expected.len() * 8 {
            let mut flipped = expected;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!mac.verify(&[b"x"], &flipped), "bit {bit}");
        }
    }
}
