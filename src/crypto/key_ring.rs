//! The unlocked keys of a pool: its master key, the keys of its sessions and of its domains.
//!
//! A block's key follows from its domain (the tree's), the generation (in the entry) and the session, which
//! follows from the sequence: each session owns the sequences from its first one up to the next session's.

use crate::crypto::{
    BlockCipher, BlockKey, DomainKey, DomainWrapping, MasterKey, Random, SealError, SealKind, SessionKeys, Suite,
    WRAPPED_KEY_BYTES, domain_place,
};
use crate::units::{DomainId, KeyGeneration, Sequence, SessionId};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

struct SessionEntry {
    first_sequence: Sequence,
    salt: [u8; 32],
    keys: Arc<SessionKeys>,
}

/// Keys of an open pool, shared by its lanes.
pub struct KeyRing {
    suite: Suite,
    master: Arc<MasterKey>,
    sessions: RwLock<BTreeMap<SessionId, SessionEntry>>,
    domains: RwLock<BTreeMap<(DomainId, KeyGeneration), DomainKey>>,
    /// Domains that were forgotten: ciphers made before may be of one of them.
    forgotten_count: AtomicU64,
}

impl KeyRing {
    /// A ring without sessions and domains.
    #[must_use]
    pub const fn new(suite: Suite, master: Arc<MasterKey>) -> Self {
        Self {
            suite,
            master,
            sessions: RwLock::new(BTreeMap::new()),
            domains: RwLock::new(BTreeMap::new()),
            forgotten_count: AtomicU64::new(0),
        }
    }

    /// How blocks are encrypted and verified.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// The master key.
    #[must_use]
    pub fn master(&self) -> &MasterKey {
        &self.master
    }

    /// Adds a session of an earlier open: its keys open, but never seal again.
    pub fn add_past_session(&self, id: SessionId, first_sequence: Sequence, salt: [u8; 32]) {
        let keys = Arc::new(self.master.past_session_keys(self.suite, id, &salt));
        self.sessions.write().insert(id, SessionEntry { first_sequence, salt, keys });
    }

    /// Adds the session of this open, whose salt is new. It has the highest number.
    ///
    /// # Panics
    /// If an earlier session begins behind `first_sequence`: then both would own sequences.
    pub fn begin_session(&self, id: SessionId, first_sequence: Sequence, salt: [u8; 32]) {
        let is_last =
            |(other, entry): (&SessionId, &SessionEntry)| *other < id && entry.first_sequence <= first_sequence;
        assert!(self.sessions.read().iter().all(is_last), "sessions own ranges of sequences in their order");
        let keys = Arc::new(self.master.session_keys(self.suite, id, &salt));
        self.sessions.write().insert(id, SessionEntry { first_sequence, salt, keys });
    }

    /// Adds a generation of a domain's key.
    pub fn add_domain_key(&self, domain: DomainId, generation: KeyGeneration, key: DomainKey) {
        self.domains.write().insert((domain, generation), key);
    }

    /// Forgets a domain's keys, which are wiped; ciphers made of them go when their thread looks next
    /// ([`CipherCache::drop_forgotten`]).
    pub fn forget_domain(&self, domain: DomainId) {
        self.domains.write().retain(|(of, _), _| *of != domain);
        self.forgotten_count.fetch_add(1, Ordering::AcqRel);
    }

    /// The domains of volumes.
    #[must_use]
    pub fn volume_domains(&self) -> Vec<DomainId> {
        let mut domains: Vec<DomainId> = self.domains.read().keys().map(|(domain, _)| *domain).collect();
        domains.dedup();
        domains.retain(|domain| !domain.is_pool());
        domains
    }

    /// All generations of a domain's key, wrapped.
    #[must_use]
    pub fn wrap_domain(
        &self,
        (pool, domain): (&Uuid, DomainId),
        wrapping: &DomainWrapping,
        random: Random<'_>,
    ) -> Vec<(KeyGeneration, [u8; WRAPPED_KEY_BYTES])> {
        let domains = self.domains.read();
        let of_domain = domains.iter().filter(|((of, _), _)| *of == domain);
        let wrapped = of_domain.map(|((_, generation), key)| {
            (*generation, key.wrap(wrapping, &domain_place(pool, domain, *generation), random))
        });
        wrapped.collect()
    }

