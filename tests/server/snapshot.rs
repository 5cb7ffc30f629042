//! Snapshots, clones, rollback and the trash, as users meet them.

use serde_json::{Value, json};

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving};

const BLOCK: usize = 4096;

/// A served home with volumes of 1 GiB.
fn serving(volumes: &[&str]) -> (Home, Serving) {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    for name in volumes {
        home.run(["create", name, "--size", "1G"]).success();
    }
    (home, serving)
}

/// Fills the first block of an export with a byte.
#[track_caller]
fn write(home: &Home, export: &str, byte: u8) {
    let mut client = NbdClient::connect(&unix_socket(home), export).expect("the export is there");
    client.write(0, &[byte; BLOCK]);
    client.disconnect();
}

/// The byte that fills the first block of an export.
#[track_caller]
fn read(home: &Home, export: &str) -> u8 {
    let mut client = NbdClient::connect(&unix_socket(home), export).expect("the export is there");
    let block = client.read(0, 4096);
    client.disconnect();
    assert!(block.iter().all(|byte| *byte == block[0]), "a mix");
    block[0]
}

fn items(list: &Value) -> &Vec<Value> {
    list["items"].as_array().expect("items")
}

fn references(list: &Value) -> Vec<&str> {
    items(list).iter().filter_map(|item| item["ref"].as_str()).collect()
}

#[test]
fn a_snapshot_keeps_its_content_and_what_was_said_of_it() {
    let (home, serving) = serving(&["vol1"]);
    std::fs::write(home.path("vm.xml"), "<domain/>").expect("a file");
    let file = format!("vm.xml={}", home.text("vm.xml"));
    write(&home, "vol1", 1);
    let options = ["-m", "before upgrade", "--tag", "v1", "--label", "git=4f2a9c1", "--label", "auc=0.9"];
    let more = ["--time", "2026-11-01T10:00+02:00", "--attach-meta", &file, "--expire", "30d"];

    assert_eq!(home.run(["snapshot", "vol1"].iter().chain(&options).chain(&more)).success(), "vol1@1\n");
    write(&home, "vol1", 2);

    let shown = home.run(["show", "vol1@v1", "--json"]).json();
    assert_eq!((&shown["kind"], &shown["ref"], &shown["seq"]), (&"Snapshot".into(), &"vol1@1".into(), &1.into()));
    assert_eq!((&shown["message"], &shown["tags"]), (&"before upgrade".into(), &json!(["v1"])));
    assert_eq!(shown["labels"], json!({"auc": "0.9", "git": "4f2a9c1"}));
    assert_eq!(shown["meta_files"], json!([{"name": "vm.xml", "bytes": 9}]));
    assert_eq!((&shown["time"], &shown["state"]), (&"2026-11-01T08:00:00Z".into(), &"sealed".into()));
    assert!(shown["created_by"].as_str().is_some_and(|creator| creator.contains('@')), "{shown}");
    assert!(shown["expires_at"].is_string() && shown["size"] == 1_u64 << 30, "{shown}");
    assert_eq!((read(&home, "vol1@1"), read(&home, "vol1")), (1, 2));
    serving.stop();
    let _serving = home.serve(&[]);
    assert_eq!(home.run(["show", "vol1@1", "--json"]).json()["uuid"], shown["uuid"]);
    assert_eq!((read(&home, "vol1@2026-11-01T08:00"), read(&home, "vol1")), (1, 2));
}

#[test]
fn several_volumes_are_one_set() {
    let (home, _serving) = serving(&["vol1", "vol2"]);
    home.run(["snapshot", "vol2"]).success();

    assert_eq!(home.run(["snapshot", "vol1", "vol2", "--tag", "both"]).success(), "vol1@1\nvol2@2\n");

    home.run(["snapshot", "vol1", "none"]).failure(4);
    home.run(["snapshot", "vol1", "vol1"]).failure(2);
    home.run(["snapshot", "vol1", "vol2", "--tag", "both"]).failure(5);
    assert_eq!(references(&home.run(["log", "vol1", "--json"]).json()), ["vol1@1"], "all or none");
}

