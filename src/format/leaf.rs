//! Leaves of the map and changes to them: 256 entries, encoded in runs.
//!
//! A value of the table of leaves is a list of frames (a length, then a sealed body): first a whole
//! leaf or a part, then changes in the order in which they apply.

mod part;

pub use part::{Level, PART_DEPTH_MAX, Part, level_of, part_value, sealed_part};

use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16, len_u32};
use crate::format::entry::Entry;
use crate::units::{Address, LEAF_ENTRIES, to_usize};

const KIND_LEAF: u8 = 1;
const KIND_CHANGE: u8 = 3;
const RUN_FIXED_BYTES: usize = 18;

/// Changes that one value may hold behind its leaf; the next change puts the whole leaf.
pub const LEAF_CHANGES_MAX: usize = 64;

/// A set of slots of a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet([u64; 4]);

impl SlotSet {
    /// Adds a slot.
    pub const fn insert(&mut self, slot: u8) {
        self.0[(slot >> 6) as usize] |= 1 << (slot & 63);
    }

    /// Removes a slot.
    pub const fn remove(&mut self, slot: u8) {
        self.0[(slot >> 6) as usize] &= !(1 << (slot & 63));
    }

    /// Whether the slot is in the set.
    #[must_use]
    pub const fn contains(&self, slot: u8) -> bool {
        self.0[(slot >> 6) as usize] >> (slot & 63) & 1 == 1
    }

    /// Slots of the set below `slot`.
    #[must_use]
    pub fn rank(&self, slot: u8) -> usize {
        let words = &self.0[..usize::from(slot >> 6)];
        let count = words.iter().map(|bits| bits.count_ones()).sum::<u32>();
        to_usize(u64::from(count)) + self.rank_in_quarter(slot)
    }

    /// Slots of the set below `slot` in the same quarter: from 0, 64, 128 or 192 on.
    #[must_use]
    pub fn rank_in_quarter(&self, slot: u8) -> usize {
        let below = self.0[usize::from(slot >> 6)] & ((1 << (slot & 63)) - 1);
        to_usize(u64::from(below.count_ones()))
    }

    /// Whether no slot is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Number of slots.
    #[must_use]
    pub fn len(&self) -> usize {
        to_usize(self.0.iter().map(|bits| u64::from(bits.count_ones())).sum())
    }

    /// Whether all slots of the other are in it.
    #[must_use]
    pub fn has_all_of(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(bits, other)| other & !bits == 0)
    }

    /// The slots, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u8> {
        let bits = self.0;
        (0..=u8::MAX).filter(move |slot| bits[usize::from(slot >> 6)] >> (slot & 63) & 1 == 1)
    }
}

/// 256 consecutive map entries; absent ones read as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    present: SlotSet,
    entries: Vec<Entry>,
}

impl Leaf {
    /// The entry in `slot`, if the block is mapped.
    #[must_use]
    pub fn get(&self, slot: u8) -> Option<Entry> {
        self.present.contains(slot).then(|| self.entries[self.present.rank(slot)])
    }

    /// Sets or removes the entry in `slot`; returns what was there.
    pub fn set(&mut self, slot: u8, entry: Option<Entry>) -> Option<Entry> {
        let rank = self.present.rank(slot);
        match (self.present.contains(slot), entry) {
            (true, Some(entry)) => Some(std::mem::replace(&mut self.entries[rank], entry)),
            (true, None) => {
                self.present.remove(slot);
                Some(self.entries.remove(rank))
            }
            (false, Some(entry)) => {
                self.present.insert(slot);
                self.entries.insert(rank, entry);
                None
            }
            (false, None) => None,
        }
    }

    /// Mapped slots and their entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u8, Entry)> {
        self.present.iter().zip(self.entries.iter().copied())
    }

    /// Mapped slots.
    #[must_use]
    pub const fn present(&self) -> SlotSet {
        self.present
    }

    /// Number of mapped blocks.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no block is mapped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Applies a change that was encoded behind this leaf.
    pub fn apply(&mut self, change: &LeafChange) {
        for slot in change.removed.iter() {
            self.set(slot, None);
        }
        for (slot, entry) in change.entries.iter() {
            self.set(slot, Some(entry));
        }
    }

    /// Length of [`Self::encode`].
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        4 + runs_of(self).len() * RUN_FIXED_BYTES + self.entries.len() * 8
    }

    /// The body of a whole leaf, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(KIND_LEAF);
        writer.u8(0);
        encode_runs(self, &mut writer);
        writer.finish()
    }

    /// The leaf in a body that [`Self::encode`] made.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        match reader.u8()? {
            KIND_LEAF => {}
            _ => return Err(FormatError::Field("leaf kind")),
        }
        reader.reserved(1)?;
        let leaf = decode_runs(&mut reader)?;
        reader.finish()?;
        Ok(leaf)
    }
}

