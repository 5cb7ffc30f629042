//! What the host may do to a daemon: let it have few files or little memory, or stop it for a while.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rok_blk::daemon::host::raise_open_file_limit;
use rok_nbd::{CommandFlags, RequestKind};

use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::{Home, Serving, WAIT_MAX};

const FILES_MAX: u64 = 200;
/// More than there are files.
const CROWD: usize = 300;
/// So many of them get in at least.
const CROWD_IN_MIN: u64 = 50;
/// What the metadata store may need at a moment at which a crowd is there.
const FILES_LEFT_MIN: u64 = 40;
/// Longer than the daemon lets a message take in that test.
const STOPPED: Duration = Duration::from_secs(3);
const BLOCKS: u64 = 64;
/// What a daemon may have beyond what it has once it is ready.
const MEMORY_BYTES: u64 = 96 << 20;
/// Of so many a daemon without memory meets its end, or not.
const LARGE_REQUESTS: u64 = 40;
const LARGE_BYTES: u32 = 16 << 20;

/// Serves the pool of a home with a limit of the kernel's for it.
fn serve_with_limit(home: &Home, resource: libc::__rlimit_resource_t, max: u64, further: &[&str]) -> Serving {
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let arguments = ["serve", "--pool", &pool, "--key-file", &key];
    let mut command: Command = home.command(arguments.iter().chain(further));
    // The C library sets 64 MiB of addresses aside for a thread that asks for memory, by chance.
    command.env("MALLOC_ARENA_MAX", "1");
    let limit = libc::rlimit { rlim_cur: max, rlim_max: max };
    // SAFETY: between fork and exec only setrlimit is called, which may be called there and reads a live rlimit.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    Serving::start(command)
}

fn open_files(serving: &Serving) -> u64 {
    fs::read_dir(format!("/proc/{}/fd", serving.process_id())).expect("it runs").count() as u64
}

fn address_space_bytes(serving: &Serving) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", serving.process_id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn write(client: &mut NbdClient, index: u64, sequence: u64) {
    let mut block = [0; BLOCK_BYTES];
    stamp::fill(&mut block, index, Value::Stamp { client: 0, sequence });
    client.write(index * BLOCK_BYTES_U64, &block);
}

fn assert_holds(client: &mut NbdClient, index: u64, sequence: u64) {
    let read = client.read(index * BLOCK_BYTES_U64, 4096);
    assert_eq!(stamp::recognise(&read, index), Some(Value::Stamp { client: 0, sequence }));
}

#[test]
fn with_few_files_clients_are_turned_away_and_the_pool_goes_on() {
    raise_open_file_limit().expect("the hard limit is allowed");
    let home = Home::with_pool();
    let serving = serve_with_limit(&home, libc::RLIMIT_NOFILE, FILES_MAX, &[]);
    assert!(serving.said.iter().any(|line| line.contains("LimitNOFILE")), "{:?}", serving.said);
    home.run(["create", "vol1", "--size", "16M"]).success();
    let socket = home.path("run/rok-blk/nbd.sock");
    let mut honest = NbdClient::connect(&socket, "vol1").expect("the first one is taken");
    let before = open_files(&serving);

    let mut crowd: Vec<UnixStream> = (0..CROWD).map(|_| UnixStream::connect(&socket).expect("it listens")).collect();
    // All before the last one are in, or were turned away.
    let last = crowd.last_mut().expect("there is a crowd");
    last.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    assert_eq!(last.read(&mut [0; 1]).expect("it is closed"), 0, "the last one is turned away");
    for index in 0..BLOCKS {
        write(&mut honest, index, index);
    }
    // These open files of their own, and change what meta/ has.
    home.run(["snapshot", "vol1"]).success();
    let open = open_files(&serving);
    println!("{open} of {FILES_MAX} files are open beside a crowd of {CROWD}");
    assert!(open > before + CROWD_IN_MIN, "{before} files were open before");
    assert!(open + FILES_LEFT_MIN <= FILES_MAX, "{open} files are open");
    drop(crowd);

    for index in 0..BLOCKS {
        assert_holds(&mut honest, index, index);
    }
    drop(honest);
    serving.stop();
    home.check();
}

