//! The command `quickstart`: from nothing to an encrypted volume over NBD, and on with it the next time.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;

use parking_lot::{Mutex, MutexGuard};

use crate::support::{Home, POOL_SIZE, Serving, finish, open_export, skip};

/// Each of these tests takes the first free port from 10809 on: one at a time.
static PORTS: Mutex<()> = Mutex::new(());

pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    PORTS.lock()
}

fn start(home: &Home) -> Serving {
    Serving::start(home.command(["quickstart", "--pool-size", POOL_SIZE]))
}

/// The TCP address among the printed URIs.
fn address(printed: &str) -> SocketAddr {
    let uri = printed.lines().find(|line| line.starts_with("nbd://")).expect("a TCP URI");
    uri.trim_start_matches("nbd://").trim_end_matches("/vol1").parse().expect("an address")
}

fn says(serving: &Serving, words: &str) -> bool {
    serving.said.iter().any(|line| line.contains(words))
}

#[test]
fn the_first_run_creates_everything_and_the_second_goes_on() {
    let _alone = one_at_a_time();
    let home = Home::new();

    let first = start(&home);
    assert!(says(&first, &home.text("data/rok-blk/pool")), "where the pool is: {:#?}", first.said);
    assert!(says(&first, "Copy it"), "what to do with the key: {:#?}", first.said);
    assert!(says(&first, "thin") && says(&first, "over-committed"), "{:#?}", first.said);
    let key = fs::metadata(home.path("data/rok-blk/pool.key")).expect("the key file");
    assert_eq!(key.mode() & 0o777, 0o600);
    let volume = home.run(["show", "vol1", "--json"]).json();
    assert_eq!(volume["size"], 10_u64 << 30);
    assert_eq!(home.run(["status", "--json"]).json()["pool"]["is_encrypted"], true);
    let exports = home.run(["exports", "--json"]).json();
    first.signal(libc::SIGINT);
    let (status, printed, said) = first.wait();
    assert_eq!(status.code(), Some(0), "{said:#?}");
    for uri in exports["items"][0]["uris"].as_array().expect("uris") {
        assert!(printed.lines().any(|line| line == uri), "{printed}");
    }

    let second = start(&home);
    assert!(says(&second, "Going on with the pool"), "{:#?}", second.said);
    assert!(!says(&second, "Copy it"), "the key is old: {:#?}", second.said);
    assert_eq!(home.run(["show", "vol1", "--json"]).json()["uuid"], volume["uuid"]);
    second.stop();
}

#[test]
fn three_commands_to_try_are_shown() {
    let _alone = one_at_a_time();
    let home = Home::new();

    let serving = start(&home);

    let commands = serving.said.iter().filter(|line| line.starts_with("  ")).count();
    assert_eq!(commands, 3, "{:#?}", serving.said);
    assert!(says(&serving, "qemu-img info 'nbd://127.0.0.1:"), "{:#?}", serving.said);
}

#[test]
fn a_taken_port_is_told_and_the_next_one_serves() {
    const NBD_PORT: u16 = 10809;
    let _alone = one_at_a_time();
    // Whoever has it, if not this test: it is taken.
    let _taken = TcpListener::bind(("127.0.0.1", NBD_PORT));
    let home = Home::new();

    let serving = start(&home);
    assert!(says(&serving, "Port 10809 is taken"), "{:#?}", serving.said);
    let exports = home.run(["exports", "-o", "plain"]).success();
    let uri = exports.split_whitespace().find(|word| word.starts_with("nbd://")).expect("a TCP URI");
    let (stream, size) = open_export(address(uri), "vol1");
    assert_eq!(size, 10 << 30);
    drop(stream);

    let printed = serving.stop();
    assert!(address(&printed).port() > NBD_PORT, "{printed}");
}

#[test]
fn it_works_without_a_runtime_directory() {
    let _alone = one_at_a_time();
    let home = Home::new();
    // Then the socket is where every daemon of this user is.
    let mut probe = home.command(["status"]);
    probe.env_remove("XDG_RUNTIME_DIR");
    if finish(probe).code != Some(11) {
        return skip("a daemon of this user already serves at the default socket");
    }
    let mut command = home.command(["quickstart", "--pool-size", POOL_SIZE]);
    command.env_remove("XDG_RUNTIME_DIR");

    let serving = Serving::start(command);

    let mut list = home.command(["ls", "-q"]);
    list.env_remove("XDG_RUNTIME_DIR");
    assert_eq!(finish(list).success(), "vol1\n");
    serving.stop();
}

#[test]
fn a_second_one_beside_the_first_is_busy() {
    let _alone = one_at_a_time();
    let home = Home::new();
    let _serving = start(&home);

    let message = home.run(["quickstart"]).failure(7);
    assert!(message.contains("another process"), "{message}");
    let elsewhere = home.text("elsewhere");
    let message = home.run(["quickstart", "--data-dir", &elsewhere, "--pool-size", POOL_SIZE]);
    assert_eq!(message.code, Some(7), "the same control socket: {message:?}");
}

#[test]
fn a_removed_volume_does_not_come_back_while_there_is_another() {
    let _alone = one_at_a_time();
    let home = Home::new();
    let serving = start(&home);
    home.run(["create", "mine", "--size", "1G"]).success();
    home.run(["rm", "vol1", "--now"]).success();
    serving.stop();

    let _serving = start(&home);

    assert_eq!(home.run(["ls", "-q"]).success(), "mine\n");
}

#[test]
fn a_missing_key_is_told_and_no_new_one_is_made() {
    let _alone = one_at_a_time();
    let home = Home::new();
    start(&home).stop();
    fs::remove_file(home.path("data/rok-blk/pool.key")).expect("the key file");

    let message = home.run(["quickstart"]);

    assert_eq!(message.code, Some(10), "{message:?}");
    assert!(!home.path("data/rok-blk/pool.key").exists());
}

#[test]
fn an_interrupted_creation_starts_over() {
    let _alone = one_at_a_time();
    let home = Home::new();
    fs::create_dir_all(home.path("data/rok-blk/pool.creating")).expect("what a killed run leaves");
    fs::write(home.path("data/rok-blk/pool.creating/data-0"), "half").expect("a half-filled file");

    let _serving = start(&home);

    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\n");
    assert!(!home.path("data/rok-blk/pool.creating").exists());
}

#[test]
fn a_pool_that_does_not_fit_is_no_space() {
    let home = Home::new();

    let message = home.run(["quickstart", "--pool-size", "1P"]).failure(8);

    assert!(message.contains("--pool-size"), "{message}");
}
