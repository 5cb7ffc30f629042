//! Encryption and authentication of data blocks.
//!
//! A block's sequence is its tweak and its nonce. The pool gives out each sequence once in a session and each session
//! has its own keys, so no (key, tweak) pair occurs twice. The mac is over the ciphertext: what fails it is never
//! decrypted.

use aws_lc_rs::aead::NONCE_LEN;
use zeroize::Zeroizing;

use super::Suite;
use super::gcm::Gcm;
use super::xts::{XTS_KEY_BYTES, Xts};
use crate::units::{BLOCK_SIZE, Sequence};

const BLOCK_KEY_BYTES: usize = XTS_KEY_BYTES + 32;

/// Keys of the blocks of one domain, generation and session. Shared by lanes, each of which makes a [`BlockCipher`].
pub struct BlockKey(Zeroizing<[u8; BLOCK_KEY_BYTES]>);

impl_opaque_debug!(BlockKey);

impl BlockKey {
    /// Takes 64 bytes of XTS key, then 32 of GMAC key.
    ///
    /// # Panics
    /// If the halves of the XTS key are equal, which derived material never is.
    pub(super) fn from_material(material: &[u8; BLOCK_KEY_BYTES]) -> Self {
        assert!(material[..32] != material[32..64], "the halves of an XTS key must differ");
        Self(Zeroizing::new(*material))
    }

    #[cfg(test)]
    pub(super) fn expose(&self) -> &[u8; BLOCK_KEY_BYTES] {
        &self.0
    }
}

/// The ciphers of a [`BlockKey`] with their key schedules. A lane has its own; it allocates nothing per block.
pub struct BlockCipher {
    /// `None` with [`Suite::Plain`].
    xts: Option<Xts>,
    gmac: Gcm,
}

impl_opaque_debug!(BlockCipher);

impl BlockCipher {
    /// Expands the key schedules.
    #[must_use]
    pub fn new(suite: Suite, key: &BlockKey) -> Self {
        let (xts, gmac) = key.0.split_first_chunk::<XTS_KEY_BYTES>().expect("a block key has both parts");
        let xts = match suite {
            Suite::Plain => None,
            Suite::XtsGmac => Some(Xts::new(xts)),
        };
        Self { xts, gmac: Gcm::new(gmac.try_into().expect("32 bytes follow the XTS key")) }
    }

    /// Encrypts a block from `source` to `target` and returns its mac.
    ///
    /// # Panics
    /// If a slice has not [`BLOCK_SIZE`] bytes.
    #[inline]
    #[must_use]
    pub fn encrypt(&mut self, sequence: Sequence, source: &[u8], target: &mut [u8]) -> u64 {
        assert!(source.len() == BLOCK_SIZE);
        assert!(target.len() == BLOCK_SIZE);
        self.gmac.note(&tweak(sequence), &[source]);
        match &mut self.xts {
            Some(xts) => xts.encrypt(&tweak(sequence), source, target),
            None => target.copy_from_slice(source),
        }
        self.mac(sequence, target)
    }

    /// Whether `mac` is the mac of this ciphertext under this sequence.
    ///
    /// # Panics
    /// If `ciphertext` has not [`BLOCK_SIZE`] bytes.
    #[inline]
    #[must_use]
    pub fn verify(&self, sequence: Sequence, ciphertext: &[u8], mac: u64) -> bool {
        assert!(ciphertext.len() == BLOCK_SIZE);
        // One comparison of two registers: its time does not depend on which bits differ.
        self.mac(sequence, ciphertext) == mac
    }

    /// Decrypts a block that was verified.
    ///
    /// # Panics
    /// If `block` has not [`BLOCK_SIZE`] bytes.
    #[inline]
    pub fn decrypt_in_place(&mut self, sequence: Sequence, block: &mut [u8]) {
        assert!(block.len() == BLOCK_SIZE);
        if let Some(xts) = &mut self.xts {
            xts.decrypt_in_place(&tweak(sequence), block);
        }
    }

    /// Decrypts `block` if `mac` fits; else returns false and leaves the ciphertext.
    ///
    /// # Panics
    /// If `block` has not [`BLOCK_SIZE`] bytes.
    #[inline]
    #[must_use]
    pub fn decrypt_verified(&mut self, sequence: Sequence, block: &mut [u8], mac: u64) -> bool {
        let is_valid = self.verify(sequence, block, mac);
        if is_valid {
            self.decrypt_in_place(sequence, block);
        }
        is_valid
    }

