//! How the lanes of a server do their I/O: what is asked for, what the kernel refuses, and what both ways have in common.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::RangeInclusive;
use std::process::Command;
use std::time::{Duration, Instant};

use rok_nbd::{CommandFlags, RequestKind};

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::refusal::{self, is_uring_allowed, refuse};
use crate::support::{Home, Serving, WAIT_MAX, finish};

/// Longer than any period by which a server could look whether there is something to do.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// What a server says once when it is refused.
const REFUSED: &str = "does not let rok-blk use io_uring";
const UNSUPPORTED: i32 = 13;
/// Names the way that a server must take by itself, for who knows it better than a look at this process.
pub const EXPECTED_IO_VARIABLE: &str = "ROK_EXPECTED_IO";

fn serve(home: &Home, further: &[&str]) -> Command {
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    home.command(["serve", "--pool", &pool, "--key-file", &key].iter().chain(further))
}

fn io_of(home: &Home) -> String {
    home.run(["status", "--json"]).json()["pool"]["io"].as_str().expect("a word").to_owned()
}

fn times_said(serving: &Serving, words: &str) -> usize {
    serving.said.iter().filter(|line| line.contains(words)).count()
}

/// Writes, trims and reads on two connections.
fn exchange(home: &Home) {
    let mut clients = [(); 2].map(|()| NbdClient::connect(&unix_socket(home), "vol1").expect("an export"));
    let mut call = |client: usize, kind, flags, range, data: &[u8]| {
        clients[client].submit(kind, flags, range, data).expect("the server goes on");
        clients[client].complete().expect("the server goes on").result.expect("no error")
    };
    call(0, RequestKind::Write, CommandFlags::FUA, (4096, 8192), &[7; 8192]);
    call(0, RequestKind::Trim, CommandFlags::NONE, (8192, 4096), &[]);
    call(1, RequestKind::Flush, CommandFlags::NONE, (0, 0), &[]);
    let read = call(1, RequestKind::Read, CommandFlags::NONE, (4096, 8192), &[]);
    assert_eq!(read, [[7; 4096], [0; 4096]].concat());
}

#[test]
fn io_uring_is_taken_where_it_is_allowed_and_else_threads() {
    let home = Home::with_pool();
    let serving = Serving::start(serve(&home, &[]));
    let looked_up = if is_uring_allowed() { "io-uring" } else { "threads" };
    let expected = env::var(EXPECTED_IO_VARIABLE).unwrap_or(looked_up.to_owned());
    assert_eq!(io_of(&home), expected);
    assert_eq!(times_said(&serving, REFUSED), usize::from(expected == "threads"), "{:#?}", serving.said);
    serving.stop();
}

#[test]
fn threads_are_taken_where_they_are_wanted_and_nothing_is_said() {
    let home = Home::with_pool();
    let serving = Serving::start(serve(&home, &["--io", "threads"]));
    home.run(["create", "vol1", "--size", "1G"]).success();
    assert_eq!(io_of(&home), "threads");
    assert!(home.run(["status"]).success().contains("threads, slower than io-uring"));
    assert_eq!(times_said(&serving, REFUSED), 0, "{:#?}", serving.said);
    exchange(&home);
    serving.stop();
}

#[test]
fn every_way_to_refuse_io_uring_ends_at_threads() {
    let only = |number| RangeInclusive::new(number, number);
    let ways = [
        (refusal::ALL, libc::EPERM, "io_uring_setup"),
        (refusal::ALL, libc::ENOSYS, "io_uring_setup"),
        (only(libc::SYS_io_uring_setup), libc::EACCES, "io_uring_setup"),
        (only(libc::SYS_io_uring_enter), libc::EPERM, "io_uring_"),
        (only(libc::SYS_io_uring_register), libc::ENOSYS, "io_uring_"),
    ];
    let home = Home::with_pool();
    for (refused, errno, named) in ways {
        let mut command = serve(&home, &[]);
        refuse(&mut command, refused.clone(), errno);
        let serving = Serving::start(command);
        home.run(["create", "vol1", "--size", "1G", "--if-missing"]).success();
        assert_eq!(io_of(&home), "threads", "{refused:?}");
        let warnings: Vec<&String> = serving.said.iter().filter(|line| line.contains(REFUSED)).collect();
        assert_eq!(warnings.len(), 1, "{:#?}", serving.said);
        assert!(warnings[0].contains(named) && warnings[0].contains("seccomp"), "{warnings:?}");
        exchange(&home);
        serving.stop();
    }
}

#[test]
fn io_uring_that_is_wanted_and_refused_is_an_error_with_the_way_out() {
    let home = Home::with_pool();
    let mut command = serve(&home, &["--io", "io-uring"]);
    refuse(&mut command, refusal::ALL, libc::EPERM);

    let said = finish(command).failure(UNSUPPORTED);

    assert!(said.contains(REFUSED) && said.contains("seccomp") && said.contains("--io threads"), "{said}");
    // The pool is not left open.
    Serving::start(serve(&home, &["--io", "threads"])).stop();
}

/// What each thread has used: how often it gave the processor away or lost it, and its time on it.
fn activity(process_id: u32) -> BTreeMap<String, Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{process_id}/task")).expect("it runs");
    let directories = tasks.map(|task| task.expect("a thread").path());
    let mut used = BTreeMap::new();
    for directory in directories {
        let text = |name: &str| fs::read_to_string(directory.join(name)).expect("the thread runs");
        let (status, stat) = (text("status"), text("stat"));
        let switches = status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned);
        // Behind the name, which is in parentheses: utime and stime are the twelfth and thirteenth of these fields.
        let times = stat.rsplit(") ").next().expect("fields").split(' ').skip(11).take(2).map(str::to_owned);
        let name = text("comm");
        // The threads of the control plane and RocksDB's own are not what this is about.
        if ["lane", "transfer", "blocking", "handshakes"].iter().any(|kind| name.starts_with(kind)) {
            used.insert(format!("{} {}", name.trim(), directory.display()), switches.chain(times).collect());
        }
    }
    used
}

/// A server with an open connection that has been used uses no processor time, whatever its lanes do their I/O with.
fn is_idle_between_requests(io: &str) {
    let home = Home::with_pool();
    let serving = Serving::start(serve(&home, &["--io", io]));
    home.run(["create", "vol1", "--size", "1G"]).success();
    exchange(&home);
    let _idle = NbdClient::connect(&unix_socket(&home), "vol1").expect("an export");
    let begun = Instant::now();
    loop {
        let before = activity(serving.process_id());
        assert!(before.keys().any(|name| name.starts_with("lane")), "{before:?}");
        // That nothing happens is no event: only time can show it. What is left of a request, and a checkpoint, ends.
        std::thread::sleep(IDLE_TIME);
        let after = activity(serving.process_id());
        if before == after {
            break;
        }
        assert!(begun.elapsed() < WAIT_MAX, "{before:#?}\n{after:#?}");
    }
    exchange(&home);
    serving.stop();
}

#[test]
fn idle_threads_use_no_processor_time() {
    is_idle_between_requests("threads");
}

#[test]
fn idle_server_uses_no_processor_time() {
    is_idle_between_requests("auto");
}