#[test]
fn references_name_snapshots_by_number_place_tag_and_time() {
    let (home, _serving) = serving(&["vol1"]);
    for time in ["2026-11-01", "2026-11-02", "2026-11-02"] {
        home.run(["snapshot", "vol1", "--time", time]).success();
    }
    home.run(["tag", "vol1@2", "middle"]).success();
    let resolved = |references: &[&str]| {
        let list = home.run(["resolve", "--json"].iter().chain(references)).json();
        items(&list).iter().map(|item| item["ref"].as_str().expect("there").to_owned()).collect::<Vec<_>>()
    };

    assert_eq!(resolved(&["vol1@1", "vol1@-1", "vol1@latest", "vol1"]), ["vol1@1", "vol1@2", "vol1@3", "vol1@3"]);
    assert_eq!(resolved(&["vol1@middle", "vol1@2026-11-01T12:00"]), ["vol1@2", "vol1@1"]);
    assert_eq!(resolved(&["vol1@2026-11-02"]), ["vol1@3"], "ties go to the higher number");
    let too_old = home.run(["show", "vol1@2026-10-31"]).failure(4);
    assert!(too_old.contains("the oldest is vol1@1 of 2026-11-01T00:00:00Z"), "{too_old}");
    home.run(["show", "vol1@007"]).failure(2);
}

#[test]
fn resolving_tells_of_each_reference_that_means_nothing() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["snapshot", "vol1"]).success();

    let some = home.run(["resolve", "vol1@1", "vol1@9", "none@1", "-q"]);
    assert_eq!((some.code, some.stdout.as_str()), (Some(3), "vol1@1\n"), "{some:?}");
    assert!(some.stderr.contains("vol1@9") && some.stderr.contains("none"), "{some:?}");
    home.run(["resolve", "vol1@9", "none@1", "-q"]).failure(4);
}

#[test]
fn a_snapshot_is_made_only_if_something_changed() {
    let (home, serving) = serving(&["vol1"]);
    let take = || home.run(["snapshot", "vol1", "--if-changed"]).success();

    assert_eq!(take(), "vol1@1\n", "there was none");
    assert_eq!(take(), "vol1@1\n");
    write(&home, "vol1", 1);
    assert_eq!(take(), "vol1@2\n");
    assert_eq!(take(), "vol1@2\n");
    serving.stop();
    let _serving = home.serve(&[]);
    assert_eq!(take(), "vol1@2\n", "also after a restart");
    home.run(["rollback", "vol1", "--to", "1"]).success();
    assert_eq!(take(), "vol1@4\n", "the head is not as the latest any more");
}

#[test]
fn tags_labels_and_holds_come_and_go() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["snapshot", "vol1"]).success();
    home.run(["snapshot", "vol1"]).success();
    let show = |reference: &str| home.run(["show", reference, "--json"]).json();

    assert_eq!(home.run(["tag", "vol1@1", "good"]).success(), "vol1@1\n");
    home.run(["tag", "vol1@2", "good"]).failure(5);
    home.run(["tag", "vol1@2", "good", "--move"]).success();
    assert_eq!((show("vol1@1")["tags"].clone(), show("vol1@2")["tags"].clone()), (json!([]), json!(["good"])));
    home.run(["tag", "vol1@1", "2026-11-01"]).failure(2);
    home.run(["untag", "vol1@good", "good"]).success();
    home.run(["untag", "vol1@2", "good"]).failure(4);

    home.run(["set", "vol1@1", "a=1", "b=2"]).success();
    home.run(["unset", "vol1@1", "a", "none"]).success();
    assert_eq!(show("vol1@1")["labels"], json!({"b": "2"}));

    home.run(["hold", "vol1@1", "release-1.4"]).success();
    assert_eq!(show("vol1@1")["holds"], json!([{"reason": "release-1.4", "until": null}]));
    home.run(["hold", "vol1@1", "old", "--until", "2020-01-01"]).failure(2);
    assert!(home.run(["rm", "vol1@1"]).failure(7).contains("rok-blk release vol1@1 'release-1.4'"));
    home.run(["rm", "vol1", "--now"]).failure(7);
    home.run(["release", "vol1@1", "release-1.4"]).success();
    home.run(["release", "vol1@1", "release-1.4"]).failure(4);
    home.run(["rm", "vol1@1"]).success();
}