    #[inline]
    fn mac(&self, sequence: Sequence, ciphertext: &[u8]) -> u64 {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&sequence.get().to_le_bytes());
        let [a, b, c, d, e, f, g, h, ..] = self.gmac.authenticate(nonce, ciphertext);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

#[inline]
fn tweak(sequence: Sequence) -> [u8; 16] {
    u128::from(sequence.get()).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCE: Sequence = Sequence::new(0x0102_0304_0506_0708);

    fn cipher(suite: Suite) -> BlockCipher {
        let mut material = [0; BLOCK_KEY_BYTES];
        material.iter_mut().zip(0..).for_each(|(byte, value)| *byte = value);
        BlockCipher::new(suite, &BlockKey::from_material(&material))
    }

    fn block() -> Vec<u8> {
        (0..=u8::MAX).cycle().take(BLOCK_SIZE).collect()
    }

    #[test]
    fn block_decrypts_to_what_was_encrypted() {
        for suite in [Suite::Plain, Suite::XtsGmac] {
            let mut target = vec![0; BLOCK_SIZE];

            let mac = cipher(suite).encrypt(SEQUENCE, &block(), &mut target);

            assert_eq!(target == block(), suite == Suite::Plain);
            assert!(cipher(suite).decrypt_verified(SEQUENCE, &mut target, mac));
            assert!(target == block());
        }
    }

    #[test]
    fn same_content_differs_under_another_sequence() {
        let (mut first, mut second) = (vec![0; BLOCK_SIZE], vec![0; BLOCK_SIZE]);
        let mut cipher = cipher(Suite::XtsGmac);

        let macs =
            (cipher.encrypt(SEQUENCE, &block(), &mut first), cipher.encrypt(SEQUENCE.plus(1), &block(), &mut second));

        assert_ne!(macs.0, macs.1);
        assert!(first.chunks(16).zip(second.chunks(16)).all(|(one, other)| one != other));
    }

    #[test]
    fn every_flipped_bit_is_detected_and_nothing_decrypted() {
        for suite in [Suite::Plain, Suite::XtsGmac] {
            let mut cipher = cipher(suite);
            let mut target = vec![0; BLOCK_SIZE];
            let mac = cipher.encrypt(SEQUENCE, &block(), &mut target);
            for bit in 0..BLOCK_SIZE * 8 {
                target[bit / 8] ^= 1 << (bit % 8);
                let damaged = target.clone();
                assert!(!cipher.decrypt_verified(SEQUENCE, &mut target, mac), "{suite:?} bit {bit}");
                assert!(target == damaged, "{suite:?} bit {bit}");
                target[bit / 8] ^= 1 << (bit % 8);
            }
            assert!((0..64).all(|bit| !cipher.verify(SEQUENCE, &target, mac ^ (1 << bit))));
            assert!(!cipher.verify(SEQUENCE.plus(1), &target, mac));
            assert!(cipher.verify(SEQUENCE, &target, mac));
        }
    }

    /// The construction of `FORMAT.md`, put together once more from its parts.
    #[test]
    fn mac_is_the_start_of_gmac_over_the_ciphertext() {
        let mut target = vec![0; BLOCK_SIZE];
        let mut key = [0; 32];
        key.iter_mut().zip(64..).for_each(|(byte, value)| *byte = value);

        let mac = cipher(Suite::XtsGmac).encrypt(SEQUENCE, &block(), &mut target);

        let tag = Gcm::new(&key).authenticate([8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0], &target);
        assert_eq!(mac.to_le_bytes(), tag[..8]);
    }

    #[test]
    fn cipher_moves_between_threads() {
        const fn assert_send<Value: Send>() {}
        const fn assert_shared<Value: Send + Sync>() {}
        assert_send::<BlockCipher>();
        assert_shared::<BlockKey>();
        assert_shared::<crate::crypto::SessionKeys>();
        assert_eq!(format!("{:?}", cipher(Suite::XtsGmac)), "BlockCipher");
    }

    #[test]
    #[should_panic(expected = "must differ")]
    fn equal_halves_of_the_xts_key_are_refused() {
        let _key = BlockKey::from_material(&[1; BLOCK_KEY_BYTES]);
    }
}
