//! The command `quickstart`: from nothing to an encrypted volume over NBD, and on with it the next time.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};

use parking_lot::{Mutex, MutexGuard};

use crate::clients::are_there;
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

const UNINSTALL_QUESTION: &str = "Type \"delete\" to go on: ";

/// `make uninstall-data` in this home.
fn uninstall_command(home: &Home) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/uninstall-data.sh"));
    command.env("HOME", home.path("")).env("XDG_DATA_HOME", home.path("data")).stdin(Stdio::null());
    command
}

/// `make uninstall-data`, which has said what it would delete and waits for the answer.
struct Uninstalling {
    child: Child,
    stderr: ChildStderr,
    said: String,
}

impl Uninstalling {
    #[track_caller]
    fn start(home: &Home) -> Self {
        let mut child =
            uninstall_command(home).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the script starts");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let mut uninstalling = Self { child, stderr, said: String::new() };
        while !uninstalling.said.ends_with(UNINSTALL_QUESTION) {
            let mut byte = [0];
            let count = uninstalling.stderr.read(&mut byte).expect("stderr can be read");
            assert_ne!(count, 0, "it ended without the question: {}", uninstalling.said);
            uninstalling.said.push(char::from(byte[0]));
        }
        uninstalling
    }

    /// Its exit code, and all that it said.
    #[track_caller]
    fn answer(mut self, answer: &str) -> (Option<i32>, String) {
        let mut stdin = self.child.stdin.take().expect("stdin is a pipe");
        stdin.write_all(answer.as_bytes()).expect("the script reads");
        drop(stdin);
        self.stderr.read_to_string(&mut self.said).expect("what it says is UTF-8");
        (self.child.wait().expect("it can be waited for").code(), self.said)
    }
}

#[test]
fn uninstall_data_refuses_while_the_pool_is_served() {
    if !are_there(&["flock"]) {
        return;
    }
    let _alone = one_at_a_time();
    let home = Home::new();
    let serving = start(&home);

    let message = finish(uninstall_command(&home)).failure(7);

    assert!(message.contains("is served") && message.contains("Ctrl-C"), "{message}");
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\n");
    serving.stop();
    assert!(home.path("data/rok-blk/pool.key").exists() && home.path("data/rok-blk/pool").exists());
}

#[test]
fn uninstall_data_refuses_while_another_command_serves_the_pool() {
    if !are_there(&["flock"]) {
        return;
    }
    let home = Home::new();
    fs::create_dir_all(home.path("data/rok-blk")).expect("a data directory");
    home.create_pool("data/rok-blk/pool");
    let (pool, key) = (home.text("data/rok-blk/pool"), home.text("data/rok-blk/pool.key"));
    let serving = Serving::start(home.command(["serve", "--pool", &pool, "--key-file", &key]));

    let message = finish(uninstall_command(&home)).failure(7);

    assert!(message.contains("data-0 is locked"), "{message}");
    serving.stop();
    assert!(home.path("data/rok-blk/pool/data-0").exists());
}

#[test]
fn uninstall_data_asks_and_deletes_only_after_the_word() {
    if !are_there(&["flock"]) {
        return;
    }
    let _alone = one_at_a_time();
    let home = Home::new();
    start(&home).stop();

    for refusal in ["", "yes\n", "Delete\n"] {
        let (code, said) = Uninstalling::start(&home).answer(refusal);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Nothing was deleted."), "{said}");
        assert!(home.path("data/rok-blk/pool.key").exists() && home.path("data/rok-blk/pool").exists());
    }
    let (code, said) = Uninstalling::start(&home).answer("delete\n");

    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&home.text("data/rok-blk")) && said.contains("the key file"), "{said}");
    assert_eq!(fs::read_dir(home.path("data")).expect("the data directory").count(), 0);
    assert!(finish(uninstall_command(&home)).success().is_empty(), "once more is no error");
}

#[test]
fn a_pool_does_not_start_to_be_served_while_uninstall_data_has_it() {
    if !are_there(&["flock"]) {
        return;
    }
    let _alone = one_at_a_time();
    let home = Home::new();
    start(&home).stop();
    let uninstalling = Uninstalling::start(&home);

    let message = home.run(["quickstart"]).failure(7);

    assert!(message.contains("another process"), "{message}");
    let (code, said) = uninstalling.answer("delete\n");
    assert_eq!(code, Some(0), "{said}");
    assert!(!home.path("data/rok-blk").exists());
}

#[test]
fn uninstall_data_refuses_a_pool_that_was_served_while_it_asked() {
    if !are_there(&["flock"]) {
        return;
    }
    let _alone = one_at_a_time();
    let home = Home::new();
    start(&home).stop();
    let uninstalling = Uninstalling::start(&home);
    let (pool, key) = (home.text("data/rok-blk/pool"), home.text("data/rok-blk/pool.key"));
    let serving = Serving::start(home.command(["serve", "--pool", &pool, "--key-file", &key]));

    let (code, said) = uninstalling.answer("delete\n");

    assert_eq!(code, Some(7), "{said}");
    serving.stop();
    assert!(home.path("data/rok-blk/pool/data-0").exists());
}
