//! What is promised of versions and clones, proved on the real binary: a version never changes, clones and rollbacks write next
//! to nothing, a set of clones is there wholly or not at all, a clone outlives its origin, and versions take no more than what
//! changed in them.
//!
//! `ROK_SEED=7` replays a seed's choices. `ROK_REAL_MIB=10240` clones and rolls back that much real data,
//! `ROK_CLONE_CYCLES=100` kills more often, `ROK_VERSIONS=300` makes more versions.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rok_nbd::RequestKind;
use serde_json::Value as Json;

use crate::clients::unix_socket;
use crate::load::{Load, Pattern, Plan, Scope, Shared, compare};
use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};
use crate::support::{Home, Serving, WAIT_MAX, request};
use crate::victim::Victim;

const MIB: u64 = 1 << 20;

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

/// The seed of a run, and how to have it again.
#[expect(clippy::print_stdout, reason = "a run says how to replay it")]
fn random_of(test: &str) -> SmallRng {
    let seed = env::var("ROK_SEED")
        .map_or_else(|_| uuid::Uuid::new_v4().as_u64_pair().0, |seed| seed.parse().expect("a number"));
    println!("replay: ROK_SEED={seed} cargo test --test server {test} -- --nocapture");
    SmallRng::seed_from_u64(seed)
}

/// A served home whose pool has a size.
fn serving(pool_size: &str) -> (Home, Serving) {
    let home = Home::new();
    home.create_pool_of("pool", pool_size);
    let serving = home.serve(&[]);
    (home, serving)
}

fn connect(home: &Home, export: &str) -> NbdClient {
    NbdClient::connect(&unix_socket(home), export).expect("the export is there")
}

/// The hash of the first bytes of an export.
fn hash(home: &Home, export: &str, size_bytes: u64) -> blake3::Hash {
    let mut client = connect(home, export);
    let mut hasher = blake3::Hasher::new();
    for offset in (0..size_bytes).step_by(1 << 20) {
        hasher.update(&client.read(offset, u32::try_from(MIB.min(size_bytes - offset)).expect("at most a MiB")));
    }
    client.disconnect();
    hasher.finalize()
}

fn write_stamp(client: &mut NbdClient, block: u64, sequence: u64) {
    let mut content = vec![0; BLOCK_BYTES];
    stamp::fill(&mut content, block, Value::Stamp { client: 0, sequence });
    client.write(block * BLOCK_BYTES_U64, &content);
}

/// Waits until a checkpoint has stored everything and freed what was removed; what the pool then says of its space.
#[track_caller]
fn settled(home: &Home) -> Json {
    settled_after(home, 0)
}

/// The number of the last checkpoint.
fn checkpoint(home: &Home) -> u64 {
    request(&home.socket(), "GET", "/v1/status", "").body["pool"]["checkpoint"].as_u64().expect("a number")
}

/// As [`settled`], by a later checkpoint than this one.
#[track_caller]
fn settled_after(home: &Home, checkpoint: u64) -> Json {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let status = request(&home.socket(), "GET", "/v1/status", "").body;
        let is_later = status["pool"]["checkpoint"].as_u64().is_some_and(|number| number > checkpoint);
        if is_later && status["pool"]["changes"] == 0 && status["space"]["reclaim"] == 0 {
            return status["space"].clone();
        }
        assert!(Instant::now() < deadline, "{status:#}");
        std::thread::yield_now();
    }
}

#[track_caller]
fn snapshot(home: &Home, volume: &str) {
    let answer = request(&home.socket(), "POST", "/v1/snapshots", &format!("{{\"targets\":[\"{volume}\"]}}"));
    assert!(answer.status < 300, "{answer:?}");
}

#[track_caller]
fn remove(home: &Home, path: &str) {
    let path = format!("/v1/{path}?now=true&shred=false&dry_run=false");
    let answer = request(&home.socket(), "DELETE", &path, "");
    assert!(answer.status < 300, "{answer:?}");
}

/// What a dry run says that removing a version frees, once nothing else is being reclaimed.
#[track_caller]
fn planned(home: &Home, name: &str) -> u64 {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let plan = home.run(["rm", "--now", "--dry-run", "--json", name]).json();
        if let Some(freed) = plan["freed"].as_u64() {
            return freed;
        }
        assert!(Instant::now() < deadline, "{plan:#}");
    }
}

