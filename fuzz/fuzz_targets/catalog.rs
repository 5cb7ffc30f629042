//! The small records of the metadata store, as they are before they are sealed, and its keys. The first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::format::catalog::{CheckpointRecord, DomainRecord, TreeRecord, VolumeRecord};
use rok_blk::format::job::JobRecord;
use rok_blk::format::policy::PolicyRecord;
use rok_blk::format::scrub::ScrubRecord;
use rok_blk::format::shred_key::ShredKeyCopy;
use rok_blk::format::snapshot::{PointRecord, SnapshotRecord};
use rok_blk::format::{bitmap, key, owner};
use rok_blk::units::BLOCK_SIZE;
use rok_fuzz::{canonical, stable};

/// The numbers in a key come back as they were.
fn check_keys(bytes: &[u8]) -> bool {
    canonical(bytes, key::parse_leaf, |(tree, leaf, epoch)| key::leaf(*tree, *leaf, *epoch));
    canonical(bytes, key::parse_epoch_leaf, |(tree, epoch, leaf)| key::epoch_leaf(*tree, *epoch, *leaf));
    canonical(bytes, key::parse_stretch, |(device, stretch)| key::stretch(*device, *stretch)).is_some()
}

fn check_shred_key(bytes: &[u8]) -> bool {
    let mut block = bytes.to_vec();
    block.resize(BLOCK_SIZE, 0);
    canonical(&block, ShredKeyCopy::decode, ShredKeyCopy::encode).is_some()
}

fuzz_target!(|input: &[u8]| {
    let [choice, body @ ..] = input else { return };
    let _is_one = match choice % 14 {
        // Fields that say nothing, as where an absent origin was, are not kept.
        0 => stable(body, VolumeRecord::decode, VolumeRecord::encode).is_some(),
        1 => stable(body, TreeRecord::decode, TreeRecord::encode).is_some(),
        2 => stable(body, PointRecord::decode, PointRecord::encode).is_some(),
        3 => stable(body, owner::decode, |runs| owner::encode(runs)).is_some(),
        4 => canonical(body, DomainRecord::decode, DomainRecord::encode).is_some(),
        5 => canonical(body, CheckpointRecord::decode, CheckpointRecord::encode).is_some(),
        6 => canonical(body, SnapshotRecord::decode, SnapshotRecord::encode).is_some(),
        7 => canonical(body, JobRecord::decode, JobRecord::encode).is_some(),
        8 => canonical(body, PolicyRecord::decode, PolicyRecord::encode).is_some(),
        9 => canonical(body, ScrubRecord::decode, ScrubRecord::encode).is_some(),
        10 => canonical(body, bitmap::decode, bitmap::encode).is_some(),
        11 => check_shred_key(body),
        _ => check_keys(body),
    };
});
