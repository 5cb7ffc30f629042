//! Disks by the kernel's NBD client: what is refused before the driver is asked, and what is said where there is none. With
//! a driver: `tests/kernel/nbd_disk.sh`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::support::{Home, request, skip};

/// Whether this host has the driver, which answers otherwise than these tests expect.
fn has_driver() -> bool {
    let is_there = Path::new("/sys/module/nbd").exists();
    if is_there {
        skip("this kernel has the NBD driver");
    }
    is_there
}

#[test]
fn host_without_the_client_is_told_the_ways_out() {
    if has_driver() {
        return;
    }
    let home = Home::with_pool();
    // It needs no io_uring.
    let serving = home.serve(&["--io", "threads"]);
    home.run(["create", "vol1", "--size", "64M"]).success();
    home.run(["snapshot", "vol1"]).success();
    for arguments in [&["attach", "vol1", "--nbd"][..], &["attach", "vol1@1", "--nbd", "--dry-run"]] {
        let refusal = home.run(arguments).failure(13);
        for word in ["modprobe nbd", "5.14", "--nbd"] {
            assert!(refusal.contains(word), "{refusal}");
        }
    }
    // Nothing is left of the tries.
    assert_eq!(home.run(["devices", "-q"]).success(), "");
    home.run(["rm", "vol1", "--now"]).success();
    serving.stop();
}

#[test]
fn what_the_client_cannot_have_is_refused_before_it_is_asked() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "64M"]).success();
    home.run(["attach", "vol1", "--nbd", "--queues", "2"]).failure(2);
    home.run(["attach", "vol1", "--nbd", "--depth", "8"]).failure(2);
    home.run(["attach", "nope", "--nbd"]).failure(4);
    let body = json!({"ref": "vol1", "driver": "nbd", "queues": 2}).to_string();
    assert_eq!(request(&home.socket(), "POST", "/v1/devices", &body).status, 400);
    let body = json!({"ref": "vol1", "driver": "loop"}).to_string();
    assert_eq!(request(&home.socket(), "POST", "/v1/devices", &body).status, 422);
    for name in ["/dev/nbd0", "/dev/nbd0p1"] {
        let refusal = home.run(["detach", name, "--force"]).failure(4);
        assert!(refusal.contains(name) && refusal.contains("rok-blk devices"), "{refusal}");
    }
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("it is offered");
    client.write(0, &[7; 4096]);
    let refusal = home.run(["attach", "vol1", "--nbd"]).failure(7);
    assert!(refusal.contains("vol1 has a writer"), "{refusal}");
    client.disconnect();
    serving.stop();
}

#[test]
fn disk_that_is_remembered_waits_for_the_driver_and_keeps_its_volume() {
    if has_driver() {
        return;
    }
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    for name in ["vol1", "vol2"] {
        home.run(["create", name, "--size", "64M"]).success();
    }
    let volumes = home.run(["ls", "--json"]).json();
    serving.stop();
    let entry = |index: usize, is_once: bool| {
        let volume = &volumes["items"][index]["uuid"];
        json!({"volume": volume, "snapshot": null, "access": "exclusive", "queues": 1, "depth": 128, "is_once": is_once})
    };
    let file = home.path("pool/nbd-attachments.json");
    let attachments = json!({"3": entry(0, false), "4": entry(1, true)});
    fs::write(&file, json!({"version": 1, "attachments": attachments}).to_string()).expect("a file");
    let serving = home.serve(&[]);
    let devices = home.run(["devices", "--json"]).json();
    assert_eq!(devices["items"].as_array().map(Vec::len), Some(1), "{devices}");
    let waiting = &devices["items"][0];
    assert_eq!(
        [&waiting["device"], &waiting["driver"], &waiting["ref"], &waiting["state"]],
        [&json!("/dev/nbd3"), &json!("nbd"), &json!("vol1"), &json!("gone")]
    );
    assert!(waiting["problem"].as_str().is_some_and(|problem| problem.contains("modprobe nbd")), "{waiting}");
    for arguments in [
        &["rm", "vol1"][..],
        &["resize", "vol1", "128M"],
        &["attach", "vol1"],
        &["attach", "vol1", "--nbd", "--read-only"],
        &["attach", "vol1", "--nbd", "--id", "4"],
    ] {
        let refusal = home.run(arguments).failure(7);
        assert!(refusal.contains("/dev/nbd3"), "{refusal}");
    }
    home.run(["attach", "vol1", "--nbd"]).failure(13);
    assert_eq!(home.run(["detach", "vol1"]).success().trim(), "/dev/nbd3");
    home.run(["rm", "vol1"]).success();
    serving.stop();
    let stored: Value = serde_json::from_slice(&fs::read(&file).expect("it is there")).expect("JSON");
    assert_eq!(stored, json!({"version": 1, "attachments": {}}));
}
