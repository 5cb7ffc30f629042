//! Writes that wait for space, one situation at a time: what ends the wait, and what goes on beside it.

use crate::sector::{fill, parse};
use crate::world::{Life, World};
use rok_blk::disk::{Device as _, IoBuffer};
use rok_blk::error::IoError;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, LEAF_ENTRIES_U64, STRETCH_BLOCKS};
use rok_blk::volume::{Completion, NewVolume, OnFull, RemoveMode};
use uuid::Uuid;

const DEVICE_BYTES: u64 = 8 << 20;
const VOLUME_BLOCKS: u64 = 4096;
/// Volumes of the pool: the first pauses, the second has filled it.
const PAUSING: usize = 0;
const FILLING: usize = 1;
/// What fills the pool, and what the writes here are numbered from.
const FILLER: u64 = 1;
const FIRST_WRITE: u64 = 2;
/// Behind what any of the tests frees.
const FREED_BLOCKS: u64 = 256;
const SECTOR: u64 = 512;
/// Turns in which all happens that needs no checkpoint.
const TURNS: usize = 30;

/// A world in which changes begin no checkpoint.
fn calm_world(device_bytes: u64) -> World {
    let mut world = World::new(1, &[device_bytes]);
    world.limits.changes_soft_max = 100_000;
    world.limits.changes_hard_max = 200_000;
    world.limits.records_soft_max = 100_000;
    world
}

/// A full pool.
struct Scene {
    world: World,
    life: Life,
    done: Vec<(u64, Result<(), IoError>)>,
    next_cookie: u64,
}

impl Scene {
    fn new() -> Self {
        Self::in_world(World::new(1, &[DEVICE_BYTES]))
    }

