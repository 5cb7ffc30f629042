//! Frozen epochs of trees, and the snapshots that name them. Both are values of the catalog.

use crate::format::FormatError;
use crate::format::catalog::{HeldBlocks, Lifetime, decode_labels, encode_labels};
use crate::format::codec::{Reader, Writer};
use crate::units::{Epoch, LeafIndex, Sequence, TreeId};
use uuid::Uuid;

/// Longest message, creator, tag, label or reason in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Tags, labels or holds of one snapshot.
pub const ITEMS_MAX: usize = 256;
/// Bytes of the files kept with one snapshot.
pub const FILES_BYTES_MAX: usize = 1 << 20;

/// By whose leaves a merge goes: the fewer of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeSide {
    /// Those of the point's own interval.
    Point,
    /// Those of its follower's.
    Follower,
}

/// How far the merge of a point into its follower has come: behind it the point counts as gone, ahead as living.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Whose leaves the cursor goes over, in the order of the index.
    pub side: MergeSide,
    /// Epoch and leaf of the first that is still to be done.
    pub cursor: (Epoch, LeafIndex),
}

/// A frozen epoch of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// The tree.
    pub tree: TreeId,
    /// The last epoch that it sees.
    pub epoch: Epoch,
    /// Above the sequences of all blocks that it maps, and not above those that the tree's later epochs wrote.
    pub sequence: Sequence,
    /// What the stored leaves of its interval hold.
    pub held: HeldBlocks,
    /// Its merge, once that has begun.
    pub merge: Option<Merge>,
}

impl PointRecord {
    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.tree.get());
        writer.u64(self.epoch.get());
        writer.u64(self.sequence.get());
        self.held.encode(&mut writer);
        let (code, (epoch, leaf)) = match self.merge {
            None => (0, (Epoch::new(0), LeafIndex::new(0))),
            Some(Merge { side: MergeSide::Point, cursor }) => (1, cursor),
            Some(Merge { side: MergeSide::Follower, cursor }) => (2, cursor),
        };
        writer.u64(epoch.get());
        writer.u64(leaf.get());
        writer.u8(code);
        writer.zeros(7);
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let (tree, epoch) = (TreeId::new(reader.u64()?), Epoch::new(reader.u64()?));
        let sequence = Sequence::new(reader.u64()?);
        let held = HeldBlocks::decode(&mut reader)?;
        let cursor = (Epoch::new(reader.u64()?), LeafIndex::new(reader.u64()?));
        let merge = match reader.u8()? {
            0 => None,
            1 => Some(Merge { side: MergeSide::Point, cursor }),
            2 => Some(Merge { side: MergeSide::Follower, cursor }),
            _ => return Err(FormatError::Field("merge of a point")),
        };
        reader.reserved(7)?;
        reader.finish()?;
        Ok(Self { tree, epoch, sequence, held, merge })
    }
}

/// Why a snapshot must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The reason, which is also its name.
    pub reason: String,
    /// Seconds since 1970 until which it holds; 0 is for ever.
    pub until: u64,
}

/// What the user says of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Who made it: user@host.
    pub creator: String,
    /// Why.
    pub message: String,
    /// Other names for it, unique in its volume.
    pub tags: Vec<String>,
    /// What the user noted, by key.
    pub labels: Vec<(String, String)>,
    /// What keeps it.
    pub holds: Vec<Hold>,
    /// Small files kept with it.
    pub files: Vec<(String, Vec<u8>)>,
}

/// An immutable point in time of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: Uuid,
    /// Its volume.
    pub volume: Uuid,
    /// Its number in the volume, from 1, never used again.
    pub number: u64,
    /// The frozen epoch.
    pub point: (TreeId, Epoch),
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// The time that its content is of, in milliseconds since 1970.
    pub time_ms: i64,
    /// Until when it is there.
    pub lifetime: Lifetime,
    /// What the user says of it.
    pub annotations: Annotations,
}

impl SnapshotRecord {
    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(self.id.as_bytes());
        writer.bytes(self.volume.as_bytes());
        writer.u64(self.number);
        writer.u64(self.point.0.get());
        writer.u64(self.point.1.get());
        writer.u64(self.size_bytes);
        writer.u64(self.created_at_ms.cast_unsigned());
        writer.u64(self.time_ms.cast_unsigned());
        self.lifetime.encode(&mut writer);
        let Annotations { creator, message, tags, labels, holds, files } = &self.annotations;
        writer.text(creator);
        writer.text(message);
        writer.list(tags, |writer, tag| writer.text(tag));
        encode_labels(labels, &mut writer);
        writer.list(holds, |writer, hold| {
            writer.text(&hold.reason);
            writer.u64(hold.until);
        });
        writer.list(files, |writer, (name, bytes)| {
            writer.text(name);
            writer.u32(crate::format::codec::len_u32(bytes.len()));
            writer.bytes(bytes);
        });
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let (id, volume) = (Uuid::from_bytes(reader.array()?), Uuid::from_bytes(reader.array()?));
        let number = reader.u64()?;
        let point = (TreeId::new(reader.u64()?), Epoch::new(reader.u64()?));
        let size_bytes = reader.u64()?;
        let (created_at_ms, time_ms) = (reader.u64()?.cast_signed(), reader.u64()?.cast_signed());
        let lifetime = Lifetime::decode(&mut reader)?;
        let annotations = Annotations {
            creator: reader.text("creator")?,
            message: reader.text("message")?,
            tags: reader.list(|reader| reader.text("tag"))?,
            labels: decode_labels(&mut reader)?,
            holds: reader.list(|reader| Ok(Hold { reason: reader.text("hold")?, until: reader.u64()? }))?,
            files: reader.list(|reader| {
                let name = reader.text("file name")?;
                let len = crate::units::to_usize(u64::from(reader.u32()?));
                Ok((name, reader.bytes(len)?.to_vec()))
            })?,
        };
        reader.finish()?;
        if number == 0 {
            return Err(FormatError::Field("snapshot number"));
        }
        Ok(Self { id, volume, number, point, size_bytes, created_at_ms, time_ms, lifetime, annotations })
    }
}
