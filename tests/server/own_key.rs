//! Volumes with a key of their own, and what is left of one that was shredded.

use std::fs;
use std::path::Path;

use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving};

const CANARY: &[u8] = b"canary of a volume that is to be shredded";

fn serve(home: &Home, pool: &str) -> Serving {
    let (pool, key) = (home.text(pool), home.text("pool.key"));
    Serving::start(home.command(["serve", "--pool", &pool, "--key-file", &key]))
}

fn connect(home: &Home, volume: &str) -> NbdClient {
    NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), volume).expect("the server is ready")
}

fn write_canary(home: &Home, volume: &str) {
    let mut client = connect(home, volume);
    client.write(0, CANARY);
    client.flush();
    client.disconnect();
}

fn read_canary(home: &Home, volume: &str) -> Vec<u8> {
    let mut client = connect(home, volume);
    let read = client.read(0, u32::try_from(CANARY.len()).expect("short"));
    client.disconnect();
    read
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it is there").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

#[test]
fn volume_with_its_own_key_says_so_and_survives_a_kill() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    assert_eq!(home.run(["create", "plain", "--size", "1M"]).success(), "plain\n");
    assert_eq!(home.run(["create", "secret", "--size", "1M", "--own-key"]).success(), "secret\n");
    write_canary(&home, "secret");
    serving.kill();

    let _serving = home.serve(&[]);

    assert_eq!(read_canary(&home, "secret"), CANARY);
    let list = home.run(["ls", "--json"]).json();
    let own_keys =
        [0, 1].map(|index| (list["items"][index]["name"].clone(), list["items"][index]["has_own_key"].clone()));
    assert_eq!(own_keys, [("plain".into(), false.into()), ("secret".into(), true.into())]);
    assert_eq!(home.run(["show", "secret", "--json"]).json()["has_own_key"], true);
    let shown = home.run(["show", "secret"]).success();
    assert!(shown.lines().any(|line| line.contains("own key") && line.contains("yes")), "{shown}");
}

/// Whoever has the pool's key, every file of before, and the file `shred-key` of now.
#[test]
fn data_of_a_shredded_volume_cannot_be_read_from_old_files_either() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    for volume in ["secret", "kept"] {
        home.run(["create", volume, "--size", "1M", "--own-key"]).success();
        write_canary(&home, volume);
    }
    serving.stop();
    for old in ["old", "attack"] {
        copy_directory(&home.path("pool"), &home.path(old));
    }

    let serving = home.serve(&[]);
    assert_eq!(home.run(["rm", "secret", "--shred", "--yes"]).success(), "secret\n");
    assert_eq!(read_canary(&home, "kept"), CANARY);
    assert_eq!(home.run(["ls", "-q"]).success(), "kept\n");
    // Durable when it was said, not when the daemon ends well.
    serving.kill();

    let serving = serve(&home, "old");
    assert_eq!(read_canary(&home, "secret"), CANARY, "the old files hold all that is needed, with their shred-key");
    serving.stop();
    fs::copy(home.path("pool/shred-key"), home.path("attack/shred-key")).expect("a copy");
    let (attack, key) = (home.text("attack"), home.text("pool.key"));
    let message = home.run(["serve", "--pool", &attack, "--key-file", &key]).failure(9);
    assert!(message.contains("does not hold shred key 1") && message.contains("backup"), "{message}");

    let _serving = home.serve(&[]);
    assert_eq!(home.run(["ls", "-q"]).success(), "kept\n");
    assert_eq!(read_canary(&home, "kept"), CANARY);
}

#[test]
fn only_a_volume_with_its_own_key_is_shredded_and_only_when_nobody_uses_it() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "plain", "--size", "1M"]).success();
    home.run(["create", "secret", "--size", "1M", "--own-key"]).success();

    for further in [&["--yes"][..], &["-n"]] {
        let message = home.run(["rm", "plain", "--shred"].iter().chain(further)).failure(2);
        assert!(message.contains("no key of its own") && message.contains("--own-key"), "{message}");
    }
    let message = home.run(["rm", "secret", "--shred"]).failure(2);
    assert!(message.contains("--yes"), "there is no terminal to ask on: {message}");
    home.run(["rm", "none", "--shred", "--yes"]).failure(4);
    let client = connect(&home, "secret");
    home.run(["rm", "secret", "--shred", "--yes"]).failure(7);
    client.disconnect();
    home.run(["create", "plain", "--size", "1M", "--own-key", "--if-missing"]).failure(5);
    assert_eq!(home.run(["ls", "-q"]).success(), "plain\nsecret\n", "nothing was removed");

    let planned = home.run(["rm", "secret", "--shred", "-n"]);
    assert!(planned.stderr.contains("Would shred secret"), "{planned:?}");
    planned.success();
    home.run(["rm", "secret", "--shred", "--yes"]).success();
    assert_eq!(home.run(["ls", "-q"]).success(), "plain\n");
}

