//! The command line: what commands print and change.

use std::io::Read as _;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Home, POOL_SIZE, Serving, open_export, tcp_address};

#[test]
fn volumes_are_created_listed_shown_renamed_resized_and_removed() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);

    assert_eq!(home.run(["create", "vol1", "--size", "1G"]).success(), "vol1\n");
    assert_eq!(home.run(["create", "vol2", "--size", "512M", "--sector-size", "4096"]).success(), "vol2\n");
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\nvol2\n");
    let shown = home.run(["show", "vol2", "--json"]).json();
    assert_eq!((&shown["size"], &shown["sector_size"]), (&(512_u64 << 20).into(), &4096.into()));
    assert_eq!(home.run(["rename", "vol2", "other"]).success(), "other\n");
    assert_eq!(home.run(["resize", "other", "2G"]).success(), "other\n");
    let renamed = home.run(["show", "other", "--json"]).json();
    assert_eq!((&renamed["size"], &renamed["uuid"]), (&(2_u64 << 30).into(), &shown["uuid"]));
    assert_eq!(home.run(["resize", "other", "4K", "--shrink", "--yes"]).success(), "other\n");
    assert_eq!(home.run(["rm", "vol1", "other", "--now"]).success(), "vol1\nother\n");
    assert_eq!(home.run(["ls", "-q"]).success(), "");
}

#[test]
fn the_largest_volume_is_created_at_once() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);

    home.run(["create", "vol1", "--size", "1P"]).success();

    assert_eq!(home.run(["show", "vol1", "--json"]).json()["size"], 1_u64 << 50);
    home.run(["create", "vol2", "--size", "1.5P"]).failure(2);
}

#[test]
fn a_list_has_a_header_unless_it_is_for_scripts() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let ls = |options: &[&str]| home.run(["ls"].iter().chain(options)).success();

    let table = ls(&[]);
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.contains("1.0 GiB"), "{table}");
    assert_eq!(table.lines().count(), 2);
    assert_eq!(ls(&["--no-header"]).lines().count(), 1);
    assert!(ls(&["-o", "plain", "--bytes"]).starts_with("vol1\t1073741824\t"));
    let list: Value = serde_json::from_str(&ls(&["--json"])).expect("JSON");
    assert_eq!((&list["api"], &list["kind"]), (&"rok-blk/v1".into(), &"VolumeList".into()));
    let line: Value = serde_json::from_str(ls(&["-o", "jsonl"]).trim_end()).expect("one line of JSON");
    assert_eq!(line, list["items"][0]);
}

#[test]
fn status_and_df_tell_the_pools_space() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();

    let space = home.run(["df", "--json"]).json();
    let status = home.run(["status", "--json"]).json();

    assert_eq!(space["nominal"], 1_u64 << 30);
    assert!(space["overcommit"].as_f64().expect("a number") > 1.0, "1 GiB of {POOL_SIZE}: {space}");
    assert!(space["free"].as_u64() <= space["capacity"].as_u64(), "{space}");
    assert_eq!(status["pool"]["failure"], Value::Null);
    assert_eq!(status["pool"]["is_encrypted"], true);
    assert_eq!(status["volumes"], 1);
    assert!(home.run(["df"]).success().contains("CAPACITY"));
    assert!(home.run(["status"]).success().contains("state"), "a table of fields");
}

#[test]
fn a_pool_is_shown_with_and_without_a_daemon() {
    let home = Home::with_pool();

    let offline = home.run(["pool", "show", &home.text("pool"), "--json"]).json();
    let _serving = home.serve(&[]);
    let online = home.run(["pool", "show", "--json"]).json();

    assert_eq!(offline, online);
    assert_eq!(offline["encryption"], "aes-256-xts+gmac");
    assert_eq!(offline["key_slots"].as_array().expect("slots").len(), 1);
}

