//! Leaves that are stored in parts, one of which is missing.

use crate::world::World;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::format::snapshot::Annotations;
use rok_blk::map::StoredLeaves;
use rok_blk::meta::{Durability, MetaStore as _};
use rok_blk::pool::{Checkpoint, NewSnapshot};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, Epoch, LeafIndex};
use rok_blk::volume::{Completion, NewVolume};
use std::sync::Arc;
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(1);
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };
/// Versions behind the first.
const VERSIONS: u64 = 3;

/// Never what the blocks held before.
#[test]
fn read_of_a_part_whose_base_is_missing_is_an_error() {
    for missing in 1..=VERSIONS {
        let mut world = World::new(1, &[16 << 20]);
        let mut life = world.open().expect("a new pool opens");
        life.volumes.create(&NewVolume::new(VOLUME, "vol", 1 << 20)).expect("a new volume");
        let mut done = Vec::new();
        for version in 0..=VERSIONS {
            // All of the leaf, then a block of it in each version.
            let blocks = if version == 0 { 256 } else { 1 };
            let source = IoBuffer::allocate(blocks * BLOCK_SIZE);
            source.with_bytes_mut(|bytes| bytes.fill(7));
            let volume = life.volumes.open("vol").expect("it is there");
            life.lanes[0].write(volume.volume(), version * BLOCK_SIZE_U64, source, false, COMPLETION);
            world.drain(&mut life, &mut done);
            Checkpoint::begin(Arc::clone(&life.pool)).run().expect("a healthy machine");
            if version < VERSIONS {
                let new = NewSnapshot {
                    id: Uuid::from_u64_pair(2, version),
                    volume: VOLUME,
                    created_at_ms: 0,
                    time_ms: 0,
                    expires_at: 0,
                    annotations: Annotations::default(),
                };
                life.volumes.snapshot(vec![new]).expect("a healthy machine");
            }
        }
        assert_eq!(life.pool.part_counts().stored(), VERSIONS);
        let tree = life.pool.with_catalog(|catalog, _| catalog.volume(VOLUME).expect("it is there").tree);
        assert!(world.close(life, None, &mut done), "a healthy machine");
        let lost = StoredLeaves::delete((tree, Epoch::new(missing), LeafIndex::new(0)));
        world.store.commit(&lost, Durability::Synced).expect("memory takes it");

        // Behind what is missing each is an error, and what it does not build on is read.
        let mut life = world.open().expect("leaves are read when they are needed");
        for number in missing..=VERSIONS {
            let volume = if number == VERSIONS {
                life.volumes.open("vol")
            } else {
                life.volumes.open_snapshot((VOLUME, number + 1))
            };
            let volume = volume.expect("it is there");
            for block in [0, number, 100] {
                done.clear();
                let target = IoBuffer::allocate(BLOCK_SIZE);
                life.lanes[0].read(volume.volume(), block * BLOCK_SIZE_U64, target, COMPLETION);
                world.drain(&mut life, &mut done);
                assert_eq!(done.pop().expect("it is answered").1, Err(IoError::Io), "{missing} {number} {block}");
            }
        }
    }
}
