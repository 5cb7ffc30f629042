//! A pool with something broken in it: either a second copy helps, or an error names what is broken. Never a panic, never
//! wrong data.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rok_nbd::{RequestKind, WireError};

use crate::nbd_client::NbdClient;
use crate::scan::files;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::Home;
use crate::victim::Victim;

const VOLUME: &str = "vol1";
/// Blocks with data, 64 leaves apart, so that they are spread over the map.
pub const BLOCK_COUNT: u64 = 16;
pub const BLOCK_STEP: u64 = 64 * 256;
/// Where the copies are (`src/format/FORMAT.md`).
const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 65_536];
const HEADER_OFFSETS: [u64; 2] = [0, 128 * 4096];
/// Blocks at the front of a device that hold no data.
const FRONT_BLOCKS: usize = 256;
const INTEGRITY: Option<i32> = Some(9);
const BLOCK_LENGTH: u32 = 4096;

/// A pool with data, closed cleanly.
pub fn pool_with_data() -> Home {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", VOLUME, "--size", "2G"]).success();
    let mut client = connect(&home);
    for number in 0..BLOCK_COUNT {
        write(&mut client, number, 0);
    }
    client.disconnect();
    serving.stop();
    home
}

pub fn connect(home: &Home) -> NbdClient {
    NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), VOLUME).expect("the server is ready")
}

pub fn write(client: &mut NbdClient, number: u64, sequence: u64) {
    let index = number * BLOCK_STEP;
    let mut block = vec![0; BLOCK_BYTES];
    stamp::fill(&mut block, index, Value::Stamp { client: number, sequence });
    client.write(index * BLOCK_BYTES_U64, &block);
}

/// The sequence number in a block, or the server's error.
pub fn read(client: &mut NbdClient, number: u64) -> Result<u64, WireError> {
    let index = number * BLOCK_STEP;
    let range = (index * BLOCK_BYTES_U64, BLOCK_LENGTH);
    let data = client.call(RequestKind::Read, range, &[]).expect("the server goes on")?;
    match stamp::recognise(&data, index) {
        Some(Value::Stamp { client, sequence }) if client == number => Ok(sequence),
        other => panic!("block {number} holds {other:?}"),
    }
}

/// Tries to serve the pool.
fn serve(home: &Home) -> Result<Victim, (Option<i32>, String)> {
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let result = Victim::spawn(home.command(["serve", "--pool", &pool, "--key-file", &key])).ready_or_refused();
    if let Err((_, message)) = &result {
        assert!(!message.contains("panicked"), "{message}");
    }
    result
}

/// The pool must be refused as damaged; the message.
#[track_caller]
fn refused(home: &Home) -> String {
    let Err((code, message)) = serve(home) else { panic!("a damaged pool is served") };
    assert_eq!(code, INTEGRITY, "{message}");
    message
}

/// The pool must be served, with all data.
#[track_caller]
pub fn served(home: &Home) {
    let victim = serve(home).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let mut client = connect(home);
    for number in 0..BLOCK_COUNT {
        assert_eq!(read(&mut client, number), Ok(0));
    }
    client.disconnect();
    let said = victim.kill().said;
    assert!(!said.iter().any(|line| line.contains("panicked")), "{said:#?}");
}

pub fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file of the pool");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("the file is that long");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("the file can be written");
}

/// Writes a block of a pool that nobody serves, as 1, and damages it where it is on the device.
pub fn damage_block(home: &Home, number: u64) {
    let device = home.path("pool/data-0");
    let before = fs::read(&device).expect("the device");
    let serving = home.serve(&[]);
    let mut client = connect(home);
    write(&mut client, number, 1);
    client.disconnect();
    serving.stop();
    // What has changed is the block, and records, which the checkpoint at the end has made superfluous.
    let after = fs::read(&device).expect("the device");
    let blocks = before.chunks_exact(BLOCK_BYTES).zip(after.chunks_exact(BLOCK_BYTES));
    let changed: Vec<usize> =
        blocks.enumerate().skip(FRONT_BLOCKS).filter(|(_, (old, new))| old != new).map(|(index, _)| index).collect();
    assert!((1..10).contains(&changed.len()), "{changed:?}");
    for block in changed {
        flip(&device, u64::try_from(block * BLOCK_BYTES + 1000).expect("64-bit"));
    }
}

#[test]
fn a_damaged_copy_of_the_superblock_is_replaced_and_two_are_refused() {
    let home = pool_with_data();
    let superblock = home.path("pool/superblock");
    // Magic, version, pool, devices, checksum.
    for place in [0, 9, 20, 60, 4090] {
        for copy in SUPERBLOCK_OFFSETS {
            flip(&superblock, copy + place);
            served(&home);
        }
    }

    SUPERBLOCK_OFFSETS.into_iter().for_each(|copy| flip(&superblock, copy + 20));

    assert!(refused(&home).contains("superblock"));
}

