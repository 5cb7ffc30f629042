//! The two copies of the superblock, of which the newest valid one counts.
//!
//! Invariant: of what was acknowledged, one copy is whole and durable at any time. A copy is written only while the other
//! one is durable; that it can be read does not show that, since what a failed flush left behind is read as well.

use crate::crypto::{MasterKey, Purpose, StaticMac};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatError;
use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, verify};
use crate::planted::{Bug, is_planted};
use std::fmt;
use std::io;

/// Where the version is in a copy, behind the magic.
const VERSION_BYTES: std::ops::Range<usize> = 8..12;

/// What both copies say. The MAC is not verified yet.
pub struct SuperblockCopies {
    /// The copy that counts.
    pub superblock: Superblock,
    /// Its format version.
    pub format_version: u32,
    /// The bytes of the copy that counts.
    bytes: Vec<u8>,
    other: OtherCopy,
}

/// How the copy that does not count is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OtherCopy {
    /// It says the same.
    Same,
    /// It is from before a change that was interrupted.
    Behind,
    Damaged(FormatError),
    Unreadable(io::ErrorKind),
}

impl fmt::Display for OtherCopy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => formatter.write_str("it is right"),
            Self::Behind => formatter.write_str("it is from before a change that was interrupted"),
            Self::Damaged(error) => error.fmt(formatter),
            Self::Unreadable(error) => write!(formatter, "it cannot be read: {error}"),
        }
    }
}

impl SuperblockCopies {
    /// Writes the first two copies.
    ///
    /// # Errors
    /// The device's.
    pub fn create(device: &dyn Device, first: &Superblock, mac: &StaticMac) -> io::Result<()> {
        for superblock in [first, &later(first, first.generation + 1)] {
            let (offset, bytes) = superblock.encode(mac);
            device.write_at(offset, &bytes)?;
        }
        device.flush()
    }

    /// Reads both copies; one that cannot be read is like a damaged one.
    ///
    /// # Errors
    /// `Unsupported` for a newer version, `Integrity` if no copy is valid or they are of two pools.
    pub fn read(device: &dyn Device) -> Result<Self> {
        let mut newest: Option<(Superblock, Vec<u8>)> = None;
        let mut other = OtherCopy::Same;
        for offset in SUPERBLOCK_OFFSETS {
            let bytes = match read_copy(device, offset) {
                Ok(bytes) => bytes,
                Err(error) => {
                    other = OtherCopy::Unreadable(error.kind());
                    continue;
                }
            };
            let found = match Superblock::decode(&bytes) {
                Ok(found) => found,
                Err(FormatError::NewerVersion(version)) => return Err(newer(device, version)),
                Err(error) => {
                    other = OtherCopy::Damaged(error);
                    continue;
                }
            };
            if let Some((newest, _)) = &newest {
                if newest.pool != found.pool {
                    let message = format!("The two copies in {} are of different pools", device.name());
                    return Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore it from a backup"));
                }
                if *newest != later(&found, newest.generation) {
                    other = OtherCopy::Behind;
                }
            }
            if newest.as_ref().is_none_or(|(newest, _)| newest.generation < found.generation) {
                newest = Some((found, bytes));
            }
        }
        let Some((superblock, bytes)) = newest else {
            let message = format!("Both copies in {} are damaged: {other}", device.name());
            return Err(Error::new(ErrorKind::Integrity, message).with_hint("Restore the file from a backup"));
        };
        let mut version = [0; 4];
        version.copy_from_slice(&bytes[VERSION_BYTES]);
        Ok(Self { superblock, format_version: u32::from_le_bytes(version), bytes, other })
    }

    /// Whether who knows the master key wrote the copy that counts.
    #[must_use]
    pub fn is_of(&self, master: &MasterKey) -> bool {
        verify(&self.bytes, &master.static_mac(Purpose::Superblock))
    }

