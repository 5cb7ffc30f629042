//! A served pool whose free space is holes: it is cleaned while nobody uses it.

use std::thread;
use std::time::{Duration, Instant};

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::{Home, WAIT_MAX};

const MIB: u64 = 1 << 20;
/// Twelve stretches, of which the volume takes nine.
const POOL_SIZE: &str = "192M";
const VOLUME_BLOCKS: u64 = 144 * MIB / BLOCK_BYTES_U64;
const CHUNK_BLOCKS: u64 = 256;
/// Every so many blocks one is overwritten, in each round one step further.
const STRIDE: u64 = 5;

fn content(first: u64, count: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(count).expect("small") * BLOCK_BYTES];
    for (block, bytes) in (first..first + count).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        stamp::fill(bytes, block, Value::Stamp { client: 0, sequence });
    }
    bytes
}

fn write(client: &mut NbdClient, first: u64, count: u64, sequence: u64) {
    client.write(first * BLOCK_BYTES_U64, &content(first, count, sequence));
}

fn cleaning(home: &Home) -> serde_json::Value {
    home.run(["status", "--json"]).json()["pool"]["cleaning"].clone()
}

fn bytes(status: &serde_json::Value, field: &str) -> u64 {
    status[field].as_u64().expect("a size")
}

/// Until there is nothing to clean behind a checkpoint of everything.
fn wait_until_clean(home: &Home) -> serde_json::Value {
    let begun = Instant::now();
    loop {
        let pool = home.run(["status", "--json"]).json()["pool"].clone();
        let status = pool["cleaning"].clone();
        if pool["changes"] == 0 && status["is_resting"] == true && bytes(&status, "moved") > 0 {
            return status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "it is still cleaned: {status}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn holes_that_overwrites_leave_become_long_runs_while_nobody_uses_the_pool() {
    let home = Home::new();
    home.create_pool_of("pool", POOL_SIZE);
    let serving = home.serve(&["--lanes", "1"]);
    home.run(["create", "vol1", "--size", &format!("{}M", VOLUME_BLOCKS * BLOCK_BYTES_U64 / MIB)]).success();
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("the server is ready");
    for first in (0..VOLUME_BLOCKS).step_by(256) {
        write(&mut client, first, CHUNK_BLOCKS, 1);
    }
    for round in 0..STRIDE - 1 {
        for block in (round..VOLUME_BLOCKS).step_by(5) {
            write(&mut client, block, 1, 2);
        }
    }
    let aged = cleaning(&home);

    let cleaned = wait_until_clean(&home);

    assert!(bytes(&cleaned, "long_runs") > bytes(&cleaned, "holes"), "before: {aged}, after: {cleaned}");
    assert!(bytes(&cleaned, "moved") <= bytes(&cleaned, "written"), "{cleaned}");
    for first in (0..VOLUME_BLOCKS).step_by(256) {
        let length = u32::try_from(CHUNK_BLOCKS * BLOCK_BYTES_U64).expect("small");
        let read = client.read(first * BLOCK_BYTES_U64, length);
        for (block, read) in (first..).zip(read.chunks_exact(BLOCK_BYTES)) {
            let sequence = if block % STRIDE < STRIDE - 1 { 2 } else { 1 };
            assert_eq!(read, content(block, 1, sequence), "block {block}");
        }
    }
    client.disconnect();
    serving.stop();
}
