//! Blocks of the log that leaves map too.

use super::*;
use crate::pool::RecoveryReport;
use crate::pool::recovery::Recovered;
use std::collections::BTreeSet;

/// Blocks that have another holder than the log, whose changes say where these blocks of the volume are.
fn with_other_holders(scene: &Scene, changes: &[(u64, Entry)]) -> Vec<Address> {
    let changes = changes.iter().map(|(block, entry)| {
        let key = ChangeKey { tree: scene.tree, block: BlockIndex::new(*block), epoch: Epoch::new(1) };
        (key, Change { sequence: entry.sequence(), entry: Some(*entry) })
    });
    let recovered = Recovered {
        changes: changes.collect(),
        record_runs: Vec::new(),
        next_sequence: scene.pool.take_sequences(1),
        unverified: BTreeSet::new(),
        report: RecoveryReport::default(),
    };
    let catalog = scene.pool.with_catalog(|catalog, _| catalog.clone());
    let block_counts: [u64; 1] = [(16 << 20) / 4096];
    let mut walk = Walk::new(&*scene.store, &scene.pool.keys, &catalog, &block_counts);
    walk.leaves().expect("it can be read");
    walk.log(&recovered).expect("it can be read");
    assert!(walk.report.differences.iter().all(|found| found.kind == DifferenceKind::Log), "{:#?}", walk.report);
    walk.report.differences.iter().filter_map(|found| found.blocks).map(|run| run.start).collect()
}

#[test]
fn block_that_the_log_wrote_for_one_block_and_a_leaf_maps_for_another_is_named() {
    let scene = Scene::new();
    let stored: Vec<(u8, Entry)> = scene.leaf().iter().collect();
    let addresses: Vec<Address> = stored.iter().map(|(_, entry)| entry.address()).collect();
    let written_for = |first: u64| -> Vec<(u64, Entry)> {
        stored.iter().map(|(slot, entry)| (first + u64::from(*slot), *entry)).collect()
    };

    assert_eq!(with_other_holders(&scene, &written_for(300)), addresses);
    // A crash behind the batch that stored them, and in front of the last one of the checkpoint.
    assert!(with_other_holders(&scene, &written_for(0)).is_empty(), "they are stored already");
}

#[test]
fn block_that_the_log_wrote_for_two_blocks_is_named() {
    let scene = Scene::new();
    let free = Address::new(DeviceIndex::new(0), 4000);
    let entry = Entry::new(free, KeyGeneration::new(0), scene.pool.take_sequences(1), 1);

    assert_eq!(with_other_holders(&scene, &[(300, entry), (301, entry)]), [free]);
    assert!(with_other_holders(&scene, &[(300, entry)]).is_empty(), "nobody else has it");
}