    fn in_world(mut world: World) -> Self {
        world.reserve = None;
        let life = world.open().expect("a new pool opens");
        let mut scene = Self { world, life, done: Vec::new(), next_cookie: 0 };
        for (name, on_full) in [("vol0", OnFull::Pause), ("vol1", OnFull::Error)] {
            let id = Uuid::from_u128(u128::from(scene.next_cookie) + 1);
            scene.next_cookie += 1;
            let new = NewVolume { on_full, ..NewVolume::new(id, name, VOLUME_BLOCKS * BLOCK_SIZE_U64) };
            scene.life.volumes.create(&new).expect("a new volume");
            scene.life.handles.push(scene.life.volumes.open(name).expect("it is there"));
        }
        for block in 0.. {
            let write = scene.write(FILLING, block * BLOCK_SIZE_U64, FILLER, BLOCK_SIZE);
            scene.settle();
            match scene.answer(write).expect("nobody waits") {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error, IoError::NoSpace);
                    assert!(block > FREED_BLOCKS, "only {block} blocks fill the pool");
                    return scene;
                }
            }
        }
        unreachable!("a device has an end")
    }

    fn completion(&mut self, owner: u32) -> Completion {
        self.next_cookie += 1;
        Completion { owner, cookie: self.next_cookie }
    }

    /// Begins a write of so many bytes with the number `write` in each sector; its cookie.
    fn write(&mut self, volume: usize, offset_bytes: u64, write: u64, len_bytes: usize) -> u64 {
        self.write_for(1, (volume, offset_bytes), write, len_bytes)
    }

    fn write_for(&mut self, owner: u32, (volume, offset_bytes): (usize, u64), write: u64, len_bytes: usize) -> u64 {
        let source = IoBuffer::allocate(len_bytes);
        source.with_bytes_mut(|bytes| fill(bytes, write));
        let completion = self.completion(owner);
        let volume = self.life.handles[volume].volume().clone();
        self.life.lanes[0].write(&volume, offset_bytes, source, false, completion);
        completion.cookie
    }

    fn discard(&mut self, volume: usize, first: u64, count: u64) -> u64 {
        let completion = self.completion(1);
        let volume = self.life.handles[volume].volume().clone();
        let range = (first * BLOCK_SIZE_U64, count * BLOCK_SIZE_U64);
        self.life.lanes[0].remove(&volume, range, RemoveMode::Discard, false, completion);
        completion.cookie
    }

    /// Lets everything happen that comes by itself.
    fn settle(&mut self) {
        let mut done = Vec::new();
        self.world.quiesce(&mut self.life, &mut done);
        self.done.extend(done.into_iter().map(|(completion, result)| (completion.cookie, result)));
    }

    /// Lets everything happen but checkpoints and what makes free space fit for use.
    fn turn_often(&mut self) {
        let mut done = Vec::new();
        for _ in 0..TURNS {
            let lane = &self.life.lanes[0];
            lane.turn();
            self.life.run_jobs();
            lane.with_disk(|disk| disk.complete_all(&mut |_| 0));
            lane.drain_done(&mut done);
        }
        self.done.extend(done.into_iter().map(|(completion, result)| (completion.cookie, result)));
    }

    /// Takes the answer to a request, if there is one.
    fn answer(&mut self, cookie: u64) -> Option<Result<(), IoError>> {
        let index = self.done.iter().position(|(answered, _)| *answered == cookie)?;
        Some(self.done.swap_remove(index).1)
    }

    fn read(&mut self, volume: usize, offset_bytes: u64) -> u64 {
        let target = IoBuffer::allocate(512);
        let completion = self.completion(1);
        let volume = self.life.handles[volume].volume().clone();
        self.life.lanes[0].read(&volume, offset_bytes, target.clone(), completion);
        self.settle();
        assert_eq!(self.answer(completion.cookie), Some(Ok(())), "a read");
        target.with_bytes(|bytes| parse(bytes).expect("only writes fill blocks"))
    }

    /// A write of one block to the volume that pauses, which waits.
    fn paused_write(&mut self) -> u64 {
        let write = self.write(PAUSING, 0, FIRST_WRITE, BLOCK_SIZE);
        self.settle();
        assert_eq!(self.answer(write), None, "it waits");
        assert_eq!(self.paused_writes(), 1);
        write
    }

    fn paused_writes(&self) -> u32 {
        let info = self.life.volumes.find("vol0").expect("it is there");
        info.pause.map_or(0, |pause| {
            assert_eq!(pause.since, 1, "the time of the simulation");
            pause.writes
        })
    }

    /// The write is done, and is there.
    fn assert_resumed(&mut self, write: u64) {
        self.settle();
        assert_eq!(self.answer(write), Some(Ok(())));
        assert_eq!(self.paused_writes(), 0);
        assert_eq!(self.read(PAUSING, 0), FIRST_WRITE);
    }
}

#[test]
fn discard_in_another_volume_ends_the_wait() {
    let mut scene = Scene::new();
    let write = scene.paused_write();

    let discard = scene.discard(FILLING, 0, FREED_BLOCKS);

    scene.assert_resumed(write);
    assert_eq!(scene.answer(discard), Some(Ok(())));
}

#[test]
fn removal_of_another_volume_ends_the_wait() {
    let mut scene = Scene::new();
    let write = scene.paused_write();

    drop(scene.life.handles.remove(FILLING));
    scene.life.volumes.remove("vol1").expect("nobody has it open");

    scene.assert_resumed(write);
}

#[test]
fn growth_ends_the_wait() {
    let mut scene = Scene::new();
    let write = scene.paused_write();

    scene.world.grow_now(&mut scene.life);

    scene.assert_resumed(write);
}

#[test]
fn reads_overwrites_flushes_and_discards_go_on_beside_a_write_that_waits_for_the_same_blocks() {
    let mut scene = Scene::new();
    let waiting = scene.write(PAUSING, 0, FIRST_WRITE, 8 * BLOCK_SIZE);
    scene.settle();
    assert_eq!(scene.answer(waiting), None, "it waits");

    assert_eq!(scene.read(PAUSING, 0), 0);
    let overwrite = scene.write(FILLING, 0, FIRST_WRITE + 1, BLOCK_SIZE);
    let discard = scene.discard(PAUSING, 0, 8);
    let flush = scene.completion(1);
    scene.life.lanes[0].flush(flush);
    scene.settle();

    for (what, cookie) in [("overwrite", overwrite), ("discard", discard), ("flush", flush.cookie)] {
        assert_eq!(scene.answer(cookie), Some(Ok(())), "{what}");
    }
    assert_eq!(scene.answer(waiting), None, "nothing was freed");
    scene.discard(FILLING, 0, FREED_BLOCKS);
    scene.assert_resumed(waiting);
}