/// Blocks that the operations change: 16 MiB, so that most were changed before.
const CHANGED_BLOCKS: u64 = 4096;
const OPERATIONS: u64 = 10_000;
const KILLS: u64 = 10;

/// One random operation; every hundredth is one of versions.
fn operate(home: &Home, client: &mut Option<NbdClient>, number: u64, random: &mut SmallRng) {
    if number.is_multiple_of(100) {
        if let Some(client) = client.take() {
            client.disconnect();
        }
        match random.random_range(0..5) {
            0 => drop(home.run(["rollback", "vol1", "--to", "1"]).success()),
            1 => drop(home.run(["clone", "vol1@1", &format!("clone-{number}")]).success()),
            2 => {
                let names = home.run(["ls", "-q"]).success();
                if let Some(clone) = names.lines().find(|name| name.starts_with("clone")) {
                    home.run(["rm", clone, "--now"]).success();
                }
            }
            3 => {
                let versions = home.run(["log", "vol1", "-q"]).success();
                if let Some(version) = versions.lines().find(|version| *version != "vol1@1") {
                    home.run(["rm", version, "--now"]).success();
                }
            }
            _ => snapshot(home, "vol1"),
        }
    }
    let client = client.get_or_insert_with(|| connect(home, "vol1"));
    let block = random.random_range(0..CHANGED_BLOCKS);
    match random.random_range(0..100) {
        0..3 => client.flush(),
        3..8 => client.trim(block * BLOCK_BYTES_U64, BLOCK_BYTES_U64 * random.random_range(1..=CHANGED_BLOCKS - block)),
        8..12 => {
            let range = (block * BLOCK_BYTES_U64, u32::try_from(BLOCK_BYTES).expect("a block"));
            let zeroed = client.call(RequestKind::WriteZeroes, range, &[]).expect("the server goes on");
            assert_eq!(zeroed, Ok(Vec::new()));
        }
        _ => write_stamp(client, block, number),
    }
}

#[test]
fn a_version_never_changes() {
    let mut random = random_of("a_version_never_changes");
    let (home, mut serving) = serving("1G");
    home.run(["create", "vol1", "--size", "64G"]).success();
    let mut client = connect(&home, "vol1");
    for block in (0..CHANGED_BLOCKS).filter(|block| block % 3 > 0) {
        write_stamp(&mut client, block, u64::MAX);
    }
    client.disconnect();
    snapshot(&home, "vol1");
    let size_bytes = CHANGED_BLOCKS * BLOCK_BYTES_U64;
    let before = hash(&home, "vol1@1", size_bytes);
    assert_eq!(hash(&home, "vol1", size_bytes), before);

    for kill in 0..KILLS {
        let mut client = None;
        let numbers = kill * (OPERATIONS / KILLS)..(kill + 1) * (OPERATIONS / KILLS);
        numbers.for_each(|number| operate(&home, &mut client, number, &mut random));
        serving.kill();
        serving = home.serve(&[]);
        assert_eq!(hash(&home, "vol1@1", size_bytes), before, "after kill {kill}");
    }
    assert_ne!(hash(&home, "vol1", size_bytes), before, "the head has changed");
    serving.stop();
    home.check();
}

/// Bytes that a process had written to files.
fn written_bytes(process_id: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{process_id}/io")).expect("its own child");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("proc(5) has it");
    line.parse().expect("a number")
}

