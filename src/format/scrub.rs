//! Where the scrub of a pool is, and what it has found.

use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16};
use crate::units::{BlockIndex, Epoch, LEAF_ENTRIES_U64, LeafIndex, TreeId, to_u64};
use uuid::Uuid;

/// Damaged ranges that are listed; further ones are counted.
pub const DAMAGES_MAX: usize = 1000;
/// Volumes that are named for a damaged range.
pub const READERS_MAX: usize = 8;
/// Snapshots that are named of each of them.
pub const READER_SNAPSHOTS_MAX: usize = 8;

/// The first stored leaf that a scrub has not looked at: they come by tree and leaf, the oldest epoch first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrubPlace {
    /// Its tree.
    pub tree: TreeId,
    /// Which leaf.
    pub leaf: LeafIndex,
    /// The epoch that put it, or an older one that puts none.
    pub epoch: Epoch,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamageKind {
    /// It is not what was written: its mac does not match.
    Content,
    /// The device does not give it.
    Unreadable,
    /// The leaf that maps it cannot be read.
    Map,
}

impl DamageKind {
    const fn code(self) -> u8 {
        match self {
            Self::Content => 0,
            Self::Unreadable => 1,
            Self::Map => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Content),
            1 => Some(Self::Unreadable),
            2 => Some(Self::Map),
            _ => None,
        }
    }
}

/// A volume whose head or snapshots have a damaged range, as of when it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageReader {
    /// The volume.
    pub volume: Uuid,
    /// Whether it has the range now.
    pub is_head: bool,
    /// How many of its snapshots have it.
    pub snapshot_count: u64,
    /// Their numbers, in order, those of the first [`READER_SNAPSHOTS_MAX`].
    pub snapshots: Vec<u64>,
}

/// Consecutive blocks of one leaf that are damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The tree in which they were found.
    pub tree: TreeId,
    /// The first block.
    pub first: BlockIndex,
    /// How many: 1 to 256.
    pub count: u16,
    /// What is wrong with them.
    pub kind: DamageKind,
    /// Whether a pass before the present one found them: it has not come there yet.
    pub is_of_before: bool,
    /// Who reads errors there, by volume: the first [`READERS_MAX`].
    pub readers: Vec<DamageReader>,
}

/// The scrub of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubRecord {
    /// Where the pass under way goes on; `None` if none is.
    pub place: Option<ScrubPlace>,
    /// Passes that came to their end.
    pub pass_count: u64,
    /// When the pass under way began, else the last one, in seconds since 1970; 0 if there was none.
    pub began_at: u64,
    /// When the last pass that came to its end did, in seconds since 1970; 0 if none has.
    pub ended_at: u64,
    /// Blocks that the pass has read.
    pub read_blocks: u64,
    /// The pass pauses when it has read so many; 0 is at its end.
    pub pause_blocks: u64,
    /// Bytes that it reads in a second at most.
    pub rate_bytes: u64,
    /// Damaged blocks that it found beyond those listed.
    pub unlisted_blocks: u64,
    /// Damaged ranges by tree and block: those that this pass found, and from its place on those of the one before.
    pub damages: Vec<Damage>,
}

impl ScrubRecord {
    /// The body, before it is sealed.
    ///
    /// # Panics
    /// If there are more damaged ranges, readers or snapshots than are to be listed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.damages.len() <= DAMAGES_MAX, "the list is bounded");
        let mut writer = Writer::new();
        writer.u8(u8::from(self.place.is_some()));
        writer.zeros(7);
        let place = self.place.unwrap_or_default();
        let [tree, leaf, epoch] = [place.tree.get(), place.leaf.get(), place.epoch.get()];
        let numbers = [self.pass_count, self.began_at, self.ended_at, self.read_blocks, self.pause_blocks];
        let more = [self.rate_bytes, self.unlisted_blocks];
        [tree, leaf, epoch].into_iter().chain(numbers).chain(more).for_each(|number| writer.u64(number));
        writer.list(&self.damages, |writer, damage| damage.encode(writer));
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let is_under_way = flag(&mut reader, "whether a pass is under way")?;
        reader.reserved(7)?;
        let place = ScrubPlace {
            tree: TreeId::new(reader.u64()?),
            leaf: LeafIndex::new(reader.u64()?),
            epoch: Epoch::new(reader.u64()?),
        };
        if !is_under_way && place != ScrubPlace::default() {
            return Err(FormatError::Field("place of no pass"));
        }
        let record = Self {
            place: is_under_way.then_some(place),
            pass_count: reader.u64()?,
            began_at: reader.u64()?,
            ended_at: reader.u64()?,
            read_blocks: reader.u64()?,
            pause_blocks: reader.u64()?,
            rate_bytes: reader.u64()?,
            unlisted_blocks: reader.u64()?,
            damages: reader.list(Damage::decode)?,
        };
        reader.finish()?;
        if record.damages.len() > DAMAGES_MAX {
            return Err(FormatError::Field("number of damaged ranges"));
        }
        Ok(record)
    }
}

