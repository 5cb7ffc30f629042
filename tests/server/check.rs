//! The command `check`: on a pool that is served, on one that is not, and on one whose metadata contradicts itself.

use rok_blk::meta::{Durability, MetaOp, MetaStore as _, RocksOptions, RocksStore, Table};

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