#[test]
fn a_damaged_header_of_a_device_is_no_loss_and_two_are_refused() {
    for copy in HEADER_OFFSETS {
        for place in [0, 20, 80, 100] {
            let home = pool_with_data();
            flip(&home.path("pool/data-0"), copy + place);
            served(&home);
        }
    }
    let home = pool_with_data();

    HEADER_OFFSETS.into_iter().for_each(|copy| flip(&home.path("pool/data-0"), copy + 20));

    assert!(refused(&home).contains("data-0"));
}

#[test]
fn a_damaged_block_is_an_error_for_itself_alone() {
    const DAMAGED: u64 = 5;
    let home = pool_with_data();
    damage_block(&home, DAMAGED);

    let victim = serve(&home).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let mut client = connect(&home);

    for number in 0..BLOCK_COUNT {
        let expected = if number == DAMAGED { Err(WireError::Io) } else { Ok(0) };
        assert_eq!(read(&mut client, number), expected, "block {number}");
    }
    let beside = DAMAGED * BLOCK_STEP + 1;
    assert_eq!(client.read(beside * BLOCK_BYTES_U64, BLOCK_LENGTH), vec![0; BLOCK_BYTES]);
    let status = home.run(["status", "--json"]).json();
    assert_eq!(status["pool"]["damaged_blocks"], 1);
    assert_eq!(
        status["warnings"][0],
        "1 read has met a damaged block since the pool was opened. The log names them; they read as errors until they are \
         written anew. rok-blk scrub finds all that is damaged."
    );
    assert!(home.run(["status"]).success().contains("1 read has met a damaged block"));
    assert_eq!(read(&mut client, DAMAGED), Err(WireError::Io));
    assert!(home.run(["status"]).success().contains("2 reads have met damaged blocks"));
    write(&mut client, DAMAGED, 2);
    assert_eq!(read(&mut client, DAMAGED), Ok(2), "written anew, it is whole again");
    client.disconnect();
    victim.kill();
}

#[test]
fn a_truncated_or_missing_device_is_refused_by_name() {
    let home = pool_with_data();
    let device = home.path("pool/data-0");
    let size = fs::metadata(&device).expect("the device").len();

    for rest in [size - 4096, 4096, 0] {
        OpenOptions::new().write(true).open(&device).and_then(|file| file.set_len(rest)).expect("it can be cut");
        assert!(refused(&home).contains("data-0"), "cut to {rest} bytes");
    }
    fs::remove_file(&device).expect("the device");
    assert!(refused(&home).contains("data-0"));
}

#[test]
fn a_missing_or_empty_meta_is_refused_by_name() {
    let home = pool_with_data();
    let meta = home.path("pool/meta");
    fs::remove_dir_all(&meta).expect("meta");

    assert!(refused(&home).contains("meta"));
    fs::create_dir(&meta).expect("an empty meta");
    assert!(refused(&home).contains("meta"));
}

#[test]
fn a_damaged_file_of_meta_gives_errors_but_no_wrong_data() {
    // Closed: tables. Killed: a log too, which holds what the tables do not.
    for is_killed in [false, true] {
        let home = pool_with_data();
        if is_killed {
            home.serve(&[]).kill();
        }
        let meta = home.path("pool/meta");
        let kept = home.path("kept");
        copy_files(&home.path("pool"), &kept);
        let mut refusals = 0;
        let names: Vec<PathBuf> = files(&meta, 0);
        for path in names {
            let size = fs::metadata(&path).expect("a file of meta").len();
            if size == 0 {
                continue;
            }
            for place in [size / 4, size / 2, size - 1] {
                flip(&path, place);
                refusals += u32::from(is_refused_or_right(&home, &path));
                fs::remove_dir_all(home.path("pool")).expect("the pool");
                copy_files(&kept, &home.path("pool"));
            }
        }
        assert!(refusals > 0, "something that is needed was damaged");
        served(&home);
    }
}

/// Whether the pool is refused; if not, each block must be right or an error.
#[track_caller]
fn is_refused_or_right(home: &Home, damaged: &Path) -> bool {
    let victim = match serve(home) {
        Ok(victim) => victim,
        Err((code, message)) => {
            assert_eq!(code, INTEGRITY, "{}: {message}", damaged.display());
            assert!(message.contains("meta"), "{}: {message}", damaged.display());
            return true;
        }
    };
    let mut client = connect(home);
    for number in 0..BLOCK_COUNT {
        assert!(matches!(read(&mut client, number), Ok(0) | Err(WireError::Io)), "{}", damaged.display());
    }
    client.disconnect();
    victim.kill();
    false
}

fn copy_files(source: &Path, target: &Path) {
    for path in files(source, 0) {
        let to = target.join(path.strip_prefix(source).expect("it is below"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        fs::copy(&path, &to).expect("a copy");
    }
}
