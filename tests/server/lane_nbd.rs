//! NBD over lanes in this process: own client, hostile clients, real clients.

#![expect(clippy::print_stdout, reason = "seeds and reasons of skipped parts are for who reads the test's output")]

mod access;
mod client;
mod control;
mod gate;
mod handshake_time;
mod kernel_client;
mod late_policy;
mod programs;
mod status;

use client::Client;
use gate::GatedStore;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rok_blk::crypto::{MasterKey, Suite};
use rok_blk::disk::{Device, FileDevice};
use rok_blk::error::ErrorKind;
use rok_blk::lane::{ExportPolicy, IoChoice, ListenAddress, ListenSettings, NbdLimits, Server, ServerOptions};
use rok_blk::pool::{self, Limits, Parts};
use rok_blk::volume::NewVolume;
use rok_nbd::client::{Handshake, Outcome, Reply};
use rok_nbd::{ChunkKind, CommandFlags, ReplyForm, Request, RequestForm, RequestKind, WireError};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 256 * MIB;
/// No answer of a healthy server takes longer. Less than the times after which the server closes what stalls, so that these cannot
/// stand in for what is tested.
const PATIENCE: Duration = Duration::from_secs(50);

/// What outlives a server: files, store, key.
pub struct World {
    directory: tempfile::TempDir,
    store: Arc<GatedStore>,
    id: Uuid,
    nbd: NbdLimits,
}

impl World {
    /// A fresh pool with volume "vol1".
    pub fn create(device_bytes: u64) -> (Self, Running) {
        Self::create_with(device_bytes, NbdLimits::default())
    }

    /// The same with bounds of its own.
    pub fn create_with(device_bytes: u64, nbd: NbdLimits) -> (Self, Running) {
        let directory = tempfile::tempdir().expect("a directory for the pool");
        let world = Self { directory, store: Arc::default(), id: Uuid::new_v4(), nbd };
        let device = FileDevice::create(&world.device_path(), device_bytes).expect("space for the pool");
        let device = Arc::new(device);
        let mut random = random();
        pool::create(&world.parts(&device), &mut |bytes| random.fill_bytes(bytes)).expect("a pool");
        let running = world.serve(&device);
        let new = NewVolume { sector_size: 4096, ..NewVolume::new(Uuid::new_v4(), "vol1", VOLUME_BYTES) };
        running.server.volumes().create(&new).expect("a volume");
        (world, running)
    }

    /// Opens the pool again.
    pub fn open(&self) -> Running {
        let device = Arc::new(FileDevice::open(&self.device_path()).expect("the device is unlocked"));
        self.serve(&device)
    }

    fn serve(&self, device: &Arc<FileDevice>) -> Running {
        let mut random = random();
        let pool = pool::open(self.parts(device), &mut |bytes| random.fill_bytes(bytes)).expect("the pool opens");
        let options = ServerOptions { devices: vec![Arc::clone(device)], io: IoChoice::Auto, nbd: self.nbd, tls: None };
        let server = Server::start(pool, options).expect("a server");
        let socket = self.directory.path().join("nbd.sock");
        server.listen(&ListenAddress::Unix(socket.clone()), ListenSettings::default()).expect("the socket is free");
        Running { server, socket }
    }

    fn device_path(&self) -> PathBuf {
        self.directory.path().join("data-0")
    }

    fn parts(&self, device: &Arc<FileDevice>) -> Parts {
        let device: Arc<dyn Device> = Arc::clone(device) as Arc<dyn Device>;
        Parts {
            id: self.id,
            suite: Suite::XtsGmac,
            master: Arc::new(MasterKey::from_bytes([7; 32])),
            devices: vec![(device, self.id)],
            store: Arc::clone(&self.store) as Arc<dyn rok_blk::meta::MetaStore>,
            reserve: None,
            shred_key: None,
            lane_count: 2,
            has_cleaner: true,
            limits: Limits::default(),
        }
    }
}

/// A server and where it listens.
pub struct Running {
    pub server: Arc<Server>,
    pub socket: PathBuf,
}

impl Running {
    pub fn connect(&self) -> Client {
        Client::connect(&self.socket, "vol1", true)
    }

    fn end(self) {
        self.server.shutdown().expect("a clean end");
        assert!(!self.socket.exists(), "the socket goes with the server");
    }
}

