//! Sealed metadata: catalog and leaf values in the store, records in the log.
//!
//! A sealed value is `session u64 | counter u64 | body | tag 16`, integers little-endian. The nonce is
//! `counter | kind | 0 0 0`. The counter never repeats in a session and the key is the session's own, so no nonce is
//! used twice under a key. Records carry no counter: lane and chain sequence name them once in a session, under a
//! second key. With [`Suite::Plain`] bodies stay readable and the tag is a GMAC over all the same fields.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::NONCE_LEN;

use super::derive::{KEY_BYTES, derive};
use super::gcm::{Gcm, TAG_BYTES};
use super::{MasterKey, Suite};
use crate::units::{ChainSequence, LaneIndex, SessionId, to_u64};

const HEADER_BYTES: usize = 16;
/// How much longer a sealed value is than its body.
pub const SEAL_OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// The byte in front of a record's associated data, where values have their [`SealKind`].
const RECORD_CODE: u8 = 0;

thread_local! {
    /// Where a GMAC's fields are laid side by side, so that a warm thread allocates nothing for a plain record.
    static FIELDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a sealed value is; one kind never opens as another. The number is stored only in the seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SealKind {
    /// A volume in the catalog.
    Volume = 1,
    /// A tree in the catalog.
    Tree = 2,
    /// An encryption domain in the catalog.
    Domain = 3,
    /// The last checkpoint.
    Checkpoint = 4,
    /// A whole leaf.
    Leaf = 5,
    /// Changes of a leaf, appended to it.
    LeafChange = 6,
    /// Owners of addresses.
    Owners = 7,
    /// Bits of the used or of the shared blocks.
    Bitmap = 8,
    /// A snapshot in the catalog.
    Snapshot = 9,
    /// A job in the catalog.
    Job = 10,
    /// Settings of the pool in the catalog.
    Settings = 11,
    /// A frozen epoch of a tree in the catalog.
    Point = 12,
    /// A retention policy in the catalog.
    Policy = 13,
    /// Where the scrub is, and what it found, in the catalog.
    Scrub = 14,
}

/// Why a sealed value or record does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Too short to hold a seal.
    #[error("too short to be sealed")]
    TooShort,
    /// Sealed in another session than these keys are of.
    #[error("sealed in session {found}, not {expected}")]
    OtherSession {
        /// The session of the keys.
        expected: SessionId,
        /// The session that the value names.
        found: SessionId,
    },
    /// Damaged, forged, or sealed for another place or kind.
    #[error("the seal is broken")]
    Broken,
}

/// The session that a sealed value names; nothing is verified. `None` if it is too short to be one.
#[must_use]
pub fn sealed_session(sealed: &[u8]) -> Option<SessionId> {
    if sealed.len() < SEAL_OVERHEAD_BYTES {
        return None;
    }
    sealed.first_chunk().map(|bytes| SessionId::new(u64::from_le_bytes(*bytes)))
}

/// What seals metadata in one session. Shared by all threads.
pub struct SessionKeys {
    session: SessionId,
    suite: Suite,
    values: Gcm,
    records: Gcm,
    counter: AtomicU64,
    is_past: bool,
}

impl_opaque_debug!(SessionKeys);

impl SessionKeys {
    pub(super) fn new(master: &MasterKey, suite: Suite, session: SessionId, salt: &[u8; 32]) -> Self {
        let mut fields = [0; 9];
        fields[0] = suite.code();
        fields[1..].copy_from_slice(&session.get().to_le_bytes());
        let key = |label| derive::<KEY_BYTES>(master.expose(), salt, label, &fields);
        Self {
            session,
            suite,
            values: Gcm::new(&key("rok-blk session values")),
            records: Gcm::new(&key("rok-blk session records")),
            counter: AtomicU64::new(1),
            is_past: false,
        }
    }

    pub(super) fn into_past(self) -> Self {
        Self { is_past: true, ..self }
    }

