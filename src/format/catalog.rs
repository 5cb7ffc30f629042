//! Values of the catalog: volumes, trees, domains and the checkpoint. All are sealed, with their key as
//! associated data, so that names do not appear in clear and no value passes for another.

use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16};
use crate::units::{
    Address, ChainSequence, CheckpointId, DomainId, Epoch, KeyGeneration, LaneIndex, LeafIndex, Sequence, SessionId,
    TreeId,
};
use uuid::Uuid;

/// Longest name of a volume in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Labels of a volume.
pub const LABELS_MAX: usize = 256;
/// Lanes of a pool.
pub const LANES_MAX: usize = 64;

/// What a write to a volume does that finds no space in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// It fails with "no space".
    #[default]
    Error,
    /// It waits until there is space.
    Pause,
}

impl OnFull {
    const fn code(self) -> u8 {
        match self {
            Self::Error => 0,
            Self::Pause => 1,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Error),
            1 => Some(Self::Pause),
            _ => None,
        }
    }
}

/// Until when a volume or a snapshot is there. Seconds since 1970; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// When it goes to the trash by itself.
    pub expires_at: u64,
    /// When it was put into the trash.
    pub trashed_at: u64,
    /// When it leaves the trash for good.
    pub delete_at: u64,
}

impl Lifetime {
    pub(super) fn encode(self, writer: &mut Writer) {
        writer.u64(self.expires_at);
        writer.u64(self.trashed_at);
        writer.u64(self.delete_at);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { expires_at: reader.u64()?, trashed_at: reader.u64()?, delete_at: reader.u64()? })
    }

    /// Whether it is in the trash.
    #[must_use]
    pub const fn is_trashed(self) -> bool {
        self.trashed_at != 0
    }
}

pub(super) fn encode_labels(labels: &[(String, String)], writer: &mut Writer) {
    writer.list(labels, |writer, (key, value)| {
        writer.text(key);
        writer.text(value);
    });
}

pub(super) fn decode_labels(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, FormatError> {
    reader.list(|reader| Ok((reader.text("label key")?, reader.text("label value")?)))
}

/// A writable virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its id, for its whole life.
    pub id: Uuid,
    /// Its name, which may change.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// 512 or 4096; fixed for its life.
    pub sector_size: u32,
    /// The tree whose newest epoch is the head.
    pub tree: TreeId,
    /// Seconds since 1970 when it was created.
    pub created_at: u64,
    /// What its writes do that find no space.
    pub on_full: OnFull,
    /// Number of its next snapshot; those below were used.
    pub next_snapshot: u64,
    /// The snapshot that it began as: its volume's id and its number. It may be gone.
    pub origin: Option<(Uuid, u64)>,
    /// Until when it is there.
    pub lifetime: Lifetime,
    /// What the user noted, by key.
    pub labels: Vec<(String, String)>,
}

impl VolumeRecord {
    /// A volume with sectors of 512 bytes and nothing special, which has no tree yet.
    #[must_use]
    pub fn new(id: Uuid, name: &str, size_bytes: u64) -> Self {
        Self {
            id,
            name: name.to_owned(),
            size_bytes,
            sector_size: 512,
            tree: TreeId::new(0),
            created_at: 0,
            on_full: OnFull::Error,
            next_snapshot: 1,
            origin: None,
            lifetime: Lifetime::default(),
            labels: Vec::new(),
        }
    }

    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(self.id.as_bytes());
        writer.u64(self.size_bytes);
        writer.u64(self.tree.get());
        writer.u64(self.created_at);
        writer.u32(self.sector_size);
        writer.u16(len_u16(self.name.len()));
        writer.u8(self.on_full.code());
        writer.zeros(1);
        writer.bytes(self.name.as_bytes());
        writer.u64(self.next_snapshot);
        let (origin, number) = self.origin.unwrap_or_default();
        writer.bytes(origin.as_bytes());
        writer.u64(number);
        self.lifetime.encode(&mut writer);
        encode_labels(&self.labels, &mut writer);
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let id = Uuid::from_bytes(reader.array()?);
        let (size_bytes, tree, created_at) = (reader.u64()?, TreeId::new(reader.u64()?), reader.u64()?);
        let sector_size = reader.u32()?;
        let name_len = usize::from(reader.u16()?);
        let on_full = OnFull::from_code(reader.u8()?).ok_or(FormatError::Field("what writes do without space"))?;
        reader.reserved(1)?;
        let name = std::str::from_utf8(reader.bytes(name_len)?).map_err(|_| FormatError::Field("volume name"))?;
        let name = name.to_owned();
        let next_snapshot = reader.u64()?;
        let origin = (Uuid::from_bytes(reader.array()?), reader.u64()?);
        let origin = (origin.1 != 0).then_some(origin);
        let lifetime = Lifetime::decode(&mut reader)?;
        let labels = decode_labels(&mut reader)?;
        reader.finish()?;
        if !matches!(sector_size, 512 | 4096) {
            return Err(FormatError::Field("sector size"));
        }
        if next_snapshot == 0 {
            return Err(FormatError::Field("number of the next snapshot"));
        }
        Ok(Self {
            id,
            name,
            size_bytes,
            sector_size,
            tree,
            created_at,
            on_full,
            next_snapshot,
            origin,
            lifetime,
            labels,
        })
    }
}

