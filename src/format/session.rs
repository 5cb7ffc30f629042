//! The record of a session: the salt of its keys and its first sequence.
//!
//! It is in the clear, since its salt is needed to derive the keys that seal everything else, and it carries a
//! MAC that needs no nonce, so that two copies of a pool may write the same session number.

use crate::crypto::StaticMac;
use crate::format::FormatError;
use crate::format::codec::{Reader, Writer};
use crate::units::{Sequence, SessionId};

const BODY_BYTES: usize = 56;

/// One life of the pool between open and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// The first sequence that it may use: above all that were used before.
    pub first_sequence: Sequence,
    /// Random bytes that enter each key of the session.
    pub salt: [u8; 32],
}

impl Session {
    /// The record's value.
    #[must_use]
    pub fn encode(&self, mac: &StaticMac) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.id.get());
        writer.u64(self.first_sequence.get());
        writer.bytes(&self.salt);
        writer.zeros(8);
        let body = writer.finish();
        let seal = mac.compute(&[&body]);
        [&body[..], &seal].concat()
    }

    /// The session in a value.
    ///
    /// # Errors
    /// [`FormatError`] if the value was not written with this pool's key.
    pub fn decode(value: &[u8], mac: &StaticMac) -> Result<Self, FormatError> {
        let mut reader = Reader::new(value);
        let body = reader.bytes(BODY_BYTES)?;
        let seal = reader.array::<32>()?;
        reader.finish()?;
        if !mac.verify(&[body], &seal) {
            return Err(FormatError::Checksum);
        }
        let mut reader = Reader::new(body);
        let session = Self {
            id: SessionId::new(reader.u64()?),
            first_sequence: Sequence::new(reader.u64()?),
            salt: reader.array()?,
        };
        reader.reserved(8)?;
        Ok(session)
    }
}
