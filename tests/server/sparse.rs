//! Holes of a volume, as the programs that people have see them.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clients::{self, are_there, unix_uri};
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A volume `vol1` of `size`, served.
fn serve_volume(pool_size: &str, size: &str) -> (Home, Serving) {
    let home = Home::new();
    home.create_pool_of("pool", pool_size);
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", size]).success();
    (home, serving)
}

fn connect(home: &Home) -> NbdClient {
    NbdClient::connect(&clients::unix_socket(home), "vol1").expect("the server is ready")
}

/// Start, length and "is data" of each entry of a map in JSON. `keys` are those of start and length.
fn entries(printed: &str, is_data: impl Fn(&Value) -> bool, keys: [&str; 2]) -> Vec<(u64, u64, bool)> {
    let map: Value = serde_json::from_str(printed).expect("JSON");
    let entries = map.as_array().expect("a list").iter();
    entries.map(|entry| (number(entry, keys[0]), number(entry, keys[1]), is_data(entry))).collect()
}

fn number(entry: &Value, key: &str) -> u64 {
    entry[key].as_u64().unwrap_or_else(|| panic!("{key} of {entry}"))
}

#[test]
fn qemu_img_and_nbdinfo_show_the_holes_exactly() {
    if !are_there(&["qemu-img", "nbdinfo"]) {
        return;
    }
    let (home, serving) = serve_volume("64M", "1G");
    let mut client = connect(&home);
    // In the first leaf, across two leaves, and at the very end.
    for (offset, len) in [(8 * KIB, 4 * KIB), (2 * MIB - 8 * KIB, 16 * KIB), (1024 * MIB - 4 * KIB, 4 * KIB)] {
        client.write(offset, &vec![7; usize::try_from(len).expect("short")]);
    }
    client.flush();
    let expected = [
        (0, 8 * KIB, false),
        (8 * KIB, 4 * KIB, true),
        (12 * KIB, 2 * MIB - 20 * KIB, false),
        (2 * MIB - 8 * KIB, 16 * KIB, true),
        (2 * MIB + 8 * KIB, 1022 * MIB - 12 * KIB, false),
        (1024 * MIB - 4 * KIB, 4 * KIB, true),
    ];
    let uri = unix_uri(&home, "vol1");
    let check = || {
        let map = clients::run("qemu-img", ["map", "-f", "raw", "--output=json", &uri]);
        let is_data = |entry: &Value| {
            // What is no data reads as zeros.
            assert_ne!(entry["data"], entry["zero"], "{entry}");
            entry["data"] == true
        };
        assert_eq!(entries(&map, is_data, ["start", "length"]), expected, "{map}");
        let map = clients::run("nbdinfo", ["--map", "--json", &uri]);
        assert_eq!(entries(&map, |entry| entry["type"] == 0, ["offset", "length"]), expected, "{map}");
        let map = clients::run("nbdinfo", ["--map=qemu:allocation-depth", "--json", &uri]);
        assert_eq!(entries(&map, |entry| entry["type"] == 1, ["offset", "length"]), expected, "{map}");
    };
    check();
    client.disconnect();
    serving.stop();

    // From stored leaves only.
    let serving = home.serve(&[]);
    check();
    let mut client = connect(&home);
    client.trim(2 * MIB, 1022 * MIB);
    client.disconnect();
    let totals = clients::run("nbdinfo", ["--map", "--totals", "--json", &uri]);
    let totals: Value = serde_json::from_str(&totals).expect("JSON");
    let data = totals.as_array().expect("a list").iter().find(|total| total["type"] == 0).expect("there is data");
    assert_eq!(number(data, "size"), 12 * KIB, "{totals}");
    serving.stop();
}

#[test]
fn nbdinfo_lists_all_that_is_offered() {
    if !are_there(&["nbdinfo"]) {
        return;
    }
    let (home, serving) = serve_volume("64M", "1G");
    let info = clients::run("nbdinfo", ["--json", &unix_uri(&home, "vol1")]);
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let export = &info["exports"][0];
    for offer in
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        assert_eq!(export[offer], true, "{offer} of {export}");
    }
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation", "qemu:allocation-depth"]), "{export}");
    serving.stop();
}

/// What is absent costs no bytes on the wire: it takes far less than reading a tebibyte, which takes minutes.
#[test]
fn copies_of_a_thin_tebibyte_take_seconds() {
    const DATA_MIB: usize = 100;
    const TIME_MAX: Duration = Duration::from_secs(240);
    if !are_there(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let (home, serving) = serve_volume("320M", "1T");
    let uri = unix_uri(&home, "vol1");
    // 100 pieces of a MiB each, over the whole of it.
    let source = home.path("source");
    let mut file = File::create(&source).expect("a file");
    file.set_len(1 << 40).expect("a sparse file");
    for index in 0..DATA_MIB {
        let start = u64::try_from(index).expect("small") * ((1 << 40) / 100 / MIB * MIB);
        file.seek(SeekFrom::Start(start)).expect("a file");
        let byte = u8::try_from(index + 1).expect("below 256");
        file.write_all(&vec![byte; 1 << 20]).expect("space for the data");
    }
    let timed = |what: &str, copy: &dyn Fn()| {
        let begin = Instant::now();
        copy();
        let elapsed = begin.elapsed();
        println!("{what} took {elapsed:?}");
        assert!(elapsed < TIME_MAX, "{what} took {elapsed:?}");
    };
    timed("nbdcopy into the volume", &|| clients::copy(&source, &uri));
    let target = home.path("target");
    timed("nbdcopy out of the volume", &|| clients::copy(&uri, &target));
    let metadata = target.metadata().expect("a file");
    assert_eq!(metadata.len(), 1 << 40);
    // Blocks of a file are counted in 512 bytes; the file system has some of its own.
    assert!(metadata.blocks() * 512 < 200 * MIB, "{} blocks", metadata.blocks());
    let (source, target) = (home.text("source"), home.text("target"));
    timed("the comparison", &|| {
        clients::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &source, &uri]);
        clients::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &source, &target]);
    });
    serving.stop();
}