    /// Why [`Self::repair`] is needed, if it is.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        (self.other != OtherCopy::Same).then(|| self.other.to_string())
    }

    /// Writes the other copy anew: else a later damage of this copy would bring key slots back that were removed.
    ///
    /// # Errors
    /// The device's. The copy that counts is as it was.
    pub fn repair(&self, device: &dyn Device, master: &MasterKey) -> io::Result<()> {
        self.settle(device)?;
        // The other copy is the next generation's place.
        let (offset, bytes) =
            later(&self.superblock, self.superblock.generation + 1).encode(&master.static_mac(Purpose::Superblock));
        write_copy(device, offset, &bytes)
    }

    /// Puts `new`, whatever its generation, in the place of what there is, in both copies, one after the other, each
    /// durable before the next step: a crash leaves what was there or what is new. Afterwards no copy is of before.
    ///
    /// # Errors
    /// The device's. What is new may hold already, and what was there may be in one copy still.
    pub fn replace(&self, device: &dyn Device, new: &Superblock, master: &MasterKey) -> io::Result<()> {
        self.settle(device)?;
        for (offset, bytes) in self.copies_of(new, master) {
            write_copy(device, offset, &bytes)?;
            if is_planted(Bug::OldSlotsStay) {
                break;
            }
        }
        Ok(())
    }

    /// Makes the copy that counts durable, for the case that a flush failed when it was written. If this is cut off, either
    /// it was durable, and its bytes stay what they are, or the other copy is.
    ///
    /// Where the other copy is damaged this one is durable, since the other one is only ever written then. It is left
    /// alone: a sector that is being written when the power goes may not be readable afterwards, and it is the only copy.
    fn settle(&self, device: &dyn Device) -> io::Result<()> {
        let is_only_copy = matches!(self.other, OtherCopy::Damaged(_) | OtherCopy::Unreadable(_));
        if is_only_copy || is_planted(Bug::SuperblockTrustsItsRead) {
            return Ok(());
        }
        let [even, odd] = SUPERBLOCK_OFFSETS;
        let offset = if self.superblock.generation.is_multiple_of(2) { even } else { odd };
        write_copy(device, offset, &self.bytes)
    }

    /// Place and bytes of the copies of `new`, in the order in which they are written: first the one that does not count,
    /// so that one valid copy is there at any time.
    pub(super) fn copies_of(&self, new: &Superblock, master: &MasterKey) -> [(u64, Vec<u8>); 2] {
        let mac = master.static_mac(Purpose::Superblock);
        [1, 2].map(|changes| later(new, self.superblock.generation + changes).encode(&mac))
    }
}

fn later(superblock: &Superblock, generation: u64) -> Superblock {
    Superblock { generation, ..superblock.clone() }
}