/// Whether a tree is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeState {
    /// A volume or a snapshot needs it.
    Living,
    /// Its leaves from the cursor on are still to be deleted.
    Deleting(LeafIndex),
}

/// A block map with all its epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRecord {
    /// Its number.
    pub id: TreeId,
    /// The newest epoch: the head writes into it.
    pub epoch: Epoch,
    /// Answers where the tree has no leaf.
    pub parent: Option<(TreeId, Epoch)>,
    /// Whose key encrypts its blocks.
    pub domain: DomainId,
    /// Whether it is in use.
    pub state: TreeState,
    /// Of a living tree: leaves before this one are its own, wherever its parents have them. Else 0.
    pub own_before: LeafIndex,
    /// What the stored leaves of the newest epoch's interval hold.
    pub held: HeldBlocks,
}

/// What the stored leaves of an interval of epochs hold: of those behind the point before it, up to and with its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldBlocks {
    /// Blocks that were written in the interval, and that nothing before it maps.
    pub own_count: u64,
    /// Blocks that are mapped at its end, less those that were before it.
    pub mapped_delta: i64,
}

impl HeldBlocks {
    pub(super) fn encode(self, writer: &mut Writer) {
        writer.u64(self.own_count);
        writer.u64(self.mapped_delta.cast_unsigned());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { own_count: reader.u64()?, mapped_delta: reader.u64()?.cast_signed() })
    }

    /// Both together, where one interval takes in the other.
    ///
    /// # Panics
    /// If they count more blocks than there are.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let own_count = self.own_count.checked_add(other.own_count);
        let mapped_delta = self.mapped_delta.checked_add(other.mapped_delta);
        let message = "a pool has fewer than 2^48 blocks";
        Self { own_count: own_count.expect(message), mapped_delta: mapped_delta.expect(message) }
    }
}

impl TreeRecord {
    /// [`Self::own_before`] of a tree that is whole.
    pub const WHOLE: LeafIndex = LeafIndex::new(u64::MAX);

    /// Whether it has all leaves that its parents have: what it is without is empty.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        matches!(self.state, TreeState::Living) && self.own_before.get() == Self::WHOLE.get()
    }

    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.id.get());
        writer.u64(self.epoch.get());
        let (parent, parent_epoch) = self.parent.map_or((0, 0), |(tree, epoch)| (tree.get(), epoch.get()));
        writer.u64(parent);
        writer.u64(parent_epoch);
        writer.u64(self.domain.get());
        let (state, cursor) = match self.state {
            TreeState::Living => (0, self.own_before.get()),
            TreeState::Deleting(cursor) => (1, cursor.get()),
        };
        writer.u64(cursor);
        self.held.encode(&mut writer);
        writer.u8(state);
        writer.zeros(7);
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let (id, epoch) = (TreeId::new(reader.u64()?), Epoch::new(reader.u64()?));
        let (parent, parent_epoch) = (reader.u64()?, reader.u64()?);
        let domain = DomainId::new(reader.u64()?);
        let cursor = LeafIndex::new(reader.u64()?);
        let held = HeldBlocks::decode(&mut reader)?;
        let (state, own_before) = match reader.u8()? {
            0 => (TreeState::Living, cursor),
            1 => (TreeState::Deleting(cursor), LeafIndex::new(0)),
            _ => return Err(FormatError::Field("tree state")),
        };
        reader.reserved(7)?;
        reader.finish()?;
        let parent = (parent != 0).then(|| (TreeId::new(parent), Epoch::new(parent_epoch)));
        Ok(Self { id, epoch, parent, domain, state, own_before, held })
    }
}

/// An encryption domain: its keys, wrapped by the master key, the newest last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRecord {
    /// Its number; 0 is the pool's own.
    pub id: DomainId,
    /// Number of the shred key under which its keys are wrapped too; 0 for the pool's own.
    pub shred_key: u32,
    /// Generation and wrapped key.
    pub keys: Vec<(KeyGeneration, [u8; 60])>,
}

