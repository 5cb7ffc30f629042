//! Volumes cost what is written to them, however large they look.

use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use crate::nbd_client::NbdClient;
use crate::scan::files;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::Home;

const MIB: u64 = 1 << 20;
/// What `stat` counts space in.
const SECTOR_BYTES: u64 = 512;

#[test]
fn a_tebibyte_and_a_pebibyte_cost_less_than_a_mebibyte_each() {
    let home = Home::with_pool();
    home.serve(&[]).stop();
    let mut cost_before = cost_bytes(&home);
    for (name, size, size_bytes) in [("vol1", "1T", 1_u64 << 40), ("vol2", "1P", 1 << 50)] {
        let serving = home.serve(&[]);
        let begin = Instant::now();
        home.run(["create", name, "--size", size]).success();
        println!("{size} was created in {:?}", begin.elapsed());
        assert_eq!(home.run(["show", name, "--json"]).json()["size"], size_bytes);
        serving.stop();
        let cost_after = cost_bytes(&home);
        println!("{size} costs {} bytes", cost_after.abs_diff(cost_before));
        assert!(cost_after < cost_before + MIB, "{size} costs {} bytes", cost_after - cost_before);
        cost_before = cost_after;
    }
}

#[test]
fn the_far_end_of_a_pebibyte_holds_data_and_costs_little() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1P"]).success();
    let socket = home.path("run/rok-blk/nbd.sock");
    let mut client = NbdClient::connect(&socket, "vol1").expect("the server is ready");
    let size_bytes = client.size_bytes();
    assert_eq!(size_bytes, 1 << 50);
    let last = size_bytes / BLOCK_BYTES_U64 - 1;
    let mut block = vec![0; BLOCK_BYTES];
    for index in [0, last / 2, last] {
        stamp::fill(&mut block, index, Value::Stamp { client: 0, sequence: index });
        client.write(index * BLOCK_BYTES_U64, &block);
    }
    client.disconnect();
    serving.stop();

    let serving = home.serve(&[]);
    let mut client = NbdClient::connect(&socket, "vol1").expect("the server is ready");
    for index in [0, last / 2, last] {
        let read = client.read(index * BLOCK_BYTES_U64, 4096);
        assert_eq!(stamp::recognise(&read, index), Some(Value::Stamp { client: 0, sequence: index }));
    }
    let beside = client.read((last - 1) * BLOCK_BYTES_U64, 4096);
    assert_eq!(stamp::recognise(&beside, last - 1), Some(Value::Zeros));
    client.disconnect();
    let space = home.run(["df", "--json"]).json();
    assert_eq!(space["used"], 3 * BLOCK_BYTES_U64, "{space}");
    serving.stop();
}

/// What the pool takes: space of its files beside the device's, and of the device what it calls used.
fn cost_bytes(home: &Home) -> u64 {
    let sizes = files(&home.path("pool"), 0).into_iter().map(|path| {
        let metadata = path.metadata().expect("a file of the pool");
        // RocksDB's log of messages is bounded and grows with each start, not with volumes.
        let is_message_file = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("LOG"));
        if is_message_file { 0 } else { metadata.len().max(metadata.blocks() * SECTOR_BYTES) }
    });
    let files_bytes: u64 = sizes.sum();
    let serving = home.serve(&[]);
    let used = home.run(["df", "--json"]).json()["used"].as_u64().expect("a number");
    serving.stop();
    files_bytes + used
}
