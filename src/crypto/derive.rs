//! Derivation of keys and wrapping of keys under keys.
//!
//! Derivation is HKDF-SHA256 (RFC 5869). The info is a label of [`LABEL_BYTES`] bytes (zero padded) and then fields
//! of fixed size, so that two different uses never meet in one info.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use super::Random;

/// Size of a symmetric key.
pub(super) const KEY_BYTES: usize = 32;
/// Size of a wrapped key: nonce 12, ciphertext 32, tag 16.
pub const WRAPPED_KEY_BYTES: usize = NONCE_LEN + KEY_BYTES + 16;
/// Size that every label is padded to.
const LABEL_BYTES: usize = 32;
/// The most bytes of fields behind a label.
const FIELDS_BYTES_MAX: usize = 32;

struct OutputLen(usize);

impl KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

/// A key that `random` fills, in memory that is wiped.
pub(super) fn random_key(random: Random<'_>) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    random(key.as_mut_slice());
    key
}

/// `COUNT` bytes derived from `secret`, for the use that `label` names.
///
/// # Panics
/// If `label` or `fields` exceed their limits, which only a wrong caller in this folder can cause.
pub(super) fn derive<const COUNT: usize>(
    secret: &[u8; KEY_BYTES],
    salt: &[u8],
    label: &str,
    fields: &[u8],
) -> Zeroizing<[u8; COUNT]> {
    assert!(label.len() <= LABEL_BYTES);
    assert!(fields.len() <= FIELDS_BYTES_MAX);
    let mut info = [0; LABEL_BYTES + FIELDS_BYTES_MAX];
    info[..label.len()].copy_from_slice(label.as_bytes());
    info[LABEL_BYTES..LABEL_BYTES + fields.len()].copy_from_slice(fields);
    let mut output = Zeroizing::new([0; COUNT]);
    Salt::new(HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[&info[..LABEL_BYTES + fields.len()]], OutputLen(COUNT))
        .and_then(|material| material.fill(output.as_mut_slice()))
        .expect("the output is below 255 hashes and has the length that was asked for");
    output
}

/// Wraps `key` with AES-256-GCM-SIV (RFC 8452), which stays safe should a random nonce repeat.
pub(super) fn wrap(
    wrapping: &[u8; KEY_BYTES],
    associated: &[u8],
    key: &[u8; KEY_BYTES],
    random: Random<'_>,
) -> [u8; WRAPPED_KEY_BYTES] {
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce);
    let mut body = Zeroizing::new(*key);
    let tag = wrapping_key(wrapping)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), body.as_mut_slice())
        .expect("32 bytes can always be sealed");
    let mut wrapped = [0; WRAPPED_KEY_BYTES];
    wrapped[..NONCE_LEN].copy_from_slice(&nonce);
    wrapped[NONCE_LEN..NONCE_LEN + KEY_BYTES].copy_from_slice(body.as_slice());
    wrapped[NONCE_LEN + KEY_BYTES..].copy_from_slice(tag.as_ref());
    wrapped
}

/// Undoes [`wrap`]; `None` if the wrapping key or the associated data differ or a bit is wrong.
pub(super) fn unwrap(
    wrapping: &[u8; KEY_BYTES],
    associated: &[u8],
    wrapped: &[u8; WRAPPED_KEY_BYTES],
) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>()?;
    let (body, tag) = sealed.split_at(KEY_BYTES);
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    wrapping_key(wrapping)
        .open_separate_gather(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(associated),
            body,
            tag,
            key.as_mut_slice(),
        )
        .ok()?;
    Some(key)
}

fn wrapping_key(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key).expect("the key has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_fields_salts_and_secrets_separate_keys() {
        let keys = [
            derive::<32>(&[1; 32], b"salt", "a", b""),
            derive::<32>(&[2; 32], b"salt", "a", b""),
            derive::<32>(&[1; 32], b"other", "a", b""),
            derive::<32>(&[1; 32], b"salt", "b", b""),
            derive::<32>(&[1; 32], b"salt", "a", b"\0"),
        ];

        let distinct: std::collections::BTreeSet<_> = keys.iter().map(|key| **key).collect();

        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn wrapped_key_opens_only_unchanged() {
        let wrapped = wrap(&[1; 32], b"place", &[7; 32], &mut |bytes| bytes.fill(9));

        assert_eq!(unwrap(&[1; 32], b"place", &wrapped).expect("nothing changed")[..], [7; 32]);
        assert!(unwrap(&[2; 32], b"place", &wrapped).is_none());
        assert!(unwrap(&[1; 32], b"elsewhere", &wrapped).is_none());
        for bit in 0..WRAPPED_KEY_BYTES * 8 {
            let mut flipped = wrapped;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&[1; 32], b"place", &flipped).is_none(), "bit {bit}");
        }
    }
}
