//! The pool's master key, from which all keys follow but those of domains, which it wraps.

use zeroize::Zeroizing;

use super::derive::{KEY_BYTES, derive, random_key};
use super::mac::{Purpose, StaticMac};
use super::seal::SessionKeys;
use super::{Random, Suite};
use crate::units::SessionId;

/// A random key, one for each pool. It never encrypts anything itself.
pub struct MasterKey(Zeroizing<[u8; KEY_BYTES]>);

impl_opaque_debug!(MasterKey);

impl MasterKey {
    /// A fresh key.
    #[must_use]
    pub fn generate(random: Random<'_>) -> Self {
        Self(random_key(random))
    }

    /// The key with these bytes. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key's bytes, to wrap them.
    #[must_use]
    pub(crate) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The mac of what is read before any session is known.
    #[must_use]
    pub fn static_mac(&self, purpose: Purpose) -> StaticMac {
        StaticMac::new(derive(self.expose(), &[], purpose.label(), &[]))
    }

    /// What seals and opens metadata of `session`.
    ///
    /// Take them once in a session: its counter starts anew, and two values under one nonce give the key away. For a
    /// session that is over use [`Self::past_session_keys`].
    #[must_use]
    pub fn session_keys(&self, suite: Suite, session: SessionId, salt: &[u8; 32]) -> SessionKeys {
        SessionKeys::new(self, suite, session, salt)
    }

    /// What opens metadata that an earlier session sealed. Sealing with it panics.
    #[must_use]
    pub fn past_session_keys(&self, suite: Suite, session: SessionId, salt: &[u8; 32]) -> SessionKeys {
        SessionKeys::new(self, suite, session, salt).into_past()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generate_takes_all_bytes_from_the_source() {
        let key = MasterKey::generate(&mut |bytes| bytes.fill(0xa5));

        assert_eq!(key.expose(), &[0xa5; KEY_BYTES]);
    }

    #[test]
    fn debug_prints_no_key_bytes() {
        let key = MasterKey::from_bytes([0xa5; KEY_BYTES]);
        let session = key.session_keys(Suite::XtsGmac, SessionId::new(1), &[0; 32]);

        assert_eq!(format!("{key:?}"), "MasterKey");
        assert_eq!(format!("{session:?}"), "SessionKeys");
        assert_eq!(format!("{:?}", key.static_mac(Purpose::Session)), "StaticMac");
    }
}
