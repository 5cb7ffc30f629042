//! Power cuts: moments of a recording, and the disks that they leave.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::disk_image::DiskImage;
use crate::recording::{Disk, Event, Recording, SECTOR_BYTES};
use crate::{Context as _, Result, Run};

/// The superblock of ext4 fills two sectors, with the checksum in the second: ext4 itself does not survive that one of them is
/// old. So the first block of its disk is old or new. Everything else is torn at sectors.
const EXT4_SUPERBLOCK_SECTORS: u64 = 8;

/// A moment at which the power goes: the requests before `position` came that far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub position: usize,
    /// The request before or behind it is a flush.
    pub is_at_flush: bool,
}

impl Cut {
    pub(crate) fn at(recording: &Recording, position: usize) -> Self {
        let is_flush = |index: usize| recording.events.get(index).is_some_and(Event::is_flush_of_pool);
        Self { position, is_at_flush: is_flush(position) || position.checked_sub(1).is_some_and(is_flush) }
    }
}

/// At most `count` cuts in `range`, in their order: half of them right before or behind a flush, the others anywhere, rather
/// where there is much to lose.
pub(crate) fn choose(recording: &Recording, range: Range<usize>, count: usize, random: &mut SmallRng) -> Vec<Cut> {
    let flushes: Vec<usize> = range.clone().filter(|&index| recording.events[index].is_flush_of_pool()).collect();
    let mut positions = BTreeSet::new();
    // Where few positions are left, the same are drawn again.
    for draw in 0..count * 100 {
        if positions.len() == count {
            break;
        }
        let position = if draw % 2 == 0 && !flushes.is_empty() {
            flushes[random.random_range(0..flushes.len())] + random.random_range(0..2)
        } else {
            // Of three, the one at which most can be lost.
            let drawn = [(); 3].map(|()| random.random_range(range.clone()));
            drawn.into_iter().max_by_key(|&position| recording.unflushed_count(position)).unwrap_or(range.start)
        };
        positions.insert(position);
    }
    positions.into_iter().map(|position| Cut::at(recording, position)).collect()
}

/// Both disks behind a cut.
pub(crate) struct Images {
    pub data: PathBuf,
    pub meta: PathBuf,
    /// Of the requests that were not flushed.
    pub kept: usize,
    pub dropped: usize,
    pub torn: usize,
    pub description: String,
}

/// What becomes of what is not flushed.
#[derive(Clone, Copy, Debug)]
enum Luck {
    /// Nothing of it is there.
    Drop,
    /// All of it.
    Keep,
    /// Each request is there with this probability, in percent, or torn.
    Mixed(u32),
}

impl Luck {
    fn draw(random: &mut SmallRng) -> Self {
        match random.random_range(0..8) {
            0 => Self::Drop,
            1 => Self::Keep,
            2 => Self::Mixed(90),
            3 => Self::Mixed(10),
            _ => Self::Mixed(50),
        }
    }

    /// The sectors of a request that are there.
    fn sectors(self, event: &Event, random: &mut SmallRng) -> Vec<Range<u64>> {
        let count = event.len_bytes / SECTOR_BYTES;
        let whole: Vec<Range<u64>> = std::iter::once(0..count).collect();
        match self {
            _ if event.is_durable => whole,
            Self::Drop => Vec::new(),
            Self::Keep => whole,
            Self::Mixed(_) if random.random_range(0..4) == 0 => torn(event, count, random),
            Self::Mixed(percent) => {
                if random.random_range(0..100) < percent {
                    whole
                } else {
                    Vec::new()
                }
            }
        }
    }
}

/// Some sectors of a request: those before one of them, those behind it, or any.
fn torn(event: &Event, count: u64, random: &mut SmallRng) -> Vec<Range<u64>> {
    let middle = random.random_range(0..=count);
    let mut sectors: Vec<Range<u64>> = match random.random_range(0..3) {
        0 => std::iter::once(0..middle).collect(),
        1 => std::iter::once(middle..count).collect(),
        _ => (0..count).filter(|_| random.random()).map(|sector| sector..sector + 1).collect(),
    };
    if event.disk == Disk::Meta && event.offset_bytes < EXT4_SUPERBLOCK_SECTORS * SECTOR_BYTES {
        let first = EXT4_SUPERBLOCK_SECTORS.saturating_sub(event.offset_bytes / SECTOR_BYTES).min(count);
        for range in &mut sectors {
            range.start = range.start.max(first);
        }
        if random.random() {
            sectors.push(0..first);
        }
    }
    sectors.retain(|range| !range.is_empty());
    sectors
}

