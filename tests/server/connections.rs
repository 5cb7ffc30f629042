//! A thousand connections at once, of which a few do something.

use std::fs;
use std::thread;

use rok_blk::daemon::host::raise_open_file_limit;
use rok_nbd::{CommandFlags, RequestKind};

use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::Home;

const CONNECTION_COUNT: u64 = 1000;
const ACTIVE_COUNT: u64 = 64;
/// What a connection that waits may take, in bytes.
const IDLE_BYTES_MAX: u64 = 64 << 10;
/// Blocks that each active connection writes, in rounds of so many at once.
const ROUNDS: u64 = 16;
const DEPTH: u64 = 16;

/// Memory of a process that is in RAM and its own, in bytes.
pub fn resident_bytes(process_id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Writes blocks of its own with many requests under way, and reads them back.
fn work(client: &mut NbdClient, number: u64) {
    let mut block = [0; BLOCK_BYTES];
    let place = |step: u64| number * ROUNDS * DEPTH + step;
    for round in 0..ROUNDS {
        for step in (0..DEPTH).map(|step| round * DEPTH + step) {
            stamp::fill(&mut block, place(step), Value::Stamp { client: number, sequence: step });
            let range = (place(step) * BLOCK_BYTES_U64, 4096);
            client.submit(RequestKind::Write, CommandFlags::NONE, range, &block).expect("the server goes on");
        }
        for _ in 0..DEPTH {
            assert_eq!(client.complete().expect("the server goes on").result, Ok(Vec::new()));
        }
    }
    for step in 0..ROUNDS * DEPTH {
        let read = client.read(place(step) * BLOCK_BYTES_U64, 4096);
        assert_eq!(stamp::recognise(&read, place(step)), Some(Value::Stamp { client: number, sequence: step }));
    }
}

#[test]
fn a_thousand_connections_take_little_and_hold_nobody_up() {
    raise_open_file_limit().expect("the hard limit is allowed");
    let home = Home::new();
    // Room for what the active ones write, before a checkpoint gives anything back.
    home.create_pool_of("pool", "256M");
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let socket = home.path("run/rok-blk/nbd.sock");
    let connect = || NbdClient::connect(&socket, "vol1").expect("the server takes another one");
    // What the first requests allocate stays, and is nobody's.
    let mut warm: Vec<NbdClient> = (0..8).map(|_| connect()).collect();
    for client in &mut warm {
        client.read(0, 4096);
    }
    let before = resident_bytes(serving.process_id());

    let mut clients: Vec<NbdClient> = (0..CONNECTION_COUNT).map(|_| connect()).collect();
    for (client, number) in clients.iter_mut().zip(0..) {
        client.write(number * BLOCK_BYTES_U64, &[7; BLOCK_BYTES]);
        client.read(number * BLOCK_BYTES_U64, 4096);
    }

    let per_connection = resident_bytes(serving.process_id()).saturating_sub(before) / CONNECTION_COUNT;
    println!("{per_connection} bytes of memory for each of {CONNECTION_COUNT} connections that wait");
    assert!(per_connection <= IDLE_BYTES_MAX, "{per_connection} bytes");

    let (active, idle) = clients.split_at_mut(usize::try_from(ACTIVE_COUNT).expect("few"));
    thread::scope(|scope| {
        for (client, number) in active.iter_mut().zip(0..) {
            scope.spawn(move || work(client, number));
        }
    });
    // None of those that waited was forgotten.
    for client in idle {
        assert_eq!(client.read(0, 4096).len(), BLOCK_BYTES);
    }
    drop((clients, warm));
    serving.stop();
    home.check();
}
