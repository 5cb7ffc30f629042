//! Which stretches a cleaner empties, and when it leaves them alone. What it moves, and what that gains, is the simulation's.

use super::*;
use crate::pool::space::Stretch;
use crate::units::{AddressRun, STRETCH_BLOCKS};

/// Stretches of the device. The first has the reserved blocks of lanes, and holes from the start; a volume fills four others.
const STRETCHES: u64 = 16;

/// A pool whose stretches have holes.
struct Holed {
    place: Place,
    pool: Arc<Pool>,
    tree: TreeId,
    /// Those with holes, as they were asked for.
    stretches: Vec<Stretch>,
}

impl Holed {
    /// As many stretches as `kept`, with so many blocks of a volume in each; all others are free. Users have written a lot.
    fn new(kept: &[u64], limits: Limits) -> Self {
        let place = Place::with_device(STRETCHES * STRETCH_BLOCKS * 4096);
        let pool = place.open_with(limits);
        let tree = create_volume(&pool, "vol");
        let (mut block, mut removed) = (0, Vec::new());
        let stretches = kept.iter().map(|kept| {
            // All of a stretch that is wholly free.
            let runs = pool.space.lock().reserve(STRETCH_BLOCKS, 0);
            assert_eq!(runs.len(), 1, "a new device has no holes");
            let AddressRun { start, count } = runs[0];
            assert_eq!((start.block() % STRETCH_BLOCKS, count), (0, STRETCH_BLOCKS), "the first stretch is the lanes'");
            for step in 0..count {
                let address = start.plus(step);
                lay_change(&pool, tree, block, Some(address));
                // What is replaced by nothing is free behind a checkpoint.
                if step >= *kept {
                    removed.push(block);
                }
                block += 1;
            }
            Stretch { device: start.device(), index: start.block() / STRETCH_BLOCKS }
        });
        let stretches = stretches.collect();
        Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
        removed.into_iter().for_each(|block| lay_change(&pool, tree, block, None));
        Checkpoint::begin(Arc::clone(&pool)).run().expect("nothing is in the way");
        pool.lanes[0].laid_blocks.store(4 * STRETCH_BLOCKS, Ordering::Relaxed);
        Self { place, pool, tree, stretches }
    }

    fn next(&self, urgency: Urgency) -> CleanerStep {
        Cleaner::new(Arc::clone(&self.pool)).next(urgency)
    }

    fn is_free(&self, stretch: Stretch) -> bool {
        let (free, capacity) = self.pool.space.lock().free_in(stretch);
        free == capacity
    }
}

#[test]
fn cleaning_is_needed_where_an_eighth_of_what_is_free_is_holes() {
    for (kept, is_needed) in [(&[][..], false), (&[4000; 3], false), (&[1000; 3], true)] {
        let scene = Holed::new(kept, Limits::default());
        let shape = scene.pool.cleaning_status().shape;
        assert_eq!(Cleaner::new(Arc::clone(&scene.pool)).is_needed(), is_needed, "{kept:?}: {shape:?}");
    }
}

#[test]
fn a_cleaner_that_stops_gives_back_what_it_closed() {
    let scene = Holed::new(&[1000, 1000, 1000], Limits::default());
    let open = || scene.pool.space.lock().open_hole_blocks();
    let before = open();
    let mut cleaner = Cleaner::new(Arc::clone(&scene.pool));
    assert!(matches!(cleaner.next(Urgency::Idle), CleanerStep::Move(_)));
    assert!(open() < before);

    cleaner.stop();

    assert_eq!(open(), before);
    assert!(matches!(cleaner.next(Urgency::Idle), CleanerStep::Move(_)), "another cycle begins");
    drop(cleaner);
    assert_eq!(open(), before);
}

#[test]
fn a_pool_in_use_empties_stretches_that_are_half_free_alone() {
    let full = Holed::new(&[2500, 2500, 2500, 2500], Limits::default());
    assert!(matches!(full.next(Urgency::Idle), CleanerStep::Move(_)));
    assert_eq!(full.next(Urgency::Scarce), CleanerStep::Rest);

    let sparse = Holed::new(&[1500, 1500, 1500, 1500], Limits::default());
    assert!(matches!(sparse.next(Urgency::Scarce), CleanerStep::Move(_)));
}

#[test]
fn no_stretch_is_emptied_while_writes_wait_for_a_checkpoint_or_the_budget_is_used() {
    let limits = Limits { changes_hard_max: 5000, ..Limits::default() };
    let scene = Holed::new(&[1000, 1000, 1000], limits);
    assert!(matches!(scene.next(Urgency::Idle), CleanerStep::Move(_)));

    // What was moved counts as written by lanes too.
    scene.pool.lanes[0].laid_blocks.store(6000, Ordering::Relaxed);
    scene.pool.count_moved(3000);
    assert_eq!(scene.next(Urgency::Idle), CleanerStep::Rest);

    scene.pool.lanes[0].laid_blocks.store(7000, Ordering::Relaxed);
    assert!(matches!(scene.next(Urgency::Idle), CleanerStep::Move(_)));
    for block in 0..5000 {
        lay(&scene.pool, scene.tree, block);
    }
    assert_eq!(scene.next(Urgency::Idle), CleanerStep::Rest);
    drop(scene.place);
}

#[test]
fn the_last_block_of_a_stretch_needs_a_budget_too() {
    let scene = Holed::new(&[1, 1000, 1000], Limits::default());
    // As much as was written: nothing is left.
    scene.pool.lanes[0].laid_blocks.store(2000, Ordering::Relaxed);
    scene.pool.count_moved(1000);
    assert_eq!(scene.next(Urgency::Idle), CleanerStep::Rest);

    scene.pool.lanes[0].laid_blocks.store(2001, Ordering::Relaxed);
    assert!(matches!(scene.next(Urgency::Idle), CleanerStep::Move(_)));
}

#[test]
fn an_attempt_is_noted_where_something_stayed() {
    let scene = Holed::new(&[1000, 0], Limits::default());
    let [sparse, empty] = scene.stretches[..] else { panic!("two were asked for") };
    assert!(scene.is_free(empty) && !scene.is_free(sparse));
    let attempt = |stretch| scene.pool.attempt_on(stretch, &scene.pool.live_blocks(stretch));
    assert!(attempt(sparse).is_some());
    assert_eq!(attempt(empty), None);
}

#[test]
fn groups_of_a_stretch_are_all_of_it() {
    let scene = Holed::new(&[1000], Limits::default());
    let mut owned = 0;
    for group in AddressGroup::of_stretch(scene.stretches[0]) {
        let owners = scene.pool.owners_of(group).expect("memory");
        owned += owners.iter().map(|(_, run)| u64::from(run.count)).sum::<u64>();
    }
    assert_eq!(owned, 1000);
}

#[test]
fn write_amplification_is_what_was_written_for_each_block_of_users() {
    let status = |written, moved| CleaningStatus { shape: FreeShape::default(), written, moved };
    for (written, moved, amplification) in [
        (0, 0, 1.0),
        (255, 255, 1.0),
        (256, 256, 2.0),
        (1 << 20, 1 << 19, 1.5),
        (1 << 36, 1 << 35, 1.5),
        (1 << 36, 0, 1.0),
    ] {
        let found = status(written, moved).write_amplification();
        assert!((found - amplification).abs() < 1e-9, "{written} and {moved}: {found}");
    }
}
