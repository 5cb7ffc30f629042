//! Free space that goes back to what is under the pool's devices, and comes again.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rok_nbd::{RequestKind, WireError};

use crate::clients::unix_socket;
use crate::devices::LoopDevice;
use crate::full_file_system::SmallFileSystem;
use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::{Home, WAIT_MAX, skip};

const MIB: u64 = 1 << 20;
/// Twelve stretches of 16 MiB.
const POOL_SIZE: &str = "192M";
const POOL_BYTES: u64 = 192 * MIB;
/// Nine of them.
const VOLUME_BYTES: u64 = 144 * MIB;
const CHUNK_BLOCKS: u64 = 256;
const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_BYTES_U64;
/// What stays in the file when nothing is mapped: the stock, what the log and the windows take, the front.
const KEPT_BYTES_MAX: u64 = 80 * MIB;

fn chunk(index: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(CHUNK_BYTES).expect("small")];
    for (block, bytes) in (index * CHUNK_BLOCKS..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        stamp::fill(bytes, block, Value::Stamp { client: 0, sequence });
    }
    bytes
}

fn connect(home: &Home) -> NbdClient {
    NbdClient::connect(&unix_socket(home), "vol1").expect("the server is ready")
}

/// Writes the volume from its start until there is no space; how many bytes that were.
fn fill(client: &mut NbdClient, sequence: u64) -> u64 {
    for index in 0..VOLUME_BYTES / CHUNK_BYTES {
        let range = (index * CHUNK_BYTES, u32::try_from(CHUNK_BYTES).expect("small"));
        match client.call(RequestKind::Write, range, &chunk(index, sequence)).expect("the server goes on") {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error, WireError::NoSpace, "chunk {index}");
                return index * CHUNK_BYTES;
            }
        }
    }
    VOLUME_BYTES
}

fn discard(client: &mut NbdClient) {
    let range = (0, u32::try_from(VOLUME_BYTES).expect("small"));
    let result = client.call(RequestKind::Trim, range, &[]).expect("the server goes on");
    assert_eq!(result, Ok(Vec::new()));
    client.flush();
}

fn assert_filled(client: &mut NbdClient, sequence: u64) {
    for index in 0..VOLUME_BYTES / CHUNK_BYTES {
        let read = client.read(index * CHUNK_BYTES, u32::try_from(CHUNK_BYTES).expect("small"));
        assert!(read == chunk(index, sequence), "chunk {index}");
    }
}

/// Bytes that the file takes of its file system.
fn taken(path: &Path) -> u64 {
    fs::metadata(path).expect("it is there").blocks() * 512
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WAIT_MAX, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A volume that was filled, and is empty again. Its space is given back.
#[track_caller]
fn filled_and_emptied(home: &Home, under: &Path) -> NbdClient {
    home.run(["create", "vol1", "--size", &VOLUME_BYTES.to_string()]).success();
    let mut client = connect(home);
    assert_eq!(fill(&mut client, 1), VOLUME_BYTES);
    discard(&mut client);
    wait_until("the space is given back", || taken(under) < KEPT_BYTES_MAX);
    client
}

#[test]
fn what_a_file_gave_back_is_used_again_also_behind_a_kill() {
    let home = Home::new();
    home.create_pool_of("pool", POOL_SIZE);
    let file = home.path("pool/data-0");
    assert!(taken(&file) >= POOL_BYTES, "it is preallocated");
    let serving = home.serve(&["--lanes", "1"]);
    let mut client = filled_and_emptied(&home, &file);
    let space = home.run(["df", "--json"]).json();
    assert!(space["free"].as_u64().expect("a size") > 170 * MIB, "what was given back is free: {space}");

    assert_eq!(fill(&mut client, 2), VOLUME_BYTES, "on the same connection");
    assert_filled(&mut client, 2);
    discard(&mut client);
    wait_until("the space is given back", || taken(&file) < KEPT_BYTES_MAX);
    drop(client);
    serving.kill();

    let serving = home.serve(&["--lanes", "1"]);
    let mut client = connect(&home);
    assert!(taken(&file) < KEPT_BYTES_MAX, "opening takes nothing");
    assert_eq!(fill(&mut client, 3), VOLUME_BYTES, "in another life");
    assert!(taken(&file) >= VOLUME_BYTES);
    assert_filled(&mut client, 3);
    client.disconnect();
    serving.stop();
    home.check();
}

#[test]
fn space_that_others_took_meanwhile_is_missing_and_nothing_else_and_comes_back() {
    let home = Home::new();
    let Some(small) = SmallFileSystem::mount(&home) else {
        return skip("a loop device cannot be mounted here");
    };
    let (pool, key) = (home.text("small/pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    symlink(&pool, home.path("pool")).expect("it is new");
    let serving = home.serve(&["--lanes", "1"]);
    let mut client = filled_and_emptied(&home, &home.path("pool/data-0"));

    small.fill();
    assert!(fill(&mut client, 2) < VOLUME_BYTES, "there is no space under the file");
    let status = home.run(["status", "--json"]).json();
    assert_eq!(status["pool"]["failure"], serde_json::Value::Null, "it takes writes: {status}");
    assert!(status["warnings"].to_string().contains("given back"), "{status}");
    small.empty();
    wait_until("the space comes back", || fill(&mut client, 3) == VOLUME_BYTES);

    assert_filled(&mut client, 3);
    client.disconnect();
    serving.stop();
    home.check();
}

#[test]
fn a_disk_forgets_what_is_free() {
    let home = Home::new();
    let Some(disk) = LoopDevice::attach(&home, "disk-0", POOL_BYTES) else { return };
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--device", disk.text(), "--key-file", &key, "--generate-key"]).success();
    let serving = home.serve(&["--lanes", "1"]);
    let mut client = filled_and_emptied(&home, &home.path("disk-0"));

    assert_eq!(fill(&mut client, 2), VOLUME_BYTES);
    assert_filled(&mut client, 2);
    client.disconnect();
    serving.stop();
    home.check();
}
