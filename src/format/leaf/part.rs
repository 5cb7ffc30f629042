//! Parts: what differs between a leaf and an older one of its tree.
//!
//! A part names the leaf that it builds on and holds the slots that changed since. Parts are many and hold few entries, so their
//! numbers have no more bytes than they need. How leaves of a tree build on each other is told by their [`Level`]s.

use super::{Leaf, LeafChange, SlotSet, runs_of};
use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16};
use crate::format::entry::Entry;
use crate::units::{Epoch, LEAF_ENTRIES, to_u64, to_usize};

const KIND_PART: u8 = 2;
/// How removed slots are told, in the lowest bits of the head.
const HAS_REMOVED_BITS: u64 = 1;
const HAS_REMOVED_LIST: u64 = 2;
const REMOVED_FORM_BITS: u32 = 2;
/// Removed slots that are listed, a byte each; more of them are 256 bits.
const LISTED_SLOTS_MAX: usize = 31;
/// Bits of a place that are the block on its device.
const BLOCK_BITS: u32 = 40;
/// Bytes of a seal in front of its body: session and counter.
const SEAL_ID_BYTES: usize = 16;

/// Parts that may lie over a whole leaf.
pub const PART_DEPTH_MAX: u8 = 8;

/// Where a leaf stands among those of its tree. It builds on the next older one with a smaller depth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Parts that are applied to a whole leaf to get this one, at most [`PART_DEPTH_MAX`]; 0 is a whole leaf.
    pub depth: u8,
    /// How often a part was put here beside an older one, with all that it held, and not over it.
    pub restarts: u8,
}

impl Level {
    /// That of a whole leaf.
    pub const WHOLE: Self = Self { depth: 0, restarts: 0 };

    /// As associated data of a part's seal.
    #[must_use]
    pub const fn bytes(self) -> [u8; 2] {
        [self.restarts, self.depth]
    }
}

/// A leaf, told by its difference from an older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The epoch whose leaf it builds on. If that leaf was merged into a newer one, it builds on the newer one.
    pub base: Epoch,
    /// The difference.
    pub change: LeafChange,
}

impl Part {
    /// The body of the part that `epoch` puts, before it is sealed.
    ///
    /// # Panics
    /// If the base is not older.
    #[must_use]
    pub fn encode(&self, epoch: Epoch) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(KIND_PART);
        let LeafChange { removed, entries } = &self.change;
        let form = match removed.len() {
            0 => 0,
            1..=LISTED_SLOTS_MAX => HAS_REMOVED_LIST,
            _ => HAS_REMOVED_BITS,
        };
        let runs = runs_of(entries);
        writer.varint(to_u64(runs.len()) << REMOVED_FORM_BITS | form);
        writer.varint(epoch.get().checked_sub(self.base.get()).filter(|steps| *steps > 0).expect("a base is older"));
        match form {
            HAS_REMOVED_LIST => {
                writer.varint(to_u64(removed.len()));
                removed.iter().for_each(|slot| writer.u8(slot));
            }
            HAS_REMOVED_BITS => removed.0.iter().for_each(|word| writer.u64(*word)),
            _ => {}
        }
        let mut before = RunStart::default();
        for run in &runs {
            let start = RunStart::of(entries.entries[run.rank]);
            writer.u8(run.slot);
            writer.varint(to_u64(run.count - 1) * 2 + u64::from(start.upper != before.upper));
            if start.upper != before.upper {
                writer.varint(start.upper);
            }
            writer.varint(difference(before.block, start.block, before.is_none()));
            writer.varint(difference(before.sequence, start.sequence, before.is_none()));
            before = start;
        }
        entries.entries.iter().for_each(|entry| writer.u64(entry.mac()));
        writer.finish()
    }

    /// The part in a body that [`Self::encode`] made for `epoch`.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8], epoch: Epoch) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        if reader.u8()? != KIND_PART {
            return Err(FormatError::Field("part kind"));
        }
        let head = reader.varint()?;
        let run_count = head >> REMOVED_FORM_BITS;
        let steps = reader.varint()?;
        let base = epoch.get().checked_sub(steps).filter(|_| steps > 0).ok_or(FormatError::Field("base of a part"))?;
        let mut removed = SlotSet::default();
        match head & ((1 << REMOVED_FORM_BITS) - 1) {
            0 => {}
            HAS_REMOVED_LIST => {
                for _ in 0..reader.varint()?.min(to_u64(LEAF_ENTRIES)) {
                    removed.insert(reader.u8()?);
                }
            }
            HAS_REMOVED_BITS => {
                for word in &mut removed.0 {
                    *word = reader.u64()?;
                }
            }
            _ => return Err(FormatError::Field("removed slots of a part")),
        }
        let entries = decode_entries(&mut reader, run_count)?;
        reader.finish()?;
        Ok(Self { base: Epoch::new(base), change: LeafChange { removed, entries } })
    }
}

