//! Keys and ciphers: everything secret passes through here, nothing here does I/O.
//!
//! A random [`MasterKey`] per pool is wrapped by the key [`slot`]s. From it come the [`StaticMac`]s of what is
//! read before any session is known, and the [`SessionKeys`] that seal metadata. A random [`DomainKey`] gives the
//! [`BlockKey`]s of data; a lane turns each into a [`BlockCipher`]. Randomness is a parameter. Keys are wiped when
//! they are dropped and their `Debug` prints a name only.

/// A `Debug` that prints the type's name and none of its bytes.
macro_rules! impl_opaque_debug {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(stringify!($name))
            }
        }
    };
}

mod block;
mod derive;
mod domain;
mod gcm;
mod key_ring;
mod mac;
mod master;
mod pairs;
mod passphrase;
mod random;
mod seal;
mod shred_key;
pub mod slot;
mod suite;
mod xts;

pub use block::{BlockCipher, BlockKey};
pub use domain::{DomainKey, DomainWrapping, WRAPPED_KEY_BYTES, domain_place};
pub use key_ring::{CipherCache, KeyRing};
pub use mac::{Purpose, StaticMac};
pub use master::MasterKey;
#[cfg(feature = "planted-bugs")]
pub use pairs::{end_pairs, watch_pairs};
pub use passphrase::{PASSPHRASE_BYTES, Passphrase, PassphraseCosts, PassphraseError};
pub use random::system_random;
pub use seal::{SEAL_OVERHEAD_BYTES, SealError, SealKind, SessionKeys, sealed_session};
pub use shred_key::ShredKey;
pub use suite::Suite;

/// Fills the slice with random bytes that nobody can predict.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);
