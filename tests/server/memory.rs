//! A map larger than the memory for it.

use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::Home;

const MAP_CACHE_BYTES: u64 = 64 << 10;
/// Each of 1 MiB, with all blocks mapped: 32 leaves of 6 KiB are three times the cache.
const LEAF_COUNT: u64 = 32;
const LEAF_BLOCKS: u64 = 256;

#[test]
fn map_larger_than_its_memory_is_read_back_and_keeps_to_the_bound() {
    let home = Home::with_pool();
    let options = ["--map-cache", "64KiB", "--meta-cache", "8MiB"];
    let serving = home.serve(&options);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let socket = home.path("run/rok-blk/nbd.sock");
    let mut client = NbdClient::connect(&socket, "vol1").expect("the server is ready");
    let mut leaf = vec![0; BLOCK_BYTES * 256];
    for first in (0..LEAF_COUNT).map(|index| index * LEAF_BLOCKS) {
        for (index, block) in (first..).zip(leaf.chunks_exact_mut(BLOCK_BYTES)) {
            stamp::fill(block, index, Value::Stamp { client: 0, sequence: index });
        }
        client.write(first * BLOCK_BYTES_U64, &leaf);
    }
    client.disconnect();
    serving.stop();

    // Nothing of the map is in memory after a start.
    let serving = home.serve(&options);
    let mut client = NbdClient::connect(&socket, "vol1").expect("the server is ready");
    for round in 0..2 {
        for index in (0..LEAF_COUNT).map(|index| index * LEAF_BLOCKS + index) {
            let read = client.read(index * BLOCK_BYTES_U64, 4096);
            let wanted = Some(Value::Stamp { client: 0, sequence: index });
            assert_eq!(stamp::recognise(&read, index), wanted, "round {round}");
        }
        let pool = home.run(["status", "--json"]).json()["pool"].clone();
        let used = pool["map_cache"].as_u64().expect("a number");
        assert_eq!(pool["map_cache_max"], MAP_CACHE_BYTES);
        assert!((1..=MAP_CACHE_BYTES).contains(&used), "{pool}");
    }
    client.disconnect();
    serving.stop();
}

#[test]
fn memory_too_small_for_the_metadata_store_is_refused_with_what_to_give_it() {
    let home = Home::with_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let refused = home.run(["serve", "--pool", &pool, "--key-file", &key, "--meta-cache", "1MiB"]);
    let message = refused.failure(2);
    assert!(message.contains("at least 8 MiB"), "{message}");
}
