//! What a scrub remembers of its passes.

use super::*;
use crate::crypto::{MasterKey, Suite};
use crate::disk::SimDevice;
use crate::format::scrub::DamageKind;
use crate::meta::{MemoryStore, MetaStore};
use crate::pool::{Limits, Parts};
use crate::units::{Epoch, TreeId};
use uuid::Uuid;

fn scrub() -> Scrub {
    let parts = Parts {
        id: Uuid::from_u128(1),
        suite: Suite::XtsGmac,
        master: Arc::new(MasterKey::from_bytes([7; 32])),
        devices: vec![(Arc::new(SimDevice::new("sim", 16 << 20)), Uuid::from_u128(2))],
        store: Arc::new(MemoryStore::new()) as Arc<dyn MetaStore>,
        reserve: None,
        shred_key: None,
        lane_count: 1,
        has_cleaner: false,
        limits: Limits::default(),
    };
    crate::pool::create(&parts, &mut |bytes| bytes.fill(5)).expect("a new pool");
    Scrub::load(crate::pool::open(parts, &mut |bytes| bytes.fill(6)).expect("it opens")).expect("memory")
}

fn place(leaf: u64) -> Option<ScrubPlace> {
    Some(ScrubPlace { tree: TreeId::new(1), leaf: LeafIndex::new(leaf), epoch: Epoch::new(1) })
}

fn damage(leaf: u64, count: u16) -> Damage {
    let first = LeafIndex::new(leaf).first_block();
    let (tree, kind) = (TreeId::new(1), DamageKind::Content);
    Damage { tree, first, count, kind, is_of_before: false, readers: Vec::new() }
}

fn step(next: Option<ScrubPlace>, damages: Vec<Damage>) -> ScrubStep {
    ScrubStep { next, read_blocks: 100, damages }
}

fn listed(scrub: &Scrub) -> Vec<u64> {
    scrub.record().damages.iter().map(|damage| damage.first.leaf().get()).collect()
}

#[test]
fn what_an_earlier_pass_found_is_listed_until_the_next_one_comes_there() {
    let mut scrub = scrub();
    scrub.begin(10, 1);
    assert!(scrub.take(step(None, vec![damage(2, 1), damage(5, 1), damage(9, 1)]), 20));
    assert_eq!((scrub.record().pass_count, scrub.record().began_at, scrub.record().ended_at), (1, 10, 20));

    scrub.begin(30, 1);
    assert!(!scrub.take(step(place(5), vec![damage(3, 1)]), 31));
    assert_eq!(listed(&scrub), [3, 5, 9]);
    // In the middle of leaf 5: what was found there before may be found in one of its later epochs.
    assert!(!scrub.take(step(place(5), vec![]), 32));
    assert_eq!(listed(&scrub), [3, 5, 9]);
    assert!(!scrub.take(step(place(6), vec![damage(5, 2)]), 33));
    assert_eq!(listed(&scrub), [3, 5, 9]);
    assert!(scrub.take(step(None, vec![]), 34));

    assert_eq!(listed(&scrub), [3, 5]);
    assert_eq!((scrub.record().pass_count, scrub.record().read_blocks), (2, 400));
}

#[test]
fn a_pass_that_is_given_up_keeps_what_it_found_and_the_next_begins_at_the_start() {
    let mut scrub = scrub();
    scrub.begin(10, 1);
    scrub.take(step(place(5), vec![damage(3, 1)]), 11);

    scrub.give_up();
    assert_eq!((scrub.record().place, listed(&scrub)), (None, vec![3]));
    scrub.begin(12, 1);

    assert_eq!(scrub.record().place, Some(ScrubPlace::default()));
    assert_eq!((scrub.record().read_blocks, listed(&scrub)), (0, vec![3]));
}

#[test]
fn a_pass_pauses_when_it_has_read_as_much_as_it_was_to() {
    let mut scrub = scrub();
    scrub.begin(10, 1);
    scrub.pause_after(150);
    scrub.take(step(place(5), vec![]), 11);
    assert!(!scrub.is_pause_due());
    scrub.take(step(place(6), vec![]), 11);
    assert!(scrub.is_pause_due());

    scrub.begin(12, 2);

    assert!(!scrub.is_pause_due(), "it goes on, to the end");
    assert_eq!((scrub.record().place, scrub.record().rate_bytes), (place(6), 2));
}

#[test]
fn the_list_is_bounded_and_the_rest_is_counted() {
    let mut scrub = scrub();
    scrub.begin(10, 1);
    let many = (0..1100).map(|leaf| damage(leaf, 3)).collect();
    scrub.take(step(None, many), 11);

    assert!(scrub.is_list_full());
    assert_eq!((scrub.record().damages.len(), scrub.record().unlisted_blocks), (1000, 300));
    scrub.store().expect("memory");
}

#[test]
fn what_was_stored_is_there_again_and_a_damaged_record_is_none() {
    let mut scrub = scrub();
    scrub.begin(10, 1);
    scrub.take(step(place(5), vec![damage(3, 1)]), 11);
    scrub.store().expect("memory");
    let stored = scrub.record().clone();
    scrub.take(step(None, vec![]), 12);

    let pool = Arc::clone(&scrub.pool);
    assert_eq!(Scrub::load(Arc::clone(&pool)).expect("memory").record(), &stored);
    let put = MetaOp::Put(Table::Catalog, key::SCRUB.to_vec(), vec![1; 50]);
    pool.commit_beside(&[put]).expect("memory");

    assert_eq!(Scrub::load(pool).expect("memory").record(), &ScrubRecord::default());
}
