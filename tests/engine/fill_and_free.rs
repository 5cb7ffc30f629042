//! One pool that is filled and freed again and again: it must come back by itself each time, all of it.
//!
//! `ROK_FILLS` says how often, `ROK_SEED` replays one pool.

use crate::sector::{fill, parse};
use crate::world::{Life, World};
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume, RemoveMode};
use std::collections::BTreeMap;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Small, so that filling them takes no time, and of different sizes. Each begins with a front of 1 MiB.
const DEVICE_BYTES: [u64; 3] = [5 * MIB, 3 * MIB, 2 * MIB];
const CAPACITY_BLOCKS: u64 = 7 * MIB / BLOCK_SIZE_U64;
/// What a fill must get of it: the rest is reserve (128 blocks), windows of three lanes, records.
const FILLED_BLOCKS_MIN: u64 = CAPACITY_BLOCKS * 6 / 10;
const VOLUME_COUNT: usize = 3;
const VOLUME_BLOCKS: u64 = 4096;
/// Requests that are under way at once.
const IN_FLIGHT: u64 = 4;
const FILLS: u64 = 1000;
/// Pools that take the fills in turns, each with settings of its own.
const POOLS: u64 = 4;

/// A pool, and what each block that was ever written holds: the number of the write.
struct Scene {
    world: World,
    life: Option<Life>,
    content: BTreeMap<(usize, u64), u64>,
    next_write: u64,
    next_volume_id: u128,
}