/// What a checkpoint changed in a leaf: removals, then new entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeafChange {
    /// Slots that became absent.
    pub removed: SlotSet,
    /// Slots that have a new entry.
    pub entries: Leaf,
}

impl LeafChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.entries.is_empty()
    }

    /// The slots that it sets or removes.
    #[must_use]
    pub fn slots(&self) -> SlotSet {
        let mut slots = self.removed;
        slots.0.iter_mut().zip(self.entries.present.0).for_each(|(bits, present)| *bits |= present);
        slots
    }

    /// Adds a change that applies behind this one.
    pub fn append(&mut self, newer: &Self) {
        for slot in newer.removed.iter() {
            self.entries.set(slot, None);
            self.removed.insert(slot);
        }
        for (slot, entry) in newer.entries.iter() {
            self.entries.set(slot, Some(entry));
        }
    }

    /// The body of a change, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(KIND_CHANGE);
        writer.u8(u8::from(!self.removed.is_empty()));
        if !self.removed.is_empty() {
            for word in self.removed.0 {
                writer.u64(word);
            }
        }
        encode_runs(&self.entries, &mut writer);
        writer.finish()
    }

    /// The change in a body that [`Self::encode`] made.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        if reader.u8()? != KIND_CHANGE {
            return Err(FormatError::Field("leaf change kind"));
        }
        let mut removed = SlotSet::default();
        match reader.u8()? {
            0 => {}
            1 => {
                for word in &mut removed.0 {
                    *word = reader.u64()?;
                }
            }
            _ => return Err(FormatError::Field("leaf change flags")),
        }
        let entries = decode_runs(&mut reader)?;
        reader.finish()?;
        Ok(Self { removed, entries })
    }
}

fn encode_runs(leaf: &Leaf, writer: &mut Writer) {
    let runs = runs_of(leaf);
    writer.u16(len_u16(runs.len()));
    for run in &runs {
        let first = leaf.entries[run.rank];
        writer.u8(run.slot);
        writer.u8(u8::try_from(run.count - 1).expect("a leaf has 256 slots"));
        writer.u64(first.place());
        writer.u64(first.sequence().get());
    }
    for entry in &leaf.entries {
        writer.u64(entry.mac());
    }
}

struct Run {
    slot: u8,
    rank: usize,
    count: usize,
}

/// Splits the entries where slot, address or sequence do not follow each other, or the flags differ.
fn runs_of(leaf: &Leaf) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut previous: Option<(u8, Entry)> = None;
    for (rank, (slot, entry)) in leaf.iter().enumerate() {
        let follows = previous.is_some_and(|(before_slot, before)| {
            slot == before_slot + 1
                && entry.place() == before.place() + 1
                && entry.sequence().get() == before.sequence().get() + 1
        });
        match runs.last_mut() {
            Some(run) if follows => run.count += 1,
            _ => runs.push(Run { slot, rank, count: 1 }),
        }
        previous = Some((slot, entry));
    }
    runs
}

fn decode_runs(reader: &mut Reader<'_>) -> Result<Leaf, FormatError> {
    let count = usize::from(reader.u16()?);
    if count > LEAF_ENTRIES {
        return Err(FormatError::Field("run count"));
    }
    let mut heads = Reader::new(reader.bytes(count * RUN_FIXED_BYTES)?);
    let mut leaf = Leaf::default();
    let mut next_slot = 0;
    for _ in 0..count {
        let slot = usize::from(heads.u8()?);
        let len = usize::from(heads.u8()?) + 1;
        let (place, sequence) = (heads.u64()?, heads.u64()?);
        if slot < next_slot || slot + len > LEAF_ENTRIES {
            return Err(FormatError::Field("run slots"));
        }
        next_slot = slot + len;
        for step in 0..len {
            let step_u64 = crate::units::to_u64(step);
            let place = place.checked_add(step_u64).ok_or(FormatError::Field("run address"))?;
            let sequence = sequence.checked_add(step_u64).ok_or(FormatError::Field("run sequence"))?;
            let entry = Entry::from_parts(place, sequence, reader.u64()?)?;
            let slot = u8::try_from(slot + step).map_err(|_| FormatError::Field("run slots"))?;
            leaf.present.insert(slot);
            leaf.entries.push(entry);
        }
    }
    Ok(leaf)
}

/// Appends `sealed` as a frame to a value.
pub fn push_frame(value: &mut Vec<u8>, sealed: &[u8]) {
    value.extend_from_slice(&len_u32(sealed.len()).to_le_bytes());
    value.extend_from_slice(sealed);
}

