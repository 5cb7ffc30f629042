//! Snapshots of a volume in a full pool, whose overwrites live on the reserve: what they leave behind must be enough to free.

use crate::world::{Life, World, new_snapshot};
use rand::Rng;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume, RemoveMode};
use std::collections::BTreeMap;
use uuid::Uuid;

/// 1024 blocks behind the front, of which 128 are the reserve.
const DEVICE_BYTES: u64 = 5 << 20;
const VOLUME_BLOCKS: u64 = 2048;
const VOLUME: Uuid = Uuid::from_u128(1);
/// Blocks of one overwrite: many of them are in the middle of their blocks when the snapshot is made.
const OVERWRITTEN_BLOCKS: u64 = 32;
/// Steps of the machine between the overwrites and the snapshot at most.
const STEPS_MAX: u64 = 300;
const SEEDS: u64 = 20;
/// Of the reserve, what may be missing in the end: windows and the places of records.
const MISSING_BLOCKS_MAX: u64 = 24;

/// A pool with one volume.
struct Scene {
    world: World,
    life: Option<Life>,
    next_cookie: u64,
    results: BTreeMap<u64, Result<(), IoError>>,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed, &[DEVICE_BYTES]);
        world.reserve = None;
        let mut life = world.open().expect("a new pool opens");
        life.volumes.create(&NewVolume::new(VOLUME, "vol", VOLUME_BLOCKS * BLOCK_SIZE_U64)).expect("a new volume");
        life.handles.push(life.volumes.open("vol").expect("it is there"));
        Self { world, life: Some(life), next_cookie: 0, results: BTreeMap::new() }
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("a life was begun")
    }

    fn lane(&mut self) -> usize {
        let count = self.life().lanes.len();
        self.world.random.random_range(0..count)
    }

    fn completion(&mut self) -> Completion {
        self.next_cookie += 1;
        Completion { owner: 0, cookie: self.next_cookie }
    }

    fn write(&mut self, first: u64, count: u64) -> u64 {
        let (lane, completion) = (self.lane(), self.completion());
        let source = IoBuffer::allocate(usize::try_from(count).expect("small") * BLOCK_SIZE);
        let volume = self.life().handles[0].volume();
        self.life().lanes[lane].write(volume, first * BLOCK_SIZE_U64, source, false, completion);
        completion.cookie
    }

    fn discard(&mut self, lane: usize, first: u64) -> u64 {
        let completion = self.completion();
        let range = (first * BLOCK_SIZE_U64, BLOCK_SIZE_U64);
        let volume = self.life().handles[0].volume();
        self.life().lanes[lane].remove(volume, range, RemoveMode::Discard, false, completion);
        completion.cookie
    }

    fn run(&mut self, run: impl FnOnce(&mut World, &mut Life, &mut Vec<(Completion, Result<(), IoError>)>)) {
        let mut done = Vec::new();
        let mut life = self.life.take().expect("a life was begun");
        run(&mut self.world, &mut life, &mut done);
        self.life = Some(life);
        self.results.extend(done.into_iter().map(|(completion, result)| (completion.cookie, result)));
    }

    /// Lets all requests end.
    fn drain(&mut self) {
        self.run(World::drain);
    }

    /// Writes from the start on until a single block finds no space; how many blocks there are.
    fn fill(&mut self) -> u64 {
        let mut filled = 0;
        for count in [16, 1] {
            loop {
                let write = self.write(filled, count);
                self.drain();
                if self.results[&write].is_err() {
                    break;
                }
                filled += count;
            }
        }
        filled
    }

    /// What is free once checkpoints have freed what they can, and idle lanes have given their windows back.
    fn free_blocks(&mut self) -> u64 {
        for _ in 0..2 {
            self.run(|world, life, done| {
                world.finish_checkpoint(life);
                assert!(world.close_and_keep(life), "a healthy machine");
                world.drain(life, done);
            });
        }
        self.life().pool.status().free_bytes / BLOCK_SIZE_U64
    }

    fn snapshot(&mut self) {
        let frozen = self.life().volumes.freeze(&[VOLUME]).expect("nobody else holds it back");
        while !frozen.is_empty() {
            self.run(World::step);
        }
        while !frozen.flush().expect("a healthy device") {
            self.run(World::step);
        }
        let new = new_snapshot(VOLUME);
        self.life().volumes.snapshot_frozen(&frozen, vec![new]).expect("meta/ has space");
    }
}

/// They lose the privilege with which they took from the reserve: they do not give back what the snapshot has.
#[test]
fn overwrites_under_way_leave_the_reserve_to_discards_when_a_snapshot_is_made() {
    for seed in 0..SEEDS {
        let mut scene = Scene::new(seed);
        let filled = scene.fill();
        let overwrites: Vec<u64> = (0..filled / OVERWRITTEN_BLOCKS)
            .map(|place| scene.write(place * OVERWRITTEN_BLOCKS, OVERWRITTEN_BLOCKS))
            .collect();
        for _ in 0..scene.world.random.random_range(0..STEPS_MAX) {
            scene.run(World::step);
        }
        scene.snapshot();
        scene.drain();
        let refused = overwrites.iter().filter(|write| scene.results[*write] == Err(IoError::NoSpace)).count();
        let ended = overwrites.iter().filter(|write| scene.results[*write] == Ok(())).count();
        assert_eq!(refused + ended, overwrites.len(), "seed {seed}: {:?}", scene.results);

        let left = scene.free_blocks();
        assert!(
            left + MISSING_BLOCKS_MAX >= scene.life().pool.reserve_blocks(),
            "seed {seed}: {left} blocks are left, {refused} overwrites were refused"
        );
        for lane in 0..scene.life().lanes.len() {
            let discard = scene.discard(lane, u64::try_from(lane).expect("few"));
            scene.drain();
            assert_eq!(
                scene.results[&discard],
                Ok(()),
                "seed {seed}: a discard on lane {lane}, {refused} were refused"
            );
        }
    }
}