/// A disk up to its last flush.
struct Durable {
    disk: Disk,
    image: DiskImage,
    /// Requests before this one are in it.
    until: usize,
}

/// Builds the disks of cuts, in the order of the recording.
pub(crate) struct Replay<'a> {
    run: &'a Run,
    place: PathBuf,
    disks: [Durable; 2],
    /// Never done, although it was flushed: a disk that lies.
    omitted: Option<usize>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(run: &'a Run, place: &Path) -> Result<Self> {
        let durable = |disk, name: &str, of: &str| -> Result<Durable> {
            let size_bytes = run.directory.join(of).metadata().context(of)?.len();
            Ok(Durable { disk, image: DiskImage::new(place.join(name), size_bytes)?, until: 0 })
        };
        let disks = [durable(Disk::Data, "durable-data", "vda")?, durable(Disk::Meta, "durable-meta", "vdb")?];
        Ok(Self { run, place: place.to_path_buf(), disks, omitted: None })
    }

    /// Leaves one request out.
    pub(crate) fn omit(mut self, position: usize) -> Self {
        self.omitted = Some(position);
        self
    }

    /// The disks of a cut, by the luck that its position and the seed draw.
    ///
    /// # Panics
    /// If an earlier cut was behind this one.
    pub(crate) fn build(&mut self, cut: Cut) -> Result<Images> {
        let mut random =
            SmallRng::seed_from_u64(self.run.seed ^ u64::try_from(cut.position).context("a position")? << 32);
        let lucks = [Luck::draw(&mut random), Luck::draw(&mut random)];
        self.build_with(cut.position, lucks, &mut random)
    }

    /// The disks with all that came before `position`.
    pub(crate) fn build_whole(&mut self, position: usize) -> Result<Images> {
        self.build_with(position, [Luck::Keep; 2], &mut SmallRng::seed_from_u64(0))
    }

    /// The disks with what was flushed before `position`, and nothing else.
    pub(crate) fn build_flushed(&mut self, position: usize) -> Result<Images> {
        self.build_with(position, [Luck::Drop; 2], &mut SmallRng::seed_from_u64(0))
    }

    fn build_with(&mut self, position: usize, lucks: [Luck; 2], random: &mut SmallRng) -> Result<Images> {
        let recording = &self.run.recording;
        let (data, meta) = (self.place.join("data"), self.place.join("meta"));
        let description = format!("data {:?}, meta {:?}", lucks[0], lucks[1]);
        let mut images = Images { data, meta, kept: 0, dropped: 0, torn: 0, description };
        for (durable, luck) in self.disks.iter_mut().zip(lucks) {
            assert!(durable.until <= position, "cuts are built in their order");
            let until = recording.last_flush(durable.disk, position).map_or(durable.until, |flush| flush + 1);
            for index in of_disk(recording, durable.disk, durable.until..until) {
                if self.omitted != Some(index) {
                    durable.image.apply_whole(recording, &recording.events[index])?;
                }
            }
            durable.until = until.max(durable.until);
            let path = if durable.disk == Disk::Data { &images.data } else { &images.meta };
            let image = durable.image.copy(path)?;
            for index in of_disk(recording, durable.disk, durable.until..position) {
                let event = &recording.events[index];
                let sectors = luck.sectors(event, random);
                image.apply(recording, event, &sectors)?;
                let count: u64 = sectors.iter().map(|range| range.end - range.start).sum();
                let fate = match count * SECTOR_BYTES {
                    0 => &mut images.dropped,
                    bytes if bytes == event.len_bytes => &mut images.kept,
                    _ => &mut images.torn,
                };
                *fate += 1;
            }
        }
        Ok(images)
    }
}

/// Requests of a disk that change it.
fn of_disk(recording: &Recording, disk: Disk, range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
    range.filter(move |&index| recording.events[index].disk == disk && !recording.events[index].is_flush())
}