    /// The newest generation of a domain's key.
    #[must_use]
    pub fn newest_generation(&self, domain: DomainId) -> Option<KeyGeneration> {
        let newest = (domain, KeyGeneration::new(u8::MAX));
        let domains = self.domains.read();
        let ((found, generation), _) = domains.range(..=newest).next_back()?;
        (*found == domain).then_some(*generation)
    }

    /// The keys of a session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<Arc<SessionKeys>> {
        self.sessions.read().get(&id).map(|session| Arc::clone(&session.keys))
    }

    /// The keys of the newest session.
    ///
    /// # Panics
    /// If there is no session: a pool adds one before anything is sealed.
    #[must_use]
    pub fn current(&self) -> Arc<SessionKeys> {
        let sessions = self.sessions.read();
        let (_, session) = sessions.last_key_value().expect("an open pool has a session");
        Arc::clone(&session.keys)
    }

    /// The session that owns a sequence.
    #[must_use]
    pub fn session_of(&self, sequence: Sequence) -> Option<SessionId> {
        // Sessions are few and their first sequences ascend; the newest owns nearly all lookups.
        self.sessions.read().iter().rev().find(|(_, session)| session.first_sequence <= sequence).map(|(id, _)| *id)
    }

    /// The key of the blocks that a session wrote in a domain.
    #[must_use]
    pub fn block_key(&self, domain: DomainId, generation: KeyGeneration, session: SessionId) -> Option<BlockKey> {
        let salt = self.sessions.read().get(&session)?.salt;
        let domains = self.domains.read();
        Some(domains.get(&(domain, generation))?.block_key(self.suite, generation, session, &salt))
    }

    /// Seals a value in the current session.
    #[must_use]
    pub fn seal(&self, kind: SealKind, associated: &[u8], body: &[u8]) -> Vec<u8> {
        self.current().seal(kind, associated, body)
    }

    /// Opens a value that any session sealed.
    ///
    /// # Errors
    /// [`SealError`] if it was not sealed by this pool as this kind with these associated data.
    pub fn open(&self, kind: SealKind, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let session = crate::crypto::sealed_session(sealed).and_then(|id| self.session(id)).ok_or(SealError::Broken)?;
        session.open(kind, associated, sealed)
    }
}

/// Ciphers of one thread, made when first used.
#[derive(Default)]
pub struct CipherCache {
    ciphers: Vec<(CipherPlace, BlockCipher)>,
    indexes: HashMap<CipherPlace, usize>,
    /// Index of the cipher last asked for: nearly always the one that is asked for next.
    last: usize,
    /// What the ring had forgotten when the ciphers were made.
    forgotten_count: u64,
    session: Option<(Sequence, Sequence, SessionId)>,
}

type CipherPlace = (DomainId, KeyGeneration, SessionId);

/// Ciphers that one thread keeps: a few sessions of a few domains.
const CIPHERS_MAX: usize = 1024;

impl CipherCache {
    /// The cipher of a block that was, or is to be, written with `sequence`.
    pub fn get(
        &mut self,
        ring: &KeyRing,
        domain: DomainId,
        generation: KeyGeneration,
        sequence: Sequence,
    ) -> Option<&mut BlockCipher> {
        self.drop_forgotten(ring);
        let session = self.session_of(ring, sequence)?;
        let place = (domain, generation, session);
        if self.ciphers.get(self.last).is_none_or(|(last, _)| *last != place) {
            self.last = self.find_or_make(ring, place)?;
        }
        self.ciphers.get_mut(self.last).map(|(_, cipher)| cipher)
    }

    /// Drops, and so wipes, what was made of keys that the ring has forgotten since; others are made anew when they are
    /// asked for.
    pub fn drop_forgotten(&mut self, ring: &KeyRing) {
        let forgotten_count = ring.forgotten_count.load(Ordering::Acquire);
        if self.forgotten_count != forgotten_count {
            self.forgotten_count = forgotten_count;
            self.clear();
        }
    }

    fn find_or_make(&mut self, ring: &KeyRing, place: CipherPlace) -> Option<usize> {
        if let Some(index) = self.indexes.get(&place) {
            return Some(*index);
        }
        let (domain, generation, session) = place;
        let block_key = ring.block_key(domain, generation, session)?;
        if self.ciphers.len() >= CIPHERS_MAX {
            self.clear();
        }
        let index = self.ciphers.len();
        self.ciphers.push((place, BlockCipher::new(ring.suite(), &block_key)));
        self.indexes.insert(place, index);
        Some(index)
    }

