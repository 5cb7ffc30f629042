//! The command line: what commands print, and how they fail: a sentence that says what to do, and the exit code.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Home, POOL_SIZE, Serving, WAIT_MAX, open_export, tcp_address};

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
fn a_stale_socket_is_replaced() {
    let home = Home::with_pool();
    home.serve(&[]).kill();
    assert!(home.socket().exists(), "a killed daemon leaves its socket");
    home.run(["ls"]).failure(11);

    let _serving = home.serve(&[]);

    home.run(["ls"]).success();
}

#[test]
fn a_missing_daemon_is_unreachable() {
    let message = Home::new().run(["ls"]).failure(11);

    assert!(message.contains("No daemon answers at") && message.contains("rok-blk serve"), "{message}");
}

#[test]
fn a_wrong_key_is_refused() {
    let home = Home::with_pool();
    home.create_pool("other");
    let (pool, key) = (home.text("pool"), home.text("other.key"));

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key]).failure(10);

    assert!(message.to_lowercase().contains("key"), "{message}");
    home.serve(&[]).stop();
}

#[test]
fn a_missing_key_file_is_named() {
    let home = Home::with_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    fs::remove_file(&key).expect("the key file");

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key]).failure(10);
    assert!(message.contains(&key), "{message}");
    let message = home.run(["serve", "--pool", &pool]).failure(10);
    assert!(message.contains("--key-file"), "{message}");
    let message = home.run(["pool", "create", &home.text("new"), "--size", "1G", "--key-file", &key]).failure(10);
    assert!(message.contains("--generate-key"), "{message}");
}

#[test]
fn a_key_file_is_never_overwritten() {
    let home = Home::with_pool();
    let key = home.text("pool.key");
    let before = fs::read(&key).expect("the key");

    home.run(["pool", "create", &home.text("new"), "--size", "1G", "--key-file", &key, "--generate-key"]).failure(5);

    assert_eq!(fs::read(&key).expect("the key"), before);
}

#[test]
fn a_device_of_another_pool_is_refused_by_name() {
    let home = Home::with_pool();
    home.create_pool("other");
    fs::copy(home.path("other/data-0"), home.path("pool/data-0")).expect("the foreign device");
    let (pool, key) = (home.text("pool"), home.text("pool.key"));

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key]).failure(9);

    assert!(message.contains("data-0"), "{message}");
}

#[test]
fn a_pool_in_use_is_busy() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    let (pool, key, socket) = (home.text("pool"), home.text("pool.key"), home.text("second.sock"));

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key, "--socket", &socket]).failure(7);

    assert!(message.contains(&pool) || message.contains("data-0"), "{message}");
    assert!(!home.path("second.sock").exists(), "a daemon that did not start leaves no socket");
    home.run(["ls"]).success();
}

#[test]
fn a_socket_in_use_is_busy_and_named() {
    let home = Home::with_pool();
    home.create_pool("other");
    let _serving = home.serve(&[]);
    let (pool, key) = (home.text("other"), home.text("other.key"));

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key]).failure(7);

    assert!(message.contains(home.socket().to_str().expect("UTF-8")), "{message}");
    home.run(["ls"]).success();
}

#[test]
fn a_port_in_use_is_busy_and_the_pool_is_closed_again() {
    let home = Home::with_pool();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key, "--nbd-listen", &address]).failure(7);

    assert!(message.contains(&address) && message.contains("--nbd-listen"), "{message}");
    home.serve(&[]).stop();
}

#[test]
fn an_nbd_socket_in_use_is_busy() {
    let home = Home::with_pool();
    let path = home.text("nbd.sock");
    let _taken = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let (pool, key) = (home.text("pool"), home.text("pool.key"));

    let message = home.run(["serve", "--pool", &pool, "--key-file", &key, "--nbd-unix", &path]).failure(7);

    assert!(message.contains(&path) && message.contains("--nbd-unix"), "{message}");
}

#[test]
fn an_open_volume_is_busy() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let (stream, _) = open_export(tcp_address(&home), "vol1");

    assert_eq!(home.run(["show", "vol1", "--json"]).json()["connections"], 1);
    for command in [["rm", "vol1", "--now"].as_slice(), &["rm", "vol1", "--now", "-n"], &["unexport", "vol1"]] {
        let message = home.run(command).failure(7);
        assert!(message.contains("vol1"), "{message}");
    }
    drop(stream);
}

#[test]
fn what_is_not_there_is_not_found() {
    let home = Home::with_pool();
    let nowhere = home.text("nowhere");
    let message = home.run(["serve", "--pool", &nowhere]).failure(4);
    assert!(message.contains(&nowhere) && message.contains("pool create"), "{message}");
    home.run(["pool", "show", &nowhere]).failure(4);
    let _serving = home.serve(&[]);

    let commands: [&[&str]; 6] = [
        &["show", "none"],
        &["rename", "none", "vol2"],
        &["resize", "none", "1G"],
        &["rm", "none", "--now"],
        &["export", "none"],
        &["unexport", "none"],
    ];
    for command in commands {
        let message = home.run(command).failure(4);
        assert!(message.contains("none"), "{message}");
    }
}