/// Blocks of a volume.
#[derive(Clone, Copy, Debug)]
struct Range {
    volume: usize,
    first: u64,
    count: u64,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed, &DEVICE_BYTES);
        world.reserve = None;
        let life = world.open().expect("a new pool opens");
        let mut scene = Self { world, life: Some(life), content: BTreeMap::new(), next_write: 1, next_volume_id: 1 };
        (0..VOLUME_COUNT).for_each(|volume| scene.create(volume));
        scene
    }

    fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("a life was begun")
    }

    fn create(&mut self, volume: usize) {
        let id = Uuid::from_u128(self.next_volume_id);
        self.next_volume_id += 1;
        let life = self.life();
        let name = format!("vol{volume}");
        life.volumes
            .create(&NewVolume::new(id, &name, VOLUME_BLOCKS * BLOCK_SIZE_U64))
            .expect("a full pool takes a volume");
        life.handles.insert(volume, life.volumes.open(&name).expect("it is there"));
    }

    fn random(&mut self, below: u64) -> u64 {
        self.world.random.random_range(0..below)
    }

    /// Lets all requests end; their results in the order of their cookies.
    fn drain(&mut self) -> Vec<Result<(), IoError>> {
        let mut done = Vec::new();
        let mut life = self.life.take().expect("a life was begun");
        // Much happens before a drain has turned to everything in the same order.
        for _ in 0..self.random(30) {
            self.world.step(&mut life, &mut done);
        }
        self.world.drain(&mut life, &mut done);
        self.life = Some(life);
        done.sort_by_key(|(completion, _)| completion.cookie);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn lane(&mut self) -> usize {
        let count = self.life().lanes.len();
        self.world.random.random_range(0..count)
    }

    /// Writes ranges that do not overlap, all at once. What a write that failed left is read.
    fn write(&mut self, ranges: &[Range]) -> Vec<Result<(), IoError>> {
        let first_write = self.next_write;
        for (range, cookie) in ranges.iter().zip(0..) {
            let write = self.next_write;
            self.next_write += 1;
            let source = IoBuffer::allocate(usize::try_from(range.count).expect("small") * BLOCK_SIZE);
            source.with_bytes_mut(|bytes| fill(bytes, write));
            let lane = self.lane();
            let life = self.life();
            let volume = life.handles[range.volume].volume().clone();
            let completion = Completion { owner: 0, cookie };
            life.lanes[lane].write(&volume, range.first * BLOCK_SIZE_U64, source, false, completion);
        }
        let results = self.drain();
        for ((range, write), result) in ranges.iter().zip(first_write..).zip(&results) {
            for block in range.first..range.first + range.count {
                let before = self.content.get(&(range.volume, block)).copied().unwrap_or(0);
                let after = if result.is_ok() { write } else { self.read(range.volume, block) };
                assert!(after == write || after == before, "{range:?}: block {block} holds {after}");
                self.content.insert((range.volume, block), after);
            }
        }
        results
    }

    fn read(&mut self, volume: usize, block: u64) -> u64 {
        let target = IoBuffer::allocate(BLOCK_SIZE);
        let lane = self.lane();
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        let completion = Completion { owner: 0, cookie: 0 };
        life.lanes[lane].read(&handle, block * BLOCK_SIZE_U64, target.clone(), completion);
        assert_eq!(self.drain(), [Ok(())], "a read of block {block}");
        target.with_bytes(|bytes| {
            let sectors: Vec<_> = bytes.chunks_exact(512).map(parse).collect();
            assert!(sectors.iter().all(|sector| *sector == sectors[0]), "block {block} is mixed");
            sectors[0].expect("only writes fill blocks")
        })
    }

    fn remove(&mut self, range: Range) {
        let mode = if self.world.random.random_bool(0.5) { RemoveMode::Discard } else { RemoveMode::Zero };
        let lane = self.lane();
        let life = self.life();
        let volume = life.handles[range.volume].volume().clone();
        let bytes = (range.first * BLOCK_SIZE_U64, range.count * BLOCK_SIZE_U64);
        life.lanes[lane].remove(&volume, bytes, mode, false, Completion { owner: 0, cookie: 0 });
        assert_eq!(self.drain(), [Ok(())], "a removal of {range:?}");
        for block in range.first..range.first + range.count {
            self.content.remove(&(range.volume, block));
        }
    }

    fn mapped(&self) -> Vec<(usize, u64)> {
        self.content.iter().filter(|(_, write)| **write != 0).map(|(place, _)| *place).collect()
    }

    fn some_mapped(&mut self, count: u64) -> Vec<(usize, u64)> {
        let mapped = self.mapped();
        let len = mapped.len() as u64;
        (0..count).map(|_| mapped[usize::try_from(self.random(len)).expect("small")]).collect()
    }

    /// Mapped ranges that do not overlap.
    fn some_ranges(&mut self, count_max: u64) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for (volume, first) in self.some_mapped(IN_FLIGHT) {
            let is_mapped = |block: &u64| self.content.get(&(volume, *block)).is_some_and(|write| *write != 0);
            let count = (first..first + count_max).take_while(is_mapped).count() as u64;
            let overlaps = |other: &Range| {
                other.volume == volume && other.first < first + count && first < other.first + other.count
            };
            if !ranges.iter().any(overlaps) {
                ranges.push(Range { volume, first, count });
            }
        }
        ranges
    }

    /// Writes until a single block finds no space.
    fn fill(&mut self) {
        let mut count = [1, 4, 64, 256][usize::try_from(self.random(4)).expect("small")];
        // Odd, and counts are powers of two: it comes by every place before it comes by one again.
        let stride = self.random(VOLUME_BLOCKS / 2) * 2 + 1;
        let mut place = 0;
        loop {
            let slots = VOLUME_BLOCKS / count;
            let next = |place: u64| Range {
                volume: usize::try_from(place % VOLUME_COUNT as u64).expect("small"),
                first: place / VOLUME_COUNT as u64 * stride % slots * count,
                count,
            };
            let ranges: Vec<Range> = (place..place + IN_FLIGHT).map(next).collect();
            place += IN_FLIGHT;
            let results = self.write(&ranges);
            assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(IoError::NoSpace))), "{results:?}");
            if results.iter().any(Result::is_err) {
                if count == 1 {
                    return;
                }
                count = 1;
            }
        }
    }

    /// What a full pool does.
    fn use_full(&mut self) {
        for (volume, block) in self.some_mapped(10) {
            let wanted = self.content[&(volume, block)];
            assert_eq!(self.read(volume, block), wanted, "volume {volume}, block {block}");
        }
        let lane = self.lane();
        self.life().lanes[lane].flush(Completion { owner: 0, cookie: 0 });
        assert_eq!(self.drain(), [Ok(())], "a flush");
        for count_max in [1, 1, 40, 300] {
            let ranges = self.some_ranges(count_max);
            let results = self.write(&ranges);
            assert!(results.iter().all(Result::is_ok), "overwrites of {ranges:?}: {results:?}");
        }
        for (volume, first) in self.some_mapped(2) {
            self.remove(Range { volume, first, count: 1 });
            assert_eq!(self.read(volume, first), 0, "it was removed");
        }
    }

    fn free(&mut self) {
        match self.random(4) {
            0 => (0..VOLUME_COUNT).for_each(|volume| self.remove(Range { volume, first: 0, count: VOLUME_BLOCKS })),
            1 => (0..VOLUME_COUNT).for_each(|volume| self.replace(volume)),
            2 => {
                // Holes of one block everywhere, then the rest.
                for (volume, first) in self.mapped().into_iter().step_by(2) {
                    self.remove(Range { volume, first, count: 1 });
                }
                self.replace(0);
                (1..VOLUME_COUNT).for_each(|volume| self.remove(Range { volume, first: 0, count: VOLUME_BLOCKS }));
            }
            _ => {
                self.replace(1);
                for first in (0..VOLUME_BLOCKS).step_by(100) {
                    let count = 100.min(VOLUME_BLOCKS - first);
                    self.remove(Range { volume: 0, first, count });
                    self.remove(Range { volume: 2, first, count });
                }
            }
        }
        assert!(self.mapped().is_empty(), "all was freed");
    }

    fn replace(&mut self, volume: usize) {
        let life = self.life();
        drop(life.handles.remove(volume));
        life.volumes.remove(&format!("vol{volume}")).expect("a full pool gives up a volume");
        self.content.retain(|(of, _), _| *of != volume);
        self.create(volume);
    }

    fn check(&mut self) {
        let mut life = self.life.take().expect("a life was begun");
        self.world.finish_checkpoint(&mut life);
        life.check();
        self.life = Some(life);
    }
}

#[test]
fn pool_comes_back_each_time_it_was_filled_and_freed() {
    let fills = crate::setting("ROK_FILLS", FILLS);
    let next = std::sync::atomic::AtomicU64::new(crate::setting("ROK_SEED", 0));
    let pools = if std::env::var_os("ROK_SEED").is_some() { 1 } else { POOLS };
    let end = next.load(std::sync::atomic::Ordering::Relaxed) + pools;
    crate::in_threads(|| {
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let mut scene = Scene::new(seed);
            for round in 0..fills / POOLS {
                scene.fill();
                let filled = scene.mapped().len() as u64;
                assert!(filled >= FILLED_BLOCKS_MIN, "seed {seed}, round {round}: only {filled} blocks were filled");
                scene.use_full();
                scene.check();
                scene.free();
                scene.check();
            }
        }
    });
}
