//! Retention policies, as users meet them: the daemon takes and removes snapshots by itself.

use std::time::Instant;

use serde_json::{Value, json};

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving, WAIT_MAX};

/// A period that does not come to its end during a test: nothing is due.
const NEVER: &str = "36500d";

/// A served home with volumes of 1 GiB.
fn serving(volumes: &[&str]) -> (Home, Serving) {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    for name in volumes {
        home.run(["create", name, "--size", "1G"]).success();
    }
    (home, serving)
}

#[track_caller]
fn write(home: &Home, export: &str, byte: u8) {
    let mut client = NbdClient::connect(&unix_socket(home), export).expect("the export is there");
    client.write(0, &[byte; 4096]);
    client.disconnect();
}

fn snapshots(home: &Home, volume: &str) -> Vec<String> {
    home.run(["log", volume, "-q"]).success().lines().map(str::to_owned).collect()
}

fn policy(home: &Home) -> Value {
    home.run(["policy", "show", "nightly", "--json"]).json()
}

/// Asks until the answer is as it should be.
#[track_caller]
fn wait_until(home: &Home, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let answer = policy(home);
        if is_so(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came to this: {answer}");
    }
}

#[test]
fn a_policy_is_made_shown_changed_and_removed() {
    let (home, serving) = serving(&["db-1", "db-2", "web"]);
    let create =
        ["policy", "create", "nightly", "--every", NEVER, "--if-changed", "--keep-hourly", "24", "--keep-daily", "7"];

    assert_eq!(home.run(create.iter().chain(&["--dry-run"])).success(), "nightly\n");
    home.run(["policy", "show", "nightly"]).failure(4);
    assert_eq!(home.run(create).success(), "nightly\n");
    home.run(create).failure(5);
    home.run(["policy", "create", "7", "--every", "1h"]).failure(2);
    home.run(["policy", "create", "other", "--every", "0s"]).failure(2);
    home.run(["policy", "apply", "nightly", "db-*", "--dry-run"]).success();
    assert_eq!(policy(&home)["volumes"], json!([]));
    home.run(["policy", "apply", "nightly", "db-*"]).success();
    home.run(["policy", "apply", "nightly", "db-1"]).success();
    home.run(["policy", "apply", "nightly", "none"]).failure(4);
    home.run(["policy", "apply", "nightly", "none*"]).failure(4);
    home.run(["policy", "apply", "none", "db-1"]).failure(4);
    home.run(["policy", "set", "nightly"]).failure(2);
    home.run(["policy", "set", "nightly", "--keep-daily", "0", "--keep-yearly", "3", "--if-changed=false"]).success();
    serving.stop();

    let serving = home.serve(&[]);
    let shown = policy(&home);
    let keep = json!({"last": 0, "hourly": 24, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 3});
    assert_eq!((&shown["keep"], &shown["if_changed"]), (&keep, &false.into()), "it survives a restart");
    let names: Vec<&Value> =
        shown["volumes"].as_array().expect("volumes").iter().map(|volume| &volume["ref"]).collect();
    assert_eq!(names, ["db-1", "db-2"]);
    assert!(home.run(["policy", "ls"]).success().contains("hourly 24, yearly 3"));
    home.run(["policy", "detach", "nightly", "web"]).failure(4);
    home.run(["policy", "detach", "nightly", "db-2"]).success();
    home.run(["rename", "db-1", "main"]).success();
    assert_eq!(policy(&home)["volumes"][0]["ref"], "main", "a policy knows a volume by its id");
    home.run(["rm", "main"]).success();
    assert_eq!(policy(&home)["volumes"][0]["next_at"], Value::Null, "nothing is taken of what is in the trash");
    home.run(["policy", "rm", "nightly", "--dry-run"]).success();
    assert_eq!(home.run(["policy", "ls", "-q"]).success(), "nightly\n");
    home.run(["policy", "rm", "nightly"]).success();
    home.run(["policy", "rm", "nightly"]).failure(4);
    serving.stop();
    let _serving = home.serve(&[]);
    assert_eq!(home.run(["policy", "ls", "-q"]).success(), "");
}

