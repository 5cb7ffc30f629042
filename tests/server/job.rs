//! Jobs: what runs in the background is told, waited for, and not forgotten.

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::support::Home;

const MIB: usize = 1 << 20;
/// Enough for many leaves, a quarter of the pool.
const WRITTEN_MIB: u64 = 16;

/// A home whose pool has a volume `vol1` with data that a checkpoint has stored. Nobody serves it.
pub fn with_data() -> Home {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("the server is ready");
    for index in 0..WRITTEN_MIB {
        client.write(index << 20, &vec![7; MIB]);
    }
    client.disconnect();
    serving.stop();
    home
}

#[test]
fn a_removal_is_a_job_until_its_space_is_back() {
    let home = with_data();
    let serving = home.serve(&[]);

    let removed = home.run(["rm", "vol1", "--now", "--json"]).json();
    let waited = home.run(["job", "wait", "j-1", "--json"]).json();

    assert_eq!(removed["items"][0]["job"], "j-1");
    assert_eq!((&waited["kind"], &waited["ref"]), (&"Job".into(), &"j-1".into()));
    assert_eq!((&waited["work"], &waited["target"]), (&"reclaim".into(), &"vol1".into()));
    assert_eq!((&waited["state"], &waited["unit"]), (&"done".into(), &"bytes".into()));
    assert_eq!((&waited["done"], &waited["total"]), (&(WRITTEN_MIB << 20).into(), &(WRITTEN_MIB << 20).into()));
    assert_eq!(home.run(["job", "wait", "1"]).success(), "j-1\n", "one that has ended is not waited for");
    let shown = home.run(["job", "show", "j-1"]).success();
    assert!(shown.contains("16.0 MiB of 16.0 MiB (100 %)"), "{shown}");
    assert_eq!(home.run(["job", "ls", "-q"]).success(), "j-1\n");
    serving.stop();
    home.check();
}

#[test]
fn jobs_are_remembered_and_their_numbers_go_on() {
    let home = with_data();
    let serving = home.serve(&[]);
    home.run(["rm", "vol1", "--now"]).success();
    home.run(["job", "wait", "j-1"]).success();
    serving.stop();

    let serving = home.serve(&[]);
    assert_eq!(home.run(["job", "show", "j-1", "--json"]).json()["state"], "done");
    serving.stop();
    let mut job = None;
    // Space may be back before a job could watch it.
    for _ in 0..5 {
        let serving = home.serve(&[]);
        home.run(["create", "vol2", "--size", "1G"]).success();
        let mut client = NbdClient::connect(&unix_socket(&home), "vol2").expect("the server is ready");
        (0..WRITTEN_MIB).for_each(|index| client.write(index << 20, &vec![7; MIB]));
        client.disconnect();
        serving.stop();
        let serving = home.serve(&[]);
        job = home.run(["rm", "vol2", "--now", "--json"]).json()["items"][0]["job"].as_str().map(str::to_owned);
        serving.stop();
        if job.is_some() {
            break;
        }
    }
    let _serving = home.serve(&[]);

    assert_eq!(job.as_deref(), Some("j-2"));
    home.run(["job", "wait", "j-2"]).success();
    assert_eq!(home.run(["job", "ls", "-q"]).success(), "j-2\nj-1\n", "the newest comes first");
}

#[test]
fn a_killed_daemon_goes_on_with_its_job() {
    let home = with_data();
    let serving = home.serve(&[]);
    let removed = home.run(["rm", "vol1", "--now", "--json"]).json();
    serving.kill();

    let serving = home.serve(&[]);
    let job = removed["items"][0]["job"].as_str().expect("a job").to_owned();
    home.run(["job", "wait", &job]).success();

    assert_eq!(home.run(["job", "show", &job, "--json"]).json()["done"], WRITTEN_MIB << 20);
    assert_eq!(home.run(["df", "--json"]).json()["allocated"], 0);
    serving.stop();
    home.check();
}

#[test]
fn what_is_no_job_or_cannot_be_cancelled_is_told() {
    let home = with_data();
    let _serving = home.serve(&[]);

    assert!(home.run(["job", "show", "j-9"]).failure(4).contains("rok-blk job ls"));
    home.run(["job", "wait", "j-9"]).failure(4);
    home.run(["job", "cancel", "j-9"]).failure(4);
    home.run(["job", "show", "vol1"]).failure(2);
    home.run(["job", "wait", "j-1", "--timeout", "1mo"]).failure(2);
    home.run(["rm", "vol1", "--now"]).success();
    home.run(["job", "wait", "j-1", "--timeout", "2m"]).success();
    let cancelled = home.run(["job", "cancel", "j-1"]);
    assert!(cancelled.stderr.contains("had ended before"), "{cancelled:?}");
    assert_eq!(cancelled.success(), "j-1\n");
}

#[test]
fn a_removal_of_what_holds_no_data_begins_no_job() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();

    assert_eq!(home.run(["rm", "vol1", "--now", "--json"]).json()["items"][0]["job"], serde_json::Value::Null);

    assert_eq!(home.run(["job", "ls", "--json"]).json()["items"], serde_json::json!([]));
}
