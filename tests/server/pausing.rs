//! A volume whose writes wait for space, in a real pool that is full: what is told of it, and what ends the wait.

use std::os::unix::fs::symlink;
use std::time::Instant;

use rok_nbd::{CommandFlags, RequestKind, WireError};
use serde_json::{Value, json};

use crate::full_file_system::SmallFileSystem;
use crate::nbd_client::NbdClient;
use crate::support::{Home, POOL_SIZE, Serving, WAIT_MAX, skip};

const BLOCK: u64 = 4096;
/// Bytes of a write that fills the pool.
const CHUNK: usize = 1 << 20;
/// The writes that wait: whole blocks, and a part of one.
const WRITES: u32 = 5;
/// More than a connection may have under way, so that nothing more is received from it.
const MANY_WRITES: u64 = 140;

fn connect(home: &Home, volume: &str) -> NbdClient {
    NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), volume).expect("the server is ready")
}

/// A pool that `filling` has filled, with a volume `waiting` that pauses.
fn full_pool(options: &[&str]) -> (Home, Serving, NbdClient) {
    let home = Home::with_pool();
    let serving = home.serve(options);
    home.run(["create", "filling", "--size", "1G"]).success();
    home.run(["create", "waiting", "--size", "1G", "--on-full", "pause"]).success();
    let mut client = connect(&home, "filling");
    let (mut offset, mut len) = (0, CHUNK);
    while len as u64 >= BLOCK {
        let range = (offset, u32::try_from(len).expect("small"));
        match client.call(RequestKind::Write, range, &vec![7; len]).expect("the server goes on") {
            Ok(_) => offset += len as u64,
            Err(error) => {
                assert_eq!(error, WireError::NoSpace);
                len /= 2;
            }
        }
    }
    (home, serving, client)
}

/// Sends writes of one block each, which are not answered.
fn submit_blocks(client: &mut NbdClient, blocks: std::ops::Range<u64>) {
    for block in blocks {
        let range = (block * BLOCK, 4096);
        client.submit(RequestKind::Write, CommandFlags::NONE, range, &[1; 4096]).expect("the server goes on");
    }
}

/// Sends [`WRITES`] writes, one of them of a sector.
fn submit_writes(client: &mut NbdClient) {
    submit_blocks(client, 0..u64::from(WRITES) - 1);
    let range = (100 * BLOCK + 512, 512);
    client.submit(RequestKind::Write, CommandFlags::NONE, range, &[2; 512]).expect("the server goes on");
}

/// Waits until so many writes wait for space.
#[track_caller]
fn await_paused(home: &Home, writes: u32) -> Value {
    let begun = Instant::now();
    loop {
        let status = home.run(["status", "--json"]).json();
        let paused = status["paused"].as_array().expect("a list");
        let waiting =
            paused.iter().find(|paused| paused["ref"] == "waiting").map_or(0.into(), |it| it["writes"].clone());
        if waiting == writes {
            return status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "{writes} writes are to wait: {status}");
    }
}

/// Takes the answers to all writes under way.
fn take_answers(client: &mut NbdClient) -> Vec<Result<Vec<u8>, WireError>> {
    let mut answers = Vec::new();
    while client.in_flight_count() > 0 {
        answers.push(client.complete().expect("the server answers").result);
    }
    answers
}

