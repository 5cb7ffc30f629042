//! A recording of the machine's disks: what was done to them, in one order.
//!
//! It is a log of QEMU's `blklogwrites` (the format of Linux' dm-log-writes: a superblock, then entries of one sector
//! each, with the data behind a write) around a disk to which the logs of the three disks were appended, each in its own part.
//! `tests/kernel/recorded-disks.sh` says why its order may be relied on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::{Context as _, Result};

/// Bytes of a sector of logs and disks.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Of the disk of logs, each disk's part.
const PART_BYTES: u64 = 1 << 40;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// A disk of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disk {
    /// The pool's blocks.
    Data,
    /// The file system with the pool's directory.
    Meta,
    /// What the load tells.
    Marks,
}

const DISKS: [Disk; 3] = [Disk::Data, Disk::Meta, Disk::Marks];

/// What was done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// These bytes of the log's file were written.
    Write { log_offset: u64 },
    /// Reads as zeros from then on.
    Discard,
    /// What was written before is durable.
    Flush,
}

/// A request of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub disk: Disk,
    pub action: Action,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    /// A write that is durable at once.
    pub is_durable: bool,
}

impl Event {
    pub(crate) fn is_flush(&self) -> bool {
        self.action == Action::Flush
    }

    /// A flush of a disk that holds a part of the pool.
    pub(crate) fn is_flush_of_pool(&self) -> bool {
        self.is_flush() && self.disk != Disk::Marks
    }
}

/// All requests, in their order.
pub(crate) struct Recording {
    log: File,
    pub events: Vec<Event>,
}

/// An entry of a log.
struct Entry {
    offset_bytes: u64,
    len_bytes: u64,
    flags: u64,
}

impl Entry {
    fn parse(sector: &[u8]) -> Result<Self> {
        let number = |index: usize| -> Result<u64> {
            let bytes = sector.get(8 * index..8 * index + 8).ok_or("an entry is cut off")?;
            Ok(u64::from_le_bytes(<[u8; 8]>::try_from(bytes).context("an entry")?))
        };
        let in_bytes = |sectors: u64| sectors.checked_mul(SECTOR_BYTES).ok_or("an entry is too long".to_owned());
        let entry = Self { offset_bytes: in_bytes(number(0)?)?, len_bytes: in_bytes(number(1)?)?, flags: number(2)? };
        if entry.flags & !(FLUSH | FUA | DISCARD) != 0 || number(3)? != 0 {
            return Err(format!("an entry has flags {:#x} and {} bytes of its own", entry.flags, number(3)?));
        }
        Ok(entry)
    }

    /// Behind the entry, in its log.
    fn data_bytes(&self) -> u64 {
        if self.flags & DISCARD == 0 { self.len_bytes } else { 0 }
    }
}

impl Recording {
    /// Reads `common.log`.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let log = File::open(directory.join("common.log")).context("the recording's log")?;
        Self::parse(log)
    }

    fn parse(log: File) -> Result<Self> {
        let log_bytes = log.metadata().context("the recording's log")?.len();
        let mut recording = Self { log, events: Vec::new() };
        // Written now and then.
        let magic = recording.read_at(0, 8)?;
        if magic != [0; 8] && magic != MAGIC.to_le_bytes() {
            return Err("the recording is no log of writes".to_owned());
        }
        let mut pieces: [BTreeMap<u64, u64>; DISKS.len()] = Default::default();
        let mut position = SECTOR_BYTES;
        while position < log_bytes {
            let entry = Entry::parse(&recording.read_at(position, SECTOR_BYTES)?)?;
            let data_offset = position + SECTOR_BYTES;
            position = data_offset + entry.data_bytes();
            if entry.flags & FLUSH == 0 {
                recording.add_appended(&entry, data_offset, &mut pieces)?;
            }
        }
        if position != log_bytes {
            return Err(format!("the recording ends within an entry, at {log_bytes}"));
        }
        no_piece_is_missing(&pieces)?;
        Ok(recording)
    }

    /// Something was appended to a disk's log: an entry with its data.
    fn add_appended(
        &mut self,
        appended: &Entry,
        log_offset: u64,
        pieces: &mut [BTreeMap<u64, u64>; DISKS.len()],
    ) -> Result<()> {
        let part = usize::try_from(appended.offset_bytes / PART_BYTES).context("a part")?;
        let disk = *DISKS.get(part).ok_or("there are three disks")?;
        let place = appended.offset_bytes % PART_BYTES;
        if place == 0 {
            // The log's superblock.
            return Ok(());
        }
        let entry = Entry::parse(&self.read_at(log_offset, SECTOR_BYTES)?)?;
        if SECTOR_BYTES + entry.data_bytes() != appended.len_bytes {
            return Err(format!("an entry of {disk:?} at {place} is in pieces"));
        }
        pieces[part].insert(place, appended.len_bytes);
        let action = match entry.flags & (FLUSH | DISCARD) {
            FLUSH => Action::Flush,
            DISCARD => Action::Discard,
            0 => Action::Write { log_offset: log_offset + SECTOR_BYTES },
            _ => return Err("a flush that discards".to_owned()),
        };
        let (offset_bytes, len_bytes) = (entry.offset_bytes, entry.len_bytes);
        self.events.push(Event { disk, action, offset_bytes, len_bytes, is_durable: entry.flags & FUA != 0 });
        Ok(())
    }

    fn read_at(&self, offset: u64, len_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len_bytes).context("a length")?];
        self.log.read_exact_at(&mut bytes, offset).context("reading the recording")?;
        Ok(bytes)
    }

    /// What the event wrote; zeros if it discarded.
    pub(crate) fn content_of(&self, event: &Event) -> Result<Vec<u8>> {
        match event.action {
            Action::Write { log_offset } => self.read_at(log_offset, event.len_bytes),
            Action::Discard | Action::Flush => Ok(vec![0; usize::try_from(event.len_bytes).context("a length")?]),
        }
    }

    /// Where the disk was flushed last before `position`.
    pub(crate) fn last_flush(&self, disk: Disk, position: usize) -> Option<usize> {
        self.events[..position].iter().rposition(|event| event.disk == disk && event.is_flush())
    }

    /// Requests of the pool's disks that are not flushed at `position`.
    pub(crate) fn unflushed_count(&self, position: usize) -> usize {
        let of_disk = |disk| {
            let start = self.last_flush(disk, position).unwrap_or(0);
            self.events[start..position].iter().filter(|event| event.disk == disk && !event.is_flush()).count()
        };
        of_disk(Disk::Data) + of_disk(Disk::Meta)
    }

    /// Requests of each kind.
    pub(crate) fn describe(&self) -> String {
        let count = |disk: Disk, is_flush: bool| {
            self.events.iter().filter(|event| event.disk == disk && event.is_flush() == is_flush).count()
        };
        format!(
            "{} writes and {} flushes of the data's disk, {} and {} of that of meta/",
            count(Disk::Data, false),
            count(Disk::Data, true),
            count(Disk::Meta, false),
            count(Disk::Meta, true)
        )
    }
}