#[test]
fn a_daemon_that_was_stopped_answers_when_it_goes_on() {
    let home = Home::with_pool();
    let serving = home.serve(&["--nbd-stall-timeout", "1s", "--nbd-handshake-timeout", "1s"]);
    home.run(["create", "vol1", "--size", "16M"]).success();
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("it listens");
    let mut block = [0; BLOCK_BYTES];
    for index in 0..BLOCKS / 2 {
        write(&mut client, index, index);
    }

    serving.signal(libc::SIGSTOP);
    for index in BLOCKS / 2..BLOCKS {
        stamp::fill(&mut block, index, Value::Stamp { client: 0, sequence: index });
        let range = (index * BLOCK_BYTES_U64, 4096);
        client.submit(RequestKind::Write, CommandFlags::FUA, range, &block).expect("the socket takes it");
    }
    // How long it stands still is a time of the clock; nothing tells of it.
    thread::sleep(STOPPED);
    serving.signal(libc::SIGCONT);

    for _ in BLOCKS / 2..BLOCKS {
        assert_eq!(client.complete().expect("the connection is there").result, Ok(Vec::new()));
    }
    for index in 0..BLOCKS {
        assert_holds(&mut client, index, index);
    }
    drop(client);
    serving.stop();
    home.check();
}

/// It may end, as by a kill, or refuse what there is no memory for; what was acknowledged is there.
#[test]
fn without_memory_a_daemon_ends_or_goes_on_and_loses_nothing() {
    let home = Home::with_pool();
    let probe = serve_with_limit(&home, libc::RLIMIT_AS, libc::RLIM_INFINITY, &[]);
    let enough = address_space_bytes(&probe);
    probe.stop();
    let serving = serve_with_limit(&home, libc::RLIMIT_AS, enough + MEMORY_BYTES, &[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let socket = home.path("run/rok-blk/nbd.sock");
    let mut honest = NbdClient::connect(&socket, "vol1").expect("it listens");
    for index in 0..BLOCKS {
        write(&mut honest, index, index);
    }

    let data = vec![7; usize::try_from(LARGE_BYTES).expect("it fits")];
    honest.write(BLOCKS * BLOCK_BYTES_U64, &data);

    // Nobody takes the answer, which is held in memory for each of them.
    let mut greedy: Vec<NbdClient> = Vec::new();
    for _ in 0..LARGE_REQUESTS {
        let Ok(mut client) = NbdClient::connect(&socket, "vol1") else { break };
        let range = (BLOCKS * BLOCK_BYTES_U64, LARGE_BYTES);
        if client.submit(RequestKind::Read, CommandFlags::NONE, range, &[]).is_err() {
            break;
        }
        greedy.push(client);
    }
    let answers: Vec<bool> =
        greedy.iter_mut().map(|client| matches!(client.complete(), Ok(done) if done.result.is_ok())).collect();
    let served = answers.iter().filter(|is_served| **is_served).count();
    let read = honest.call(RequestKind::Read, (0, 4096), &[]).map(|result| result.map(|_| "data"));
    println!("of {LARGE_REQUESTS} large reads {served} were served; then a small one came to {read:?}");
    assert!((served as u64) < LARGE_REQUESTS || !matches!(read, Ok(Ok(_))), "the limit was felt");
    drop((honest, greedy));
    serving.kill();

    let serving = home.serve(&[]);
    let mut client = NbdClient::connect(&socket, "vol1").expect("it listens");
    for index in 0..BLOCKS {
        assert_holds(&mut client, index, index);
    }
    drop(client);
    serving.stop();
    home.check();
}