#[test]
fn waiting_writes_are_shown_and_go_on_when_another_volume_is_removed() {
    let (home, serving, mut filling) = full_pool(&[]);
    let mut waiting = connect(&home, "waiting");
    submit_writes(&mut waiting);

    let status = await_paused(&home, WRITES);
    let since = status["paused"][0]["since"].clone();
    assert!(since.as_str().is_some_and(|since| since.starts_with("20")), "{status}");
    let warnings = status["warnings"].as_array().expect("a list");
    let is_told = |warning: &Value| {
        warning.as_str().is_some_and(|text| text.contains("pool grow") && text.contains("set waiting on-full=error"))
    };
    assert!(warnings.iter().any(is_told), "{status}");
    let shown = home.run(["show", "waiting", "--json"]).json();
    let told = (&shown["on_full"], &shown["paused_writes"], &shown["paused_since"]);
    assert_eq!(told, (&json!("pause"), &json!(WRITES), &since), "{shown}");
    let text = home.run(["show", "waiting"]).success();
    assert!(text.contains("pause: 5 writes wait for space since"), "{text}");
    assert!(home.run(["status"]).success().contains("waiting: 5 writes wait for space since"));

    // Beside them everything goes on but what needs space too.
    let mut reading = connect(&home, "waiting");
    assert_eq!(reading.read(0, 4096), vec![0; 4096]);
    reading.flush();
    reading.disconnect();
    let range = ((1 << 30) - BLOCK, 4096);
    let refused = filling.call(RequestKind::Write, range, &[7; 4096]).expect("the server goes on");
    assert_eq!(refused, Err(WireError::NoSpace));
    filling.write(0, &[8; 4096]);
    assert_eq!(filling.read(0, 4096), vec![8; 4096]);
    filling.disconnect();
    home.run(["rm", "waiting", "--now"]).failure(7);
    home.run(["unexport", "waiting"]).failure(7);
    home.run(["check"]).success();
    await_paused(&home, WRITES);

    home.run(["rm", "filling", "--now"]).success();

    assert_eq!(take_answers(&mut waiting), vec![Ok(Vec::new()); 5]);
    await_paused(&home, 0);
    assert_eq!(waiting.read(0, 4096), vec![1; 4096]);
    assert_eq!(waiting.read(100 * BLOCK, 1536), [[0; 512], [2; 512], [0; 512]].concat());
    waiting.disconnect();
    serving.signal(libc::SIGTERM);
    let (_, _, said) = serving.wait();
    let count = said.iter().filter(|line| line.contains("writes of a volume wait for space")).count();
    assert_eq!(count, 1, "{said:#?}");
    home.check();
}

#[test]
fn waiting_writes_fail_when_the_server_ends_and_the_property_stays() {
    let (home, serving, filling) = full_pool(&[]);
    filling.disconnect();
    let mut waiting = connect(&home, "waiting");
    submit_writes(&mut waiting);
    await_paused(&home, WRITES);

    serving.signal(libc::SIGTERM);

    // Nobody who waited until its patience ends would answer.
    assert_eq!(take_answers(&mut waiting), vec![Err(WireError::ShuttingDown); 5]);
    let (status, ..) = serving.wait();
    assert!(status.success(), "{status}");
    home.check();
    let serving = home.serve(&[]);
    assert_eq!(home.run(["show", "waiting", "--json"]).json()["on_full"], "pause");
    serving.stop();
}

#[test]
fn pool_is_locked_by_force_while_writes_wait() {
    let (home, serving, filling) = full_pool(&[]);
    filling.disconnect();
    let mut waiting = connect(&home, "waiting");
    submit_writes(&mut waiting);
    await_paused(&home, WRITES);

    home.run(["key", "lock"]).failure(7);
    assert_eq!(home.run(["key", "lock", "--force"]).success(), "locked\n");

    assert_eq!(take_answers(&mut waiting), vec![Err(WireError::ShuttingDown); 5]);
    home.run(["key", "unlock", "--key-file", &home.text("pool.key")]).success();
    serving.stop();
}

#[test]
fn waiting_writes_fail_as_soon_as_their_volume_says_so() {
    let (home, serving, filling) = full_pool(&[]);
    let mut waiting = connect(&home, "waiting");
    submit_writes(&mut waiting);
    await_paused(&home, WRITES);

    let plan = home.run(["set", "waiting", "on-full=error", "-n"]);
    assert!(plan.stderr.contains("Would set on-full of waiting to error"), "{plan:?}");
    assert_eq!(plan.success(), "waiting\n");
    await_paused(&home, WRITES);
    assert_eq!(home.run(["set", "waiting", "on-full=error"]).success(), "waiting\n");

    assert_eq!(take_answers(&mut waiting), vec![Err(WireError::NoSpace); 5]);
    await_paused(&home, 0);
    home.run(["set", "waiting", "on-full=pause"]).success();
    submit_writes(&mut waiting);
    await_paused(&home, WRITES);
    drop((filling, waiting));
    serving.stop();
}