/// Where the first entry of a run is, and when it was written; none of it is 0 there.
#[derive(Clone, Copy, Default)]
struct RunStart {
    /// Bits 0 to 7 the generation, 8 to 15 the device, 16 to 23 the other flags: few pools have more than the first.
    upper: u64,
    block: u64,
    sequence: u64,
}

impl RunStart {
    fn of(entry: Entry) -> Self {
        let [.., device, flags, generation] = entry.place().to_le_bytes();
        let upper = u64::from_le_bytes([generation, device, flags, 0, 0, 0, 0, 0]);
        Self { upper, block: entry.place() & ((1 << BLOCK_BITS) - 1), sequence: entry.sequence().get() }
    }

    /// Whether it is what comes before the first run.
    const fn is_none(self) -> bool {
        self.sequence == 0
    }

    /// The place of the first entry; `None` if there is no such one.
    fn place(self) -> Option<u64> {
        let [generation, device, flags, rest @ ..] = self.upper.to_le_bytes();
        let upper = u64::from_le_bytes([device, flags, generation, 0, 0, 0, 0, 0]);
        (rest == [0; 5] && self.block >> BLOCK_BITS == 0).then_some(upper << BLOCK_BITS | self.block)
    }
}

/// What is written of a number behind another: the number itself if it is the first, else the difference, twice it or, if it is
/// negative, twice its size less one.
const fn difference(before: u64, number: u64, is_first: bool) -> u64 {
    if is_first {
        return number;
    }
    let difference = number.wrapping_sub(before).cast_signed();
    (difference << 1 ^ difference >> 63).cast_unsigned()
}

/// The number of which [`difference`] is `written`.
const fn number_behind(before: u64, written: u64, is_first: bool) -> u64 {
    if is_first {
        return written;
    }
    before.wrapping_add(written >> 1 ^ 0_u64.wrapping_sub(written & 1))
}

fn decode_entries(reader: &mut Reader<'_>, run_count: u64) -> Result<Leaf, FormatError> {
    let mut heads: Vec<(u8, u64, u64)> = Vec::new();
    let mut next_slot = 0;
    let mut start = RunStart::default();
    for _ in 0..run_count {
        let slot = reader.u8()?;
        let head = reader.varint()?;
        let is_first = start.is_none();
        if head & 1 == 1 {
            start.upper = reader.varint()?;
        }
        start.block = number_behind(start.block, reader.varint()?, is_first);
        start.sequence = number_behind(start.sequence, reader.varint()?, is_first);
        let count = head / 2 + 1;
        let place = start.place().filter(|_| start.sequence > 0).ok_or(FormatError::Field("run of a part"))?;
        if usize::from(slot) < next_slot || count > to_u64(LEAF_ENTRIES) - u64::from(slot) {
            return Err(FormatError::Field("run of a part"));
        }
        next_slot = usize::from(slot) + to_usize(count);
        for step in 0..count {
            let place = place.checked_add(step).ok_or(FormatError::Field("run address"))?;
            let sequence = start.sequence.checked_add(step).ok_or(FormatError::Field("run sequence"))?;
            let slot = u8::try_from(u64::from(slot) + step).map_err(|_| FormatError::Field("run slots"))?;
            heads.push((slot, place, sequence));
        }
    }
    let mut leaf = Leaf::default();
    for (slot, place, sequence) in heads {
        leaf.present.insert(slot);
        leaf.entries.push(Entry::from_parts(place, sequence, reader.u64()?)?);
    }
    Ok(leaf)
}

/// The value of a part, to which changes may be appended; `sealed` is its body, sealed.
///
/// # Panics
/// If it is no part's level, or `sealed` is no seal.
#[must_use]
pub fn part_value(level: Level, sealed: &[u8]) -> Vec<u8> {
    assert!((1..=PART_DEPTH_MAX).contains(&level.depth), "a part lies over a whole leaf");
    let (session, rest) = sealed.split_first_chunk::<8>().expect("a seal names its session");
    let (counter, rest) = rest.split_first_chunk::<8>().expect("a seal names its counter");
    let mut seal = Writer::new();
    seal.varint(u64::from_le_bytes(*session));
    seal.varint(u64::from_le_bytes(*counter));
    seal.bytes(rest);
    let mut writer = Writer::new();
    writer.u16(len_u16(seal.len()));
    writer.bytes(&level.bytes());
    writer.bytes(seal.as_slice());
    writer.finish()
}

/// The level in the first frame's head of a value; one that is cut short is told when its frames are read.
#[must_use]
pub fn level_of(value: &[u8]) -> Level {
    value
        .first_chunk::<4>()
        .map_or(Level::WHOLE, |[_, _, restarts, depth]| Level { depth: *depth, restarts: *restarts })
}