    /// Seals `body`, which opens only with the same `kind` and `associated` (the value's place: pool, table, key).
    /// The result is [`SEAL_OVERHEAD_BYTES`] longer.
    ///
    /// # Panics
    /// If the keys are of a past session, or the counter is used up.
    #[must_use]
    pub fn seal(&self, kind: SealKind, associated: &[u8], body: &[u8]) -> Vec<u8> {
        assert!(!self.is_past, "a past session seals nothing");
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        assert!(counter != u64::MAX, "the nonces of the session are used up");
        let mut sealed = Vec::with_capacity(body.len() + SEAL_OVERHEAD_BYTES);
        sealed.extend_from_slice(&self.session.get().to_le_bytes());
        sealed.extend_from_slice(&counter.to_le_bytes());
        sealed.extend_from_slice(body);
        let nonce = value_nonce(counter.to_le_bytes(), kind);
        let tag = self.seal_body(&self.values, nonce, &[&[kind as u8], associated], &mut sealed[HEADER_BYTES..]);
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// The body of a sealed value.
    ///
    /// # Errors
    /// If it is too short, names another session, or any bit, the kind or `associated` differ.
    pub fn open(&self, kind: SealKind, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let found = sealed_session(sealed).ok_or(SealError::TooShort)?;
        if found != self.session {
            return Err(SealError::OtherSession { expected: self.session, found });
        }
        let (header, rest) = sealed.split_at(HEADER_BYTES);
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SealError::TooShort)?;
        let counter = header.last_chunk().ok_or(SealError::TooShort)?;
        let mut body = body.to_vec();
        self.open_body(&self.values, value_nonce(*counter, kind), &[&[kind as u8], associated], &mut body, tag)?;
        Ok(body)
    }

    /// Seals the body of a record in place and returns its tag. A lane seals each chain sequence once.
    ///
    /// # Panics
    /// If the keys are of a past session.
    #[must_use]
    pub fn seal_record(
        &self,
        lane: LaneIndex,
        chain: ChainSequence,
        associated: &[u8],
        body: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        assert!(!self.is_past, "a past session seals nothing");
        self.seal_body(&self.records, record_nonce(lane, chain), &[&[RECORD_CODE], associated], body)
    }

    /// Opens the body of a record in place.
    ///
    /// # Errors
    /// If any bit, the lane, the chain sequence, the session or `associated` differ; `body` is then of no use.
    pub fn open_record(
        &self,
        lane: LaneIndex,
        chain: ChainSequence,
        associated: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), SealError> {
        self.open_body(&self.records, record_nonce(lane, chain), &[&[RECORD_CODE], associated], body, tag)
    }

    fn seal_body(&self, gcm: &Gcm, nonce: [u8; NONCE_LEN], associated: &[&[u8]; 2], body: &mut [u8]) -> [u8; 16] {
        gcm.note(&nonce, &[associated[0], associated[1], body]);
        with_fields(associated, |fields| match self.suite {
            Suite::XtsGmac => gcm.seal(nonce, fields, body),
            Suite::Plain => gcm.authenticate(nonce, with_body(fields, body)),
        })
    }

    fn open_body(
        &self,
        gcm: &Gcm,
        nonce: [u8; NONCE_LEN],
        associated: &[&[u8]; 2],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), SealError> {
        let is_valid = with_fields(associated, |fields| match self.suite {
            Suite::XtsGmac => gcm.open(nonce, fields, body, tag),
            Suite::Plain => gcm.open(nonce, with_body(fields, body), &mut [], tag),
        });
        if is_valid { Ok(()) } else { Err(SealError::Broken) }
    }
}

/// Lends the fields side by side.
fn with_fields<Output>(parts: &[&[u8]; 2], take: impl FnOnce(&mut Vec<u8>) -> Output) -> Output {
    FIELDS.with_borrow_mut(|fields| {
        fields.clear();
        fields.extend_from_slice(parts[0]);
        fields.extend_from_slice(parts[1]);
        take(fields)
    })
}

/// Adds a plain body. The length of what stands before it closes the fields, so that no byte can change sides.
fn with_body<'fields>(fields: &'fields mut Vec<u8>, body: &[u8]) -> &'fields [u8] {
    let len = to_u64(fields.len());
    fields.extend_from_slice(body);
    fields.extend_from_slice(&len.to_le_bytes());
    fields
}