/// Each disk's log, by the place of its pieces, is without a gap.
fn no_piece_is_missing(pieces: &[BTreeMap<u64, u64>]) -> Result<()> {
    for (disk, of_disk) in DISKS.iter().zip(pieces) {
        let mut expected = SECTOR_BYTES;
        for (place, len_bytes) in of_disk {
            if *place != expected {
                return Err(format!("the log of {disk:?} has an entry at {place}, not {expected}"));
            }
            expected += len_bytes;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write as _;

    /// Builds recordings.
    pub(crate) struct Composer {
        bytes: Vec<u8>,
        ends: [u64; 3],
    }

    impl Composer {
        pub(crate) fn new() -> Self {
            Self { bytes: vec![0; 512], ends: [SECTOR_BYTES; 3] }
        }

        fn entry(sector: u64, sectors: u64, flags: u64) -> Vec<u8> {
            let mut bytes: Vec<u8> = [sector, sectors, flags, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        }

        pub(crate) fn add(&mut self, disk: usize, sector: u64, data: &[u8], flags: u64) {
            let sectors = u64::try_from(data.len()).expect("short") / SECTOR_BYTES;
            self.add_entry(disk, &Self::entry(sector, sectors, flags), data);
        }

        fn add_entry(&mut self, disk: usize, entry: &[u8], data: &[u8]) {
            let place = u64::try_from(disk).expect("small") * PART_BYTES + self.ends[disk];
            let len_bytes = u64::try_from(entry.len() + data.len()).expect("short");
            self.ends[disk] += len_bytes;
            self.bytes.extend(Self::entry(place / SECTOR_BYTES, len_bytes / SECTOR_BYTES, 0));
            self.bytes.extend(entry);
            self.bytes.extend(data);
        }

        pub(crate) fn recording(&self) -> Result<Recording> {
            let mut file = tempfile::tempfile().context("a file")?;
            file.write_all(&self.bytes).context("writing")?;
            Recording::parse(file)
        }
    }

    #[test]
    fn requests_come_in_the_order_of_the_common_log() {
        let mut composer = Composer::new();
        composer.add(1, 8, &[7; 1024], 0);
        composer.add(0, 3, &[5; 512], FUA);
        composer.add(1, 0, &[], FLUSH);
        composer.add_entry(0, &Composer::entry(16, 4, DISCARD), &[]);

        let recording = composer.recording().expect("it is right");

        let told: Vec<_> =
            recording.events.iter().map(|event| (event.disk, event.offset_bytes, event.len_bytes)).collect();
        assert_eq!(
            told,
            [(Disk::Meta, 4096, 1024), (Disk::Data, 1536, 512), (Disk::Meta, 0, 0), (Disk::Data, 8192, 2048)]
        );
        assert_eq!(recording.content_of(&recording.events[0]).expect("read"), [7; 1024]);
        assert!(recording.events[1].is_durable && recording.events[2].is_flush());
        assert_eq!(recording.events[3].action, Action::Discard);
        assert_eq!((recording.last_flush(Disk::Meta, 2), recording.last_flush(Disk::Meta, 3)), (None, Some(2)));
    }

    #[test]
    fn a_log_that_lacks_something_is_refused() {
        let mut composer = Composer::new();
        composer.add(0, 0, &[1; 512], 0);
        composer.bytes.truncate(1024);
        assert!(composer.recording().is_err(), "cut off");

        let mut composer = Composer::new();
        composer.ends[0] += 512;
        composer.add(0, 0, &[1; 512], 0);
        assert!(composer.recording().is_err(), "an entry is missing");

        let mut composer = Composer::new();
        composer.add(0, 0, &[1; 512], 64);
        assert!(composer.recording().is_err(), "unknown flags");
    }
}