#[test]
fn a_run_takes_one_and_removes_only_what_is_its_own_and_nobody_keeps() {
    let (home, serving) = serving(&["vol1"]);
    home.run(["snapshot", "vol1"]).success();
    home.run(["policy", "create", "nightly", "--every", NEVER, "--keep-last", "2"]).success();
    home.run(["policy", "apply", "nightly", "vol1"]).success();
    for _ in 0..3 {
        home.run(["policy", "run", "nightly"]).success();
    }
    assert_eq!(snapshots(&home, "vol1"), ["vol1@4", "vol1@3", "vol1@1"], "the last two, and what the user made");
    home.run(["tag", "vol1@3", "v1"]).success();
    home.run(["hold", "vol1@4", "mine"]).success();

    let plan = home.run(["policy", "run", "nightly", "--dry-run", "--json"]).json();
    assert_eq!((&plan["is_dry_run"], &plan["items"][0]["taken"]), (&true.into(), &"vol1@5".into()));
    assert_eq!(snapshots(&home, "vol1").len(), 3, "nothing was changed");
    for _ in 0..2 {
        home.run(["policy", "run", "nightly"]).success();
    }
    home.run(["unset", "vol1@5", "rok-blk/policy"]).success();
    let last = home.run(["policy", "run", "nightly", "--json"]).json();

    // 1 is the user's, 3 has a tag, 4 is held, 5 was taken from the policy.
    assert_eq!(snapshots(&home, "vol1"), ["vol1@7", "vol1@6", "vol1@5", "vol1@4", "vol1@3", "vol1@1"]);
    assert_eq!(last["items"][0]["kept"][0], json!({"ref": "vol1@7", "reasons": ["newest", "last"]}));
    assert_eq!(home.run(["show", "vol1@7", "--json"]).json()["labels"], json!({"rok-blk/policy": "nightly"}));
    home.run(["release", "vol1@4", "mine"]).success();
    let released = home.run(["policy", "run", "nightly", "--json"]).json();
    assert_eq!(released["items"][0]["removed"], json!(["vol1@6", "vol1@4"]));
    assert_eq!(home.run(["trash", "ls", "-q"]).success().lines().count(), 3, "2, 4 and 6 can come back");
    home.run(["policy", "rm", "nightly"]).success();
    assert_eq!(snapshots(&home, "vol1").len(), 5, "snapshots outlive their policy");
    serving.stop();
    home.check();
}

#[test]
fn a_snapshot_that_a_client_has_open_stays_until_a_later_run() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["policy", "create", "nightly", "--every", NEVER, "--keep-last", "1"]).success();
    home.run(["policy", "apply", "nightly", "vol1"]).success();
    let run = || home.run(["policy", "run", "nightly", "--json"]).json()["items"][0].clone();
    run();
    let client = NbdClient::connect(&unix_socket(&home), "vol1@1").expect("the export is there");

    let item = run();
    assert_eq!((&item["removed"], &item["error"]), (&json!([]), &Value::Null), "{item}");
    assert_eq!(item["kept"][1], json!({"ref": "vol1@1", "reasons": ["open"]}));
    client.disconnect();

    assert_eq!(run()["removed"], json!(["vol1@2", "vol1@1"]));
}

#[test]
fn a_volume_that_has_not_changed_is_left_alone_if_so_wanted() {
    let (home, _serving) = serving(&["vol1"]);
    home.run(["policy", "create", "nightly", "--every", NEVER, "--if-changed", "--keep-last", "5"]).success();
    home.run(["policy", "apply", "nightly", "vol1"]).success();
    let run = || home.run(["policy", "run", "nightly", "--json"]).json()["items"][0]["taken"].clone();

    assert_eq!(run(), "vol1@1", "there was none");
    assert_eq!(run(), Value::Null);
    write(&home, "vol1", 1);
    assert_eq!(run(), "vol1@2");
    home.run(["policy", "run", "none"]).failure(4);
}

#[test]
fn the_daemon_takes_and_removes_by_itself_also_after_a_lock_and_a_restart() {
    let (home, serving) = serving(&["vol1"]);
    home.run(["policy", "create", "nightly", "--every", "1s", "--keep-last", "3"]).success();
    home.run(["policy", "apply", "nightly", "vol1"]).success();

    let number = |home: &Home| {
        let newest = home.run(["log", "vol1", "--json"]).json()["items"][0]["seq"].as_u64();
        newest.unwrap_or_default()
    };
    wait_until(&home, |_| number(&home) >= 5);
    wait_until(&home, |answer| answer["volumes"][0]["snapshots"] == 3);
    home.run(["key", "lock"]).success();
    let key = home.text("pool.key");
    home.run(["key", "unlock", "--key-file", &key]).success();
    let before = number(&home);
    wait_until(&home, |_| number(&home) > before + 1);
    home.run(["rm", "vol1"]).success();
    let at_removal = policy(&home)["volumes"][0].clone();
    assert_eq!((&at_removal["is_trashed"], &at_removal["next_at"]), (&true.into(), &Value::Null));
    home.run(["trash", "restore", "vol1"]).success();
    let before = number(&home);
    wait_until(&home, |_| number(&home) > before + 1);
    home.run(["rename", "vol1", "vol2"]).success();
    serving.kill();

    let serving = home.serve(&[]);
    home.run(["rename", "vol2", "vol1"]).success();
    let before = number(&home);
    wait_until(&home, |_| number(&home) > before + 1);
    home.run(["rm", "vol1", "--now"]).success();
    wait_until(&home, |answer| answer["volumes"] == json!([]));
    serving.stop();
    home.check();
}

#[test]
fn a_restart_takes_nothing_that_is_not_due() {
    let (home, serving) = serving(&["vol1"]);
    home.run(["policy", "create", "nightly", "--every", "1s"]).success();
    home.run(["policy", "apply", "nightly", "vol1"]).success();
    wait_until(&home, |answer| answer["volumes"][0]["snapshots"].as_u64() >= Some(3));
    home.run(["policy", "set", "nightly", "--every", NEVER]).success();

    // With a period that has not ended since, nothing is due, whatever was missed of the one before.
    let count = snapshots(&home, "vol1").len();
    serving.stop();
    let _serving = home.serve(&[]);
    let shown = policy(&home);

    assert_eq!(snapshots(&home, "vol1").len(), count);
    assert_eq!(shown["volumes"][0]["failure"], Value::Null);
}
