//! The watermarks of a pool's space: what `status` says, and what the daemon logs.

use std::time::Instant;

use rok_nbd::RequestKind;
use serde_json::Value;

use crate::nbd_client::NbdClient;
use crate::support::{Home, WAIT_MAX};

const MIB: u64 = 1 << 20;

/// Waits until the space has this level: a checkpoint looks at it.
fn await_level(home: &Home, level: &str) -> Value {
    let begun = Instant::now();
    loop {
        let status = home.run(["status", "--json"]).json();
        if status["space"]["level"] == level {
            return status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "{level} does not come: {status}");
    }
}

/// Writes the MiB of the volume in the range.
fn write(client: &mut NbdClient, range: std::ops::Range<u64>) {
    range.for_each(|index| client.write(index * MIB, &[7; 1 << 20]));
    client.flush();
}

#[test]
fn crossed_watermarks_are_told_and_logged_once_each() {
    let home = Home::with_pool();
    let serving = home.serve(&["--space-low", "50", "--space-critical", "75"]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    let mut client = NbdClient::connect(&home.path("run/rok-blk/nbd.sock"), "vol1").expect("the server is ready");
    let space = await_level(&home, "enough")["space"].clone();
    assert_eq!((space["low_percent"].as_u64(), space["critical_percent"].as_u64()), (Some(50), Some(75)), "{space}");
    assert!(space["metadata_free"].as_u64().is_some_and(|bytes| bytes > MIB), "{space}");

    // Of 63 MiB.
    write(&mut client, 0..36);
    let low = await_level(&home, "low");
    assert!(low["warnings"][0].as_str().is_some_and(|text| text.contains("which is low")), "{low}");
    write(&mut client, 36..52);
    await_level(&home, "critical");
    let text = home.run(["status"]);
    assert!(text.stderr.contains("which is critical"), "{text:?}");
    assert!(text.stdout.contains("critical (low from 50 % used, critical from 75 %)"), "{text:?}");
    let discarded = client.call(RequestKind::Trim, (0, 1 << 30), &[]).expect("the server goes on");
    assert_eq!(discarded, Ok(Vec::new()));
    let freed = await_level(&home, "enough");
    assert_eq!(freed["warnings"].as_array().map(Vec::len), Some(0), "{freed}");
    client.disconnect();
    serving.signal(libc::SIGTERM);
    let (_, _, said) = serving.wait();
    for words in ["space is low", "space is critical"] {
        let count = said.iter().filter(|line| line.contains(words)).count();
        assert_eq!(count, 1, "{words}: {said:#?}");
    }
}

#[test]
fn watermarks_that_make_no_sense_are_refused() {
    let home = Home::with_pool();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let refused = home.run(["serve", "--pool", &pool, "--key-file", &key, "--space-low", "96"]).failure(2);
    assert!(refused.contains("low below critical"), "{refused}");
}
