//! What has broken other NBD servers, done to the real one. `docs/NBD.md` lists the advisories and the test of each.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rok_nbd::{CommandFlags, RequestKind};

use crate::clients::unix_socket;
use crate::connections::resident_bytes;
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving, WAIT_MAX};

const MIB: u64 = 1 << 20;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
/// No option has this number.
const OPT_UNKNOWN: u32 = 0x7fff_fff0;
const GREETING_BYTES: usize = 18;
const REPLY_HEAD_BYTES: usize = 20;

fn serve() -> (Home, Serving, NbdClient) {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let honest = NbdClient::connect(&unix_socket(&home), "vol1").expect("the server is ready");
    (home, serving, honest)
}

/// A connection that has answered the greeting: fixed newstyle, no zeroes.
fn greeted(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the server listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    stream.read_exact(&mut [0; GREETING_BYTES]).expect("a greeting");
    stream.write_all(&3_u32.to_be_bytes()).expect("the server reads");
    stream
}

fn option(kind: u32, stated_len: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT".as_slice(), &kind.to_be_bytes(), &stated_len.to_be_bytes(), data].concat()
}

fn u32_len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("short")
}

/// What the server says until it has said all, or closes. A refusal is a reply; both leave everybody else alone.
fn ask(socket: &Path, message: &[u8]) {
    let mut stream = greeted(socket);
    // It may close before it has read all.
    if stream.write_all(message).is_ok() && stream.shutdown(std::net::Shutdown::Write).is_ok() {
        let mut said = Vec::new();
        // A close with unread data is a reset.
        if let Err(error) = stream.read_to_end(&mut said) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it closes in time");
        }
    }
}

/// CVE-2022-26495, CVE-2022-26496, CVE-2017-15118, CVE-2020-10761, CVE-2011-1925: lengths and names that other servers had no
/// room for.
#[test]
fn names_of_any_length_and_lengths_that_lie_end_nobody() {
    let (home, serving, mut honest) = serve();
    let socket = unix_socket(&home);
    for len in [0, 1, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 65_536] {
        let name = vec![b'n'; len];
        ask(&socket, &option(OPT_EXPORT_NAME, u32_len(&name), &name));
        for kind in [OPT_INFO, OPT_GO] {
            let data = [&u32_len(&name).to_be_bytes()[..], &name, &[0, 0]].concat();
            ask(&socket, &option(kind, u32_len(&data), &data));
            // The name says that it is longer than the option is.
            let data = [&u32::MAX.to_be_bytes()[..], &name, &[0, 0]].concat();
            ask(&socket, &option(kind, u32_len(&data), &data));
        }
    }
    for kind in [OPT_EXPORT_NAME, OPT_INFO, OPT_GO, OPT_UNKNOWN] {
        ask(&socket, &option(kind, u32::MAX, b"vol1"));
    }
    assert_eq!(honest.read(0, 4096).len(), 4096);
    honest.disconnect();
    serving.stop();
}

/// CVE-2017-9524, CVE-2017-7539: qemu-nbd ended when a client left while it was answered. No descriptor or memory stays.
#[test]
fn clients_that_leave_in_the_middle_of_replies_disturb_nobody() {
    const ROUNDS: usize = 64;
    let (home, serving, mut honest) = serve();
    let socket = unix_socket(&home);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", serving.process_id())).expect("it runs").count();
    honest.write(0, &[7; 4 << 20]);
    let before = descriptors();
    for round in 0..ROUNDS {
        let mut client = NbdClient::connect(&socket, "vol1").expect("the server goes on");
        for offset in (0..4).map(|step| step * MIB) {
            client.submit(RequestKind::Read, CommandFlags::NONE, (offset, 1 << 20), &[]).expect("the server reads");
        }
        if round % 2 == 0 {
            // At least one reply has begun.
            client.complete().expect("the server answers");
        }
        drop(client);
    }
    assert_eq!(honest.read(0, 4096), vec![7; 4096]);
    // The ends of the last ones may be under way, and the metadata store opens some files of its own.
    let deadline = Instant::now() + WAIT_MAX;
    while descriptors() > before + ROUNDS / 4 {
        assert!(Instant::now() < deadline, "{} descriptors are open, {before} before", descriptors());
        std::thread::yield_now();
    }
    honest.disconnect();
    serving.stop();
}

/// Of nbdkit's option parser: some bytes leaked with each option.
#[test]
fn a_hundred_thousand_options_leak_nothing() {
    const CONNECTIONS: usize = 4000;
    const OPTIONS: usize = 25;
    /// Less than eleven bytes an option.
    const GROWTH_MAX: u64 = 1 << 20;
    let (home, serving, honest) = serve();
    let socket = unix_socket(&home);
    let options: Vec<u8> = (0..OPTIONS).flat_map(|_| option(OPT_UNKNOWN, 100, &[1; 100])).collect();
    let run = |count: usize| {
        for _ in 0..count {
            let mut stream = greeted(&socket);
            stream.write_all(&options).expect("the server reads");
            for _ in 0..OPTIONS {
                let mut head = [0; REPLY_HEAD_BYTES];
                stream.read_exact(&mut head).expect("each option is answered");
                let len = u32::from_be_bytes(head[16..].try_into().expect("four bytes"));
                let mut text = vec![0; usize::try_from(len).expect("short")];
                stream.read_exact(&mut text).expect("the reply is whole");
            }
        }
    };
    // What the first ones allocate is kept for the next.
    run(CONNECTIONS / 8);
    let before = resident_bytes(serving.process_id());
    run(CONNECTIONS);
    let growth = resident_bytes(serving.process_id()).saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{growth} bytes more");
    honest.disconnect();
    serving.stop();
}

/// CVE-2015-0847: nbd-server did what it must not in signal handlers, and hung. CVE-2024-7409: qemu-nbd hung or crashed when
/// it was stopped while clients were connecting.
#[test]
fn a_storm_of_signals_amid_connections_ends_the_server_and_loses_nothing() {
    let (home, serving, mut honest) = serve();
    let socket = unix_socket(&home);
    honest.write(MIB, &[9; 4096]);
    let waiting: Vec<UnixStream> = (0..32).map(|_| greeted(&socket)).collect();
    for _ in 0..3 {
        for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGINT, libc::SIGTERM] {
            serving.signal(signal);
        }
    }
    // It ends, at once or cleanly; it must not hang, and what ended it must be itself.
    let (status, _, said) = serving.wait();
    assert!(status.code().is_some(), "{status}: {said:#?}");
    drop((waiting, honest));

    let serving = home.serve(&[]);
    let mut client = NbdClient::connect(&socket, "vol1").expect("the server is ready");
    assert_eq!(client.read(MIB, 4096), vec![9; 4096]);
    client.disconnect();
    serving.stop();
    home.check();
}
