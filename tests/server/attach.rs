//! Block devices of this host: what is refused before the driver is asked, what is said where there is none, and that a
//! device's answers are what the API describes. With a driver: `tests/kernel/attach.sh`.

use std::fs;
use std::path::Path;

use rok_blk::daemon::attachment_resource::{
    Attachment, AttachmentAction, AttachmentChange, AttachmentList, AttachmentState,
};
use rok_blk::daemon::device_request::AttachmentDriver;
use rok_blk::daemon::openapi_document;
use rok_blk::daemon::resource::{ApiVersion, Kind};
use serde_json::{Value, json};

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::schema::violations;
use crate::support::{Home, Serving, request, skip};

fn served() -> (Home, Serving) {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "64M"]).success();
    home.run(["create", "vol2", "--size", "64M"]).success();
    home.run(["snapshot", "vol1"]).success();
    (home, serving)
}

/// Whether this host has a driver, which answers otherwise than these tests expect.
fn has_driver() -> bool {
    let is_there = Path::new("/dev/ublk-control").exists();
    if is_there {
        skip("this kernel has the ublk driver");
    }
    is_there
}

#[test]
fn host_without_the_driver_is_told_the_ways_out() {
    if has_driver() {
        return;
    }
    let (home, serving) = served();
    for arguments in [&["attach", "vol1"][..], &["attach", "vol1@1"], &["attach", "vol1", "--dry-run"]] {
        let refusal = home.run(arguments).failure(13);
        for word in ["/dev/ublk-control", "modprobe ublk_drv", "NBD", "rok-blk exports"] {
            assert!(refusal.contains(word), "{refusal}");
        }
    }
    let refusal: Value = serde_json::from_str(&home.run(["attach", "vol1", "--json"]).failure(13)).expect("JSON");
    assert_eq!(refusal["error"]["code"], "unsupported");
    assert_eq!(refusal["error"]["ref"], "vol1");
    // Nothing is left of the tries: the volume is nobody's.
    home.run(["rm", "vol1", "--now"]).success();
    serving.stop();
}

#[test]
fn server_without_io_uring_says_that_devices_need_it() {
    let home = Home::with_pool();
    let serving = home.serve(&["--io", "threads"]);
    home.run(["create", "vol1", "--size", "64M"]).success();
    let refusal = home.run(["attach", "vol1"]).failure(13);
    assert!(refusal.contains("io_uring") && refusal.contains("NBD"), "{refusal}");
    serving.stop();
}

#[test]
fn volume_that_clients_write_is_refused_and_only_for_writes() {
    if has_driver() {
        return;
    }
    let (home, serving) = served();
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("it is offered");
    client.write(0, &[7; 4096]);
    let refusal = home.run(["attach", "vol1"]).failure(7);
    for word in ["vol1 has a writer", "--read-only", "--shared", "unexport --force"] {
        assert!(refusal.contains(word), "{refusal}");
    }
    // What is asked of the driver next is another matter.
    for arguments in [&["attach", "vol1", "--read-only"][..], &["attach", "vol1", "--shared"], &["attach", "vol1@1"]] {
        home.run(arguments).failure(13);
    }
    client.disconnect();
    serving.stop();
}

#[test]
fn what_cannot_be_attached_is_refused_by_name() {
    let (home, serving) = served();
    home.run(["attach", "nope"]).failure(4);
    home.run(["attach", "vol1@9"]).failure(4);
    home.run(["attach"]).failure(2);
    home.run(["attach", "no/name"]).failure(2);
    home.run(["attach", "vol1", "--queues", "0"]).failure(2);
    home.run(["attach", "vol1", "--depth", "513"]).failure(2);
    home.run(["attach", "vol1", "--id", "1048576"]).failure(2);
    home.run(["attach", "vol1", "--read-only", "--shared"]).failure(2);
    let refusal = home.run(["attach", "vol1", "vol2", "--id", "3"]).failure(2);
    assert!(refusal.contains("--id"), "{refusal}");
    serving.stop();
}

#[test]
fn nothing_is_attached_in_the_beginning_and_nothing_of_others_is_taken_away() {
    let (home, serving) = served();
    assert_eq!(home.run(["devices", "-q"]).success(), "");
    assert!(home.run(["devices"]).success().starts_with("DEVICE"));
    assert_eq!(home.run(["devices", "--json"]).json()["items"], json!([]));
    for name in ["vol1", "vol1@1", "/dev/ublkb0", "/dev/null"] {
        let refusal = home.run(["detach", name, "--force"]).failure(4);
        assert!(refusal.contains(name) && refusal.contains("rok-blk devices"), "{refusal}");
    }
    home.run(["detach", "no/name"]).failure(2);
    // A number in the place of a name is none.
    assert_eq!(request(&home.socket(), "DELETE", "/v1/devices/0", "").status, 400);
    serving.stop();
}

