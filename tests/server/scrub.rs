//! The scrub: it reads everything once, tells what is damaged and whose it is, and goes on where it was.

use rok_nbd::WireError;
use serde_json::{Value, json};

use crate::damage::{BLOCK_COUNT, BLOCK_STEP, connect, damage_block, flip, pool_with_data, read, served, write};
use crate::job::with_data;
use crate::support::{Home, request};

const DAMAGED: u64 = 5;
const OFFSET: u64 = DAMAGED * BLOCK_STEP * 4096;
const INTEGRITY: i32 = 9;

fn scrub_state(home: &Home) -> Value {
    home.run(["status", "--json"]).json()["pool"]["scrub"].take()
}

fn metric(home: &Home, name: &str) -> Option<String> {
    let answer = request(&home.socket(), "GET", "/v1/metrics", "");
    assert_eq!(answer.status, 200);
    let text = answer.body.as_str().expect("text").to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
    assert!(text.contains(&format!("# TYPE {name} ")), "{text}");
    line
}

#[test]
fn a_scrub_tells_what_is_damaged_and_whose_until_that_is_written_anew_or_removed() {
    let home = pool_with_data();
    damage_block(&home, DAMAGED);
    let serving = home.serve(&[]);
    assert_eq!(scrub_state(&home)["state"], "never");
    home.run(["snapshot", "vol1"]).success();
    home.run(["clone", "vol1@1", "copy"]).success();

    let told = home.run(["scrub"]).failure(INTEGRITY);

    let message = format!("bytes {OFFSET} to {} of ", OFFSET + 4095);
    assert!(told.contains(&message), "{told}");
    let state = scrub_state(&home);
    assert_eq!((&state["state"], &state["passes"], &state["damaged_blocks"]), (&"done".into(), &1.into(), &1.into()));
    assert_eq!(state["read"], home.run(["df", "--json"]).json()["used"], "each block is read once");
    let found = &state["damages"][0];
    assert_eq!((&found["code"], &found["offset"], &found["size"]), (&"content".into(), &OFFSET.into(), &4096.into()));
    let mut volumes: Vec<(Value, Value, Value)> = found["volumes"]
        .as_array()
        .expect("volumes")
        .iter()
        .map(|volume| (volume["ref"].clone(), volume["is_head"].clone(), volume["snapshots"].clone()))
        .collect();
    volumes.sort_by_key(|volume| volume.0.to_string());
    assert_eq!(volumes, [("copy".into(), true.into(), json!([])), ("vol1".into(), true.into(), json!([1]))]);
    assert!(home.run(["status"]).stderr.contains(&message));
    assert_eq!(metric(&home, "rok_scrub_damaged_blocks").as_deref(), Some("1"));
    assert_eq!(metric(&home, "rok_scrub_passes_total").as_deref(), Some("1"));

    // It is known after a kill.
    serving.kill();
    let serving = home.serve(&[]);
    assert_eq!(scrub_state(&home)["damages"], state["damages"]);
    let mut client = connect(&home);
    write(&mut client, DAMAGED, 2);
    client.disconnect();
    home.run(["rm", "copy", "--now"]).success();
    home.run(["scrub"]).failure(INTEGRITY);
    let volumes = scrub_state(&home)["damages"][0]["volumes"].take();
    assert_eq!((&volumes[0]["ref"], &volumes[0]["is_head"]), (&"vol1".into(), &false.into()));
    assert_eq!((&volumes[0]["snapshots"], &volumes[1]), (&json!([1]), &Value::Null));

    home.run(["rm", "vol1@1", "--now"]).success();
    let healed = home.run(["scrub"]);
    assert!(healed.stderr.contains("no damage is known"), "{healed:?}");
    healed.success();

    assert_eq!(scrub_state(&home)["damages"], json!([]));
    assert_eq!(metric(&home, "rok_scrub_damaged_blocks").as_deref(), Some("0"));
    assert_eq!(home.run(["status", "--json"]).json()["warnings"], json!([]));
    let mut client = connect(&home);
    for number in 0..BLOCK_COUNT {
        assert_eq!(read(&mut client, number), Ok(if number == DAMAGED { 2 } else { 0 }));
    }
    client.disconnect();
    serving.stop();
    home.check();
}

