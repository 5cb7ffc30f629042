//! Space explained: what a removal would free, told before and measured after; who has how much; what to remove.

use std::time::Instant;

use serde_json::Value;

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving, WAIT_MAX};

const BLOCK: u64 = 4096;

/// A served home with volumes of 1 GiB.
fn serving(volumes: &[&str]) -> (Home, Serving) {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    for name in volumes {
        home.run(["create", name, "--size", "1G"]).success();
    }
    (home, serving)
}

/// Writes the blocks of a range.
#[track_caller]
fn write(home: &Home, export: &str, blocks: std::ops::Range<u64>) {
    let mut client = NbdClient::connect(&unix_socket(home), export).expect("the export is there");
    let byte = u8::try_from(blocks.start % 251).expect("small");
    for first in blocks.clone().step_by(64) {
        let count = usize::try_from(blocks.end.min(first + 64) - first).expect("small");
        client.write(first * BLOCK, &vec![byte; count * 4096]);
    }
    client.flush();
    client.disconnect();
}

/// Bytes in use, as `df` says.
fn used(home: &Home) -> u64 {
    home.run(["df", "--json"]).json()["used"].as_u64().expect("a size")
}

/// What a dry run of removing these for good says that it frees.
#[track_caller]
fn planned(home: &Home, names: &[&str]) -> u64 {
    let plan = home.run(["rm", "--now", "--dry-run", "--json"].iter().chain(names)).json();
    let items: Vec<&str> = plan["items"].as_array().expect("items").iter().filter_map(|i| i["ref"].as_str()).collect();
    assert_eq!((&plan["kind"], items.as_slice()), (&"ChangeList".into(), names), "as the real run: {plan}");
    assert!(plan["items"].as_array().is_some_and(|items| items.iter().all(|item| item["is_dry_run"] == true)));
    plan["freed"].as_u64().unwrap_or_else(|| panic!("a size: {plan}"))
}

/// Waits for the job that a command's answer names, if it names one.
#[track_caller]
fn await_job(home: &Home, job: &Value) {
    if let Some(job) = job.as_str() {
        home.run(["job", "wait", job]).success();
    }
}

/// Removes a set for good and compares what that frees with what was said before; how many blocks that is.
#[track_caller]
fn remove_as_planned(home: &Home, names: &[&str]) -> u64 {
    let planned = planned(home, names);
    let before = used(home);
    let removed = home.run(["rm", "--now", "--json"].iter().chain(names)).json();
    for item in removed["items"].as_array().expect("items") {
        await_job(home, &item["job"]);
    }
    let freed = before - used(home);
    assert_eq!(freed, planned, "what removing {names:?} freed, and what was planned");
    freed / BLOCK
}

#[test]
fn a_dry_run_says_exactly_what_removing_a_set_frees() {
    let (home, serving) = serving(&["vol1", "vol2"]);
    write(&home, "vol1", 0..64);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", 0..16);
    home.run(["snapshot", "vol1"]).success();
    home.run(["clone", "vol1@2", "copy"]).success();
    write(&home, "vol1", 8..32);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", 600..610);
    write(&home, "copy", 40..50);
    write(&home, "vol2", 0..20);
    home.run(["snapshot", "vol2"]).success();
    write(&home, "vol2", 0..5);

    // Only vol1@1 has the first copy of blocks 0 to 15; the clone needs all that vol1@2 has; vol1 maps all of vol1@3.
    assert_eq!(planned(&home, &["vol1@1"]), 16 * BLOCK);
    assert_eq!(planned(&home, &["vol1@2"]), 0);
    assert_eq!(planned(&home, &["vol1@3"]), 0);
    assert_eq!(planned(&home, &["vol1@2", "copy"]), (8 + 10) * BLOCK, "together they free what no one frees alone");
    assert_eq!(planned(&home, &["vol1"]), (16 + 10 + 24 + 10) * BLOCK, "what the clone replaced goes too");
    assert_eq!(planned(&home, &["vol2@1", "vol2"]), 25 * BLOCK, "named twice it frees once");
    let said = home.run(["rm", "-n", "vol1@1"]);
    assert!(said.stderr.contains("would free 64.0 KiB when they leave the trash"), "{said:?}");
    home.run(["show", "vol1@1"]).success();

    assert_eq!(remove_as_planned(&home, &["vol1@2"]), 0);
    assert_eq!(remove_as_planned(&home, &["vol1@1", "vol2@1"]), 16 + 5);
    assert_eq!(remove_as_planned(&home, &["copy"]), 10 + 8 + 16);
    assert_eq!(remove_as_planned(&home, &["vol1@3", "vol2"]), 20);
    assert_eq!(remove_as_planned(&home, &["vol1"]), 64 + 10);
    assert_eq!(used(&home), 0);
    serving.stop();
    home.check();
}

#[test]
fn a_set_with_something_that_is_not_there_is_planned_without_it() {
    let (home, _serving) = serving(&["vol1"]);
    write(&home, "vol1", 0..4);

    let plan = home.run(["rm", "-n", "--json", "vol1", "none", "vol1@7"]);

    assert_eq!(plan.code, Some(3), "{plan:?}");
    let answer: Value = serde_json::from_str(&plan.stdout).expect("stdout is JSON");
    assert_eq!(answer["freed"], 4 * BLOCK, "{answer}");
    home.run(["rm", "-n", "none"]).failure(4);
    let answer = home.run(["rm", "vol1", "--json"]).json();
    assert!(answer["freed"].is_null() && answer["items"][0]["delete_at"].is_string(), "{answer}");
}