impl DomainRecord {
    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.id.get());
        writer.u16(len_u16(self.keys.len()));
        writer.zeros(2);
        writer.u32(self.shred_key);
        for (generation, wrapped) in &self.keys {
            writer.u8(generation.get());
            writer.zeros(3);
            writer.bytes(wrapped);
        }
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let id = DomainId::new(reader.u64()?);
        let count = reader.u16()?;
        reader.reserved(2)?;
        let shred_key = reader.u32()?;
        if count == 0 || count > 256 {
            return Err(FormatError::Field("domain key count"));
        }
        if id.is_pool() != (shred_key == 0) {
            return Err(FormatError::Field("shred key of the domain"));
        }
        let mut keys = Vec::new();
        for _ in 0..count {
            let generation = KeyGeneration::new(reader.u8()?);
            reader.reserved(3)?;
            keys.push((generation, reader.array()?));
        }
        reader.finish()?;
        Ok(Self { id, shred_key, keys })
    }
}

/// Where recovery starts on one lane: the first record that the checkpoint does not contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStart {
    /// The session that writes the chain.
    pub session: SessionId,
    /// The lane.
    pub lane: LaneIndex,
    /// The record's number.
    pub chain: ChainSequence,
    /// The record's address, reserved also while nothing is written there.
    pub address: Address,
}

/// What the last batch of a checkpoint stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Its number, also in the headers of the devices.
    pub id: CheckpointId,
    /// Above every tree that was ever made.
    pub next_tree: TreeId,
    /// Above every sequence in the stored leaves.
    pub next_sequence: Sequence,
    /// One chain for each lane.
    pub chains: Vec<ChainStart>,
}

impl CheckpointRecord {
    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.id.get());
        writer.u64(self.next_tree.get());
        writer.u64(self.next_sequence.get());
        writer.u16(len_u16(self.chains.len()));
        writer.zeros(6);
        for chain in &self.chains {
            writer.u64(chain.session.get());
            writer.u64(chain.chain.get());
            writer.u64(chain.address.bits());
            writer.u16(chain.lane.get());
            writer.zeros(6);
        }
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let id = CheckpointId::new(reader.u64()?);
        let (next_tree, next_sequence) = (TreeId::new(reader.u64()?), Sequence::new(reader.u64()?));
        let count = usize::from(reader.u16()?);
        reader.reserved(6)?;
        if count > LANES_MAX {
            return Err(FormatError::Field("chain count"));
        }
        let mut chains = Vec::new();
        for _ in 0..count {
            let (session, chain) = (SessionId::new(reader.u64()?), ChainSequence::new(reader.u64()?));
            let address = Address::from_bits(reader.u64()?).ok_or(FormatError::Field("chain address"))?;
            let lane = LaneIndex::new(reader.u16()?);
            reader.reserved(6)?;
            chains.push(ChainStart { session, lane, chain, address });
        }
        reader.finish()?;
        Ok(Self { id, next_tree, next_sequence, chains })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DeviceIndex;

    #[test]
    fn domain_has_as_many_keys_as_there_are_generations() {
        let domain = |count: u16| DomainRecord {
            id: DomainId::new(7),
            shred_key: 1,
            keys: (0..count).map(|generation| (KeyGeneration::new(generation.to_le_bytes()[0]), [3; 60])).collect(),
        };
        for count in [1, 255, 256] {
            assert_eq!(DomainRecord::decode(&domain(count).encode()), Ok(domain(count)), "{count} keys");
        }
        for count in [0, 257, 1000] {
            let refused = DomainRecord::decode(&domain(count).encode());
            assert_eq!(refused, Err(FormatError::Field("domain key count")), "{count} keys");
        }
    }

    #[test]
    fn checkpoint_has_as_many_chains_as_there_may_be_lanes() {
        let chain = ChainStart {
            session: SessionId::new(1),
            lane: LaneIndex::new(2),
            chain: ChainSequence::new(3),
            address: Address::new(DeviceIndex::new(0), 4),
        };
        let record = |count| CheckpointRecord {
            id: CheckpointId::new(5),
            next_tree: TreeId::new(6),
            next_sequence: Sequence::new(7),
            chains: vec![chain; count],
        };
        for count in [0, 1, LANES_MAX] {
            assert_eq!(CheckpointRecord::decode(&record(count).encode()), Ok(record(count)), "{count} chains");
        }
        for count in [LANES_MAX + 1, 2 * LANES_MAX] {
            let refused = CheckpointRecord::decode(&record(count).encode());
            assert_eq!(refused, Err(FormatError::Field("chain count")), "{count} chains");
        }
    }
}