/// A copy, or what is there of it.
fn read_copy(device: &dyn Device, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    match device.read_at(offset, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write_copy(device: &dyn Device, offset: u64, bytes: &[u8]) -> io::Result<()> {
    device.write_at(offset, bytes)?;
    device.flush()
}

fn newer(device: &dyn Device, version: u32) -> Error {
    let known = crate::format::FORMAT_VERSION;
    let message =
        format!("{} has format version {version}, and this rok-blk knows versions up to {known}", device.name());
    Error::new(ErrorKind::Unsupported, message).with_hint("Open the pool with the newer rok-blk; nothing was changed")
}

#[cfg(test)]
mod tests {
    use super::SuperblockCopies;
    use crate::crypto::{MasterKey, Purpose, Suite};
    use crate::disk::{CrashMode, Device as _, OpKind, SimDevice};
    use crate::format::FormatError;
    use crate::format::superblock::{DeviceRecord, KeySlotRecord, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock};
    use crate::units::BLOCK_SIZE_U64;
    use uuid::Uuid;

    /// Writes and flushes of a replacement are no more than this, each.
    const STEPS_MAX: u64 = 4;

    fn superblock(device_name: &str) -> Superblock {
        let device = DeviceRecord { id: Uuid::from_u128(2), block_count: 1, name: device_name.to_owned() };
        let slot = KeySlotRecord { index: 0, kind: 2, salt: [1; 32], wrapped: [2; 60], parameters: [0; 16] };
        Superblock {
            pool: Uuid::from_u128(1),
            generation: 0,
            suite: Suite::Plain,
            devices: vec![device],
            slots: vec![slot],
        }
    }

    /// Replaces with the n-th operation of a kind failing, and then the power goes, and what was being written of one copy
    /// cannot be read any more. Returns whether anything failed.
    fn survives(damaged: Option<u64>, kind: OpKind, nth: u64, lost: usize) -> bool {
        let (device, master) = (SimDevice::new("superblock", 128 << 10), MasterKey::from_bytes([7; 32]));
        let [old, new] = ["old", "new"].map(superblock);
        SuperblockCopies::create(&device, &old, &master.static_mac(Purpose::Superblock)).expect("a healthy device");
        if let Some(offset) = damaged {
            device.flip_bit(offset + 100, 3);
        }
        let copies = SuperblockCopies::read(&device).expect("one copy is whole");
        device.fail_nth(kind, nth);
        let has_failed = copies.replace(&device, &new, &master).is_err();
        if let Some((offset, _)) = device.unflushed().get(lost) {
            device.bad_block(offset / BLOCK_SIZE_U64);
        }
        device.crash(CrashMode::PowerLoss, &mut |_| 0);

        let found = SuperblockCopies::read(&device.process_handle());
        let found = found.unwrap_or_else(|error| panic!("{damaged:?}, {kind:?} {nth}, {lost}: {error}")).superblock;
        assert!([old.devices, new.devices].contains(&found.devices));
        has_failed
    }

    /// Found by seed 1318 of the simulation, with the 250 operations of a seed.
    #[test]
    fn power_loss_that_makes_what_is_written_unreadable_leaves_a_copy() {
        for damaged in SUPERBLOCK_OFFSETS.map(Some).into_iter().chain([None]) {
            let mut failures = 0;
            for kind in [OpKind::Write, OpKind::Flush] {
                for (nth, lost) in (1..=STEPS_MAX).flat_map(|nth| [(nth, 0), (nth, 1)]) {
                    failures += u64::from(survives(damaged, kind, nth, lost));
                }
            }
            // Two copies, and what is settled before, written and flushed.
            assert_eq!(failures, if damaged.is_some() { 8 } else { 12 });
        }
    }

    /// A device with both copies of "old".
    fn with_copies() -> (SimDevice, MasterKey) {
        let (device, master) = (SimDevice::new("superblock", 128 << 10), MasterKey::from_bytes([7; 32]));
        let mac = master.static_mac(Purpose::Superblock);
        SuperblockCopies::create(&device, &superblock("old"), &mac).expect("a healthy device");
        (device, master)
    }

    fn read(device: &SimDevice) -> SuperblockCopies {
        SuperblockCopies::read(device).unwrap_or_else(|error| panic!("one copy is whole: {error}"))
    }

    #[test]
    fn what_the_other_copy_lacks_is_said_until_it_is_repaired() {
        for offset in SUPERBLOCK_OFFSETS {
            let (device, master) = with_copies();
            assert_eq!(read(&device).damage(), None);
            device.flip_bit(offset + 100, 3);
            let copies = read(&device);
            assert_eq!(copies.damage(), Some(FormatError::Checksum.to_string()));
            assert!(copies.is_of(&master) && !copies.is_of(&MasterKey::from_bytes([8; 32])));
            copies.repair(&device, &master).expect("a healthy device");
            let repaired = read(&device);
            assert_eq!((repaired.damage(), repaired.superblock.devices), (None, superblock("old").devices));
            // Then the other one may go.
            let [even, odd] = SUPERBLOCK_OFFSETS;
            device.flip_bit(if offset == even { odd } else { even } + 100, 3);
            assert_eq!(read(&device).superblock.devices, superblock("old").devices);
        }
    }

    #[test]
    fn interrupted_change_leaves_a_copy_behind_which_is_repaired_with_what_is_new() {
        let (device, master) = with_copies();
        let [(offset, bytes), _] = read(&device).copies_of(&superblock("new"), &master);
        device.write_at(offset, &bytes).expect("a healthy device");
        let copies = read(&device);
        assert_eq!(copies.superblock.devices, superblock("new").devices);
        assert_eq!(copies.damage().as_deref(), Some("it is from before a change that was interrupted"));

        copies.repair(&device, &master).expect("a healthy device");

        assert_eq!(read(&device).damage(), None);
        for offset in SUPERBLOCK_OFFSETS {
            let device = device.duplicate("superblock");
            device.flip_bit(offset + 100, 3);
            assert_eq!(read(&device).superblock.devices, superblock("new").devices);
        }
    }

    #[test]
    fn copy_that_cannot_be_read_is_told_from_one_that_is_not_there() {
        let (device, _) = with_copies();
        device.fail_nth(OpKind::Read, 2);
        let damage = read(&device).damage().expect("the second copy was not read");
        assert!(damage.starts_with("it cannot be read: "), "{damage}");

        let (device, _) = with_copies();
        let short = SimDevice::new("superblock", SUPERBLOCK_OFFSETS[1]);
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        device.read_at(0, &mut bytes).expect("a healthy device");
        short.write_at(0, &bytes).expect("a healthy device");
        let nothing = Superblock::decode(&[]).expect_err("there is nothing");
        assert_eq!(read(&short).damage(), Some(nothing.to_string()));
    }

    #[test]
    fn copies_of_two_pools_and_two_damaged_ones_are_refused() {
        let (device, master) = with_copies();
        let other = Superblock { pool: Uuid::from_u128(9), generation: 1, ..superblock("other") };
        let (offset, bytes) = other.encode(&master.static_mac(Purpose::Superblock));
        device.write_at(offset, &bytes).expect("a healthy device");
        let error = SuperblockCopies::read(&device).err().expect("they are of two pools");
        assert_eq!(error.message(), "The two copies in superblock are of different pools");

        let (device, _) = with_copies();
        SUPERBLOCK_OFFSETS.iter().for_each(|offset| device.flip_bit(offset + 100, 3));
        let error = SuperblockCopies::read(&device).err().expect("no copy is whole");
        assert!(error.message().starts_with("Both copies in superblock are damaged: "), "{error}");
    }
}
