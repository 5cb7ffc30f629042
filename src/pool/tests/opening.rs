//! What an opening takes, and what it refuses.

use super::*;
use crate::disk::{Device as _, OpKind};
use crate::pool::growth::window_blocks;
use crate::units::{AddressRun, BLOCK_SIZE_U64, STRETCH_BLOCKS, to_usize};

/// Lays a change and stores it.
fn store_something(pool: &Arc<Pool>, tree: TreeId, block: u64) {
    lay(pool, tree, block);
    Checkpoint::begin(Arc::clone(pool)).run().expect("nothing is in the way");
}

fn image(place: &Place) -> Place {
    Place { device: place.device.duplicate("sim"), store: Arc::new(place.store.image()) }
}

fn refusal(place: &Place) -> String {
    let error = open(place.parts(), &mut |bytes| bytes.fill(6)).err().expect("it is refused");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    error.message().to_owned()
}

#[test]
fn a_device_and_meta_of_different_times_are_refused_by_name() {
    let place = Place::new();
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    store_something(&pool, tree, 0);
    let old = image(&place);
    (1..3).for_each(|block| store_something(&pool, tree, block));
    drop(pool);

    let older_device = Place { device: old.device, store: Arc::clone(&place.store) };
    assert_eq!(refusal(&older_device), "Device sim is older than meta/: it knows of checkpoint 2 and meta/ holds 4");
    let older_meta = Place { device: place.device.clone(), store: old.store };
    assert_eq!(refusal(&older_meta), "meta/ is older than device sim: it holds checkpoint 2 and the device knows of 4");
    // An opening stores a checkpoint, too.
    let before = image(&place);
    drop(place.open());
    let older_meta = Place { device: place.device.clone(), store: before.store };
    assert_eq!(refusal(&older_meta), "meta/ is older than device sim: it holds checkpoint 4 and the device knows of 5");
    drop(place.open());
}

#[test]
fn a_device_that_is_smaller_than_it_was_is_refused_with_both_sizes() {
    let place = Place::new();
    drop(place.open());
    let smaller = SimDevice::new("sim", 8 << 20);
    place.device.scan(|offset_bytes, bytes| {
        if offset_bytes < smaller.size_bytes() {
            let len = bytes.len().min(to_usize(smaller.size_bytes() - offset_bytes));
            smaller.write_at(offset_bytes, &bytes[..len]).expect("a healthy device");
        }
    });

    let place = Place { device: smaller, store: place.store };

    assert_eq!(refusal(&place), "Device sim had 16777216 bytes in the pool, and 8388608 are left or listed");
}

/// A crash may come between a checkpoint and the device's header, and another one within the opening that finds that.
#[test]
fn a_device_may_be_one_checkpoint_behind_and_catches_up_before_the_next_one() {
    // A write that fails may be there all the same, as the seed says.
    for (nth, seed) in (1..4).flat_map(|nth| (0..8).map(move |seed| (nth, seed))) {
        let mut place = Place::new();
        let pool = place.open();
        let tree = create_volume(&pool, "vol");
        let behind = place.device.duplicate("sim");
        store_something(&pool, tree, 0);
        drop(pool);
        place.device = behind;
        place.device.reseed(seed);
        place.device.fail_nth(OpKind::Write, nth);

        drop(open(place.parts(), &mut |bytes| bytes.fill(6)));
        place.device.clear_faults();

        let error = open(place.parts(), &mut |bytes| bytes.fill(8)).err().map(|error| error.to_string());
        assert_eq!(error, None, "write {nth} failed, seed {seed}");
    }
}

#[test]
fn an_opening_writes_the_header_once_where_it_was_up_to_date() {
    let place = Place::new();
    drop(place.open());
    let before = place.device.counters().writes;

    drop(open(place.parts(), &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool"));

    assert_eq!(place.device.counters().writes - before, 1, "that of its checkpoint");
}

#[test]
fn lanes_leave_most_of_what_is_free_to_each_other() {
    for (lane_count, device_bytes) in [(1, 16 << 20), (4, 16 << 20), (8, 5 << 20), (1, 64 << 20)] {
        let place = Place { device: SimDevice::new("sim", device_bytes), store: Arc::new(MemoryStore::new()) };
        let parts = || Parts { lane_count, ..place.parts() };
        create(&parts(), &mut |bytes| bytes.fill(5)).expect("a new pool on a healthy device");

        let pool = open(parts(), &mut |bytes| bytes.fill(6)).expect("nothing is wrong with the pool");

        let homes: Vec<u64> = pool.homes.lock().iter().map(|home| home.expect("nobody took it").count).collect();
        let space = pool.space.lock();
        let (mut left, blocks) = (space.free_count() + homes.iter().sum::<u64>(), space.block_count());
        for home in homes {
            let share = left / (4 * u64::from(lane_count));
            assert_eq!(home, share.min(window_blocks(blocks, usize::from(lane_count))), "{lane_count} lanes");
            left -= home;
        }
    }
}

/// A device with holes in two of its three stretches, one of them free, of which so many blocks are free for the next life.
fn with_a_free_stretch(free_blocks: u64) -> Place {
    let stretch_bytes = STRETCH_BLOCKS * BLOCK_SIZE_U64;
    let device = SimDevice::new("sim", 3 * stretch_bytes);
    device.set_thin(true);
    device.discard(stretch_bytes, 2 * stretch_bytes).expect("a healthy device");
    let place = Place { device, store: Arc::new(MemoryStore::new()) };
    create(&place.parts(), &mut |bytes| bytes.fill(5)).expect("a new pool on a healthy device");
    // Without the holes, so that all of it can be reserved.
    place.device.set_thin(false);
    let pool = place.open();
    let tree = create_volume(&pool, "vol");
    // The lane goes without all but the first block of its home.
    let mut home = pool.homes.lock()[0].take().expect("nobody took it");
    let rest = AddressRun { start: home.start.plus(1), count: home.count - 1 };
    home.count = 1;
    pool.homes.lock()[0] = Some(home);
    pool.space.lock().free_run(rest);
    let free_stretch = pool.space.lock().reserve(STRETCH_BLOCKS, 0);
    assert_eq!(
        free_stretch.iter().map(|run| run.count).max(),
        Some(STRETCH_BLOCKS),
        "the lane's home is in the other one"
    );
    let count = pool.space.lock().free_count() + STRETCH_BLOCKS + home.count - free_blocks;
    (0..count).for_each(|block| _ = lay(&pool, tree, block));
    free_stretch.into_iter().for_each(|run| pool.space.lock().free_run(run));
    Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
    drop(pool);
    place.device.set_thin(true);
    place
}

#[test]
fn holes_of_a_file_are_left_out_unless_little_else_is_free() {
    let released = |free_blocks: u64| {
        let place = with_a_free_stretch(free_blocks);
        let pool = open(place.parts(), &mut |bytes| bytes.fill(8)).expect("nothing is wrong with the pool");
        pool.space.lock().released_blocks()
    };
    // What is kept is less than four times what homes may take, and more than twice.
    assert_eq!(released(STRETCH_BLOCKS + 4 * HOME_RESERVE_BLOCKS), STRETCH_BLOCKS);
    assert_eq!(released(STRETCH_BLOCKS + 2 * HOME_RESERVE_BLOCKS), 0);
}
