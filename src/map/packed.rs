//! A leaf as the cache keeps it: what follows from a neighbour is kept once.
//!
//! Blocks that were written in order have places and sequences that grow with their slots, so that only their macs
//! differ. Slots whose places grow so are a run, also across absent ones, and those whose sequences do are another: the
//! records between batches interrupt the places only. A leaf whose batches had 64 blocks takes 2.2 KiB, and one in which
//! nothing follows from anything 6.1 KiB. Packed leaves never change: who changes a leaf has it unpacked.

use crate::format::entry::Entry;
use crate::format::leaf::{Leaf, SlotSet};
use crate::units::to_usize;

/// 256 consecutive map entries, packed.
pub struct PackedLeaf {
    present: SlotSet,
    /// First slots of the runs of places.
    place_heads: SlotSet,
    /// First slots of the runs of sequences.
    sequence_heads: SlotSet,
    /// What is counted of the three, side by side: as one field with its set, each would be padded to a word.
    counts: [QuarterCounts; 3],
    /// Where the words of the sequences start.
    sequences_at: u16,
    /// The macs of the entries, ascending by slot; a word for each run of sequences; one for each run of places,
    /// descending, so that they are found from the end.
    words: Box<[u64]>,
}

impl PackedLeaf {
    /// Bytes of memory that it takes.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.words)
    }

    /// Mapped slots.
    #[must_use]
    pub const fn present(&self) -> SlotSet {
        self.present
    }

    /// What the slots from `first` on hold, in order; `None` is a block that is not mapped.
    pub fn entries_from(&self, first: u8) -> impl Iterator<Item = Option<Entry>> {
        let [present, place_heads, sequence_heads] = &self.counts;
        let mut next_mac = present.rank(self.present, first);
        let mut next_sequence =
            to_usize(u64::from(self.sequences_at)) + sequence_heads.rank(self.sequence_heads, first);
        let mut place_at = self.words.len() - place_heads.rank(self.place_heads, first);
        (first..=u8::MAX).map(move |slot| {
            if !self.present.contains(slot) {
                return None;
            }
            place_at -= usize::from(self.place_heads.contains(slot));
            next_sequence += usize::from(self.sequence_heads.contains(slot));
            let place = of_slot(self.words[place_at], slot);
            let sequence = of_slot(self.words[next_sequence - 1], slot);
            let mac = self.words[next_mac];
            next_mac += 1;
            Some(Entry::from_entry_parts(place, sequence, mac))
        })
    }
}

impl From<&Leaf> for PackedLeaf {
    fn from(leaf: &Leaf) -> Self {
        let mut words = Vec::with_capacity(3 * leaf.len());
        words.extend(leaf.iter().map(|(_, entry)| entry.mac()));
        let sequence_heads = push_runs(leaf.iter().map(|(slot, entry)| (slot, entry.sequence().get())), &mut words);
        let places_at = words.len();
        let place_heads = push_runs(leaf.iter().map(|(slot, entry)| (slot, entry.place())), &mut words);
        words[places_at..].reverse();
        let sequences_at = u16::try_from(leaf.len()).expect("a leaf has 256 slots");
        Self {
            counts: [leaf.present(), place_heads, sequence_heads].map(QuarterCounts::from),
            present: leaf.present(),
            place_heads,
            sequence_heads,
            sequences_at,
            words: words.into_boxed_slice(),
        }
    }
}

/// How many slots of a set are below each quarter, so that counting looks at one word.
struct QuarterCounts([u8; 4]);

impl QuarterCounts {
    /// Slots of the set, which must be the counted one, below `slot`.
    fn rank(&self, slots: SlotSet, slot: u8) -> usize {
        usize::from(self.0[usize::from(slot >> 6)]) + slots.rank_in_quarter(slot)
    }
}

impl From<SlotSet> for QuarterCounts {
    fn from(slots: SlotSet) -> Self {
        Self([0, 64, 128, 192].map(|slot| u8::try_from(slots.rank(slot)).expect("at most 192 are below")))
    }
}

/// Pushes a word for each run of values that grow with their slots; returns the first slots of the runs.
fn push_runs(values: impl Iterator<Item = (u8, u64)>, words: &mut Vec<u64>) -> SlotSet {
    let mut heads = SlotSet::default();
    let mut last = None;
    for (slot, value) in values {
        let word = of_first_slot(value, slot);
        if last.replace(word) != Some(word) {
            heads.insert(slot);
            words.push(word);
        }
    }
    heads
}

/// What the leaf's first slot would hold, were it in one run with `slot`. That may be below zero: it wraps, and
/// [`of_slot`] wraps back.
const fn of_first_slot(value: u64, slot: u8) -> u64 {
    value.wrapping_sub(slot as u64)
}

