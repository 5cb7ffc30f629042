//! Pools that grow while they are used: by a larger file or disk, or by a further one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Instant;

use rok_nbd::{RequestKind, WireError};

use crate::clients::{self, unix_socket};
use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::{Home, Serving, WAIT_MAX, skip};

const MIB: u64 = 1 << 20;
/// Blocks of one write.
const CHUNK_BLOCKS: u64 = 64;
const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_BYTES_U64;
/// Large enough that writing it with zeros takes longer than to see that it has begun.
const SLOW_SIZE: &str = "2G";

/// A volume that is filled from its start.
struct Filling {
    client: NbdClient,
    chunk_count: u64,
}

impl Filling {
    fn new(home: &Home) -> Self {
        home.run(["create", "vol1", "--size", "1G"]).success();
        Self { client: NbdClient::connect(&unix_socket(home), "vol1").expect("the server is ready"), chunk_count: 0 }
    }

    /// Writes until there is no space; how many bytes that were.
    fn fill(&mut self) -> u64 {
        let before = self.chunk_count;
        loop {
            let range = (self.chunk_count * CHUNK_BYTES, u32::try_from(CHUNK_BYTES).expect("small"));
            match self.client.call(RequestKind::Write, range, &chunk(self.chunk_count)).expect("the server goes on") {
                Ok(_) => self.chunk_count += 1,
                Err(error) => {
                    assert_eq!(error, WireError::NoSpace);
                    return (self.chunk_count - before) * CHUNK_BYTES;
                }
            }
        }
    }
}

fn chunk(index: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(CHUNK_BYTES).expect("small")];
    for (block, bytes) in (index * CHUNK_BLOCKS..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        stamp::fill(bytes, block, Value::Stamp { client: 0, sequence: block });
    }
    bytes
}

/// Everything that was filled is there.
#[track_caller]
fn compare(home: &Home, chunk_count: u64) {
    let mut client = NbdClient::connect(&unix_socket(home), "vol1").expect("the server is ready");
    for index in 0..chunk_count {
        let read = client.read(index * CHUNK_BYTES, u32::try_from(CHUNK_BYTES).expect("small"));
        assert!(read == chunk(index), "chunk {index} of {chunk_count} differs");
    }
    client.disconnect();
}

/// Name and size of each device.
#[track_caller]
fn devices(home: &Home) -> Vec<(String, u64)> {
    let pool = home.run(["pool", "show", "--json"]).json();
    let listed = pool["devices"].as_array().expect("a list").iter();
    let device = listed.map(|device| {
        (device["name"].as_str().expect("a name").to_owned(), device["size"].as_u64().expect("a number"))
    });
    device.collect()
}

#[track_caller]
fn capacity_bytes(home: &Home) -> u64 {
    home.run(["df", "--json"]).json()["capacity"].as_u64().expect("a number")
}

#[test]
fn a_full_pool_grows_and_its_clients_write_on() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    let mut filling = Filling::new(&home);
    assert!(filling.fill() > 40 * MIB, "most of 64 MiB");
    let capacity = capacity_bytes(&home);
    let warnings = home.run(["status", "--json"]).json()["warnings"].to_string();
    assert!(warnings.contains("pool grow"), "{warnings}");

    assert_eq!(home.run(["pool", "grow", "--size", "96M"]).success(), "data-0\n");

    assert_eq!(capacity_bytes(&home), capacity + 32 * MIB);
    let written = filling.fill();
    assert!(written > 24 * MIB, "on the same connection: {written}");
    assert_eq!(home.run(["pool", "add-device", "--size", "40M"]).success(), "data-1\n");
    let written = filling.fill();
    assert!(written > 30 * MIB, "on the same connection: {written}");
    assert_eq!(devices(&home), [("data-0".to_owned(), 96 * MIB), ("data-1".to_owned(), 40 * MIB)]);
    filling.client.flush();
    drop(filling.client);
    compare(&home, filling.chunk_count);

    serving.kill();
    let serving = home.serve(&[]);
    assert_eq!(devices(&home), [("data-0".to_owned(), 96 * MIB), ("data-1".to_owned(), 40 * MIB)]);
    compare(&home, filling.chunk_count);
    serving.stop();
    let serving = home.serve(&[]);
    compare(&home, filling.chunk_count);
    home.run(["check"]).success();
    serving.stop();
    home.check();
}