    fn clear(&mut self) {
        self.ciphers.clear();
        self.indexes.clear();
    }

    /// Remembers the range of the session last asked for.
    fn session_of(&mut self, ring: &KeyRing, sequence: Sequence) -> Option<SessionId> {
        if let Some((first, end, session)) = self.session
            && (first..end).contains(&sequence)
        {
            return Some(session);
        }
        let session = ring.session_of(sequence)?;
        let sessions = ring.sessions.read();
        let first = sessions.get(&session)?.first_sequence;
        let later = (std::ops::Bound::Excluded(session), std::ops::Bound::Unbounded);
        let end = sessions.range(later).next().map_or(Sequence::new(u64::MAX), |(_, next)| next.first_sequence);
        self.session = Some((first, end, session));
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> KeyRing {
        KeyRing::new(Suite::XtsGmac, Arc::new(MasterKey::from_bytes([1; 32])))
    }

    #[test]
    fn a_sequence_belongs_to_the_newest_session_that_begins_at_or_below_it() {
        let ring = ring();
        ring.add_past_session(SessionId::new(1), Sequence::new(1), [1; 32]);
        ring.add_past_session(SessionId::new(2), Sequence::new(100), [2; 32]);
        ring.begin_session(SessionId::new(3), Sequence::new(100), [3; 32]);
        let owner = |sequence| ring.session_of(Sequence::new(sequence)).map(SessionId::get);
        assert_eq!([owner(1), owner(99), owner(100), owner(101)], [Some(1), Some(1), Some(3), Some(3)]);
    }

    #[test]
    fn cipher_of_a_domain_that_was_forgotten_is_gone_and_others_are_not() {
        let ring = ring();
        ring.begin_session(SessionId::new(1), Sequence::new(1), [1; 32]);
        let (generation, sequence) = (KeyGeneration::new(0), Sequence::new(7));
        for domain in [0, 4] {
            ring.add_domain_key(DomainId::new(domain), generation, DomainKey::generate(&mut |bytes| bytes.fill(9)));
        }
        let mut ciphers = CipherCache::default();
        let mut has = |domain| ciphers.get(&ring, DomainId::new(domain), generation, sequence).is_some();
        assert_eq!([has(0), has(4)], [true; 2]);

        ring.forget_domain(DomainId::new(4));
        ciphers.drop_forgotten(&ring);
        assert!(ciphers.ciphers.is_empty() && ciphers.indexes.is_empty());

        let mut has = |domain| ciphers.get(&ring, DomainId::new(domain), generation, sequence).is_some();
        assert_eq!([has(4), has(0)], [false, true]);
        assert_eq!(ring.newest_generation(DomainId::new(4)), None);
    }

    /// A crash inside recovery, then a recovery that finds less: the second session began below the first, and a
    /// lane that had looked up an old sequence took the new session's blocks for the old one's.
    #[test]
    #[should_panic(expected = "sessions own ranges of sequences in their order")]
    fn a_session_that_begins_below_an_earlier_one_is_refused() {
        let ring = ring();
        ring.add_past_session(SessionId::new(1), Sequence::new(1), [1; 32]);
        ring.add_past_session(SessionId::new(2), Sequence::new(100), [2; 32]);
        ring.begin_session(SessionId::new(3), Sequence::new(50), [3; 32]);
    }

    /// Its counter would begin again, under the same keys.
    #[test]
    #[should_panic(expected = "sessions own ranges of sequences in their order")]
    fn a_session_that_has_begun_does_not_begin_again() {
        let ring = ring();
        ring.begin_session(SessionId::new(1), Sequence::new(1), [1; 32]);
        ring.begin_session(SessionId::new(1), Sequence::new(1), [1; 32]);
    }

    #[test]
    fn ciphers_are_kept_until_there_are_many() {
        let ring = ring();
        ring.begin_session(SessionId::new(1), Sequence::new(1), [1; 32]);
        let mut ciphers = CipherCache::default();
        for domain in 1..=CIPHERS_MAX + 1 {
            let id = DomainId::new(crate::units::to_u64(domain));
            ring.add_domain_key(id, KeyGeneration::new(0), DomainKey::generate(&mut |bytes| bytes.fill(9)));

            assert!(ciphers.get(&ring, id, KeyGeneration::new(0), Sequence::new(7)).is_some());

            assert_eq!(ciphers.ciphers.len(), if domain > CIPHERS_MAX { 1 } else { domain });
        }
    }
}
