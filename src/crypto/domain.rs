//! Keys of encryption domains: the pool's own, and those of volumes that were created with their own.

use uuid::Uuid;
use zeroize::Zeroizing;

pub use super::derive::WRAPPED_KEY_BYTES;
use super::derive::{KEY_BYTES, derive, random_key, unwrap, wrap};
use super::{BlockKey, MasterKey, Random, ShredKey, Suite};
use crate::units::{KeyGeneration, SessionId};

/// The random key of one generation of a domain.
pub struct DomainKey(Zeroizing<[u8; KEY_BYTES]>);

impl_opaque_debug!(DomainKey);

impl DomainKey {
    /// A fresh key.
    #[must_use]
    pub fn generate(random: Random<'_>) -> Self {
        Self(random_key(random))
    }

    /// The key under `wrapping`; it unwraps only with the same `associated` (the domain, its generation).
    #[must_use]
    pub fn wrap(&self, wrapping: &DomainWrapping, associated: &[u8], random: Random<'_>) -> [u8; WRAPPED_KEY_BYTES] {
        wrap(&wrapping.0, associated, &self.0, random)
    }

    /// Undoes [`Self::wrap`]. `None` if `wrapping` or `associated` differ or a bit is wrong.
    #[must_use]
    pub fn unwrap(wrapping: &DomainWrapping, associated: &[u8], wrapped: &[u8; WRAPPED_KEY_BYTES]) -> Option<Self> {
        unwrap(&wrapping.0, associated, wrapped).map(Self)
    }

    /// What encrypts the blocks that are written in `session`. Each (suite, generation, session, salt) has its own.
    #[must_use]
    pub fn block_key(&self, suite: Suite, generation: KeyGeneration, session: SessionId, salt: &[u8; 32]) -> BlockKey {
        let mut fields = [0; 10];
        fields[0] = suite.code();
        fields[1] = generation.get();
        fields[2..].copy_from_slice(&session.get().to_le_bytes());
        BlockKey::from_material(&derive(&self.0, salt, "rok-blk block key", &fields))
    }
}

/// What wraps domain keys.
pub struct DomainWrapping(Zeroizing<[u8; KEY_BYTES]>);

impl_opaque_debug!(DomainWrapping);

impl DomainWrapping {
    /// For the pool's own domain: follows from the master key alone.
    #[must_use]
    pub fn of_pool(master: &MasterKey) -> Self {
        Self(derive(master.expose(), &[], "rok-blk domain wrap", &[]))
    }

    /// For the domains of volumes: without the shred key nobody gets it, whoever has the master key.
    #[must_use]
    pub fn of_volumes(master: &MasterKey, shred_key: &ShredKey) -> Self {
        Self(derive(master.expose(), shred_key.expose(), "rok-blk own domain wrap", &[]))
    }
}

/// The associated data that [`DomainKey::wrap`] is meant to get: the pool, the domain and the key's generation.
#[must_use]
pub fn domain_place(pool: &Uuid, domain: crate::units::DomainId, generation: KeyGeneration) -> [u8; 25] {
    let mut place = [0; 25];
    place[..16].copy_from_slice(pool.as_bytes());
    place[16..24].copy_from_slice(&domain.get().to_le_bytes());
    place[24] = generation.get();
    place
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::units::DomainId;

    fn of_pool(master: u8) -> DomainWrapping {
        DomainWrapping::of_pool(&MasterKey::from_bytes([master; 32]))
    }

    #[test]
    fn wrapped_domain_key_gives_the_same_block_keys() {
        let wrapping = of_pool(1);
        let key = DomainKey::generate(&mut |bytes| bytes.fill(2));
        let place = domain_place(&Uuid::from_u128(3), DomainId::new(4), KeyGeneration::new(5));

        let wrapped = key.wrap(&wrapping, &place, &mut |bytes| bytes.fill(6));
        let unwrapped = DomainKey::unwrap(&wrapping, &place, &wrapped).expect("nothing changed");

        let derived = |key: &DomainKey| {
            *key.block_key(Suite::XtsGmac, KeyGeneration::new(5), SessionId::new(1), &[0; 32]).expose()
        };
        assert_eq!(derived(&key), derived(&unwrapped));
    }

    #[test]
    fn other_master_key_place_or_bits_do_not_unwrap() {
        let wrapping = of_pool(1);
        let place = domain_place(&Uuid::from_u128(3), DomainId::new(4), KeyGeneration::new(5));
        let other = domain_place(&Uuid::from_u128(3), DomainId::new(4), KeyGeneration::new(6));
        let wrapped =
            DomainKey::generate(&mut |bytes| bytes.fill(2)).wrap(&wrapping, &place, &mut |bytes| bytes.fill(6));
        let mut flipped = wrapped;
        flipped[20] ^= 1;

        assert!(DomainKey::unwrap(&of_pool(2), &place, &wrapped).is_none());
        assert!(DomainKey::unwrap(&wrapping, &other, &wrapped).is_none());
        assert!(DomainKey::unwrap(&wrapping, &place, &flipped).is_none());
    }

    #[test]
    fn key_of_a_volume_unwraps_with_master_key_and_shred_key_only() {
        let place = domain_place(&Uuid::from_u128(3), DomainId::new(4), KeyGeneration::new(0));
        let shred_key = |fill| ShredKey::generate(&mut |bytes: &mut [u8]| bytes.fill(fill));
        let of_volumes =
            |master, fill| DomainWrapping::of_volumes(&MasterKey::from_bytes([master; 32]), &shred_key(fill));
        let key = DomainKey::generate(&mut |bytes| bytes.fill(2));

        let wrapped = key.wrap(&of_volumes(1, 5), &place, &mut |bytes| bytes.fill(6));

        assert!(DomainKey::unwrap(&of_volumes(1, 5), &place, &wrapped).is_some());
        for other in [of_volumes(1, 7), of_volumes(2, 5), of_pool(1)] {
            assert!(DomainKey::unwrap(&other, &place, &wrapped).is_none());
        }
    }

    #[test]
    fn no_two_uses_share_a_block_key() {
        let key = DomainKey::generate(&mut |bytes| bytes.fill(2));
        let other = DomainKey::generate(&mut |bytes| bytes.fill(3));
        let (first, second) = (KeyGeneration::new(1), KeyGeneration::new(2));
        let (one, two) = (SessionId::new(1), SessionId::new(2));

        let keys = [
            key.block_key(Suite::XtsGmac, first, one, &[0; 32]),
            key.block_key(Suite::XtsGmac, first, two, &[0; 32]),
            key.block_key(Suite::XtsGmac, second, one, &[0; 32]),
            key.block_key(Suite::XtsGmac, first, one, &[1; 32]),
            key.block_key(Suite::Plain, first, one, &[0; 32]),
            other.block_key(Suite::XtsGmac, first, one, &[0; 32]),
        ];
        let parts: BTreeSet<_> = keys.iter().flat_map(|key| key.expose().chunks(32)).collect();

        assert_eq!(parts.len(), keys.len() * 3);
    }

    #[test]
    fn debug_prints_no_key_bytes() {
        let key = DomainKey::generate(&mut |bytes| bytes.fill(0xa5));

        assert_eq!(format!("{key:?}"), "DomainKey");
        assert_eq!(
            format!("{:?}", key.block_key(Suite::Plain, KeyGeneration::new(0), SessionId::new(1), &[0; 32])),
            "BlockKey"
        );
    }
}