/// One that can be read from, and one that is full of writes that wait; with either way of I/O.
#[test]
fn clients_that_are_gone_take_their_waiting_writes_along() {
    for io in ["auto", "threads"] {
        let (home, serving, filling) = full_pool(&["--io", io]);
        let mut few = connect(&home, "waiting");
        submit_writes(&mut few);
        await_paused(&home, WRITES);
        let mut many = connect(&home, "waiting");
        submit_blocks(&mut many, 1000..1000 + MANY_WRITES);
        await_paused(&home, WRITES + 128);

        drop(many);
        await_paused(&home, WRITES);
        drop(few);
        await_paused(&home, 0);

        let begun = Instant::now();
        while home.run(["show", "waiting", "--json"]).json()["connections"] != 0 {
            assert!(begun.elapsed() < WAIT_MAX, "a connection stays");
        }
        home.run(["rm", "waiting", "--now"]).success();
        filling.disconnect();
        serving.stop();
        home.check();
    }
}

#[test]
fn waiting_write_survives_no_kill_and_disturbs_no_recovery() {
    let (home, serving, filling) = full_pool(&[]);
    let mut waiting = connect(&home, "waiting");
    submit_writes(&mut waiting);
    await_paused(&home, WRITES);

    serving.kill();

    drop((filling, waiting));
    home.check();
    let serving = home.serve(&[]);
    let mut waiting = connect(&home, "waiting");
    assert_eq!(waiting.read(0, 4096), vec![0; 4096]);
    submit_writes(&mut waiting);
    await_paused(&home, WRITES);
    home.run(["pool", "grow", "--size", "128M"]).success();
    assert_eq!(take_answers(&mut waiting), vec![Ok(Vec::new()); 5]);
    waiting.disconnect();
    serving.stop();
    home.check();
}

/// The metadata lives on its reserve: nobody frees anything in the pool, but in the file system around it.
#[test]
fn waiting_write_goes_on_when_the_reserve_of_the_metadata_is_back() {
    let home = Home::new();
    let Some(small) = SmallFileSystem::mount(&home) else {
        return skip("a loop device cannot be mounted here");
    };
    let (pool, key) = (home.text("small/pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    symlink(&pool, home.path("pool")).expect("it is new");
    let serving = home.serve(&[]);
    home.run(["create", "waiting", "--size", "1G", "--on-full", "pause"]).success();
    serving.stop();
    small.fill();
    let serving = home.serve(&[]);
    let mut waiting = connect(&home, "waiting");
    submit_writes(&mut waiting);
    let status = await_paused(&home, WRITES);
    assert_eq!(status["pool"]["is_meta_reserve_gone"], true, "{status}");

    small.empty();

    assert_eq!(take_answers(&mut waiting), vec![Ok(Vec::new()); 5]);
    await_paused(&home, 0);
    waiting.disconnect();
    serving.stop();
    home.check();
}

#[test]
fn properties_that_make_no_sense_are_refused() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();

    for property in ["on-full=wait", "size=2G", "on-full", "="] {
        let refused = home.run(["set", "vol1", property]).failure(2);
        assert!(refused.contains("on-full") || refused.contains("error"), "{refused}");
    }
    home.run(["set", "vol1", "on-full=pause", "on-full=error"]).failure(2);
    home.run(["set", "vol1"]).failure(2);
    home.run(["set", "vol9", "on-full=pause"]).failure(4);
    home.run(["create", "vol2", "--size", "1G", "--on-full", "wait"]).failure(2);
    assert_eq!(home.run(["show", "vol1", "--json"]).json()["on_full"], "error");
    serving.stop();
}