/// The frames of a value, in order, and the level of its leaf. Of a part the first is as [`sealed_part`] takes it.
///
/// # Errors
/// [`FormatError::TooShort`] if the last one is cut, [`FormatError::Field`] if there is none or too many, or the level is none.
pub fn frames(value: &[u8]) -> Result<(Level, Vec<&[u8]>), FormatError> {
    let mut reader = Reader::new(value);
    let mut frames = Vec::new();
    let level = level_of(value);
    if level.depth > PART_DEPTH_MAX || level.depth == 0 && level.restarts > 0 {
        return Err(FormatError::Field("level of a leaf"));
    }
    if level.depth > 0 {
        let len = reader.u16()?;
        reader.bytes(level.bytes().len())?;
        frames.push(reader.bytes(usize::from(len))?);
    }
    while reader.remaining() > 0 {
        let len = reader.u32()?;
        frames.push(reader.bytes(to_usize(u64::from(len)))?);
    }
    if frames.is_empty() || frames.len() > LEAF_CHANGES_MAX + 1 {
        return Err(FormatError::Field("frame count"));
    }
    Ok((level, frames))
}

/// The addresses that a leaf maps, for the bitmap of used blocks.
pub fn addresses(leaf: &Leaf) -> impl Iterator<Item = Address> {
    leaf.entries.iter().map(|entry| entry.address())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{DeviceIndex, KeyGeneration, Sequence};
    use proptest::prelude::*;

    fn entry(block: u64, sequence: u64) -> Entry {
        let address = Address::new(DeviceIndex::new(0), block);
        Entry::new(address, KeyGeneration::new(0), Sequence::new(sequence), block ^ sequence)
    }

    #[test]
    fn only_a_part_has_a_level() {
        let value = |level: [u8; 2]| [&[0, 0, level[0], level[1]][..], &[0; 1 << 17]].concat();
        let refused = Err(FormatError::Field("level of a leaf"));
        assert_eq!(frames(&value([1, 0])).map(|_| ()), refused, "a whole leaf is shorter");
        assert_eq!(frames(&value([0, PART_DEPTH_MAX + 1])).map(|_| ()), refused);
        let mut whole = Vec::new();
        push_frame(&mut whole, &[7; 300]);
        push_frame(&mut whole, &[8; 2]);
        assert_eq!(frames(&whole), Ok((Level::WHOLE, vec![&[7; 300][..], &[8; 2][..]])));
    }

    proptest! {
        #[test]
        fn any_leaf_survives_its_encoding(slots in prop::collection::btree_map(any::<u8>(), (1_u64..1 << 39, 1_u64..1 << 60), 0..256)) {
            let mut leaf = Leaf::default();
            for (slot, (block, sequence)) in slots {
                leaf.set(slot, Some(entry(block, sequence)));
            }
            prop_assert_eq!(Leaf::decode(&leaf.encode()), Ok(leaf));
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..600)) {
            drop(Leaf::decode(&body));
            drop(LeafChange::decode(&body));
            prop_assert!(frames(&body).map_or(0, |(_, frames)| frames.len()) <= LEAF_CHANGES_MAX + 1);
        }
    }

    #[test]
    fn a_sequential_leaf_is_one_run() {
        let mut leaf = Leaf::default();
        for slot in 0..=u8::MAX {
            leaf.set(slot, Some(entry(1000 + u64::from(slot), 50 + u64::from(slot))));
        }
        assert_eq!(leaf.encode().len(), 4 + RUN_FIXED_BYTES + 256 * 8);
        assert_eq!(Leaf::decode(&leaf.encode()), Ok(leaf));
    }

    #[test]
    fn changes_one_by_one_and_appended_to_each_other_give_the_same_leaf() {
        let change = |removed: &[u8], set: &[(u8, u64)]| {
            let mut change = LeafChange::default();
            removed.iter().for_each(|slot| change.removed.insert(*slot));
            for (slot, block) in set {
                change.entries.set(*slot, Some(entry(*block, 1)));
            }
            change
        };
        let mut leaf = Leaf::default();
        for slot in 0..9 {
            leaf.set(slot, Some(entry(100 + u64::from(slot), 1)));
        }
        let changes = [change(&[1, 2], &[(3, 200)]), change(&[3], &[(1, 201), (9, 202)]), change(&[9, 4], &[(3, 203)])];
        let (mut one_by_one, mut sum) = (leaf.clone(), LeafChange::default());
        for change in &changes {
            one_by_one.apply(change);
            sum.append(change);
        }
        leaf.apply(&sum);
        assert_eq!(leaf, one_by_one);
        assert_eq!(sum.slots().iter().collect::<Vec<_>>(), [1, 2, 3, 4, 9]);
        assert_eq!(leaf.encoded_len(), leaf.encode().len());
    }

    #[test]
    fn a_change_removes_before_it_sets() {
        let mut leaf = Leaf::default();
        leaf.set(3, Some(entry(10, 1)));
        leaf.set(4, Some(entry(11, 2)));
        let mut change = LeafChange::default();
        change.removed.insert(3);
        change.entries.set(5, Some(entry(12, 3)));
        leaf.apply(&LeafChange::decode(&change.encode()).expect("own encoding"));
        assert_eq!(leaf.iter().map(|(slot, _)| slot).collect::<Vec<_>>(), [4, 5]);
    }
}