/// What [`of_first_slot`] was given.
const fn of_slot(word: u64, slot: u8) -> u64 {
    word.wrapping_add(slot as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Address, DeviceIndex, KeyGeneration, LEAF_ENTRIES, Sequence};
    use proptest::prelude::*;

    fn entry(block: u64, generation: u8, sequence: u64, mac: u64) -> Entry {
        let address = Address::new(DeviceIndex::new(0), block);
        Entry::new(address, KeyGeneration::new(generation), Sequence::new(sequence), mac)
    }

    /// Compares every slot, from every slot on.
    fn assert_same(leaf: &Leaf) {
        let packed = PackedLeaf::from(leaf);
        for first in 0..=u8::MAX {
            let wanted: Vec<_> = (first..=u8::MAX).map(|slot| leaf.get(slot)).collect();
            assert_eq!(packed.entries_from(first).collect::<Vec<_>>(), wanted, "from slot {first} on");
        }
    }

    fn leaf_of(parts: impl IntoIterator<Item = (u8, Entry)>) -> Leaf {
        let mut leaf = Leaf::default();
        for (slot, entry) in parts {
            leaf.set(slot, Some(entry));
        }
        leaf
    }

    proptest! {
        #[test]
        fn packed_leaf_holds_what_the_leaf_holds(
            slots in prop::collection::btree_map(any::<u8>(), (1_u64..1 << 39, any::<u8>(), 1..=u64::MAX, any::<u64>()), 0..=256)
        ) {
            let entry = |(block, generation, sequence, mac)| entry(block, generation, sequence, mac);
            assert_same(&leaf_of(slots.into_iter().map(|(slot, parts)| (slot, entry(parts)))));
        }

        /// Writes of a few lengths over each other, as a volume has them: runs are continued, cut and joined.
        #[test]
        fn packed_leaf_holds_runs_that_overlap(
            writes in prop::collection::vec((any::<u8>(), 1_u8..100, 0_u64..4, 0_u8..2, 0_u64..4), 1..20)
        ) {
            let mut leaf = Leaf::default();
            for (first, count, block, generation, sequence) in writes {
                for slot in first..first.saturating_add(count) {
                    let (at, mac) = (u64::from(slot), u64::from(slot ^ count));
                    // A few starts only, so that neighbours often follow each other, in one of the fields or in all.
                    let new = entry(block + at, generation, sequence + at + 1, mac);
                    leaf.set(slot, (block + sequence < 6).then_some(new));
                }
            }
            assert_same(&leaf);
        }
    }

    #[test]
    fn leaf_written_in_order_takes_its_macs_and_little_more() {
        let leaf = leaf_of((0..=u8::MAX).map(|slot| (slot, entry(1000 + u64::from(slot), 1, 50 + u64::from(slot), 7))));

        let packed = PackedLeaf::from(&leaf);

        assert_eq!(packed.memory_bytes(), size_of::<PackedLeaf>() + (LEAF_ENTRIES + 2) * 8);
        assert_same(&leaf);
    }

    #[test]
    fn records_between_batches_take_a_word_each() {
        let place = |slot: u8| 1000 + u64::from(slot) + u64::from(slot / 64);
        let leaf = leaf_of((0..=u8::MAX).map(|slot| (slot, entry(place(slot), 1, 50 + u64::from(slot), 7))));

        let packed = PackedLeaf::from(&leaf);

        assert_eq!(packed.words.len(), LEAF_ENTRIES + 1 + 4);
        assert_same(&leaf);
    }

    #[test]
    fn absent_slots_do_not_end_a_run() {
        let even = (0..=u8::MAX).step_by(2);
        let leaf = leaf_of(even.map(|slot| (slot, entry(1000 + u64::from(slot), 1, 50 + u64::from(slot), 7))));

        let packed = PackedLeaf::from(&leaf);

        assert_eq!(packed.words.len(), LEAF_ENTRIES / 2 + 2);
        assert_same(&leaf);
    }

    #[test]
    fn run_that_starts_below_zero_in_the_first_slot_is_exact() {
        // Slot 0 of this run would have sequence -199 and a block in front of the device.
        let leaf =
            leaf_of((200..=u8::MAX).map(|slot| (slot, entry(u64::from(slot) - 200, 0, u64::from(slot) - 199, 9))));

        assert_eq!(PackedLeaf::from(&leaf).words.len(), 56 + 2);
        assert_same(&leaf);
    }

    #[test]
    fn empty_leaf_takes_nothing_beside_itself() {
        let packed = PackedLeaf::from(&Leaf::default());

        assert_eq!(packed.memory_bytes(), size_of::<PackedLeaf>());
        assert_same(&Leaf::default());
    }
}
