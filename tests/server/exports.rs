//! Who is offered what, as commands set it, and that a restart opens nothing that was closed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::clients::unix_socket;
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving};
use rok_nbd::{RequestKind, WireError};

fn served(further: &[&str]) -> (Home, Serving) {
    let home = Home::with_pool();
    let serving = home.serve(further);
    home.run(["create", "vol1", "--size", "64M"]).success();
    (home, serving)
}

fn connects(home: &Home) -> bool {
    NbdClient::connect(&unix_socket(home), "vol1").is_ok()
}

#[test]
fn settings_of_an_export_hold_and_survive_a_restart_and_a_change_of_others() {
    let (home, serving) = served(&[]);
    let printed = home.run(["export", "vol1", "--read-only", "--max-connections", "1", "--allow", "10.0.0.0/8"]);
    printed.success();
    assert!(!connects(&home), "this is no client of that network");
    home.run(["export", "vol1", "--allow", "everybody"]).success();
    let check = |home: &Home| {
        let export = &home.run(["exports", "--json"]).json()["items"][0];
        assert_eq!((&export["is_read_only"], &export["max_connections"]), (&true.into(), &1.into()), "{export}");
        assert_eq!(export["allow"], serde_json::json!([]), "{export}");
        let mut client = NbdClient::connect(&unix_socket(home), "vol1").expect("it is offered");
        assert!(!connects(home), "one connection is all it may have");
        let result = client.call(RequestKind::Write, (0, 4096), &[7; 4096]).expect("the server goes on");
        assert_eq!(result, Err(WireError::NotPermitted));
        client.disconnect();
    };
    check(&home);
    serving.stop();
    let file = home.path("pool/exports.json");
    assert_eq!(fs::metadata(&file).expect("it is kept").permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&file).expect("text").contains("vol1"), "names are not in clear on the disk");

    let serving = home.serve(&[]);
    check(&home);
    home.run(["export", "vol1", "--read-write", "--max-connections", "0"]).success();
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("it is offered");
    client.write(0, &[7; 4096]);
    client.disconnect();
    serving.stop();
}

#[test]
fn what_was_hidden_stays_hidden_over_a_restart() {
    let (home, serving) = served(&[]);
    home.run(["unexport", "vol1"]).success();
    assert!(!connects(&home));
    serving.stop();
    let serving = home.serve(&[]);
    assert!(!connects(&home));
    home.run(["export", "vol1"]).success();
    assert!(connects(&home));
    serving.stop();
}

#[test]
fn what_comes_back_from_the_trash_is_exported_as_before() {
    let (home, serving) = served(&[]);
    for name in ["vol2", "vol3"] {
        home.run(["create", name, "--size", "64M"]).success();
    }
    home.run(["unexport", "vol1"]).success();
    home.run(["export", "vol2", "--read-only"]).success();
    home.run(["rm", "vol1", "vol2"]).success();
    home.run(["export", "vol3", "--max-connections", "1"]).success();
    serving.stop();

    let serving = home.serve(&[]);
    for name in ["vol1", "vol2"] {
        home.run(["trash", "restore", name]).success();
    }
    assert!(!connects(&home), "it was hidden");
    let mut client = NbdClient::connect(&unix_socket(&home), "vol2").expect("it is offered");
    let result = client.call(RequestKind::Write, (0, 4096), &[7; 4096]).expect("the server goes on");
    assert_eq!(result, Err(WireError::NotPermitted));
    client.disconnect();
    home.run(["rm", "vol2", "--now"]).success();
    home.run(["export", "vol3", "--max-connections", "2"]).success();
    let kept: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(home.path("pool/exports.json")).expect("text")).expect("JSON");
    assert_eq!(kept["exports"].as_object().map(serde_json::Map::len), Some(2), "what is gone for good is forgotten");
    serving.stop();
}

#[test]
fn unexport_with_force_ends_the_connections() {
    let (home, serving) = served(&[]);
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("it is offered");
    client.write(0, &[7; 4096]);
    let refusal = home.run(["unexport", "vol1"]).failure(7);
    assert!(refusal.contains("--force"), "{refusal}");
    home.run(["unexport", "vol1", "--force", "--dry-run"]).success();
    client.flush();
    home.run(["unexport", "vol1", "--force"]).success();
    client.call(RequestKind::Flush, (0, 0), &[]).expect_err("the connection has ended");
    assert!(!connects(&home));
    home.run(["export", "vol1"]).success();
    let mut client = NbdClient::connect(&unix_socket(&home), "vol1").expect("it is offered");
    assert_eq!(client.read(0, 4096), [7; 4096], "what was acknowledged stays");
    client.disconnect();
    serving.stop();
}

#[test]
fn listeners_that_expose_what_is_listed_offer_nothing_else() {
    let (home, serving) = served(&["--expose", "listed"]);
    assert!(!connects(&home));
    assert_eq!(home.run(["exports", "-q"]).success(), "");
    home.run(["export", "vol1"]).success();
    assert!(connects(&home));
    assert_eq!(home.run(["exports", "-q"]).success(), "vol1\n");
    serving.stop();
}

#[test]
fn bad_settings_are_refused_by_name() {
    let (home, serving) = served(&[]);
    let refusal = home.run(["export", "vol1", "--allow", "hv1"]).failure(2);
    assert!(refusal.contains("\"hv1\"") && refusal.contains("subject:NAME"), "{refusal}");
    home.run(["export", "nope", "--read-only"]).failure(4);
    home.run(["export", "vol1", "--read-only", "--read-write"]).failure(2);
    serving.stop();
    for (option, value, word) in [
        ("--nbd-max-connections", "0", "connections"),
        ("--nbd-max-request-size", "1000", "request"),
        ("--nbd-stall-timeout", "soon", "time"),
        ("--nbd-handshake-timeout", "0s", "handshake"),
    ] {
        let refusal = home.serve_fails(&["--key-file", &home.text("pool.key"), option, value]).failure(2);
        assert!(refusal.contains(word), "{option}: {refusal}");
    }
    let everywhere =
        ["--key-file", &home.text("pool.key"), "--nbd-listen", "0.0.0.0:0", "--expose", "all", "--allow-plaintext"];
    let refusal = home.serve_fails(&everywhere).failure(2);
    assert!(refusal.contains("rok-blk export"), "{refusal}");
}

#[test]
fn damaged_settings_keep_everybody_out() {
    let (home, serving) = served(&[]);
    home.run(["export", "vol1", "--read-only"]).success();
    serving.stop();
    fs::write(home.path("pool/exports.json"), "{").expect("a file");
    let refusal = home.serve_fails(&["--key-file", &home.text("pool.key")]).failure(9);
    assert!(refusal.contains("exports.json"), "{refusal}");
    fs::remove_file(home.path("pool/exports.json")).expect("it is there");
    home.serve(&[]).stop();
}