#[test]
fn writes_of_other_volumes_get_no_space_while_one_waits() {
    let mut scene = Scene::new();
    let waiting = scene.paused_write();

    let failing = scene.write(FILLING, (VOLUME_BLOCKS - 1) * BLOCK_SIZE_U64, FIRST_WRITE, BLOCK_SIZE);
    scene.settle();

    assert_eq!(scene.answer(failing), Some(Err(IoError::NoSpace)));
    assert_eq!(scene.answer(waiting), None);
}

/// Each merges with the block as it is when there is space, not with what it was before the wait.
#[test]
fn two_waiting_writes_of_parts_of_one_block_are_both_there_afterwards() {
    let mut scene = Scene::new();
    let first = scene.write(PAUSING, 0, FIRST_WRITE, 512);
    let second = scene.write(PAUSING, SECTOR, FIRST_WRITE + 1, 512);
    scene.settle();
    assert_eq!((scene.answer(first), scene.answer(second)), (None, None));
    assert_eq!(scene.paused_writes(), 2);

    scene.discard(FILLING, 0, FREED_BLOCKS);
    scene.settle();

    assert_eq!((scene.answer(first), scene.answer(second)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!([0, SECTOR, 2 * SECTOR].map(|at| scene.read(PAUSING, at)), [FIRST_WRITE, FIRST_WRITE + 1, 0]);
    assert_eq!(scene.paused_writes(), 0);
}

#[test]
fn change_to_error_fails_what_waits_at_once() {
    let mut scene = Scene::new();
    let whole = scene.write(PAUSING, 0, FIRST_WRITE, 4 * BLOCK_SIZE);
    let partial = scene.write(PAUSING, 9 * BLOCK_SIZE_U64, FIRST_WRITE, 512);
    scene.settle();
    assert_eq!(scene.paused_writes(), 2);

    scene.life.volumes.set_on_full("vol0", OnFull::Error).expect("meta has space");
    scene.settle();

    assert_eq!(scene.answer(whole), Some(Err(IoError::NoSpace)));
    assert_eq!(scene.answer(partial), Some(Err(IoError::NoSpace)));
    assert_eq!(scene.paused_writes(), 0);
}

#[test]
fn owner_that_leaves_takes_its_writes_along_and_no_others() {
    let mut scene = Scene::new();
    let own = scene.write_for(7, (PAUSING, 0), FIRST_WRITE, BLOCK_SIZE);
    let other = scene.write_for(8, (PAUSING, BLOCK_SIZE_U64), FIRST_WRITE, BLOCK_SIZE);
    let own_partial = scene.write_for(7, (PAUSING, 2 * BLOCK_SIZE_U64), FIRST_WRITE, 512);
    scene.settle();
    assert_eq!(scene.paused_writes(), 3);

    scene.life.lanes[0].leave(7);
    let late = scene.write_for(7, (PAUSING, 3 * BLOCK_SIZE_U64), FIRST_WRITE, BLOCK_SIZE);
    scene.settle();

    for cookie in [own, own_partial, late] {
        assert_eq!(scene.answer(cookie), Some(Err(IoError::ShuttingDown)));
    }
    assert_eq!(scene.answer(other), None);
    assert_eq!(scene.paused_writes(), 1);
}

/// Its lane may sleep for long behind that turn.
#[test]
fn write_of_a_part_of_a_block_fails_in_the_turn_after_its_owner_leaves() {
    let mut scene = Scene::new();
    let partial = scene.write_for(7, (PAUSING, 0), FIRST_WRITE, 512);
    scene.settle();
    assert_eq!(scene.answer(partial), None, "it waits");

    scene.life.lanes[0].leave(7);
    scene.life.lanes[0].turn();

    let mut done = Vec::new();
    scene.life.lanes[0].drain_done(&mut done);
    assert_eq!(done, [(Completion { owner: 7, cookie: partial }, Err(IoError::ShuttingDown))]);
}

#[test]
fn lane_that_closes_fails_what_waits() {
    let mut scene = Scene::new();
    let write = scene.paused_write();

    scene.life.lanes[0].close();
    scene.settle();

    assert_eq!(scene.answer(write), Some(Err(IoError::ShuttingDown)));
    assert!(scene.life.lanes[0].is_idle());
}

#[test]
fn failed_pool_fails_what_waits() {
    let mut scene = Scene::new();
    let write = scene.paused_write();

    scene.life.pool.fail("A test".to_owned());
    scene.settle();

    assert_eq!(scene.answer(write), Some(Err(IoError::Io)));
}

/// Each checkpoint is news for them, so one that asked for another would keep the pool at work for ever.
#[test]
fn waiting_writes_ask_for_no_checkpoints() {
    let mut scene = Scene::new();
    scene.write(PAUSING, 0, FIRST_WRITE, BLOCK_SIZE);
    scene.write(PAUSING, 9 * BLOCK_SIZE_U64, FIRST_WRITE, 512);
    scene.settle();
    let before = scene.world.counts.checkpoints;

    scene.life.pool.tell_space();
    scene.settle();

    assert_eq!(scene.paused_writes(), 2, "they have looked in vain");
    assert_eq!(scene.world.counts.checkpoints, before);
}

/// The reserve of the metadata store is gone: writes that need space wait for it to come back.
#[test]
fn reserve_of_meta_that_comes_back_ends_the_wait() {
    let mut world = World::new(1, &[DEVICE_BYTES]);
    let reserve = crate::reserve::SimReserve::new(&world.store);
    world.reserve = Some(reserve);
    let life = world.open().expect("a new pool opens");
    let mut scene = Scene { world, life, done: Vec::new(), next_cookie: 0 };
    let new = NewVolume { on_full: OnFull::Pause, ..NewVolume::new(Uuid::from_u128(1), "vol0", 1 << 20) };
    scene.life.volumes.create(&new).expect("a new volume");
    scene.life.handles.push(scene.life.volumes.open("vol0").expect("it is there"));
    scene.world.store.fill_after(Some(1));
    // A commit finds no space, and the reserve is given up.
    let gone = NewVolume::new(Uuid::from_u128(2), "vol1", 1 << 20);
    scene.life.volumes.create(&gone).expect("from the reserve");
    assert!(scene.life.pool.is_meta_reserve_gone());
    let write = scene.paused_write();

    scene.world.store.fill_after(None);
    scene.life.pool.restore_meta_reserve();

    scene.assert_resumed(write);
}

/// The checkpoints that are done have not freed what was discarded behind them, however often a write looks.
#[test]
fn write_without_space_waits_for_a_checkpoint_that_begins_later() {
    const BLOCKS: u64 = 64;
    let mut scene = Scene::in_world(calm_world(DEVICE_BYTES));
    let discard = scene.discard(FILLING, 0, FREED_BLOCKS);
    scene.turn_often();
    assert_eq!(scene.answer(discard), Some(Ok(())));

    let offset_bytes = (VOLUME_BLOCKS - BLOCKS) * BLOCK_SIZE_U64;
    let write = scene.write(FILLING, offset_bytes, FIRST_WRITE, 64 * BLOCK_SIZE);
    scene.turn_often();

    assert_eq!(scene.answer(write), None, "no checkpoint has come");
    scene.settle();
    assert_eq!(scene.answer(write), Some(Ok(())));
}

/// A lane has many turns while a file is written, and a checkpoint for each would keep the pool at work.
#[test]
fn write_that_waits_for_free_space_to_be_fit_for_use_asks_once_for_a_checkpoint() {
    const STRETCH_BYTES: u64 = STRETCH_BLOCKS * BLOCK_SIZE_U64;
    const LEN_BYTES: u64 = 1 << 20;
    let mut world = calm_world(3 * STRETCH_BYTES);
    world.reserve = None;
    // A file with holes.
    world.devices[0].set_thin(true);
    world.devices[0].discard(STRETCH_BYTES, 2 * STRETCH_BYTES).expect("a healthy device");
    let life = world.open().expect("a new pool opens");
    assert!(life.pool.is_restock_coming(), "the holes are not fit for use");
    let mut scene = Scene { world, life, done: Vec::new(), next_cookie: 0 };
    scene.life.volumes.create(&NewVolume::new(Uuid::from_u128(1), "vol0", 2 * STRETCH_BYTES)).expect("a new volume");
    scene.life.handles.push(scene.life.volumes.open("vol0").expect("it is there"));
    let mut offset_bytes = 0;
    let waiting = loop {
        let write = scene.write(0, offset_bytes, FIRST_WRITE, 256 * BLOCK_SIZE);
        scene.turn_often();
        match scene.answer(write) {
            Some(answer) => assert_eq!(answer, Ok(())),
            None => break write,
        }
        offset_bytes += LEN_BYTES;
    };
    assert!(scene.life.take_checkpoint_wish(), "that may bring space too");

    scene.turn_often();

    assert!(!scene.life.take_checkpoint_wish(), "nothing has happened");
    scene.life.pool.restock_step().expect("a healthy device");
    scene.turn_often();
    assert_eq!(scene.answer(waiting), Some(Ok(())));
}

/// A full pool, and an overwrite that has found space for some of its blocks. The leaf that says that the rest needs none is
/// being loaded; behind the range nothing is mapped.
fn overwriting() -> (Scene, u64) {
    const FREED: u64 = 16;
    const END: u64 = 2 * LEAF_ENTRIES_U64 - FREED;
    let mut world = calm_world(DEVICE_BYTES);
    // A single leaf.
    world.limits.map_cache_bytes = 1;
    let mut scene = Scene::in_world(world);
    let discard = scene.discard(FILLING, END, FREED);
    scene.settle();
    assert_eq!(scene.answer(discard), Some(Ok(())));
    // The first still knows the blocks as replaced; behind the second they are free, and so is the lane's window.
    for _ in 0..2 {
        scene.world.checkpoint(&mut scene.life).expect("a healthy machine");
        scene.turn_often();
    }
    assert_eq!(scene.read(FILLING, 0), FILLER, "its leaf takes the place of the other one");
    let status = scene.life.pool.status();
    let spare = (status.free_bytes - status.reserve_bytes) / BLOCK_SIZE_U64;
    assert!((4..48).contains(&spare), "{spare} blocks are free beside the reserve");
    let count = spare + 16;
    let len_bytes = usize::try_from(count * BLOCK_SIZE_U64).expect("small");
    let write = scene.write(FILLING, (END - count) * BLOCK_SIZE_U64, FIRST_WRITE, len_bytes);
    for _ in 0..2 {
        scene.life.lanes[0].turn();
    }
    assert_eq!(scene.life.job_count(), 1, "the leaf is being loaded");
    (scene, write)
}

#[test]
fn overwrite_takes_its_rest_from_the_reserve_without_a_checkpoint_where_the_leaf_was_not_in_memory() {
    let (mut scene, write) = overwriting();

    scene.turn_often();

    assert_eq!(scene.answer(write), Some(Ok(())));
}

/// What waits for the reserve goes on waiting while a removal is under way: that gives back more than it takes.
#[test]
fn removal_under_way_is_use_of_the_reserve_also_behind_an_overwrite_that_began_without_it() {
    let (mut scene, write) = overwriting();
    let is_reserve_used = |scene: &Scene| scene.life.pool.reserve_use().0;
    assert!(!is_reserve_used(&scene), "its first batch has space");
    // Both batches are in flight then.
    scene.life.run_jobs();
    scene.life.lanes[0].turn();
    assert!(is_reserve_used(&scene));
    scene.turn_often();
    assert_eq!(scene.answer(write), Some(Ok(())));
    assert!(!is_reserve_used(&scene));

    let discard = scene.discard(FILLING, 0, 1);
    for _ in 0..TURNS {
        scene.life.lanes[0].turn();
        scene.life.run_jobs();
    }

    assert!(is_reserve_used(&scene), "it is not on the device");
    scene.turn_often();
    assert_eq!(scene.answer(discard), Some(Ok(())));
}
