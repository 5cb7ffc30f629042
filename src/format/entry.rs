//! The map entry: 24 bytes by itself; on disk in runs (see `leaf`), and as the cache keeps it too.

use crate::format::FormatError;
use crate::units::{Address, KeyGeneration, Sequence};

/// The block's content is not here but at a peer. Reserved; not written yet.
const FLAG_REMOTE: u16 = 1 << 0;
/// The block is stored compressed. Reserved; not written yet.
const FLAG_COMPRESSED: u16 = 1 << 1;
const FLAGS_KNOWN: u16 = 0xff00;
const GENERATION_SHIFT: u32 = 8;
const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;

/// Where a block is, when it was written, and how to verify it.
///
/// The domain of its key is the tree's; the generation of the domain's key is in the flags; the session,
/// whose salt enters the key, follows from the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bits 0 to 47 the address, bits 48 to 63 the flags.
    place: u64,
    sequence: Sequence,
    mac: u64,
}

impl Entry {
    /// An entry of a block at `address`.
    #[must_use]
    pub const fn new(address: Address, generation: KeyGeneration, sequence: Sequence, mac: u64) -> Self {
        let flags = (generation.get() as u64) << GENERATION_SHIFT;
        Self { place: address.bits() | (flags << ADDRESS_BITS), sequence, mac }
    }

    /// From its fields on disk.
    ///
    /// # Errors
    /// [`FormatError::Field`] for an address that cannot be, or for flags that this version does not know.
    pub const fn from_parts(place: u64, sequence: u64, mac: u64) -> Result<Self, FormatError> {
        if Address::from_bits(place & ADDRESS_MASK).is_none() {
            return Err(FormatError::Field("entry address"));
        }
        let entry = Self { place, sequence: Sequence::new(sequence), mac };
        if entry.flags() & (FLAG_REMOTE | FLAG_COMPRESSED) != 0 || entry.flags() & !FLAGS_KNOWN != 0 {
            return Err(FormatError::Field("entry flags"));
        }
        if sequence == 0 {
            return Err(FormatError::Field("entry sequence"));
        }
        Ok(entry)
    }

    /// From what [`Self::place`], [`Self::sequence`] and [`Self::mac`] of an entry returned; nothing is checked again.
    #[must_use]
    pub const fn from_entry_parts(place: u64, sequence: u64, mac: u64) -> Self {
        Self { place, sequence: Sequence::new(sequence), mac }
    }

    /// Where the block is.
    #[must_use]
    pub const fn address(self) -> Address {
        Address::from_bits(self.place & ADDRESS_MASK).expect("checked when the entry was made")
    }

    /// Address and flags as on disk.
    #[must_use]
    pub const fn place(self) -> u64 {
        self.place
    }

    /// The 16 flag bits.
    #[must_use]
    pub const fn flags(self) -> u16 {
        (self.place >> ADDRESS_BITS) as u16
    }

    /// Generation of the domain's key that the block was encrypted with.
    #[must_use]
    pub const fn generation(self) -> KeyGeneration {
        KeyGeneration::new((self.flags() >> GENERATION_SHIFT) as u8)
    }

    /// The write's number: tweak and nonce of the block.
    #[must_use]
    pub const fn sequence(self) -> Sequence {
        self.sequence
    }

    /// Truncated GMAC over the block's ciphertext.
    #[must_use]
    pub const fn mac(self) -> u64 {
        self.mac
    }
}

const _: () = assert!(size_of::<Entry>() == 24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DeviceIndex;

    #[test]
    fn what_an_entry_says_comes_back() {
        let address = Address::new(DeviceIndex::new(3), 0x12_3456_789a);
        for generation in [0, 1, 5, 255] {
            let entry = Entry::new(address, KeyGeneration::new(generation), Sequence::new(7), 8);
            assert_eq!((entry.address(), entry.generation().get()), (address, generation));
            assert_eq!((entry.sequence().get(), entry.mac()), (7, 8));
            assert_eq!(Entry::from_parts(entry.place(), 7, 8), Ok(entry));
        }
    }
}
