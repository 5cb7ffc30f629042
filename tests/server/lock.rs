//! A pool that is locked while its daemon goes on, and what is left of its keys in the daemon's memory.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use rok_nbd::RequestKind;

use crate::nbd_client::NbdClient;
use crate::scan::Needles;
use crate::support::{Home, OTHER_PASSPHRASE, PASSPHRASE, Serving, skip, tcp_address};

const CANARY: &[u8] = b"written before the pool was locked";

fn connect(home: &Home) -> std::io::Result<NbdClient> {
    NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1")
}

/// Creates vol1 and writes to it, without a flush.
fn write_canary(home: &Home) {
    home.run(["create", "vol1", "--size", "1G", "--own-key"]).success();
    let mut client = connect(home).expect("the server is ready");
    client.write(4096, CANARY);
    client.disconnect();
}

fn assert_canary(home: &Home) {
    let mut client = connect(home).expect("the server is ready");
    let read = client.read(4096, u32::try_from(CANARY.len()).expect("short"));
    client.disconnect();
    assert_eq!(read, CANARY);
}

#[test]
fn locked_pool_answers_with_the_way_out_until_it_is_unlocked() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    write_canary(&home);
    let address = tcp_address(&home);
    let key = home.text("pool.key");

    let plan = home.run(["key", "lock", "-n"]);
    assert!(plan.stderr.contains("Would lock"), "{plan:?}");
    plan.success();
    assert_canary(&home);
    assert_eq!(home.run(["key", "lock"]).success(), "locked\n");
    assert_eq!(home.run(["key", "lock"]).success(), "locked\n", "it is so already");

    let pool = home.text("pool");
    let refused: [&[&str]; 8] = [
        &["ls"],
        &["create", "vol2", "--size", "1G"],
        &["rm", "vol1", "--shred", "--yes"],
        &["exports"],
        &["df"],
        &["check"],
        &["pool", "grow", "--size", "128M"],
        &["key", "rm", "0", "--key-file", &key],
    ];
    for command in refused {
        let message = home.run(command).failure(10);
        assert!(message.contains("is locked") && message.contains("rok-blk key unlock"), "{command:?}: {message}");
    }
    let status = home.run(["status", "--json"]).json();
    assert_eq!((&status["is_locked"], &status["pool"]), (&true.into(), &serde_json::Value::Null));
    let shown = home.run(["status"]).success();
    assert!(shown.contains("locked"), "{shown}");
    home.run(["pool", "show"]).success();
    assert_eq!(home.run(["key", "ls", "-q"]).success(), "0\n");
    // Nobody has its devices, and nobody listens.
    home.run(["check", "--pool", &pool, "--key-file", &key]).success();
    assert_eq!(connect(&home).err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    let refused = std::net::TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    home.run(["key", "unlock", "--key-file", &key, "-n"]).success();
    assert_eq!(home.run(["status", "--json"]).json()["is_locked"], true, "that was a plan");
    assert_eq!(home.run(["key", "unlock", "--key-file", &key]).success(), "unlocked\n");
    assert_eq!(home.run(["key", "unlock", "--key-file", &key]).success(), "unlocked\n", "it is so already");
    assert_canary(&home);
    assert_eq!(tcp_address(&home), address, "clients find it where it was");
    assert_eq!(home.run(["status", "--json"]).json()["is_locked"], false);
    serving.stop();
}

#[test]
fn pool_in_use_is_locked_only_by_force_and_keeps_what_was_acknowledged() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let mut client = connect(&home).expect("the server is ready");
    client.write(4096, CANARY);

    for further in [&[][..], &["-n"]] {
        let message = home.run(["key", "lock"].iter().chain(further)).failure(7);
        assert!(message.contains("vol1") && message.contains("--force"), "{message}");
    }
    client.write(8192, CANARY);
    assert_eq!(home.run(["key", "lock", "--force"]).success(), "locked\n");

    let answer = client.call(RequestKind::Flush, (0, 0), &[]);
    assert!(!matches!(answer, Ok(Ok(_))), "its connection was closed: {answer:?}");
    home.run(["key", "unlock", "--key-file", &home.text("pool.key")]).success();
    assert_canary(&home);
    serving.stop();
}

#[test]
fn daemon_that_starts_locked_is_unlocked_by_the_right_key_only() {
    let (home, passphrase) = Home::with_passphrase();
    let wrong = home.passphrase_file("wrong", OTHER_PASSPHRASE);
    assert_ne!(PASSPHRASE, OTHER_PASSPHRASE);
    let mut serving = home.serve_with(&["--locked"]);
    assert!(serving.said.iter().any(|line| line.contains("The pool is locked")), "{:?}", serving.said);

    for further in [&[][..], &["-n"]] {
        let message = home.run(["key", "unlock", "--passphrase-file", &wrong].iter().chain(further)).failure(10);
        assert!(message.contains("does not open the pool"), "{message}");
    }
    home.run(["key", "unlock"]).failure(2);
    home.run(["ls"]).failure(10);
    // A locked daemon ends as any other.
    serving.stop();

    serving = home.serve_with(&["--locked"]);
    home.run(["key", "unlock", "--passphrase-file", &passphrase]).success();
    write_canary(&home);
    assert_canary(&home);
    serving.stop();
}