fn value_nonce(counter: [u8; 8], kind: SealKind) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&counter);
    nonce[8] = kind as u8;
    nonce
}

fn record_nonce(lane: LaneIndex, chain: ChainSequence) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..2].copy_from_slice(&lane.get().to_le_bytes());
    nonce[2..10].copy_from_slice(&chain.get().to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITES: [Suite; 2] = [Suite::Plain, Suite::XtsGmac];
    const SESSION: SessionId = SessionId::new(7);
    const LANE: LaneIndex = LaneIndex::new(2);
    const CHAIN: ChainSequence = ChainSequence::new(9);

    fn keys(suite: Suite) -> SessionKeys {
        MasterKey::from_bytes([5; 32]).session_keys(suite, SESSION, &[6; 32])
    }

    #[test]
    fn sealed_value_opens_in_both_suites() {
        for suite in SUITES {
            let sealed = keys(suite).seal(SealKind::Leaf, b"place", b"body");

            assert_eq!(sealed.len(), b"body".len() + SEAL_OVERHEAD_BYTES);
            assert_eq!(sealed_session(&sealed), Some(SESSION));
            assert_eq!(keys(suite).open(SealKind::Leaf, b"place", &sealed), Ok(b"body".to_vec()));
        }
    }

    #[test]
    fn empty_body_and_place_are_sealed_too() {
        for suite in SUITES {
            let sealed = keys(suite).seal(SealKind::Volume, b"", b"");

            assert_eq!(keys(suite).open(SealKind::Volume, b"", &sealed), Ok(Vec::new()));
            assert_eq!(keys(suite).open(SealKind::Tree, b"", &sealed), Err(SealError::Broken));
        }
    }

    #[test]
    fn only_the_encrypting_suite_hides_the_body() {
        let body = [0x77; 64];

        let plain = keys(Suite::Plain).seal(SealKind::Volume, b"", &body);
        let hidden = keys(Suite::XtsGmac).seal(SealKind::Volume, b"", &body);

        assert!(plain.windows(64).any(|window| window == body));
        assert!(!hidden.windows(4).any(|window| window == [0x77; 4]));
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_value_is_detected() {
        for suite in SUITES {
            let sealed = keys(suite).seal(SealKind::Checkpoint, b"place", b"some body");
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(keys(suite).open(SealKind::Checkpoint, b"place", &flipped).is_err(), "{suite:?} bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncated_sealed_value_is_refused() {
        for suite in SUITES {
            let sealed = keys(suite).seal(SealKind::Owners, b"place", b"some body");
            for len in 0..sealed.len() {
                assert!(keys(suite).open(SealKind::Owners, b"place", &sealed[..len]).is_err(), "{suite:?} len {len}");
            }
            assert_eq!(sealed_session(&sealed[..SEAL_OVERHEAD_BYTES - 1]), None);
        }
    }

    #[test]
    fn other_kind_place_or_session_is_refused() {
        for suite in SUITES {
            let sealed = keys(suite).seal(SealKind::Leaf, b"place", b"body");
            let other = MasterKey::from_bytes([5; 32]).session_keys(suite, SessionId::new(8), &[6; 32]);

            assert_eq!(keys(suite).open(SealKind::LeafChange, b"place", &sealed), Err(SealError::Broken));
            assert_eq!(keys(suite).open(SealKind::Leaf, b"placf", &sealed), Err(SealError::Broken));
            assert_eq!(keys(suite).open(SealKind::Leaf, b"plac", &sealed), Err(SealError::Broken));
            assert_eq!(
                other.open(SealKind::Leaf, b"place", &sealed),
                Err(SealError::OtherSession { expected: SessionId::new(8), found: SESSION })
            );
        }
    }

    #[test]
    fn byte_moved_between_place_and_plain_body_is_detected() {
        let sealed = keys(Suite::Plain).seal(SealKind::Leaf, b"place", b"xbody");
        let mut moved = sealed[..HEADER_BYTES].to_vec();
        moved.extend_from_slice(&sealed[HEADER_BYTES + 1..]);

        assert_eq!(keys(Suite::Plain).open(SealKind::Leaf, b"placex", &moved), Err(SealError::Broken));
    }

    #[test]
    fn sessions_salts_masters_and_suites_never_share_keys() {
        let master = MasterKey::from_bytes([5; 32]);
        let others = [
            master.session_keys(Suite::XtsGmac, SESSION, &[7; 32]),
            master.session_keys(Suite::Plain, SESSION, &[6; 32]),
            MasterKey::from_bytes([9; 32]).session_keys(Suite::XtsGmac, SESSION, &[6; 32]),
            master.session_keys(Suite::XtsGmac, SessionId::new(8), &[6; 32]),
        ];
        let tag =
            |keys: &SessionKeys| (keys.values.authenticate([0; 12], b""), keys.records.authenticate([0; 12], b""));
        let own = tag(&keys(Suite::XtsGmac));

        assert_ne!(own.0, own.1);
        for other in &others {
            assert_ne!(tag(other).0, own.0);
            assert_ne!(tag(other).1, own.1);
        }
    }

    #[test]
    fn counter_never_repeats_between_threads() {
        let keys = keys(Suite::XtsGmac);
        let counters = || (0..500).map(|_| keys.seal(SealKind::Job, b"", b"")[8..16].to_vec()).collect::<Vec<_>>();

        let mut all = std::thread::scope(|scope| {
            let threads = [scope.spawn(counters), scope.spawn(counters)];
            threads.map(|thread| thread.join().expect("the thread only seals")).concat()
        });
        all.sort();
        all.dedup();

        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn record_opens_only_at_its_lane_chain_and_place() {
        for suite in SUITES {
            let keys = keys(suite);
            let mut sealed = *b"record body";
            let tag = keys.seal_record(LANE, CHAIN, b"address", &mut sealed);
            let open = |lane, chain, associated: &[u8]| {
                let mut body = sealed;
                keys.open_record(lane, chain, associated, &mut body, &tag).map(|()| body)
            };

            assert_eq!(open(LANE, CHAIN, b"address"), Ok(*b"record body"));
            assert_eq!(open(LaneIndex::new(3), CHAIN, b"address"), Err(SealError::Broken));
            assert_eq!(open(LANE, CHAIN.next(), b"address"), Err(SealError::Broken));
            assert_eq!(open(LANE, CHAIN, b"addresz"), Err(SealError::Broken));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_detected() {
        for suite in SUITES {
            let keys = keys(suite);
            let mut sealed = *b"record body";
            let tag = keys.seal_record(LANE, CHAIN, b"address", &mut sealed);
            for bit in 0..sealed.len() * 8 {
                let mut body = sealed;
                body[bit / 8] ^= 1 << (bit % 8);
                assert!(keys.open_record(LANE, CHAIN, b"address", &mut body, &tag).is_err(), "{suite:?} body {bit}");
            }
            for bit in 0..tag.len() * 8 {
                let mut flipped = tag;
                flipped[bit / 8] ^= 1 << (bit % 8);
                let mut body = sealed;
                assert!(keys.open_record(LANE, CHAIN, b"address", &mut body, &flipped).is_err(), "{suite:?} tag {bit}");
            }
        }
    }

    #[test]
    fn past_session_opens_what_it_sealed() {
        let sealed = keys(Suite::XtsGmac).seal(SealKind::Volume, b"place", b"body");
        let past = MasterKey::from_bytes([5; 32]).past_session_keys(Suite::XtsGmac, SESSION, &[6; 32]);

        assert_eq!(past.open(SealKind::Volume, b"place", &sealed), Ok(b"body".to_vec()));
    }

    #[test]
    #[should_panic(expected = "a past session seals nothing")]
    fn past_session_does_not_seal() {
        let past = MasterKey::from_bytes([5; 32]).past_session_keys(Suite::XtsGmac, SESSION, &[6; 32]);

        let _sealed = past.seal(SealKind::Volume, b"", b"");
    }
}