#[test]
fn what_is_remembered_waits_for_the_driver_and_keeps_its_volume() {
    if has_driver() {
        return;
    }
    let (home, serving) = served();
    let volumes = home.run(["ls", "--json"]).json();
    serving.stop();
    let entry = |volume: &Value, is_once: bool| json!({"volume": volume, "snapshot": null, "access": "exclusive", "queues": 2, "depth": 64, "is_once": is_once});
    let uuid = |index: usize| &volumes["items"][index]["uuid"];
    let missing = json!(uuid::Uuid::from_u128(7));
    let attachments = json!({"3": entry(uuid(0), false), "4": entry(uuid(1), true), "5": entry(&missing, false)});
    let file = home.path("pool/attachments.json");
    fs::write(&file, json!({"version": 1, "attachments": attachments}).to_string()).expect("a file");
    let serving = home.serve(&[]);
    // What was attached for once is not made anew, and what is not there cannot be.
    let devices = home.run(["devices", "--json"]).json();
    assert_eq!(devices["items"].as_array().map(Vec::len), Some(1), "{devices}");
    let waiting = &devices["items"][0];
    assert_eq!(
        [&waiting["device"], &waiting["ref"], &waiting["state"], &waiting["depth"]],
        [&json!("/dev/ublkb3"), &json!("vol1"), &json!("gone"), &json!(64)]
    );
    assert!(waiting["problem"].as_str().is_some_and(|problem| problem.contains("modprobe ublk_drv")), "{waiting}");
    for arguments in [&["rm", "vol1"][..], &["resize", "vol1", "128M"], &["attach", "vol1", "--read-only"]] {
        let refusal = home.run(arguments).failure(7);
        assert!(refusal.contains("/dev/ublkb3"), "{refusal}");
    }
    home.run(["attach", "vol1"]).failure(13);
    assert_eq!(home.run(["detach", "vol1"]).success().trim(), "/dev/ublkb3");
    assert_eq!(home.run(["devices", "-q"]).success(), "");
    home.run(["rm", "vol1"]).success();
    serving.stop();
    let stored: Value = serde_json::from_slice(&fs::read(&file).expect("it is there")).expect("JSON");
    assert_eq!(stored, json!({"version": 1, "attachments": {}}));
}

#[test]
fn memory_of_attachments_that_cannot_be_read_keeps_no_daemon_from_starting() {
    let home = Home::with_pool();
    let file = home.path("pool/attachments.json");
    fs::write(&file, r#"{"version": 2}"#).expect("a file");
    let serving = home.serve(&[]);
    assert_eq!(home.run(["devices", "-q"]).success(), "");
    serving.stop();
    assert!(!file.exists());
    let aside = fs::read_to_string(home.path("pool/attachments.json.unread")).expect("it was kept");
    assert_eq!(aside, r#"{"version": 2}"#);
}

#[test]
fn devices_of_a_locked_pool_need_its_key() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["key", "lock"]).success();
    home.run(["devices"]).failure(10);
    home.run(["attach", "vol1"]).failure(10);
    home.run(["detach", "vol1"]).failure(10);
    serving.stop();
}

#[test]
fn attachments_have_the_form_that_the_document_describes() {
    let document = serde_json::to_value(openapi_document()).expect("plain data");
    let attachment = Attachment {
        device: "/dev/ublkb3".to_owned(),
        driver: AttachmentDriver::Ublk,
        id: 3,
        reference: "vol1@7".to_owned(),
        volume_uuid: uuid::Uuid::from_u128(7),
        size_bytes: 1 << 30,
        sector_size: 512,
        is_read_only: true,
        is_shared: false,
        queues: 2,
        depth: 128,
        is_once: false,
        state: AttachmentState::Live,
        problem: None,
    };
    let waiting = Attachment {
        driver: AttachmentDriver::Nbd,
        is_once: true,
        state: AttachmentState::Taken,
        problem: Some("Why".to_owned()),
        ..attachment.clone()
    };
    let check = |name: &str, value: Value| {
        let schema = &document["components"]["schemas"][name];
        assert!(schema.is_object(), "{name} is described");
        assert_eq!(violations(&document, schema, &value), Vec::<String>::new(), "{value}");
    };
    let change = |before: Option<&Attachment>, after: Option<&Attachment>| {
        AttachmentChange::new(AttachmentAction::Attach, false, "vol1@7", before.cloned(), after.cloned())
    };
    for (before, after, reference, has_changed) in [
        (None, None, "vol1@7", true),
        (None, Some(&attachment), "/dev/ublkb3", true),
        (Some(&attachment), Some(&attachment), "/dev/ublkb3", false),
        (Some(&attachment), None, "/dev/ublkb3", true),
    ] {
        let change = change(before, after);
        assert_eq!((change.reference.as_str(), change.has_changed), (reference, has_changed));
        check("AttachmentChange", serde_json::to_value(change).expect("plain data"));
    }
    let list = AttachmentList { api: ApiVersion::V1, kind: Kind::AttachmentList, items: vec![attachment, waiting] };
    check("AttachmentList", serde_json::to_value(list).expect("plain data"));
}