#[test]
fn a_clone_and_a_rollback_of_a_tebibyte_write_less_than_a_mebibyte() {
    let real_mib = setting("ROK_REAL_MIB", 1024);
    let (home, serving) = serving(&format!("{}M", real_mib + real_mib / 4 + 256));
    home.run(["create", "vol1", "--size", "1T"]).success();
    let mut client = connect(&home, "vol1");
    let mut piece = vec![0; 1 << 20];
    for index in 0..real_mib {
        // All over the volume, a MiB at a time.
        let offset = index * ((1 << 40) / real_mib) / MIB * MIB;
        for (block, number) in piece.chunks_exact_mut(BLOCK_BYTES).zip(offset / BLOCK_BYTES_U64..) {
            stamp::fill(block, number, Value::Stamp { client: 1, sequence: index });
        }
        client.write(offset, &piece);
    }
    client.disconnect();
    snapshot(&home, "vol1");
    settled(&home);
    let before = written_bytes(serving.process_id());
    let stored = checkpoint(&home);

    home.run(["clone", "vol1@1", "clone"]).success();
    home.run(["rollback", "vol1", "--to", "1"]).success();

    settled_after(&home, stored);
    let written = written_bytes(serving.process_id()) - before;
    println!("a clone and a rollback of 1 TiB with {real_mib} MiB of data wrote {written} bytes");
    assert!(written < MIB, "{written} bytes");
    let last = (real_mib - 1) * ((1 << 40) / real_mib) / MIB * MIB;
    for export in ["clone", "vol1"] {
        let mut client = connect(&home, export);
        assert_eq!(client.read(last, 1 << 20), piece, "{export}");
        client.disconnect();
    }
    serving.stop();
    home.check();
}

/// Clones of a set, and kills while one is made.
const SET_COUNT: usize = 200;
const SET_KILLS: u64 = 8;

#[test]
fn a_set_of_clones_is_there_wholly_or_not_at_all() {
    let mut random = random_of("a_set_of_clones_is_there_wholly_or_not_at_all");
    let (home, mut serving) = serving("256M");
    home.run(["create", "vol1", "--size", "1G"]).success();
    write_stamp(&mut connect(&home, "vol1"), 0, 1);
    snapshot(&home, "vol1");
    let count = SET_COUNT.to_string();
    let arguments = |name: &str| ["clone", "vol1@1", "--count", count.as_str(), "--name", name].map(str::to_owned);
    let begun = Instant::now();
    home.run(arguments("first-{:03}")).success();
    let usual = begun.elapsed();

    for kill in 0..SET_KILLS {
        let mut command = home.command(arguments(&format!("set-{kill}-{{:03}}")));
        let mut clone = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        // A random moment has to be a moment of the clock.
        std::thread::sleep(Duration::from_secs_f64(usual.as_secs_f64() * random.random_range(0.0..1.2)));
        serving.kill();
        clone.wait().expect("it can be waited for");
        home.check();
        serving = home.serve(&[]);
        let names = home.run(["ls", "-q"]).success();
        let made = names.lines().filter(|name| name.starts_with(&format!("set-{kill}-"))).count();
        assert!(made == 0 || made == SET_COUNT, "{made} of {SET_COUNT} after kill {kill}");
    }
    serving.stop();
    home.check();
}

/// Kills of a daemon whose clone is written while its origin is reclaimed.
const CLONE_CYCLES: u64 = 10;
/// 32 MiB: small, so that writes overlap.
const CLONE_BLOCKS: u64 = 8192;
/// Covers a checkpoint that merges the origin, mostly.
const CLONE_MS_MAX: u64 = 400;

#[test]
fn a_clone_outlives_its_origin_and_kills_while_that_is_reclaimed() {
    let mut random = random_of("a_clone_outlives_its_origin_and_kills_while_that_is_reclaimed");
    let home = Home::new();
    home.create_pool_of("pool", "1G");
    let daemon = || {
        let pool = ["--pool", &home.text("pool"), "--key-file", &home.text("pool.key")].map(str::to_owned);
        let mut victim = Victim::spawn(home.command([&["serve".to_owned()][..], &pool[..]].concat()));
        victim.wait_until_ready();
        victim
    };
    let mut victim = daemon();
    home.run(["create", "clone-0", "--size", "1G"]).success();
    let shared = Shared::default();
    for cycle in 0..setting("ROK_CLONE_CYCLES", CLONE_CYCLES) {
        let (origin, clone) = (format!("clone-{cycle}"), format!("clone-{}", cycle + 1));
        let seed = random.random();
        snapshot(&home, &origin);
        home.run(["clone", &format!("{origin}@1"), &clone]).success();
        let socket = unix_socket(&home);
        let plan = Plan { socket, export: clone.clone(), blocks: 0..CLONE_BLOCKS, pattern: Pattern::Mixed, seed };
        let load = Load::start(&plan, &shared);
        if random.random_bool(0.5) {
            // Everything that it owns is then reclaimed under the clone.
            remove(&home, &format!("volumes/{origin}"));
        } else {
            remove(&home, &format!("snapshots/{origin}@1"));
        }
        // A random moment has to be a moment of the clock.
        std::thread::sleep(Duration::from_millis(random.random_range(0..CLONE_MS_MAX)));
        drop(victim.kill());
        load.finish();
        home.check();
        victim = daemon();
        let compared = compare(&unix_socket(&home), &clone, &mut shared.history(), Scope::All);
        compared.unwrap_or_else(|failure| panic!("cycle {cycle}: {failure}"));
    }
    drop(victim.kill());
    home.check();
}