#[test]
fn plans_and_refusals_of_growth_say_what_to_do_and_change_nothing() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    let before = devices(&home);

    let plan = home.run(["pool", "grow", "--size", "80M", "--dry-run", "--json"]).json();
    assert_eq!((&plan["kind"], &plan["is_dry_run"]), (&"DeviceChange".into(), &true.into()), "{plan}");
    assert_eq!((&plan["before"]["size"], &plan["after"]["size"]), (&(64 * MIB).into(), &(80 * MIB).into()));
    let plan = home.run(["pool", "add-device", "--size", "16M", "-n", "--json"]).json();
    assert_eq!((&plan["ref"], &plan["before"]), (&"data-1".into(), &serde_json::Value::Null), "{plan}");
    home.run(["pool", "grow", "--size", "64M"]).failure(2);
    home.run(["pool", "grow", "--size", "32M"]).failure(2);
    let message = home.run(["pool", "grow"]).failure(2);
    assert!(message.contains("--size"), "{message}");
    home.run(["pool", "grow", "--device", "data-3", "--size", "80M"]).failure(4);
    home.run(["pool", "grow", "--size", "2P"]).failure(8);
    home.run(["pool", "add-device"]).failure(2);
    home.run(["pool", "add-device", "--size", "1M"]).failure(2);
    home.run(["pool", "add-device", "--size", "2P"]).failure(8);
    home.run(["pool", "add-device", "--block", &home.text("pool/data-0")]).failure(2);
    home.run(["pool", "add-device", "--block", &home.text("nowhere")]).failure(4);

    assert_eq!(devices(&home), before);
    serving.stop();
    let names = fs::read_dir(home.path("pool")).expect("there").map(|entry| entry.expect("readable").file_name());
    let names: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("data-")).collect();
    assert_eq!(names, ["data-0"]);
}

/// Starts a command and waits until `has_begun`, then kills the daemon; the command must fail.
fn kill_within(home: &Home, serving: Serving, arguments: &[&str], has_begun: impl Fn() -> bool) {
    let mut command = home.command(arguments);
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let deadline = Instant::now() + WAIT_MAX;
    while !has_begun() {
        assert!(Instant::now() < deadline, "{arguments:?} does not begin");
        thread::yield_now();
    }
    serving.kill();
    let status = child.wait().expect("it can be waited for");
    assert!(!status.success(), "{arguments:?} was done before the kill");
}

#[test]
fn a_daemon_that_is_killed_while_the_pool_grows_leaves_a_pool_that_opens() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    let mut filling = Filling::new(&home);
    filling.fill();
    drop(filling.client);

    let file = home.path("pool/data-0");
    let is_extended = || fs::metadata(&file).expect("there").len() > 64 * MIB;
    kill_within(&home, serving, &["pool", "grow", "--size", SLOW_SIZE], is_extended);
    let serving = home.serve(&[]);
    assert_eq!(devices(&home), [("data-0".to_owned(), 64 * MIB)], "it was killed while zeros were written");
    compare(&home, filling.chunk_count);
    home.run(["pool", "grow", "--size", "80M"]).success();

    let draft = home.path("pool/data-1.new");
    kill_within(&home, serving, &["pool", "add-device", "--size", SLOW_SIZE], || draft.exists());
    let serving = home.serve(&[]);
    assert_eq!(devices(&home), [("data-0".to_owned(), 80 * MIB)]);
    compare(&home, filling.chunk_count);
    assert_eq!(home.run(["pool", "add-device", "--size", "16M"]).success(), "data-1\n");
    assert!(!draft.exists(), "the rest of the killed one is gone");
    serving.stop();
    let serving = home.serve(&[]);
    compare(&home, filling.chunk_count);
    home.run(["check"]).success();
    serving.stop();
    home.check();
}