#[test]
fn a_log_is_cut_by_time_and_count_and_drawn() {
    let (home, _serving) = serving(&["vol1"]);
    for day in ["2026-11-01", "2026-11-02", "2026-11-03"] {
        home.run(["snapshot", "vol1", "--time", day, "-m", day]).success();
    }
    let log = |options: &[&str]| home.run(["log", "vol1", "-q"].iter().chain(options)).success();

    assert_eq!(log(&[]), "vol1@3\nvol1@2\nvol1@1\n");
    assert_eq!(log(&["--since", "2026-11-02"]), "vol1@3\nvol1@2\n");
    assert_eq!(log(&["--until", "2026-11-02T00:00+00:00"]), "vol1@2\nvol1@1\n");
    assert_eq!(log(&["-n", "1"]), "vol1@3\n");
    home.run(["rollback", "vol1", "--to", "1"]).success();
    home.run(["snapshot", "vol1"]).success();
    let drawn = home.run(["log", "vol1", "--graph", "--no-header"]).success();
    let columns: Vec<&str> = drawn.lines().map(|line| line.split("  ").next().expect("a column").trim()).collect();
    assert_eq!(columns, ["*", "| *", "| *", "| *", "* /"], "{drawn}");
}

#[test]
fn clones_are_volumes_that_outlive_what_they_come_from() {
    let (home, serving) = serving(&["vol1"]);
    write(&home, "vol1", 1);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", 2);

    assert_eq!(home.run(["clone", "vol1@1", "copy"]).success(), "copy\n");
    assert_eq!(
        home.run(["clone", "vol1@1", "--count", "3", "--name", "ci-{:03}"]).success(),
        "ci-000\nci-001\nci-002\n"
    );
    home.run(["clone", "vol1@1", "--count", "4", "--name", "ci-{:03}"]).failure(5);
    home.run(["clone", "vol1@9", "other"]).failure(4);
    home.run(["clone", "vol1@1", "copy"]).failure(5);
    assert_eq!(home.run(["ls", "-q"]).success(), "ci-000\nci-001\nci-002\ncopy\nvol1\n", "all or none");
    write(&home, "ci-001", 3);
    home.run(["rm", "vol1", "--now"]).success();

    for (export, byte) in [("copy", 1), ("ci-000", 1), ("ci-001", 3), ("ci-002", 1)] {
        assert_eq!(read(&home, export), byte, "{export}");
    }
    serving.stop();
    home.check();
    let _serving = home.serve(&[]);
    assert_eq!((read(&home, "copy"), read(&home, "ci-001")), (1, 3));
}

#[test]
fn a_rollback_keeps_what_was_there_and_can_be_undone() {
    let (home, serving) = serving(&["vol1"]);
    write(&home, "vol1", 1);
    home.run(["snapshot", "vol1", "--tag", "good"]).success();
    write(&home, "vol1", 2);

    let planned = home.run(["rollback", "vol1", "--to", "good", "-n", "--json"]).json();
    assert_eq!((&planned["to"], &planned["kept"]), (&"vol1@1".into(), &"vol1@2".into()));
    assert_eq!(read(&home, "vol1"), 2, "a dry run");
    assert_eq!(home.run(["rollback", "vol1", "--to", "vol1@good"]).success(), "vol1\n");
    assert_eq!((read(&home, "vol1"), read(&home, "vol1@2")), (1, 2));
    assert_eq!(home.run(["show", "vol1@2", "--json"]).json()["message"], "pre-rollback to 1");
    home.run(["rollback", "vol1", "--to", "2", "--no-safety"]).failure(2);
    home.run(["rollback", "vol1", "--to", "2", "--no-safety", "--yes"]).success();
    assert_eq!(read(&home, "vol1"), 2);
    assert_eq!(references(&home.run(["log", "vol1", "--json"]).json()), ["vol1@2", "vol1@1"]);
    home.run(["rollback", "vol1", "--to", "9"]).failure(4);
    home.run(["rollback", "vol1", "--to", "vol2@1"]).failure(2);
    serving.stop();
    home.check();
}

#[test]
fn a_volume_in_use_is_not_rolled_back() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["snapshot", "vol1"]).success();
    let client = NbdClient::connect(&unix_socket(&home), "vol1").expect("the export is there");

    let refused = home.run(["rollback", "vol1", "--to", "1"]).failure(7);
    assert!(refused.contains("Disconnect its clients"), "{refused}");
    client.disconnect();
}

