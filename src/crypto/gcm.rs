//! AES-256-GCM under nonces that the caller numbers.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::derive::KEY_BYTES;
use super::pairs::KeyMark;

/// Size of a tag.
pub(super) const TAG_BYTES: usize = 16;

/// A GCM key with its expanded schedule; wiped by the library when it is freed.
pub(super) struct Gcm {
    key: LessSafeKey,
    mark: KeyMark,
}

impl Gcm {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("the key has 32 bytes");
        Self { key: LessSafeKey::new(unbound), mark: KeyMark::of(key) }
    }

    /// Tells tests that `parts` are about to be encrypted or authenticated, here or under a key that was drawn with this one.
    #[inline]
    pub(super) fn note(&self, nonce: &[u8], parts: &[&[u8]]) {
        self.mark.note(nonce, parts);
    }

    /// Encrypts `body` and returns the tag over it and `associated`. The caller never repeats a nonce.
    ///
    /// # Panics
    /// If `body` exceeds GCM's limit of 64 GiB.
    #[inline]
    pub(super) fn seal(&self, nonce: [u8; NONCE_LEN], associated: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), body)
            .expect("bodies are far below 64 GiB");
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Decrypts `body`; false if the tag does not fit, then `body` holds nothing of use.
    #[inline]
    pub(super) fn open(&self, nonce: [u8; NONCE_LEN], associated: &[u8], body: &mut [u8], tag: &[u8]) -> bool {
        self.key
            .open_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), tag, body)
            .is_ok()
    }

    /// GMAC (NIST SP 800-38D): the tag over `bytes` alone.
    #[inline]
    pub(super) fn authenticate(&self, nonce: [u8; NONCE_LEN], bytes: &[u8]) -> [u8; TAG_BYTES] {
        self.seal(nonce, bytes, &mut [])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes of a hexadecimal text without blanks.
    pub(in crate::crypto) fn hex(text: &str) -> Vec<u8> {
        assert!(text.len().is_multiple_of(2));
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
    }

    fn array<const COUNT: usize>(text: &str) -> [u8; COUNT] {
        hex(text).try_into().expect("the vector has the size of the field")
    }

    /// Test cases 13 and 14 of McGrew and Viega, "The Galois/Counter Mode of Operation".
    #[test]
    fn published_gcm_vectors_hold() {
        let gcm = Gcm::new(&[0; KEY_BYTES]);
        let mut block = [0; 16];

        assert_eq!(gcm.authenticate([0; NONCE_LEN], b""), array("530f8afbc74536b9a963b4f1c4cb738b"));
        assert_eq!(gcm.seal([0; NONCE_LEN], b"", &mut block), array("d0d1c8a799996bf0265b98b5d48ab919"));
        assert_eq!(block, array("cea7403d4d606b6e074ec5d3baf39d18"));
    }

    /// First vector of the group without plaintext and with 128 bits of associated data in the file
    /// gcmEncryptExtIV256.rsp of NIST's validation program.
    #[test]
    fn published_gmac_vector_holds() {
        let gcm = Gcm::new(&array("78dc4e0aaf52d935c3c01eea57428f00ca1fd475f5da86a49c8dd73d68c8e223"));

        let tag = gcm.authenticate(array("d79cf22d504cc793c3fb6c8a"), &hex("b96baa8c1c75a671bfb2d08d06be5f36"));

        assert_eq!(tag, array("3e5d486aa2e30b22e040b85723a06e76"));
    }
}