#[test]
fn pool_without_encryption_has_no_volumes_with_their_own_key() {
    let home = Home::new();
    let pool = home.text("pool");
    home.run(["pool", "create", &pool, "--size", "64M", "--no-encryption"]).success();
    let _serving = home.serve_with(&[]);

    for further in [&[][..], &["-n"]] {
        let command = ["create", "secret", "--size", "1M", "--own-key"];
        let message = home.run(command.iter().chain(further)).failure(2);
        assert!(message.contains("not encrypted"), "{message}");
    }
    assert_eq!(home.run(["ls", "-q"]).success(), "");
}

/// As a pool of before is.
#[test]
fn pool_whose_file_is_missing_gets_it_and_one_that_needs_it_is_refused() {
    let home = Home::with_pool();
    fs::remove_file(home.path("pool/shred-key")).expect("it was there");
    let serving = home.serve(&[]);
    home.run(["create", "secret", "--size", "1M", "--own-key"]).success();
    write_canary(&home, "secret");
    serving.stop();
    fs::rename(home.path("pool/shred-key"), home.path("kept")).expect("it was made");

    let message = home.serve_fails(&["--key-file", &home.text("pool.key")]).failure(9);
    assert!(message.contains("pool/shred-key") && message.contains("Nothing was changed"), "{message}");

    fs::rename(home.path("kept"), home.path("pool/shred-key")).expect("a backup");
    let _serving = home.serve(&[]);
    assert_eq!(read_canary(&home, "secret"), CANARY);
}

#[test]
fn pool_that_lost_its_shred_key_is_served_without_the_volumes_that_need_it() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "plain", "--size", "1M"]).success();
    home.run(["create", "secret", "--size", "1M", "--own-key"]).success();
    write_canary(&home, "plain");
    let mut client = connect(&home, "secret");
    client.write(0, CANARY);
    // Acknowledged and not flushed: only the log has it.
    serving.kill();
    fs::rename(home.path("pool/shred-key"), home.path("kept")).expect("it is there");
    let message = home.serve_fails(&["--key-file", &home.text("pool.key")]).failure(9);
    assert!(message.contains("--without-own-keys"), "{message}");
    assert!(!home.path("pool/shred-key").exists(), "a backup of now does not replace a good one by an empty one");

    let arguments = ["--key-file", &home.text("pool.key"), "--without-own-keys"];
    let message = home.serve_fails(&arguments).failure(10);
    assert!(message.contains("(secret)") && message.contains("Nothing was changed"), "{message}");
    let serving = home.serve(&["--give-up-own-keys"]);
    serving.stop();
    assert!(!home.path("pool/shred-key").exists(), "nothing took its place");

    let serving = home.serve(&["--without-own-keys"]);
    assert_eq!(read_canary(&home, "plain"), CANARY);
    assert_eq!(home.run(["ls", "-q"]).success(), "plain\nsecret\n");
    let closed = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "secret").err().expect("it is closed");
    assert!(closed.to_string().contains("not available"), "{closed}");
    let refused: [&[&str]; 2] =
        [&["create", "other", "--size", "1M", "--own-key"], &["rm", "secret", "--shred", "--yes"]];
    for command in refused {
        let message = home.run(command).failure(10);
        assert!(message.contains("shred-key"), "{message}");
    }
    serving.stop();
    assert!(!home.path("pool/shred-key").exists(), "nothing took its place");

    fs::rename(home.path("kept"), home.path("pool/shred-key")).expect("it was found");
    let _serving = home.serve(&[]);
    assert_eq!(read_canary(&home, "secret"), CANARY, "nothing of it was given up");
}
