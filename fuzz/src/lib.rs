//! What fuzz targets share: what must hold of everything that is decoded, and how much memory that may take.

mod memory;

pub use memory::bounded;

use rok_blk::crypto::{KeyRing, MasterKey, SessionKeys, Suite};
use rok_blk::units::{Sequence, SessionId};
use std::fmt::Debug;
use std::sync::Arc;
use uuid::Uuid;

/// Keys and ids are those of the golden images, so that these are seeds.
pub const POOL: Uuid = Uuid::from_u128(0x1000_0000_0000_4000_8000_0000_0000_0001);
/// The session that seals.
pub const SESSION: SessionId = SessionId::new(5);
const MASTER: [u8; 32] = [0x11; 32];
const SALT: [u8; 32] = [0x33; 32];

/// The pool's master key.
#[must_use]
pub fn master() -> MasterKey {
    MasterKey::from_bytes(MASTER)
}

/// The keys of [`SESSION`].
#[must_use]
pub fn session_keys() -> SessionKeys {
    master().session_keys(Suite::XtsGmac, SESSION, &SALT)
}

/// The keys of a pool in which [`SESSION`] is the present one.
#[must_use]
pub fn key_ring() -> KeyRing {
    let keys = KeyRing::new(Suite::XtsGmac, Arc::new(master()));
    keys.begin_session(SESSION, Sequence::new(1), SALT);
    keys
}

/// Of a format in which each value has one encoding: what decodes encodes to the same bytes. Returns what was decoded.
pub fn canonical<T, E>(
    input: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Option<T> {
    let value = bounded(input.len(), || decode(input)).ok()?;
    assert!(encode(&value) == input, "what decodes encodes to other bytes");
    Some(value)
}

/// Of a format in which a value has several encodings: what decodes encodes to bytes that decode to the same value.
pub fn stable<T: Debug + PartialEq, E: Debug>(
    input: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Option<T> {
    let value = bounded(input.len(), || decode(input)).ok()?;
    let again = decode(&encode(&value)).expect("what was encoded decodes");
    assert_eq!(again, value, "it is another value after it was encoded");
    Some(value)
}