/// Versions of a thin volume, its first blocks, and blocks that change from one to the next.
const VERSIONS: u64 = 300;
const FIRST_BLOCKS: u64 = 2048;
const CHANGES: u64 = 20;
/// Versions of which it is told before what removing them frees: each waits for a checkpoint.
const TOLD: usize = 12;
/// Of a volume of 4 TiB.
const THIN_BLOCKS: u64 = (4 << 40) / BLOCK_BYTES_U64;

#[test]
fn versions_take_what_changed_in_them_and_give_it_back_in_any_order() {
    let mut random = random_of("versions_take_what_changed_in_them_and_give_it_back_in_any_order");
    let (home, serving) = serving("512M");
    home.run(["create", "vol1", "--size", "4T"]).success();
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    let mut client = connect(&home, "vol1");
    for block in 0..FIRST_BLOCKS {
        write_stamp(&mut client, block, 0);
        model.insert(block, 0);
    }
    let mut changed = 0;
    let mut kept = BTreeMap::new();
    let version_count = setting("ROK_VERSIONS", VERSIONS);
    let survivor = random.random_range(1..=version_count);
    for version in 1..=version_count {
        let mut blocks = BTreeSet::new();
        for index in 0..CHANGES {
            let end = if index % 2 == 0 { FIRST_BLOCKS } else { THIN_BLOCKS };
            blocks.insert(random.random_range(0..end));
        }
        for block in &blocks {
            write_stamp(&mut client, *block, version);
            model.insert(*block, version);
        }
        changed += blocks.len() as u64;
        snapshot(&home, "vol1");
        if version == survivor {
            kept = model.clone();
        }
    }
    client.disconnect();
    let bound = (FIRST_BLOCKS + changed) * BLOCK_BYTES_U64;
    let used = settled(&home)["used"].as_u64().expect("a number");
    assert!(used <= bound + bound / 100, "{used} bytes for {bound}");

    // The head goes with all others: what is left is what the one version has.
    home.run(["rollback", "vol1", "--to", &survivor.to_string(), "--no-safety", "--yes"]).success();
    let mut others: Vec<u64> = (1..=version_count).filter(|version| *version != survivor).collect();
    others.shuffle(&mut random);
    let (told, untold) = others.split_at(TOLD.min(others.len()));
    for version in told {
        let name = format!("vol1@{version}");
        let planned = planned(&home, &name);
        let before = settled(&home)["used"].as_u64().expect("a number");
        remove(&home, &format!("snapshots/{name}"));
        let after = settled(&home)["used"].as_u64().expect("a number");
        assert_eq!(before - after, planned, "what removing {name} freed, and what was told");
    }
    untold.iter().for_each(|version| remove(&home, &format!("snapshots/vol1@{version}")));

    let used = settled(&home)["used"].as_u64().expect("a number");
    let fresh = kept.len() as u64 * BLOCK_BYTES_U64;
    assert!(used.abs_diff(fresh) <= fresh / 100, "{used} bytes, a fresh copy has {fresh}");
    let mut client = connect(&home, &format!("vol1@{survivor}"));
    for (block, version) in &kept {
        let content = client.read(block * BLOCK_BYTES_U64, u32::try_from(BLOCK_BYTES).expect("a block"));
        assert_eq!(stamp::recognise(&content, *block), Some(Value::Stamp { client: 0, sequence: *version }), "{block}");
    }
    client.disconnect();
    serving.stop();
    home.check();
}
