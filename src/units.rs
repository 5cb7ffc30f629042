//! Ids, addresses and sizes: the nouns of the design as types.
//!
//! Each newtype is converted from and to its integer only through the methods here, so that a
//! block number of a volume never passes for a block number of a device.

use std::fmt;

/// Bytes of one block: the unit of mapping, encryption and verification.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] as the type of byte offsets.
pub const BLOCK_SIZE_U64: u64 = 4096;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;
/// Map entries of one leaf: 1 MiB of volume.
pub const LEAF_ENTRIES: usize = 256;
/// [`LEAF_ENTRIES`] as the type of block numbers.
pub const LEAF_ENTRIES_U64: u64 = 256;
/// log2 of [`LEAF_ENTRIES`].
pub const LEAF_SHIFT: u32 = 8;
/// Blocks of a stretch, the unit of the free-space bitmap and its summary: 16 MiB.
pub const STRETCH_BLOCKS: u64 = 4096;
/// Largest size of a volume: 2^50 bytes (1 PiB).
pub const VOLUME_SIZE_BYTES_MAX: u64 = 1 << 50;

macro_rules! integer_newtype {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the integer.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }
            /// The integer inside.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

integer_newtype!(
    /// A block map with all its epochs. Numbers start at 1 and never come back.
    TreeId(u64)
);
integer_newtype!(
    /// Counter of a tree: a snapshot freezes the current one. Starts at 1.
    Epoch(u64)
);
integer_newtype!(
    /// What a reader sees of a tree and its parents: a head has its tree's number, a snapshot one that no tree has.
    ViewId(u64)
);

impl ViewId {
    /// Views of snapshots begin here.
    const SNAPSHOTS: u64 = 1 << 63;

    /// The view of a tree's head.
    #[must_use]
    pub const fn of_head(tree: TreeId) -> Self {
        Self(tree.get())
    }

    /// The `index`-th view of a snapshot since the pool was opened.
    #[must_use]
    pub const fn of_snapshot(index: u64) -> Self {
        Self(Self::SNAPSHOTS + index)
    }
}

integer_newtype!(
    /// Position of a block in a volume, in blocks.
    BlockIndex(u64)
);
integer_newtype!(
    /// Position of a leaf in a volume: [`BlockIndex`] / 256.
    LeafIndex(u64)
);
integer_newtype!(
    /// Number of a block write or of a removal; also its tweak and nonce. Unique in a pool, starts at 1.
    Sequence(u64)
);
integer_newtype!(
    /// One life of the pool between open and close. Starts at 1.
    SessionId(u64)
);
integer_newtype!(
    /// An encryption domain: the pool's own is 0.
    DomainId(u64)
);

impl DomainId {
    /// The pool's own domain.
    pub const POOL: Self = Self(0);

    /// Whether it is the pool's own, not that of a volume.
    #[must_use]
    pub const fn is_pool(self) -> bool {
        self.0 == 0
    }
}

integer_newtype!(
    /// Generation of a domain's key, 0 to 255.
    KeyGeneration(u8)
);
integer_newtype!(
    /// Position of a lane, 0-based.
    LaneIndex(u16)
);
integer_newtype!(
    /// Number of a record in its lane's chain, from 1 in each session.
    ChainSequence(u64)
);
integer_newtype!(
    /// Number of a checkpoint. Starts at 1.
    CheckpointId(u64)
);
integer_newtype!(
    /// Position of a device in its pool, 0-based.
    DeviceIndex(u8)
);

impl LaneIndex {
    /// As an index into a table of lanes.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl DeviceIndex {
    /// As an index into a table of devices.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl Epoch {
    /// Above every epoch: what a head sees.
    pub const NEWEST: Self = Self(u64::MAX);
}

impl Sequence {
    /// The sequence `count` behind this one.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl ChainSequence {
    /// The next record's number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl BlockIndex {
    /// The leaf that maps this block.
    #[must_use]
    pub const fn leaf(self) -> LeafIndex {
        LeafIndex(self.0 >> LEAF_SHIFT)
    }
    /// The block's slot in its leaf, below 256.
    #[must_use]
    pub const fn slot(self) -> u8 {
        (self.0 & (LEAF_ENTRIES_U64 - 1)) as u8
    }
    /// The block `count` behind this one.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl LeafIndex {
    /// The first block that the leaf maps.
    #[must_use]
    pub const fn first_block(self) -> BlockIndex {
        BlockIndex(self.0 << LEAF_SHIFT)
    }
    /// The block in `slot`.
    #[must_use]
    pub const fn block(self, slot: u8) -> BlockIndex {
        BlockIndex((self.0 << LEAF_SHIFT) | slot as u64)
    }
}

/// Where a block is: a device and a block number on it, 48 bits together.
///
/// Bits 40 to 47 are the device, bits 0 to 39 the block (4 PiB a device). Block 0 of a device is its
/// header, so an address with block 0 never holds data, and 0 means "nowhere" on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u64);

impl Address {
    const DEVICE_SHIFT: u32 = 40;
    /// Blocks that one device may have.
    pub const DEVICE_BLOCKS_MAX: u64 = 1 << Self::DEVICE_SHIFT;
    const BITS: u32 = 48;

    /// The address of `block` on `device`.
    ///
    /// # Panics
    /// If `block` is not below [`Self::DEVICE_BLOCKS_MAX`].
    #[must_use]
    pub const fn new(device: DeviceIndex, block: u64) -> Self {
        assert!(block < Self::DEVICE_BLOCKS_MAX);
        Self(((device.get() as u64) << Self::DEVICE_SHIFT) | block)
    }

    /// From its 48 bits; `None` if higher bits are set or it is in the header's block.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits >> Self::BITS != 0 || bits & (Self::DEVICE_BLOCKS_MAX - 1) == 0 {
            return None;
        }
        Some(Self(bits))
    }

    /// The 48 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The device.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "an address has 48 bits, 8 of them above the shift")]
    pub const fn device(self) -> DeviceIndex {
        DeviceIndex((self.0 >> Self::DEVICE_SHIFT) as u8)
    }

    /// The block on the device.
    #[must_use]
    pub const fn block(self) -> u64 {
        self.0 & (Self::DEVICE_BLOCKS_MAX - 1)
    }

    /// The byte offset on the device.
    #[must_use]
    pub const fn offset_bytes(self) -> u64 {
        self.block() << BLOCK_SHIFT
    }

    /// The address `count` blocks behind, on the same device.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self::new(self.device(), self.block() + count)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "device {} block {}", self.device(), self.block())
    }
}

/// A contiguous run of blocks on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRun {
    /// The first block.
    pub start: Address,
    /// How many blocks, at least 1.
    pub count: u64,
}

/// A block count as a size in memory. Lengths that reach this are bounded by named limits far below 2^32.
#[must_use]
pub const fn blocks_to_bytes(count: usize) -> usize {
    count << BLOCK_SHIFT
}

/// `usize` to `u64`: lossless on the 64-bit targets that this product supports.
#[must_use]
pub const fn to_u64(value: usize) -> u64 {
    value as u64
}

/// `u64` to `usize`: lossless on the 64-bit targets that this product supports.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the targets have 64-bit addresses")]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

const _: () = assert!(usize::BITS == 64, "rok-blk needs a 64-bit target");
