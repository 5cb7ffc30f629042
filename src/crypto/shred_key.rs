//! The shred key of a pool: the second key, beside the master key, that is needed to unwrap the keys of volumes.
//!
//! The metadata store keeps what it deletes for a time in its files. So the keys in it are wrapped under this one too,
//! which is kept where it can be overwritten: a new shred key takes what was wrapped under the old one from everybody.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::derive::{KEY_BYTES, WRAPPED_KEY_BYTES, derive, random_key, unwrap, wrap};
use super::{MasterKey, Random};

/// A random key that is replaced each time a volume is shredded.
pub struct ShredKey(Zeroizing<[u8; KEY_BYTES]>);

impl_opaque_debug!(ShredKey);

impl ShredKey {
    /// A fresh key.
    #[must_use]
    pub fn generate(random: Random<'_>) -> Self {
        Self(random_key(random))
    }

    /// The key under the master key, for its place: the pool, and the key's number.
    #[must_use]
    pub fn wrap(
        &self,
        master: &MasterKey,
        (pool, number): (&Uuid, u32),
        random: Random<'_>,
    ) -> [u8; WRAPPED_KEY_BYTES] {
        wrap(&wrapping_key(master), &place(pool, number), &self.0, random)
    }

    /// Undoes [`Self::wrap`]. `None` if the master key, pool or number differ or a bit is wrong.
    #[must_use]
    pub fn unwrap(master: &MasterKey, (pool, number): (&Uuid, u32), wrapped: &[u8; WRAPPED_KEY_BYTES]) -> Option<Self> {
        unwrap(&wrapping_key(master), &place(pool, number), wrapped).map(Self)
    }

    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

fn wrapping_key(master: &MasterKey) -> Zeroizing<[u8; KEY_BYTES]> {
    derive(master.expose(), &[], "rok-blk shred key wrap", &[])
}

fn place(pool: &Uuid, number: u32) -> [u8; 20] {
    let mut place = [0; 20];
    place[..16].copy_from_slice(pool.as_bytes());
    place[16..].copy_from_slice(&number.to_le_bytes());
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_shred_key_opens_in_its_place_only() {
        let (master, pool) = (MasterKey::from_bytes([1; 32]), Uuid::from_u128(3));
        let key = ShredKey::generate(&mut |bytes| bytes.fill(2));
        let wrapped = key.wrap(&master, (&pool, 7), &mut |bytes| bytes.fill(4));
        let mut flipped = wrapped;
        flipped[59] ^= 1;

        let opened = ShredKey::unwrap(&master, (&pool, 7), &wrapped).expect("nothing changed");

        assert_eq!(opened.expose(), key.expose());
        assert!(ShredKey::unwrap(&master, (&pool, 8), &wrapped).is_none());
        assert!(ShredKey::unwrap(&master, (&Uuid::from_u128(4), 7), &wrapped).is_none());
        assert!(ShredKey::unwrap(&MasterKey::from_bytes([2; 32]), (&pool, 7), &wrapped).is_none());
        assert!(ShredKey::unwrap(&master, (&pool, 7), &flipped).is_none());
        assert_eq!(format!("{key:?}"), "ShredKey");
    }
}