/// A disk whose blocks are in a file. Dropped, it is taken away.
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    /// `None` where there can be none, which is told.
    pub fn attach(home: &Home, name: &str, size_bytes: u64) -> Option<Self> {
        if !clients::are_there(&["losetup"]) {
            return None;
        }
        let file = home.path(name);
        File::create(&file).and_then(|file| file.set_len(size_bytes)).expect("a sparse file");
        let mut command = clients::command("losetup");
        command.args(["--find", "--show"]).arg(&file);
        let finished = crate::support::finish(command);
        if finished.code != Some(0) {
            skip(&format!("no loop device can be attached: {}", finished.stderr.trim()));
            return None;
        }
        Some(Self { path: finished.stdout.trim().into(), file })
    }

    fn grow(&self, size_bytes: u64) {
        File::options().write(true).open(&self.file).and_then(|file| file.set_len(size_bytes)).expect("ours");
        clients::run("losetup", [Path::new("--set-capacity"), &self.path]);
    }

    pub fn text(&self) -> &str {
        self.path.to_str().expect("a path of /dev")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut command = clients::command("losetup");
        command.arg("--detach").arg(&self.path);
        crate::support::finish(command);
    }
}

#[test]
fn disks_that_became_larger_are_taken_in_and_further_ones_added() {
    let home = Home::new();
    let Some(first) = LoopDevice::attach(&home, "disk-0", 64 * MIB) else { return };
    let Some(second) = LoopDevice::attach(&home, "disk-1", 40 * MIB) else { return };
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--device", first.text(), "--key-file", &key, "--generate-key"]).success();
    let serving = home.serve(&[]);
    let mut filling = Filling::new(&home);
    filling.fill();
    let capacity = capacity_bytes(&home);

    assert_eq!(home.run(["pool", "grow"]).success(), "data-0\n", "nothing to do is no failure");
    assert_eq!(capacity_bytes(&home), capacity);
    first.grow(80 * MIB);
    let message = home.run(["pool", "grow", "--size", "80M"]).failure(2);
    assert!(message.contains("is a disk"), "{message}");
    home.run(["pool", "grow"]).success();
    assert_eq!(capacity_bytes(&home), capacity + 16 * MIB);
    assert!(filling.fill() > 10 * MIB);
    // What is on a disk is not overwritten.
    fs::write(&second.path, [1; 4096]).expect("a disk of ours");
    home.run(["pool", "add-device", "--block", second.text()]).failure(5);
    home.run(["pool", "add-device", "--block", first.text()]).failure(7);
    assert_eq!(devices(&home).len(), 1);
    fs::write(&second.path, [0; 4096]).expect("a disk of ours");
    assert_eq!(home.run(["pool", "add-device", "--block", second.text()]).success(), "data-1\n");
    assert!(filling.fill() > 30 * MIB);
    assert_eq!(fs::read_link(home.path("pool/data-1")).expect("a link"), second.path);
    drop(filling.client);

    serving.kill();
    let serving = home.serve(&[]);
    assert_eq!(devices(&home), [("data-0".to_owned(), 80 * MIB), ("data-1".to_owned(), 40 * MIB)]);
    compare(&home, filling.chunk_count);
    home.run(["check"]).success();
    serving.stop();
    home.check();
}

#[test]
fn a_pool_is_created_on_a_file_and_a_disk_at_once() {
    let home = Home::new();
    let Some(disk) = LoopDevice::attach(&home, "disk-0", 40 * MIB) else { return };
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let create = ["pool", "create", &pool, "--size", "24M", "--key-file", &key];
    // The second device is no disk: nothing of the pool stays.
    home.run(create.iter().chain(&["--generate-key", "--device", &home.text("pool.key")])).failure(2);
    assert!(!home.path("pool").exists());
    assert!(home.run(create.iter().chain(&["--device", disk.text(), "--device", disk.text()])).code != Some(0));
    assert!(!home.path("pool").exists());

    home.run(create.iter().chain(&["--device", disk.text()])).success();

    let serving = home.serve(&[]);
    assert_eq!(devices(&home), [("data-0".to_owned(), 24 * MIB), ("data-1".to_owned(), 40 * MIB)]);
    let mut filling = Filling::new(&home);
    assert!(filling.fill() > 44 * MIB, "on both");
    drop(filling.client);
    compare(&home, filling.chunk_count);
    serving.stop();
    home.check();
}