#[test]
fn what_is_removed_comes_back_from_the_trash() {
    let (home, serving) = serving(&["vol1", "vol2"]);
    write(&home, "vol1", 1);
    home.run(["snapshot", "vol1"]).success();
    home.run(["snapshot", "vol1"]).success();
    home.run(["rm", "vol1@2"]).success();
    assert_eq!(home.run(["rm", "vol1", "vol2", "none"]).code, Some(3));

    assert_eq!(home.run(["ls", "-q"]).success(), "");
    home.run(["show", "vol1@1"]).failure(4);
    serving.stop();
    let serving = home.serve(&[]);
    assert_eq!(home.run(["df", "--json"]).json()["trash"], 4096, "both have one block together");
    let mut trashed = home.run(["trash", "ls", "-q"]).success().lines().map(str::to_owned).collect::<Vec<_>>();
    trashed.sort();
    assert_eq!(trashed, ["vol1", "vol2"]);
    home.run(["create", "vol1", "--size", "1M"]).success();
    assert!(home.run(["trash", "restore", "vol1"]).failure(5).contains("--as"));
    assert_eq!(home.run(["trash", "restore", "vol1", "--as", "back"]).success(), "back\n");
    assert_eq!(home.run(["trash", "restore", "back@2"]).success(), "back@2\n");
    assert_eq!((read(&home, "back"), read(&home, "back@1")), (1, 1));
    assert_eq!(home.run(["log", "back", "-q"]).success(), "back@2\nback@1\n");
    home.run(["trash", "empty"]).failure(2);
    assert_eq!(home.run(["trash", "empty", "--older-than", "1d", "--yes"]).success(), "");
    assert_eq!(home.run(["trash", "empty", "-n"]).success(), "vol2\n");
    assert_eq!(home.run(["trash", "empty", "--yes"]).success(), "vol2\n");
    assert_eq!(home.run(["trash", "ls", "-q"]).success(), "");
    serving.stop();
    home.check();
}

#[test]
fn what_expires_goes_to_the_trash_by_itself() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["snapshot", "vol1"]).success();
    home.run(["snapshot", "vol1", "--expire", "1s"]).success();
    home.run(["clone", "vol1@1", "short", "--expire", "1s"]).success();

    // Its end is an event of the clock: the list is looked at until both have gone, within the test's time.
    let deadline = std::time::Instant::now() + crate::support::WAIT_MAX;
    let trashed = || home.run(["trash", "ls", "-q"]).success().lines().count();
    while trashed() < 2 {
        assert!(std::time::Instant::now() < deadline, "nothing went to the trash");
    }
    assert_eq!(home.run(["log", "vol1", "-q"]).success(), "vol1@1\n");
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\n");
}

#[test]
fn what_expires_while_it_is_open_stays_until_its_clients_are_gone() {
    let (home, serving) = serving(&["vol1"]);
    write(&home, "vol1", 1);
    home.run(["snapshot", "vol1"]).success();
    // Time enough to connect before it is over.
    home.run(["clone", "vol1@1", "short", "--expire", "5s"]).success();
    let mut client = NbdClient::connect(&unix_socket(&home), "short").expect("the export is there");
    home.run(["snapshot", "vol1", "--expire", "5s"]).success();
    let deadline = std::time::Instant::now() + crate::support::WAIT_MAX;
    let trashed = || home.run(["trash", "ls", "-q"]).success();

    // The snapshot is looked at behind the clone, whose time is over before.
    while !trashed().contains("vol1@2") {
        assert!(std::time::Instant::now() < deadline, "nothing went to the trash");
    }
    assert_eq!(trashed(), "vol1@2\n");
    assert_eq!(home.run(["ls", "-q"]).success(), "short\nvol1\n");
    client.write(0, &[2; 4096]);
    client.flush();
    client.disconnect();
    while !trashed().contains("short") {
        assert!(std::time::Instant::now() < deadline, "it stays although its client is gone");
        // It would be looked at again a minute later; whatever is made has that done now.
        home.run(["snapshot", "vol1"]).success();
    }

    assert_eq!(home.run(["trash", "restore", "short"]).success(), "short\n");
    assert_eq!(read(&home, "short"), 2);
    serving.stop();
    home.check();
}

#[test]
fn a_snapshot_that_is_open_is_not_removed_nor_its_volume() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["snapshot", "vol1"]).success();
    let client = NbdClient::connect(&unix_socket(&home), "vol1@1").expect("the export is there");

    for options in [
        &["rm", "vol1"][..],
        &["rm", "vol1", "--now"],
        &["rm", "vol1@1"],
        &["rm", "vol1@1", "--now"],
        &["rm", "vol1@1", "-n"],
    ] {
        let refused = home.run(options).failure(7);
        assert!(refused.contains("in use by 1 connection"), "{refused}");
    }
    client.disconnect();
}