/// A part's seal as it was before it was put into its value.
///
/// # Errors
/// [`FormatError`] if it is cut short.
pub fn sealed_part(frame: &[u8]) -> Result<Vec<u8>, FormatError> {
    let mut reader = Reader::new(frame);
    let (session, counter) = (reader.varint()?, reader.varint()?);
    let rest = reader.bytes(reader.remaining())?;
    let mut sealed = Vec::with_capacity(SEAL_ID_BYTES + rest.len());
    sealed.extend_from_slice(&session.to_le_bytes());
    sealed.extend_from_slice(&counter.to_le_bytes());
    sealed.extend_from_slice(rest);
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::leaf::frames;
    use crate::units::{Address, DeviceIndex, KeyGeneration, Sequence};
    use proptest::prelude::*;

    const EPOCH: Epoch = Epoch::new(900);

    fn entry((device, block, sequence): (u8, u64, u64)) -> Entry {
        let address = Address::new(DeviceIndex::new(device), block);
        Entry::new(address, KeyGeneration::new(device), Sequence::new(sequence), block ^ sequence)
    }

    fn change(
        removed: impl IntoIterator<Item = u8>,
        entries: impl IntoIterator<Item = (u8, (u8, u64, u64))>,
    ) -> LeafChange {
        let mut change = LeafChange::default();
        removed.into_iter().for_each(|slot| change.removed.insert(slot));
        for (slot, parts) in entries {
            change.entries.set(slot, Some(entry(parts)));
        }
        change
    }

    proptest! {
        #[test]
        fn any_part_survives_its_encoding(
            removed in prop::collection::btree_set(any::<u8>(), 0..256),
            entries in prop::collection::btree_map(any::<u8>(), (0_u8..3, 1_u64..1 << 39, 1_u64..1 << 60), 0..256),
            steps in 1_u64..900,
        ) {
            let part = Part { base: Epoch::new(EPOCH.get() - steps), change: change(removed, entries) };
            prop_assert_eq!(Part::decode(&part.encode(EPOCH), EPOCH), Ok(part));
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..600)) {
            drop(Part::decode(&body, EPOCH));
            drop(sealed_part(&body));
            prop_assert!(body.len() >= 4 || level_of(&body) == Level::WHOLE);
        }
    }

    #[test]
    fn a_part_with_one_entry_is_small() {
        let part = Part { base: Epoch::new(899), change: change([], [(200, (0, 1 << 27, 1 << 34))]) };
        assert_eq!(part.encode(EPOCH).len(), 3 + 2 + 4 + 5 + 8);
    }

    #[test]
    fn a_run_of_a_part_is_one_head() {
        let part = Part { base: Epoch::new(1), change: change([], (0..100).map(|slot| (slot, (0, 77, 5)))) };
        let mut run = part.clone();
        for slot in 0..100 {
            run.change.entries.set(slot, Some(entry((0, 77 + u64::from(slot), 5 + u64::from(slot)))));
        }
        assert!(run.encode(EPOCH).len() < 100 * 8 + 16);
        assert!(part.encode(EPOCH).len() > 100 * 11);
    }

    #[test]
    fn runs_of_a_part_come_one_behind_the_other_and_end_with_the_leaf() {
        // Slot and count of two runs.
        let decoded = |runs: [(u8, u64); 2]| {
            let mut writer = Writer::new();
            writer.u8(KIND_PART);
            writer.varint(2 << REMOVED_FORM_BITS);
            writer.varint(1);
            for (slot, count) in runs {
                writer.u8(slot);
                writer.varint((count - 1) * 2);
                writer.varint(2000);
                writer.varint(50);
            }
            let entries: u64 = runs.iter().map(|(_, count)| count).sum();
            (0..entries).for_each(|mac| writer.u64(mac));
            Part::decode(&writer.finish(), EPOCH).map(|part| part.change.entries.len())
        };
        let refused = Err(FormatError::Field("run of a part"));
        assert_eq!(decoded([(5, 3), (8, 2)]), Ok(5));
        assert_eq!(decoded([(5, 3), (7, 2)]), refused, "both have slot 7");
        assert_eq!(decoded([(8, 2), (5, 3)]), refused, "the first one is the later one");
        assert_eq!(decoded([(5, 3), (250, 6)]), Ok(9));
        assert_eq!(decoded([(5, 3), (250, 7)]), refused, "a leaf has 256 slots");
    }

    #[test]
    fn the_value_of_a_part_tells_its_level_and_gives_its_seal_back() {
        let level = Level { depth: 8, restarts: 2 };
        let sealed: Vec<u8> = (0..60).collect();
        let value = part_value(level, &sealed);
        let (found, frames) = frames(&value).expect("one frame");
        assert_eq!((found, level_of(&value), frames.len()), (level, level, 1));
        assert_eq!(sealed_part(frames[0]), Ok(sealed));
    }
}
