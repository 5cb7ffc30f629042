//! A file system that is full to the last block, with all of the pool in it: devices and `meta/`.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rok_nbd::{RequestKind, WireError};

use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::{Home, POOL_SIZE, WAIT_MAX, skip};

/// The smallest that XFS takes is 300 MiB.
const FILE_SYSTEM_BYTES: u64 = 256 << 20;
const XFS_BYTES: u64 = 320 << 20;
/// Together some ten seconds.
const UNMOUNT_TRIES: u64 = 45;
/// Blocks that are written while there is space.
const BLOCK_COUNT: u64 = 512;

/// A small file system in a file, mounted.
pub struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// An ext4; `None` where it cannot be mounted.
    pub fn mount(home: &Home) -> Option<Self> {
        Self::mount_made_by(home, &["mkfs.ext4", "-q", "-m", "0"], FILE_SYSTEM_BYTES)
    }

    /// An XFS; `None` where it cannot be mounted.
    pub fn mount_xfs(home: &Home) -> Option<Self> {
        Self::mount_made_by(home, &["mkfs.xfs", "-q"], XFS_BYTES)
    }

    fn mount_made_by(home: &Home, make: &[&str], size_bytes: u64) -> Option<Self> {
        let (image, place) = (home.path("image"), home.path("small"));
        File::create(&image).and_then(|file| file.set_len(size_bytes)).expect("there is space");
        fs::create_dir(&place).expect("it is new");
        let made =
            Command::new(make[0]).args(&make[1..]).arg(&image).status().expect("e2fsprogs and xfsprogs are there");
        assert!(made.success());
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&image, &place]).output().expect("util-linux");
        mounted.status.success().then_some(Self(place))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes every free block, but not the reserve of the pool: a checkpoint that finds no space while the last blocks are
    /// taken gives it up, and what is the pool's then must not be the filler's.
    pub fn fill(&self) {
        let reserve_bytes = fs::metadata(self.reserve()).map_or(0, |reserve| reserve.len());
        let mut filler = File::create(self.0.join("filler")).expect("a new file");
        let chunk = vec![0x5a; 1 << 20];
        let mut len = chunk.len();
        // What is written of a chunk when space runs out stays written.
        while len > 0 {
            if filler.write_all(&chunk[..len]).is_err() {
                len /= 2;
            }
        }
        filler.sync_all().expect("what was taken is there");
        if reserve_bytes > 0 && !self.reserve().exists() {
            let filled_bytes = filler.metadata().expect("it is open").len();
            filler.set_len(filled_bytes - reserve_bytes).expect("nothing is written");
            // Without it a file system with a journal would not free the blocks.
            filler.sync_all().expect("nothing is written");
        }
    }

    pub fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("it is there");
    }

    fn reserve(&self) -> PathBuf {
        self.0.join("pool/meta-reserve")
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // The kernel closes the files of a process that is gone in its own time, and tells nobody.
        let is_unmounted = (0..UNMOUNT_TRIES).any(|attempt| {
            std::thread::sleep(Duration::from_millis(attempt * 10));
            Command::new("umount").arg(&self.0).status().expect("util-linux").success()
        });
        assert!(is_unmounted || std::thread::panicking(), "nothing holds it");
    }
}

fn block_of(index: u64, sequence: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    stamp::fill(&mut block, index, Value::Stamp { client: 0, sequence });
    block
}

fn connect(socket: &Path) -> NbdClient {
    NbdClient::connect(socket, "vol1").expect("the server is ready")
}

fn write(client: &mut NbdClient, index: u64, sequence: u64) -> Result<Vec<u8>, WireError> {
    let length = u32::try_from(BLOCK_BYTES).expect("4096");
    let range = (index * BLOCK_BYTES_U64, length);
    client.call(RequestKind::Write, range, &block_of(index, sequence)).expect("the server goes on")
}

fn assert_holds(client: &mut NbdClient, index: u64, wanted: Value) {
    let read = client.read(index * BLOCK_BYTES_U64, 4096);
    assert_eq!(stamp::recognise(&read, index), Some(wanted), "block {index}");
}