#[test]
fn a_pool_without_encryption_needs_no_key() {
    let home = Home::new();
    let pool = home.text("pool");
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--no-encryption"]).success();

    let _serving = Serving::start(home.command(["serve", "--pool", &pool]));

    assert_eq!(home.run(["pool", "show", "--json"]).json()["encryption"], "none");
    assert_eq!(home.run(["status", "--json"]).json()["pool"]["is_encrypted"], false);
}

#[test]
fn a_hidden_volume_is_not_exported_until_it_is_again() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    assert_eq!(home.run(["exports", "-q"]).success(), "vol1\n", "new volumes are exported");

    assert_eq!(home.run(["unexport", "vol1"]).success(), "vol1\n");
    assert_eq!(home.run(["exports", "-q"]).success(), "");
    assert_eq!(home.run(["show", "vol1", "--json"]).json()["is_exported"], false);

    assert_eq!(home.run(["export", "vol1"]).success(), "vol1\n");
    assert_eq!(home.run(["exports", "-q"]).success(), "vol1\n");
    let (_stream, size) = open_export(tcp_address(&home), "vol1");
    assert_eq!(size, 1 << 30);
}

#[test]
fn serve_prints_the_uris_of_what_is_there() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    assert_eq!(serving.stop(), "", "there was no volume when it started");

    let serving = home.serve(&[]);
    let exports = home.run(["exports", "--json"]).json();
    let printed = serving.stop();

    let uris: Vec<&str> =
        exports["items"][0]["uris"].as_array().expect("uris").iter().filter_map(Value::as_str).collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), uris);
    assert!(uris[0].starts_with("nbd+unix:///vol1?socket=/"), "{uris:?}");
    assert!(uris[1].starts_with("nbd://127.0.0.1:"), "{uris:?}");
}

#[test]
fn a_dry_run_changes_nothing_and_prints_what_the_run_prints() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let before = home.run(["ls", "--json"]).json();
    let commands: [&[&str]; 6] = [
        &["create", "vol2", "--size", "1G"],
        &["rename", "vol1", "vol3"],
        &["resize", "vol1", "2G"],
        &["resize", "vol1", "4K", "--shrink"],
        &["rm", "vol1", "--now"],
        &["unexport", "vol1"],
    ];

    for command in commands {
        let plan = home.run(command.iter().chain(&["-n"]));
        assert!(plan.stderr.starts_with("Would "), "{plan:?}");
        assert_eq!(plan.success().lines().count(), 1, "{command:?} prints one name");
        assert_eq!(home.run(["ls", "--json"]).json(), before, "{command:?} changed something");
    }
    let plan = home.run(["resize", "vol1", "2G", "-n", "--json"]).json();
    let real = home.run(["resize", "vol1", "2G", "--json"]).json();
    assert_eq!((&plan["is_dry_run"], &real["is_dry_run"]), (&true.into(), &false.into()));
    assert_eq!((&plan["before"], &plan["after"]), (&real["before"], &real["after"]));
    home.run(["create", "vol1", "--size", "1G", "-n"]).failure(5);
    home.run(["rm", "none", "--now", "-n"]).failure(4);
}

#[test]
fn a_dry_run_of_pool_create_creates_nothing() {
    let home = Home::new();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));

    home.run(["pool", "create", &pool, "--size", "1G", "--key-file", &key, "--generate-key", "-n"]).success();

    assert!(!home.path("pool").exists());
    assert!(!home.path("pool.key").exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);

    let mut child = home.command(["ls"]).stdout(writer).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("stderr is UTF-8");

    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn shells_get_completion() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.run(["completion", shell]).success();
        assert!(script.contains("rok-blk") && script.contains("unexport"), "{shell}: {script}");
    }
}

#[test]
fn help_lists_every_command_and_the_exit_codes() {
    let help = Home::new().run(["--help"]).success();

    for word in [
        "serve",
        "quickstart",
        "pool",
        "key",
        "create",
        "ls",
        "rm",
        "exports",
        "df",
        "job",
        "trash",
        "snapshot",
        "Exit codes",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
