//! How commands fail: a sentence that says what to do, and the exit code of the table in `rok-blk --help`.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use crate::support::{Home, open_export, tcp_address};

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
    let commands: [(&[&str], &str); 9] = [
        (&["create", "vol2"], "--size"),
        (&["create", "vol2", "--size", "4097"], "8192"),
        (&["create", "vol2", "--size", "much"], "10G"),
        (&["create", "2vol", "--size", "1G"], "letter"),
        (&["create", "vol2", "--size", "1G", "--sector-size", "1024"], "4096"),
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