/// Each copy in turn, while the daemon runs: the other one is damaged only behind a scrub.
#[test]
fn a_scrub_writes_damaged_copies_of_superblock_and_shred_key_anew() {
    const COPIES: [u64; 2] = [0, 64 << 10];
    let home = pool_with_data();
    let files = ["pool/superblock", "pool/shred-key"].map(|name| home.path(name));
    let serving = home.serve(&[]);
    home.run(["create", "secret", "--size", "1MiB", "--own-key"]).success();
    for copy in COPIES {
        files.iter().for_each(|file| flip(file, copy + 60));
        home.run(["scrub"]).success();
    }
    files.iter().for_each(|file| flip(file, COPIES[0] + 60));
    serving.kill();
    served(&home);

    let serving = home.serve(&[]);
    COPIES.iter().for_each(|copy| flip(&files[0], copy + 60));
    let told = home.run(["scrub"]).failure(INTEGRITY);
    assert!(told.contains("Both copies in ") && told.contains("superblock"), "{told}");
    flip(&files[0], COPIES[1] + 60);
    home.run(["scrub"]).success();
    serving.stop();
    served(&home);
}

#[test]
fn a_killed_daemon_goes_on_with_its_scrub_where_it_was() {
    let home = with_data();
    let serving = home.serve(&[]);
    let used = home.run(["df", "--json"]).json()["used"].as_u64().expect("bytes");

    // Half of it, and that is kept over a kill.
    home.run(["scrub", "--subset", "50%"]).success();
    let state = scrub_state(&home);
    let read = state["read"].as_u64().expect("bytes");
    assert!(read >= used / 2 && read < used, "{state}");
    assert_eq!((&state["state"], &state["passes"]), (&"paused".into(), &0.into()));
    serving.kill();
    let serving = home.serve(&[]);
    assert_eq!(scrub_state(&home)["read"], read);

    // The rest, slowly, and in the middle of it a kill.
    let job = home.run(["scrub", "--rate", "1M", "--no-wait"]).success().trim().to_owned();
    let path = format!("/v1/jobs/{job}/wait?seconds=60&revision=");
    let begun = request(&home.socket(), "GET", &format!("{path}0"), "").body["revision"].as_u64().expect("a number");
    let later = request(&home.socket(), "GET", &format!("{path}{begun}"), "").body;
    assert_eq!(later["state"], "running");
    assert!(home.run(["scrub"]).failure(7).contains(&job), "one at a time");
    serving.kill();
    let serving = home.serve(&[]);
    assert_eq!((&scrub_state(&home)["state"], &scrub_state(&home)["job"]), (&"running".into(), &job.as_str().into()));
    home.run(["scrub", "--pause"]).success();
    assert_eq!(home.run(["job", "show", &job, "--json"]).json()["state"], "cancelled");
    assert!(scrub_state(&home)["read"].as_u64() >= Some(read));
    home.run(["scrub", "--rate", "1G"]).success();

    let state = scrub_state(&home);
    assert_eq!((&state["state"], &state["passes"]), (&"done".into(), &1.into()));
    assert_eq!(state["read"], used, "each block once, although it was cut off twice");
    serving.stop();
    home.check();
}

#[test]
fn a_scrub_that_was_stopped_begins_at_the_start() {
    let home = with_data();
    let _serving = home.serve(&[]);
    home.run(["scrub", "--subset", "10"]).success();

    let planned = home.run(["scrub", "--stop", "-n", "--json"]).json();
    assert_eq!((&planned["is_dry_run"], &planned["state"]), (&true.into(), &"paused".into()));
    let stopped = home.run(["scrub", "--stop", "--json"]).json();
    assert_eq!((&stopped["is_dry_run"], &stopped["state"]), (&false.into(), &"stopped".into()));
    assert_eq!(home.run(["scrub", "-n", "--json"]).json()["state"], "stopped");
    home.run(["scrub", "--rate", "1k"]).failure(2);
    home.run(["scrub", "--subset", "0%"]).failure(2);

    home.run(["scrub", "--rate", "1G"]).success();
    let used = &home.run(["df", "--json"]).json()["used"];
    assert_eq!(&scrub_state(&home)["read"], used);
}

#[test]
fn reads_tell_the_same_as_the_scrub() {
    let home = pool_with_data();
    damage_block(&home, DAMAGED);
    let _serving = home.serve(&[]);
    home.run(["scrub"]).failure(INTEGRITY);

    let mut client = connect(&home);
    assert_eq!(read(&mut client, DAMAGED), Err(WireError::Io));
    client.disconnect();

    let warnings = home.run(["status", "--json"]).json()["warnings"].take();
    assert!(warnings[0].as_str().is_some_and(|text| text.starts_with("1 read has met")), "{warnings}");
    assert!(warnings[1].as_str().is_some_and(|text| text.ends_with("is not what was written.")), "{warnings}");
    assert_eq!(metric(&home, "rok_damaged_reads_total").as_deref(), Some("1"));
}