#[test]
fn pool_that_another_process_has_stays_locked() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    write_canary(&home);
    home.run(["key", "lock"]).success();
    let (pool, key, socket) = (home.text("pool"), home.text("pool.key"), home.text("run/other.sock"));
    let other = Serving::start(home.command(["serve", "--pool", &pool, "--key-file", &key, "--socket", &socket]));

    home.run(["key", "unlock", "--key-file", &key]).failure(7);
    home.run(["ls"]).failure(10);
    other.stop();
    home.run(["key", "unlock", "--key-file", &key]).success();

    assert_canary(&home);
    serving.stop();
}

#[test]
fn volume_that_was_not_exported_is_not_exported_behind_a_lock() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    write_canary(&home);
    home.run(["unexport", "vol1"]).success();
    assert!(connect(&home).is_err(), "it is not offered");

    home.run(["key", "lock"]).success();
    home.run(["key", "unlock", "--key-file", &home.text("pool.key")]).success();

    assert!(connect(&home).is_err(), "nor now");
    home.run(["export", "vol1"]).success();
    assert_canary(&home);
    serving.stop();
}

#[test]
fn pool_without_encryption_cannot_be_locked() {
    let home = Home::new();
    let pool = home.text("pool");
    home.run(["pool", "create", &pool, "--size", "64M", "--no-encryption"]).success();
    let message = home.serve_fails(&["--locked"]).failure(2);
    assert!(message.contains("not encrypted"), "{message}");
    let _serving = home.serve_with(&[]);

    let message = home.run(["key", "lock"]).failure(2);

    assert!(message.contains("no key to forget"), "{message}");
}

/// The master key, from the first key slot and the key file as `FORMAT.md` describes them.
fn master_key(home: &Home) -> [u8; 32] {
    let superblock = fs::read(home.path("pool/superblock")).expect("readable");
    let key_file = fs::read(home.path("pool.key")).expect("readable");
    let slot = &superblock[48 + 64..][..112];
    let (salt, wrapped, parameters) = (&slot[4..36], &slot[36..96], &slot[96..112]);
    let mut info = [0; 32];
    info[..16].copy_from_slice(b"rok-blk key slot");
    let mut wrapping = [0; 32];
    let derived = Salt::new(HKDF_SHA256, salt).extract(&key_file);
    let derived = derived.expand(&[&info], HKDF_SHA256).and_then(|output| output.fill(&mut wrapping));
    derived.expect("32 bytes");
    let nonce: [u8; NONCE_LEN] = wrapped[..NONCE_LEN].try_into().expect("12 bytes");
    let associated = [&superblock[16..32], &slot[..2], parameters].concat();
    let mut sealed = wrapped[NONCE_LEN..].to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &wrapping).expect("32 bytes"));
    let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(associated), &mut sealed);
    (&*opened.expect("the key file opens the slot")).try_into().expect("32 bytes")
}

/// Whether a piece of the needles is anywhere in the memory of a process.
fn is_in_memory(needles: &Needles, process_id: u32) -> std::io::Result<bool> {
    let memory = File::open(format!("/proc/{process_id}/mem"))?;
    let maps = fs::read_to_string(format!("/proc/{process_id}/maps"))?;
    let mut looked_at = 0;
    let mut is_found = false;
    for line in maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (from, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        let mut bytes = vec![0; usize::try_from(number(end) - number(from)).expect("it fits into memory")];
        // Rings and the like cannot be read this way.
        if memory.read_exact_at(&mut bytes, number(from)).is_ok() {
            looked_at += bytes.len();
            is_found |= !needles.in_bytes(&bytes).is_empty();
        }
    }
    assert!(looked_at > 1 << 20, "{looked_at} bytes are not the memory of a daemon");
    Ok(is_found)
}

#[test]
fn master_key_is_not_in_the_memory_of_a_daemon_whose_pool_is_locked() {
    let home = Home::with_pool();
    let mut needles = Needles::default();
    needles.add_pieces("master key", &master_key(&home));
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let mut command = home.command(["serve", "--pool", &pool, "--key-file", &key, "--meta-cache", "16MiB"]);
    command.env("ROK_ALLOW_CORE", "1");
    let serving = Serving::start(command);
    write_canary(&home);
    match is_in_memory(&needles, serving.process_id()) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return skip("needs to read the memory of its own child");
        }
        found => assert!(found.expect("the process runs"), "the search finds the key of an open pool"),
    }

    home.run(["key", "lock"]).success();

    assert!(!is_in_memory(&needles, serving.process_id()).expect("the process runs"));
    home.run(["key", "unlock", "--key-file", &key]).success();
    assert_canary(&home);
    serving.stop();
}