#[test]
fn pool_opens_reads_frees_and_overwrites_on_a_full_file_system_and_recovers_with_space() {
    let home = Home::new();
    let Some(small) = SmallFileSystem::mount(&home) else {
        return skip("a loop device cannot be mounted here");
    };
    let (pool, key) = (home.text("small/pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    symlink(&pool, home.path("pool")).expect("it is new");
    let socket = home.path("run/rok-blk/nbd.sock");
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    home.run(["create", "vol2", "--size", "1G"]).success();
    let mut client = connect(&socket);
    for index in 0..BLOCK_COUNT {
        client.write(index * BLOCK_BYTES_U64, &block_of(index, 1));
    }
    client.disconnect();
    serving.stop();
    home.check();

    small.fill();
    home.check();
    let serving = home.serve(&[]);
    let state = home.run(["status", "--json"]).json()["pool"].clone();
    assert_eq!(state["is_meta_reserve_gone"], true, "{state}");
    assert!(!small.reserve().exists(), "its space is given up");
    let mut client = connect(&socket);
    assert_holds(&mut client, 7, Value::Stamp { client: 0, sequence: 1 });
    assert_eq!(write(&mut client, BLOCK_COUNT, 2), Err(WireError::NoSpace), "it needs space");
    assert_eq!(write(&mut client, 7, 2), Ok(Vec::new()), "it overwrites");
    client.flush();
    let discarded = client.call(RequestKind::Trim, (8 * BLOCK_BYTES_U64, 4096), &[]).expect("the server goes on");
    assert_eq!(discarded, Ok(Vec::new()));
    home.run(["rm", "vol2", "--now"]).success();
    client.disconnect();
    serving.stop();
    home.check();

    small.empty();
    let serving = home.serve(&[]);
    let state = home.run(["status", "--json"]).json()["pool"].clone();
    assert_eq!(state["is_meta_reserve_gone"], false, "{state}");
    assert!(small.reserve().exists(), "it is taken back");
    let mut client = connect(&socket);
    assert_holds(&mut client, 6, Value::Stamp { client: 0, sequence: 1 });
    assert_holds(&mut client, 7, Value::Stamp { client: 0, sequence: 2 });
    assert_holds(&mut client, 8, Value::Zeros);
    assert_eq!(write(&mut client, BLOCK_COUNT, 3), Ok(Vec::new()));
    client.disconnect();
    serving.stop();
    home.check();
}

/// How often a pool is filled and freed; `ROK_FILLS` says otherwise.
const FILLS: u64 = 20;
/// Blocks of a large write, and of the volume that is filled.
const CHUNK_BLOCKS: u64 = 64;
const VOLUME_BLOCKS: u64 = 32_768;
/// What a fill must get of the pool's 64 MiB.
const FILLED_BLOCKS_MIN: u64 = 12_000;

/// Writes volume `vol1` from its start until a single block finds no space; how many blocks there are then.
fn fill_pool(client: &mut NbdClient, sequence: u64) -> u64 {
    let mut index = 0;
    let mut count = CHUNK_BLOCKS;
    loop {
        assert!(index + count <= VOLUME_BLOCKS, "the pool is smaller than its volume");
        let data: Vec<u8> = (index..index + count).flat_map(|index| block_of(index, sequence)).collect();
        let length = u32::try_from(data.len()).expect("small");
        match client.call(RequestKind::Write, (index * BLOCK_BYTES_U64, length), &data).expect("the server goes on") {
            Ok(_) => index += count,
            Err(error) if error == WireError::NoSpace && count == 1 => return index,
            Err(error) => {
                assert_eq!(error, WireError::NoSpace);
                count = 1;
            }
        }
    }
}

/// What a full pool does: reads, overwrites, flushes, discards.
fn use_full_pool(client: &mut NbdClient, filled: u64, sequence: u64) {
    for index in (0..filled).step_by(500) {
        assert_holds(client, index, Value::Stamp { client: 0, sequence });
    }
    for index in (1..filled).step_by(500) {
        assert_eq!(write(client, index, sequence + 1), Ok(Vec::new()), "an overwrite of block {index}");
    }
    client.flush();
    let discarded = client.call(RequestKind::Trim, (2 * BLOCK_BYTES_U64, 4096), &[]).expect("the server goes on");
    assert_eq!(discarded, Ok(Vec::new()));
    assert_holds(client, 1, Value::Stamp { client: 0, sequence: sequence + 1 });
    assert_holds(client, 2, Value::Zeros);
}

/// Waits until a checkpoint has stored everything.
fn await_stored(home: &Home) {
    let begun = Instant::now();
    while home.run(["status", "--json"]).json()["pool"]["changes"] != 0 {
        assert!(begun.elapsed() < WAIT_MAX, "changes are not stored");
    }
}

/// Waits until the metadata has its reserve back.
fn await_reserve(home: &Home) {
    let begun = Instant::now();
    while home.run(["status", "--json"]).json()["pool"]["is_meta_reserve_gone"] != false {
        assert!(begun.elapsed() < WAIT_MAX, "the metadata has space and does not take it");
    }
}

#[test]
fn pool_comes_back_each_time_it_was_filled_and_freed() {
    let home = Home::new();
    let Some(small) = SmallFileSystem::mount(&home) else {
        return skip("a loop device cannot be mounted here");
    };
    let (pool, key) = (home.text("small/pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    symlink(&pool, home.path("pool")).expect("it is new");
    let socket = home.path("run/rok-blk/nbd.sock");
    let serving = home.serve(&[]);
    let size = (VOLUME_BLOCKS * BLOCK_BYTES_U64).to_string();
    home.run(["create", "vol1", "--size", &size]).success();
    let fills = std::env::var("ROK_FILLS").map_or(FILLS, |fills| fills.parse().expect("a number"));
    for round in 0..fills {
        let sequence = round * 2 + 1;
        let mut client = connect(&socket);
        let filled = fill_pool(&mut client, sequence);
        assert!(filled >= FILLED_BLOCKS_MIN, "round {round}: only {filled} blocks were filled");
        // Every eighth time the file system is full too; RocksDB goes on some seconds after it has space again.
        let is_all_full = round % 8 == 3;
        if is_all_full {
            small.fill();
        }
        use_full_pool(&mut client, filled, sequence);
        home.run(["check"]).success();
        if round % 2 == 0 {
            let whole = u32::try_from(VOLUME_BLOCKS * BLOCK_BYTES_U64).expect("128 MiB");
            let discarded = client.call(RequestKind::Trim, (0, whole), &[]).expect("the server goes on");
            assert_eq!(discarded, Ok(Vec::new()));
        }
        client.disconnect();
        if is_all_full {
            small.empty();
            await_reserve(&home);
        }
        if round % 2 == 1 {
            home.run(["rm", "vol1", "--now"]).success();
            home.run(["create", "vol1", "--size", &size]).success();
        }
    }
    home.run(["check"]).success();
    serving.stop();
    home.check();
}

/// Blocks of the volume that is removed.
const REMOVED_BLOCKS: u64 = 4096;

fn used_bytes(home: &Home) -> u64 {
    home.run(["df", "--json"]).json()["used"].as_u64().expect("a number")
}

/// Waits until checkpoints have made of the pool's used space what is wanted.
#[track_caller]
fn await_used(home: &Home, is_wanted: impl Fn(u64) -> bool) {
    let begun = Instant::now();
    while !is_wanted(used_bytes(home)) {
        assert!(begun.elapsed() < WAIT_MAX, "{} bytes are used", used_bytes(home));
    }
}

/// A pool that is served while the file system around it fills up.
#[test]
fn served_pool_removes_a_volume_on_a_full_file_system_and_has_its_blocks_back() {
    let home = Home::new();
    let Some(small) = SmallFileSystem::mount(&home) else {
        return skip("a loop device cannot be mounted here");
    };
    let (pool, key) = (home.text("small/pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    symlink(&pool, home.path("pool")).expect("it is new");
    let socket = home.path("run/rok-blk/nbd.sock");
    let serving = home.serve(&[]);
    for name in ["vol1", "vol2", "vol3"] {
        home.run(["create", name, "--size", "1G"]).success();
    }
    let mut client = connect(&socket);
    for index in 0..BLOCK_COUNT {
        client.write(index * BLOCK_BYTES_U64, &block_of(index, 1));
    }
    client.flush();
    let mut removed = NbdClient::connect(&socket, "vol2").expect("the server is ready");
    for first in (0..REMOVED_BLOCKS).step_by(64) {
        let data: Vec<u8> = (first..first + 64).flat_map(|index| block_of(index, 1)).collect();
        removed.write(first * BLOCK_BYTES_U64, &data);
    }
    removed.flush();
    removed.disconnect();
    let removed_bytes = REMOVED_BLOCKS * BLOCK_BYTES_U64;
    await_used(&home, |bytes| bytes >= removed_bytes);

    small.fill();
    home.run(["rm", "vol2", "--now"]).success();
    await_used(&home, |bytes| bytes < removed_bytes);
    home.run(["rm", "vol3", "--now"]).success();
    assert_holds(&mut client, 5, Value::Stamp { client: 0, sequence: 1 });
    assert_eq!(write(&mut client, 7, 2), Ok(Vec::new()), "it overwrites");
    client.flush();
    let discarded = client.call(RequestKind::Trim, (8 * BLOCK_BYTES_U64, 4096), &[]).expect("the server goes on");
    assert_eq!(discarded, Ok(Vec::new()));
    client.flush();
    let state = home.run(["status", "--json"]).json()["pool"].clone();
    assert_eq!(state["is_meta_reserve_gone"], true, "{state}");
    home.run(["check"]).success();
    // Nothing is left to be stored: no checkpoint comes for anything but the reserve.
    await_stored(&home);

    small.empty();
    await_reserve(&home);
    assert_eq!(write(&mut client, BLOCK_COUNT, 3), Ok(Vec::new()));
    home.run(["create", "vol4", "--size", "1G"]).success();
    client.disconnect();
    serving.stop();
    home.check();

    let serving = home.serve(&[]);
    let mut client = connect(&socket);
    assert_holds(&mut client, 6, Value::Stamp { client: 0, sequence: 1 });
    assert_holds(&mut client, 7, Value::Stamp { client: 0, sequence: 2 });
    assert_holds(&mut client, 8, Value::Zeros);
    assert_holds(&mut client, BLOCK_COUNT, Value::Stamp { client: 0, sequence: 3 });
    client.disconnect();
    serving.stop();
}
