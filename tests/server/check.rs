//! The command `check`: on a pool that is served, on one that is not, and on one whose metadata contradicts itself.

use rok_blk::meta::{Durability, MetaOp, MetaRead as _, MetaStore as _, RocksOptions, RocksStore, Table};

use crate::nbd_client::NbdClient;
use crate::stamp::BLOCK_BYTES;
use crate::support::Home;

const BLOCKS: usize = 64;

/// A pool with some blocks of "vol1" stored; nobody serves it.
fn closed_pool() -> Home {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("the server is ready");
    client.write(0, &vec![7; BLOCKS * BLOCK_BYTES]);
    client.disconnect();
    serving.stop();
    home
}

#[test]
fn healthy_pool_has_no_difference_served_or_not() {
    let home = closed_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let offline = home.run(["check", "--pool", &pool, "--key-file", &key, "--json"]).json();
    assert_eq!((offline["is_clean"].as_bool(), offline["mapped_blocks"].as_u64()), (Some(true), Some(64)), "{offline}");

    let serving = home.serve(&[]);
    let online = home.run(["check", "--json"]).json();
    assert_eq!((online["is_clean"].as_bool(), online["mapped_blocks"].as_u64()), (Some(true), Some(64)), "{online}");
    let busy = home.run(["check", "--pool", &pool, "--key-file", &key]).failure(7);
    assert!(busy.contains("Leave out --pool"), "{busy}");
    home.run(["check", "--key-file", &key]).failure(2);
    // What a killed daemon leaves is checked with its log.
    serving.kill();
    let said = home.run(["check", "--pool", &pool, "--key-file", &key]);
    assert!(said.stderr.contains("No difference"), "{said:?}");
    said.success();
    home.run(["check", "--pool", &pool]).failure(10);
}

#[test]
fn difference_is_listed_and_the_exit_code_tells_it() {
    let home = closed_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let store = RocksStore::open(&home.path("pool/meta"), RocksOptions::default()).expect("nobody serves it");
    let forget = MetaOp::DeleteRange(Table::Used, Vec::new(), vec![0xff]);
    store.commit(&[forget], Durability::Synced).expect("there is space");
    drop(store);

    let found = home.run(["check", "--pool", &pool, "--key-file", &key, "--json"]);

    assert_eq!(found.code, Some(9), "{found:?}");
    let report: serde_json::Value = serde_json::from_str(&found.stdout).expect("stdout is JSON");
    assert_eq!((report["is_clean"].as_bool(), report["differences"].as_u64()), (Some(false), Some(64)), "{report}");
    let first = &report["items"][0];
    assert_eq!(first["code"], "not-marked", "{first}");
    assert_eq!((&first["places"][0]["volume"], first["places"][0]["block"].as_u64()), (&"vol1".into(), Some(0)));
    let table = home.run(["check", "--pool", &pool, "--key-file", &key]);
    assert!(table.stdout.contains("vol1 block 63"), "{table:?}");
    assert!(table.stderr.contains("64 differences"), "{table:?}");

    std::fs::rename(home.path("pool/meta"), home.path("elsewhere")).expect("nobody uses it");
    let missing = home.run(["check", "--pool", &pool, "--key-file", &key]).failure(9);
    assert!(missing.contains("is missing or empty") && !home.path("pool/meta").exists(), "{missing}");
}

/// The stored bitmap of used blocks, as it is on disk.
fn bitmap(home: &Home) -> Vec<MetaOp> {
    let store = RocksStore::open_read_only(&home.path("pool/meta"), RocksOptions::default()).expect("it can be read");
    let rows = store.scan(Table::Used, &[], &[], usize::MAX).expect("it can be read");
    rows.into_iter().map(|(key, value)| MetaOp::Put(Table::Used, key, value)).collect()
}

/// A closed pool in which the blocks that "vol1" had are marked as used still, and nothing maps them: its bitmap is the one
/// from before they were discarded. And that bitmap.
fn leaked_pool() -> (Home, Vec<MetaOp>) {
    let home = closed_pool();
    let old = bitmap(&home);
    let serving = home.serve(&[]);
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("the server is ready");
    client.trim(0, 1 << 30);
    client.disconnect();
    serving.stop();
    home.check();
    leak(&home, &old);
    (home, old)
}