fn random() -> SmallRng {
    SmallRng::from_os_rng()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn queued_requests_read_back_what_was_written_and_survive_a_restart() {
    let (world, running) = World::create(512 * MIB);
    let mut client = running.connect();
    assert_eq!(client.size_bytes, VOLUME_BYTES);
    let seed = SmallRng::from_os_rng().random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut model = vec![0_u8; 16 << 20];
    // Rounds of 32 requests each, none of which overlaps another of its round: each has its own part of the model.
    for round in 0..60 {
        let mut expected = BTreeMap::new();
        for slot in 0..32 {
            let part = slot * (512 << 10);
            let start = part + random.random_range(0..256) * 1024;
            let len = if round % 2 == 0 { 4096 } else { random.random_range(1..200_000) };
            let (from, range) = (u64::try_from(start).expect("small"), start..start + len);
            let length = u32::try_from(len).expect("small");
            let cookie = match random.random_range(0..5) {
                0 | 1 => {
                    model[range.clone()].copy_from_slice(&pattern(random.random(), len));
                    let flags = [CommandFlags::NONE, CommandFlags::FUA][random.random_range(0..2)];
                    let cookie = client.send(RequestKind::Write, flags, (from, length), &model[range]);
                    expected.insert(cookie, Vec::new());
                    continue;
                }
                2 => {
                    model[range].fill(0);
                    let flags = [CommandFlags::NONE, CommandFlags::NO_HOLE][random.random_range(0..2)];
                    client.send(RequestKind::WriteZeroes, flags, (from, length), &[])
                }
                _ => {
                    let cookie = client.send(RequestKind::Read, CommandFlags::DF, (from, length), &[]);
                    expected.insert(cookie, model[range].to_vec());
                    continue;
                }
            };
            expected.insert(cookie, Vec::new());
        }
        while !expected.is_empty() {
            let (cookie, answer) = client.receive();
            let expected = expected.remove(&cookie).expect("each request is answered once");
            assert!(answer.expect("success") == expected, "round {round} cookie {cookie}");
        }
    }
    client.flush().expect("a flush");
    let mut second = running.connect();
    assert!(second.read(0, 16 << 20).expect("a read") == model, "the other connection reads the same");
    drop((client, second));
    running.end();
    let again = world.open();
    let mut client = again.connect();
    assert!(client.read(0, 16 << 20).expect("a read") == model, "the next server reads the same");
    drop(client);
    again.end();
}

#[test]
fn trim_of_whole_blocks_reads_zeros_and_fast_zero_of_provisioned_space_is_refused() {
    let (_world, running) = World::create(128 * MIB);
    let mut client = running.connect();
    let data = pattern(1, 64 << 10);
    client.write(0, &data).expect("a write");
    client.call(RequestKind::Trim, CommandFlags::FUA, (4096, 8192), &[]).expect("a trim");
    let mut expected = data.clone();
    expected[4096..12288].fill(0);
    assert!(client.read(0, 64 << 10).expect("a read") == expected);
    let flags = CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO);
    let refused = client.call(RequestKind::WriteZeroes, flags, (0, 4096), &[]);
    assert_eq!(refused, Err(WireError::NotSupported));
    client.call(RequestKind::WriteZeroes, CommandFlags::FAST_ZERO, (0, 4096), &[]).expect("fast");
    assert!(client.read(0, 4096).expect("a read").iter().all(|byte| *byte == 0));
    running.end();
}

#[test]
fn bad_requests_get_the_error_of_the_protocol_and_keep_the_connection() {
    let (_world, running) = World::create(128 * MIB);
    for has_structured_replies in [false, true] {
        let mut client = Client::connect(&running.socket, "vol1", has_structured_replies);
        let none = CommandFlags::NONE;
        let end = VOLUME_BYTES;
        assert_eq!(client.read(end, 1), Err(WireError::Invalid));
        assert_eq!(client.read(u64::MAX, u32::MAX), Err(WireError::Invalid));
        assert_eq!(client.write(end - 1, &[1, 2]), Err(WireError::NoSpace));
        assert_eq!(client.call(RequestKind::Trim, none, (end, 4096), &[]), Err(WireError::Invalid));
        assert_eq!(client.call(RequestKind::Unknown(77), none, (0, 0), &[]), Err(WireError::Invalid));
        assert_eq!(client.call(RequestKind::Flush, none, (1, 0), &[]), Err(WireError::Invalid));
        let oversize = NbdLimits::default().request_bytes_max + 1;
        assert_eq!(client.read(0, oversize), Err(WireError::Invalid));
        let payload = vec![1; usize::try_from(oversize).expect("64 bits")];
        assert_eq!(client.write(0, &payload), Err(WireError::Invalid));
        assert_eq!(client.read(0, 0), Ok(Vec::new()));
        assert_eq!(client.write(0, &[]), Ok(Vec::new()));
        let largest = NbdLimits::default().request_bytes_max;
        assert_eq!(client.read(0, largest).map(|data| data.len()), Ok(32 << 20));
        client.write(0, &pattern(3, 32 << 20)).expect("the largest write");
        assert!(client.read(0, largest).expect("a read") == pattern(3, 32 << 20));
        client.call(RequestKind::Trim, none, (0, largest), &[]).expect("a trim");
        // A payload that is too long to be skipped ends the connection.
        client.send(RequestKind::Write, none, (0, u32::MAX), &[]);
        assert!(client.is_closed());
    }
    let mut client = running.connect();
    client.stream.write_all(&[0; 28]).expect("the server reads");
    assert!(client.is_closed(), "a connection that is out of step ends");
    assert!(Client::try_connect(&running.socket, "nope", true).expect("an answer").is_none());
    running.connect().flush().expect("the server goes on");
    running.end();
}