#[test]
fn what_is_there_already_exists() {
    let home = Home::with_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", "1G", "--key-file", &key]).failure(5);
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    home.run(["create", "vol2", "--size", "1G"]).success();

    home.run(["create", "vol1", "--size", "1G"]).failure(5);
    home.run(["rename", "vol1", "vol2"]).failure(5);
    assert_eq!(home.run(["create", "vol1", "--size", "2G", "--if-missing"]).success(), "vol1\n");
    assert_eq!(home.run(["show", "vol1", "--json"]).json()["size"], 1_u64 << 30, "it was left alone");
}

#[test]
fn arguments_that_make_no_sense_are_usage() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let commands: [(&[&str], &str); 10] = [
        (&["create", "vol2"], "--size"),
        (&["create", "vol2", "--size", "4097"], "8192"),
        (&["create", "vol2", "--size", "much"], "10G"),
        (&["create", "2vol", "--size", "1G"], "letter"),
        (&["create", "vol2", "--size", "1G", "--sector-size", "1024"], "4096"),
        (&["rm", "vol1"], "--now"),
        (&["resize", "vol1", "512M"], "--shrink"),
        (&["resize", "vol1", "512M", "--shrink"], "--yes"),
        (&["pool", "create", "dir", "--size", "1G"], "--key-file"),
        (&["frobnicate"], "--help"),
    ];

    for (command, way_out) in commands {
        let message = home.run(command).failure(2);
        assert!(message.contains(way_out), "{command:?}: {message}");
    }
    assert_eq!(home.run(["show", "vol1", "--json"]).json()["size"], 1_u64 << 30);
}

#[test]
fn removing_some_of_the_targets_is_partial() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();

    let result = home.run(["rm", "none", "vol1", "--now"]);

    assert_eq!((result.code, result.stdout.as_str()), (Some(3), "vol1\n"));
    assert!(result.stderr.contains("none"), "{result:?}");
}

#[test]
fn failures_are_json_where_data_is() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);

    let message = home.run(["show", "none", "--json"]).failure(4);
    let failure: Value = serde_json::from_str(&message).expect("JSON");
    assert_eq!(failure["error"]["code"], "not-found");
    assert_eq!(failure["error"]["exit"], 4);
    assert_eq!(failure["error"]["ref"], "none");

    let message = home.run(["show", "--json"]).failure(2);
    let failure: Value = serde_json::from_str(&message).expect("JSON");
    assert_eq!(failure["error"]["code"], "usage");
}

#[test]
fn each_signal_closes_cleanly_and_the_next_start_goes_on() {
    let home = Home::with_pool();
    for (name, signal) in [("vol15", libc::SIGTERM), ("vol2", libc::SIGINT), ("vol1", libc::SIGHUP)] {
        let serving = home.serve(&[]);
        home.run(["create", name, "--size", "1G"]).success();
        serving.signal(signal);

        let (status, _, said) = serving.wait();

        assert_eq!(status.code(), Some(0), "{said:#?}");
        assert_eq!(said.last().map(String::as_str), Some("The pool is closed."));
        assert!(!home.socket().exists() && !home.path("run/rok-blk/nbd.sock").exists(), "no socket is left");
    }
    let _serving = home.serve(&[]);
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\nvol15\nvol2\n");
}

#[test]
fn a_second_signal_stops_at_once() {
    let home = Home::with_pool();
    let mut serving = home.serve(&[]);
    // A request whose body does not come keeps the first signal's clean end waiting. The daemon's `100 Continue`
    // says that it has begun with the request.
    let mut stream = UnixStream::connect(home.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    stream
        .write_all(
            b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\
              Expect: 100-continue\r\n\r\n",
        )
        .expect("the daemon reads");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("the daemon answers");
    assert_eq!(&answer, b"HTTP/1.1 100");

    serving.signal(libc::SIGTERM);
    serving.wait_for("SIGTERM");
    serving.signal(libc::SIGINT);
    let (status, _, said) = serving.wait();

    assert_eq!(status.code(), Some(130), "{said:#?}");
    assert!(said.last().is_some_and(|line| line.starts_with("Stopped at once")), "{said:#?}");
    home.serve(&[]).stop();
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
fn a_serving_process_leaves_no_core_unless_it_is_allowed() {
    let home = Home::with_pool();
    let core_limit = |process: &str| {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit").to_owned();
        line.split_whitespace().skip(4).take(2).map(str::to_owned).collect::<Vec<_>>()
    };

    let serving = home.serve(&[]);
    assert_eq!(core_limit(&serving.process_id().to_string()), ["0", "0"]);
    serving.stop();

    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let mut command = home.command(["serve", "--pool", &pool, "--key-file", &key]);
    command.env("ROK_ALLOW_CORE", "1");
    let serving = Serving::start(command);
    assert_eq!(core_limit(&serving.process_id().to_string()), core_limit("self"), "as it was started");
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

    for word in ["serve", "quickstart", "pool", "create", "ls", "rm", "exports", "df", "Exit codes"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