fn leak(home: &Home, old: &[MetaOp]) {
    let store = RocksStore::open(&home.path("pool/meta"), RocksOptions::default()).expect("nobody serves it");
    store.commit(old, Durability::Synced).expect("there is space");
}

#[test]
fn leaked_space_is_repaired_in_a_pool_that_nobody_serves() {
    let (home, _) = leaked_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let check = |options: &[&str]| home.run(["check", "--pool", &pool, "--key-file", &key].iter().chain(options));

    let found = check(&["--json"]);
    assert_eq!(found.code, Some(9), "{found:?}");
    let report: serde_json::Value = serde_json::from_str(&found.stdout).expect("stdout is JSON");
    assert_eq!((&report["leaked_blocks"], &report["items"][0]["code"]), (&64.into(), &"leaked".into()), "{report}");
    assert!(report["repair"].is_null(), "{report}");
    let planned = check(&["--repair", "-n"]);
    assert_eq!(planned.code, Some(9), "{planned:?}");
    assert!(planned.stderr.contains("Would free 64 leaked blocks (256.0 KiB)"), "{planned:?}");
    let repaired = check(&["--repair"]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert!(repaired.stderr.contains("Freed 64 leaked blocks (256.0 KiB)."), "{repaired:?}");
    let again = check(&["--repair", "--json"]).json();
    assert_eq!((&again["is_clean"], &again["repair"]["blocks"]), (&true.into(), &0.into()), "{again}");
    home.check();
    let _serving = home.serve(&[]);
    assert_eq!(home.run(["df", "--json"]).json()["used"], 0);
    home.run(["check", "-n"]).failure(2);
}

#[test]
fn leaked_space_is_repaired_while_the_pool_is_used() {
    let (home, _) = leaked_pool();
    let serving = home.serve(&[]);
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("the server is ready");
    client.write(0, &vec![8; 5 * BLOCK_BYTES]);
    let found = home.run(["check"]);
    assert_eq!(found.code, Some(9), "{found:?}");

    let repaired = home.run(["check", "--repair", "--json"]).json();

    assert_eq!((&repaired["is_clean"], &repaired["repair"]["blocks"]), (&true.into(), &64.into()), "{repaired}");
    assert_eq!(repaired["repair"]["bytes"], 64 * 4096);
    client.write(10 << 20, &vec![9; 5 * BLOCK_BYTES]);
    home.run(["check"]).success();
    client.disconnect();
    serving.kill();
    home.check();
    let serving = home.serve(&[]);
    let df = home.run(["df", "--json"]).json();
    assert_eq!(df["used"], 10 * 4096, "what was written, and no leak: {df}");
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("the server is ready");
    assert_eq!(client.read(0, 5 * 4096), vec![8; 5 * BLOCK_BYTES]);
    client.disconnect();
    serving.stop();
}

#[test]
fn nothing_but_leaked_space_is_repaired() {
    let (home, old) = leaked_pool();
    let serving = home.serve(&[]);
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("the server is ready");
    client.write(0, &vec![7; BLOCKS * BLOCK_BYTES]);
    client.disconnect();
    serving.stop();
    // The bitmap now lacks what was just written, and has what leaked.
    leak(&home, &[MetaOp::DeleteRange(Table::Used, Vec::new(), vec![0xff])]);
    leak(&home, &old);
    let (pool, key) = (home.text("pool"), home.text("pool.key"));

    let refused = home.run(["check", "--repair", "--pool", &pool, "--key-file", &key, "--json"]);

    assert_eq!(refused.code, Some(9), "{refused:?}");
    let report: serde_json::Value = serde_json::from_str(&refused.stdout).expect("stdout is JSON");
    assert_eq!((&report["repair"]["blocks"], &report["is_clean"]), (&0.into(), &false.into()), "{report}");
    assert_eq!(bitmap(&home), old, "nothing was changed");
    let said = home.run(["check", "--repair", "--pool", &pool, "--key-file", &key]);
    assert!(said.stderr.contains("only leaked blocks can be repaired"), "{said:?}");
}