impl Damage {
    fn encode(&self, writer: &mut Writer) {
        assert!(self.readers.len() <= READERS_MAX, "the list is bounded");
        writer.u64(self.tree.get());
        writer.u64(self.first.get());
        writer.u16(self.count);
        writer.u8(self.kind.code());
        writer.u8(u8::from(self.is_of_before));
        writer.zeros(4);
        writer.list(&self.readers, |writer, reader| reader.encode(writer));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (tree, first, count) = (TreeId::new(reader.u64()?), BlockIndex::new(reader.u64()?), reader.u16()?);
        let kind = DamageKind::from_code(reader.u8()?).ok_or(FormatError::Field("kind of damage"))?;
        let is_of_before = flag(reader, "which pass found it")?;
        reader.reserved(4)?;
        if count == 0 || u64::from(first.slot()) + u64::from(count) > LEAF_ENTRIES_U64 {
            return Err(FormatError::Field("damaged blocks"));
        }
        let readers = reader.list(DamageReader::decode)?;
        if readers.len() > READERS_MAX {
            return Err(FormatError::Field("number of readers"));
        }
        Ok(Self { tree, first, count, kind, is_of_before, readers })
    }
}

impl DamageReader {
    fn encode(&self, writer: &mut Writer) {
        assert!(self.snapshots.len() <= READER_SNAPSHOTS_MAX, "the list is bounded");
        writer.bytes(self.volume.as_bytes());
        writer.u8(u8::from(self.is_head));
        writer.zeros(5);
        writer.u16(len_u16(self.snapshots.len()));
        writer.u64(self.snapshot_count);
        self.snapshots.iter().for_each(|number| writer.u64(*number));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let volume = Uuid::from_bytes(reader.array()?);
        let is_head = flag(reader, "whether a head is damaged")?;
        reader.reserved(5)?;
        let (listed, snapshot_count) = (usize::from(reader.u16()?), reader.u64()?);
        if listed > READER_SNAPSHOTS_MAX || to_u64(listed) > snapshot_count {
            return Err(FormatError::Field("number of snapshots"));
        }
        let snapshots = (0..listed).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        Ok(Self { volume, is_head, snapshot_count, snapshots })
    }
}

fn flag(reader: &mut Reader<'_>, name: &'static str) -> Result<bool, FormatError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(FormatError::Field(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ScrubRecord {
        let reader = DamageReader { volume: Uuid::from_u128(7), is_head: true, snapshot_count: 3, snapshots: vec![2] };
        let damage = Damage {
            tree: TreeId::new(1),
            first: BlockIndex::new(511),
            count: 1,
            kind: DamageKind::Unreadable,
            is_of_before: true,
            readers: vec![reader],
        };
        let place = ScrubPlace { tree: TreeId::new(1), leaf: LeafIndex::new(2), epoch: Epoch::new(3) };
        ScrubRecord { place: Some(place), rate_bytes: 1 << 20, damages: vec![damage], ..ScrubRecord::default() }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        for record in [ScrubRecord::default(), record(), ScrubRecord { place: None, ..record() }] {
            assert_eq!(ScrubRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn no_more_readers_are_taken_than_are_listed() {
        let reader = record().damages[0].readers[0].clone();
        let mut full = record();
        full.damages[0].readers = vec![reader; READERS_MAX];
        let body = full.encode();
        assert_eq!(ScrubRecord::decode(&body), Ok(full));

        // They come last, behind their number.
        let size = (body.len() - record().encode().len()) / (READERS_MAX - 1);
        let mut one_more = [&body[..], &body[body.len() - size..]].concat();
        let at = 8 + 10 * 8 + 2 + 24;
        assert_eq!(usize::from(one_more[at]), READERS_MAX);
        one_more[at] += 1;
        assert_eq!(ScrubRecord::decode(&one_more), Err(FormatError::Field("number of readers")));
    }

    #[test]
    fn every_cut_or_foreign_body_is_refused() {
        let body = record().encode();
        for len in 0..body.len() {
            ScrubRecord::decode(&body[..len]).expect_err("cut short");
        }
        ScrubRecord::decode(&[&body[..], &[0]].concat()).expect_err("too long");
        let front = 8 + 10 * 8;
        let fields = [
            (0, "whether a pass is under way"),
            (front + 2 + 16, "damaged blocks"),
            (front + 2 + 18, "kind of damage"),
            (front + 2 + 19, "which pass found it"),
            (front + 2 + 24, "number of readers"),
            (front + 2 + 26 + 16, "whether a head is damaged"),
            (front + 2 + 26 + 22, "number of snapshots"),
        ];
        for (offset, name) in fields {
            let mut body = body.clone();
            body[offset] = 9;
            let refused = ScrubRecord::decode(&body).expect_err("out of range");
            assert!(refused == FormatError::Field(name) || refused == FormatError::TooShort, "{name}: {refused}");
        }
        let mut body = body;
        body[0] = 0;
        assert_eq!(ScrubRecord::decode(&body), Err(FormatError::Field("place of no pass")));
    }
}