#[test]
fn emptying_the_trash_frees_what_its_dry_run_said() {
    let (home, _serving) = serving(&["vol1", "vol2"]);
    write(&home, "vol1", 0..30);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", 0..10);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol2", 0..7);
    home.run(["rm", "vol1@1", "vol2"]).success();

    let plan = home.run(["trash", "empty", "-n", "--json"]).json();
    let before = used(&home);
    assert_eq!((&plan["freed"], &plan["kind"]), (&(17 * BLOCK).into(), &"TrashEmpty".into()), "{plan}");
    let emptied = home.run(["trash", "empty", "--yes", "--json"]).json();
    await_job(&home, &emptied["job"]);

    assert_eq!(before - used(&home), 17 * BLOCK);
    assert_eq!(home.run(["trash", "empty", "-n", "--json"]).json()["freed"], 0);
}

#[test]
fn show_and_df_say_who_has_the_space() {
    let (home, _serving) = serving(&["vol1"]);
    write(&home, "vol1", 0..64);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", 0..16);
    home.run(["snapshot", "vol1"]).success();
    home.run(["clone", "vol1@2", "copy"]).success();
    write(&home, "vol1", 0..8);
    // Stores what was written, which all that follows is as of.
    planned(&home, &["vol1"]);

    let first = home.run(["show", "vol1@1", "--json"]).json();
    assert_eq!(
        (&first["allocated"], &first["changed"], &first["unique"]),
        (&(64 * BLOCK).into(), &(64 * BLOCK).into(), &(16 * BLOCK).into())
    );
    let second = home.run(["show", "vol1@2", "--json"]).json();
    assert_eq!((&second["changed"], &second["unique"]), (&(16 * BLOCK).into(), &0.into()), "the clone has it too");
    assert!(home.run(["log", "vol1", "--json"]).json()["items"][0]["unique"].is_null(), "a list reads no leaves");

    let space = home.run(["show", "vol1", "--json"]).json()["space"].clone();
    assert_eq!((&space["allocated"], &space["unique"]), (&(64 * BLOCK).into(), &(8 * BLOCK).into()), "{space}");
    assert_eq!(space["shared"], 56 * BLOCK);
    assert_eq!(space["shared_with"], serde_json::json!(["vol1@2", "copy", "vol1@1"]));
    assert_eq!(space["versions"], 16 * BLOCK, "the clone keeps what vol1@2 has");
    assert_eq!(space["held_by"], serde_json::json!([{"ref": "vol1@1", "unique": 16 * BLOCK}]));
    assert_eq!(space["freed"], (16 + 8) * BLOCK);
    let text = home.run(["show", "vol1"]).success();
    assert!(text.contains("vol1@1 64.0 KiB") && text.contains("vol1@2, copy, vol1@1"), "{text}");

    let df = home.run(["df", "--json"]).json();
    assert_eq!((&df["used"], &df["unique"]), (&(88 * BLOCK).into(), &(8 * BLOCK).into()), "{df}");
    assert_eq!((&df["versions"], &df["reclaim"]), (&(80 * BLOCK).into(), &0.into()), "{df}");
    home.run(["rm", "vol1"]).success();
    assert_eq!(home.run(["df", "--json"]).json()["trash"], 64 * BLOCK);
}

#[test]
fn status_names_the_snapshots_to_remove_when_space_is_low() {
    const MIB_BLOCKS: u64 = 256;
    let home = Home::with_pool();
    let _serving = home.serve(&["--space-low", "50", "--space-critical", "90"]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    // The first copies of 8 MiB are in vol1@1 only, those of 2 MiB in vol1@2, those of 4 MiB in vol1@3, which is held.
    for size in [8, 2, 4] {
        write(&home, "vol1", 0..size * MIB_BLOCKS);
        home.run(["snapshot", "vol1"]).success();
        write(&home, "vol1", 0..size * MIB_BLOCKS);
        home.run(["snapshot", "vol1"]).success();
    }
    home.run(["hold", "vol1@5", "audit"]).success();
    // Stores what was written.
    planned(&home, &["vol1@1"]);
    let status = home.run(["status", "--json"]).json();
    assert_eq!(
        (&status["space"]["level"], &status["freeable"]),
        (&"enough".into(), &serde_json::json!([])),
        "{status}"
    );

    write(&home, "vol1", 4096..4096 + 8 * MIB_BLOCKS);
    let begun = Instant::now();
    let status = loop {
        let status = home.run(["status", "--json"]).json();
        if status["space"]["level"] == "low" {
            break status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "space does not become low: {status}");
    };

    let freeable = status["freeable"].as_array().expect("a list").clone();
    assert_eq!((&freeable[0]["ref"], &freeable[0]["unique"]), (&"vol1@1".into(), &(8 << 20).into()), "{status}");
    assert!(freeable.iter().all(|item| item["ref"] != "vol1@5"), "what is held cannot be removed: {status}");
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("vol1@1 would free 8388608 bytes"), "{warnings}");
    home.run(["rm", "--now", "vol1@1"]).success();
    let status = home.run(["status", "--json"]).json();
    let has_it = status["freeable"].as_array().expect("a list").iter().any(|item| item["ref"] == "vol1@1");
    assert!(!has_it, "it is gone: {status}");
}
