//! Which keys and nonces things were encrypted under, for tests. A pair that comes again with other data tells whoever has both
//! ciphertexts what they have in common (XTS), or gives the mac away (GCM). A block's nonce is its tweak too, under keys that
//! are drawn together, so one table has both.
//!
//! Without the feature `planted-bugs` nothing is noted. The table is the thread's.

#[cfg(feature = "planted-bugs")]
mod active {
    use std::cell::RefCell;
    use std::collections::HashMap;

    /// Starts of hashes.
    type Digest = [u8; 16];

    /// What was encrypted, by key and nonce.
    type Table = HashMap<(Digest, Vec<u8>), Digest>;

    thread_local! {
        static PAIRS: RefCell<Option<Table>> = const { RefCell::new(None) };
    }

    /// Which key it is.
    pub(in crate::crypto) struct KeyMark(Digest);

    impl KeyMark {
        pub(in crate::crypto) fn of(key: &[u8]) -> Self {
            Self(digest(&[key]))
        }

        /// Notes that `parts` are encrypted or authenticated under a nonce, if this thread watches.
        ///
        /// # Panics
        /// If other data was before.
        pub(in crate::crypto) fn note(&self, nonce: &[u8], parts: &[&[u8]]) {
            PAIRS.with_borrow_mut(|pairs| {
                let Some(pairs) = pairs else { return };
                let data = digest(parts);
                let before = pairs.insert((self.0, nonce.to_vec()), data);
                assert!(
                    before.is_none_or(|before| before == data),
                    "two contents under the same key and the nonce {nonce:02x?}"
                );
            });
        }
    }

    fn digest(parts: &[&[u8]]) -> Digest {
        // The parts first, since it is quickest with blocks that begin where a part does.
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
        }
        *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    /// Begins an empty table for this thread.
    pub fn watch_pairs() {
        PAIRS.set(Some(HashMap::new()));
    }

    /// Ends this thread's table; how many different pairs it has, 0 if there was none.
    pub fn end_pairs() -> u64 {
        PAIRS.take().map_or(0, |pairs| pairs.len() as u64)
    }
}

#[cfg(not(feature = "planted-bugs"))]
mod active {
    /// Nothing.
    pub(in crate::crypto) struct KeyMark;

    impl KeyMark {
        #[inline]
        pub(in crate::crypto) const fn of(_key: &[u8]) -> Self {
            Self
        }

        #[inline]
        #[expect(clippy::unused_self, reason = "the other form has a key")]
        pub(in crate::crypto) const fn note(&self, _nonce: &[u8], _parts: &[&[u8]]) {}
    }
}

pub(super) use active::KeyMark;
#[cfg(feature = "planted-bugs")]
pub use active::{end_pairs, watch_pairs};