#[test]
fn disconnect_answers_everything_before() {
    let (_world, running) = World::create(128 * MIB);
    let mut client = running.connect();
    let none = CommandFlags::NONE;
    for index in 0..100 {
        client.send(RequestKind::Write, none, (index * 4096, 4096), &pattern(index, 4096));
    }
    client.send(RequestKind::Disconnect, none, (0, 0), &[]);
    let mut answered: Vec<u64> =
        (0..100).map(|_| client.receive()).map(|(cookie, answer)| answer.map(|_| cookie).expect("a write")).collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=100).collect::<Vec<_>>());
    assert!(client.is_closed());
    running.end();
}

#[test]
fn more_requests_than_may_be_under_way_are_all_answered() {
    let (_world, running) = World::create(256 * MIB);
    let mut client = running.connect();
    let count = u64::try_from(NbdLimits::default().requests_max).expect("small") * 8;
    let mut writer = client.stream.try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || {
        for cookie in 1..=count {
            let (kind, flags) = (RequestKind::Write, CommandFlags::NONE);
            let request =
                Request { form: RequestForm::Compact, flags, kind, cookie, offset: cookie * 65536, length: 65536 };
            writer.write_all(&request.encode()).expect("the server reads");
            writer.write_all(&pattern(cookie, 65536)).expect("the server reads");
        }
    });
    let mut left: std::collections::BTreeSet<u64> = (1..=count).collect();
    while !left.is_empty() {
        let (cookie, answer) = client.receive();
        answer.expect("a write");
        assert!(left.remove(&cookie));
    }
    sender.join().expect("the sender ends");
    for cookie in 1..=count {
        assert!(client.read(cookie * 65536, 65536).expect("a read") == pattern(cookie, 65536));
    }
    running.end();
}

/// A client's flags, then GO for "vol1".
fn choice_of_vol1() -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT");
    bytes.extend(7_u32.to_be_bytes());
    bytes.extend(10_u32.to_be_bytes());
    bytes.extend(4_u32.to_be_bytes());
    bytes.extend(b"vol1");
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn clients_that_leave_at_any_byte_disturb_nobody() {
    let (_world, running) = World::create(128 * MIB);
    // Then a write and half of another.
    let mut bytes = choice_of_vol1();
    let handshake_len = bytes.len();
    let (kind, flags) = (RequestKind::Write, CommandFlags::NONE);
    let small = Request { form: RequestForm::Compact, flags, kind, cookie: 1, offset: 0, length: 4096 };
    bytes.extend(small.encode());
    bytes.extend([1; 4096]);
    let large = Request { form: RequestForm::Compact, flags, kind, cookie: 2, offset: MIB, length: 1 << 20 };
    bytes.extend(large.encode());
    bytes.extend([2; 100_000]);
    let mut cuts: Vec<usize> = (0..=handshake_len + 40).collect();
    cuts.extend([handshake_len + 28 + 4095, handshake_len + 28 + 4096, handshake_len + 28 + 4096 + 27]);
    cuts.extend([handshake_len + 28 + 4096 + 28, bytes.len() - 60_000, bytes.len()]);
    for (index, cut) in cuts.into_iter().enumerate() {
        let mut stream = UnixStream::connect(&running.socket).expect("the server accepts");
        stream.write_all(&bytes[..cut]).expect("the server reads");
        if index % 2 == 0 {
            stream.shutdown(Shutdown::Write).expect("a live socket");
            stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
            stream.read_to_end(&mut Vec::new()).expect("the server closes");
        }
    }
    let mut client = running.connect();
    assert!(client.read(MIB, 4096).expect("a read").iter().all(|byte| *byte == 0), "half a write changes nothing");
    await_connections(&running, 1);
    running.end();
}

/// Waits until a volume has so many connections.
fn await_connections(running: &Running, count: u32) {
    let begun = Instant::now();
    while running.server.exports()[0].connections != count {
        assert!(begun.elapsed() < PATIENCE, "connections stay");
        std::thread::yield_now();
    }
}

#[test]
fn connections_beyond_the_limit_are_closed_and_the_others_live() {
    let limits = NbdLimits { connections_max: 128, ..NbdLimits::default() };
    let (_world, running) = World::create_with(128 * MIB, limits);
    let mut client = running.connect();
    let held: Vec<UnixStream> = (1..limits.connections_max)
        .map(|_| {
            let mut stream = UnixStream::connect(&running.socket).expect("the server accepts");
            stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
            // The greeting says that it is served.
            stream.read_exact(&mut [0; 18]).expect("a greeting");
            stream
        })
        .collect();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&running.socket).expect("the kernel accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        assert_eq!(stream.read(&mut [0; 18]).expect("an end"), 0, "it is closed at once");
    }
    client.write(0, &[1; 4096]).expect("a write");
    drop(held);
    let begun = Instant::now();
    while !matches!(Client::try_connect(&running.socket, "vol1", false), Ok(Some(_))) {
        assert!(begun.elapsed() < PATIENCE, "places come back");
    }
    running.end();
}
