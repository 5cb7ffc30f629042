//! Differences between snapshots, heads and clones: as `diff` prints them, and as NBD clients see them.

use std::fs;

use serde_json::Value;

use crate::clients::{self, are_there, copy, unix_socket, unix_uri};
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving, finish, request, skip};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A range as `diff --map` prints it.
type Range = (u64, u64, &'static str);

/// A served home with `vol1` of 1 GiB.
fn serving() -> (Home, Serving) {
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    (home, serving)
}

/// Writes, at each place, so many bytes.
#[track_caller]
fn write(home: &Home, export: &str, places: &[(u64, u64)]) {
    let mut client = NbdClient::connect(&unix_socket(home), export).expect("the export is there");
    for (offset, len) in places {
        client.write(*offset, &vec![7; usize::try_from(*len).expect("short")]);
    }
    client.disconnect();
}

#[track_caller]
fn trim(home: &Home, export: &str, offset: u64, len: u64) {
    let mut client = NbdClient::connect(&unix_socket(home), export).expect("the export is there");
    client.trim(offset, len);
    client.disconnect();
}

/// What `diff --map` prints, in words of its own.
#[track_caller]
fn map(home: &Home, from: &str, to: &str) -> Vec<Range> {
    let printed = home.run(["diff", from, to, "--map"]).success();
    printed.lines().map(parse_line).collect()
}

fn parse_line(line: &str) -> Range {
    let fields: Vec<&str> = line.split(' ').collect();
    let [offset, length, kind] = fields[..] else { panic!("{line}") };
    let kinds = ["added", "removed", "rewritten"];
    let kind = kinds.into_iter().find(|known| *known == kind).unwrap_or_else(|| panic!("{line}"));
    (offset.parse().expect("a number"), length.parse().expect("a number"), kind)
}

#[test]
fn a_diff_is_what_was_written_between_and_its_reverse_in_the_other_direction() {
    let (home, serving) = serving();
    write(&home, "vol1", &[(0, MIB), (5 * MIB, 8 * KIB)]);
    home.run(["snapshot", "vol1"]).success();
    assert_eq!(map(&home, "vol1@1", "vol1"), []);
    // Inside a block; across two leaves; the last block.
    write(&home, "vol1", &[(512 * KIB + 100, 8), (100 * MIB - 4 * KIB, 12 * KIB), (GIB - 4 * KIB, 4 * KIB)]);
    trim(&home, "vol1", 5 * MIB, 8 * KIB);
    let expected = [
        (512 * KIB, 4 * KIB, "rewritten"),
        (5 * MIB, 8 * KIB, "removed"),
        (100 * MIB - 4 * KIB, 12 * KIB, "added"),
        (GIB - 4 * KIB, 4 * KIB, "added"),
    ];
    let reverse = expected.map(|(offset, length, kind)| match kind {
        "added" => (offset, length, "removed"),
        "removed" => (offset, length, "added"),
        _ => (offset, length, kind),
    });

    // From memory, from a snapshot that no checkpoint has stored yet, then from stored leaves alone.
    assert_eq!(map(&home, "vol1@1", "vol1"), expected);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", &[(200 * MIB, 4 * KIB)]);
    assert_eq!(map(&home, "vol1@1", "vol1@2"), expected);
    assert_eq!(map(&home, "vol1@2", "vol1@1"), reverse);
    serving.stop();
    let serving = home.serve(&[]);
    assert_eq!(map(&home, "vol1@-1", "vol1@latest"), expected);
    assert_eq!(map(&home, "vol1@2", "vol1@1"), reverse);
    assert_eq!(map(&home, "vol1@2", "vol1"), [(200 * MIB, 4 * KIB, "added")]);
    assert_eq!(map(&home, "vol1", "vol1"), []);

    let summary = home.run(["diff", "vol1@1", "vol1@2", "--bytes"]).success();
    let words: Vec<&str> = summary.split_whitespace().collect();
    let lines = ["Only in B", "16384", "Only in A", "8192", "Rewritten", "4096", "Changed", "28672"];
    assert_eq!(words.join(" "), lines.join(" "));
    let told = home.run(["diff", "vol1@1", "vol1@2", "--json"]).json();
    assert_eq!((&told["kind"], &told["from"], &told["to"]), (&"Diff".into(), &"vol1@1".into(), &"vol1@2".into()));
    assert_eq!((&told["added"], &told["removed"], &told["rewritten"]), (&16_384.into(), &8192.into(), &4096.into()));
    serving.stop();
    home.check();
}

#[test]
fn a_clone_differs_from_its_origin_by_what_either_wrote() {
    let (home, serving) = serving();
    write(&home, "vol1", &[(0, 64 * KIB)]);
    home.run(["snapshot", "vol1"]).success();
    home.run(["clone", "vol1@1", "clone1"]).success();
    write(&home, "vol1", &[(MIB, 4 * KIB)]);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "clone1", &[(8 * KIB, 4 * KIB)]);
    write(&home, "vol1", &[(2 * MIB, 4 * KIB)]);

    let of_clone = (8 * KIB, 4 * KIB, "rewritten");
    let check = || {
        assert_eq!(map(&home, "vol1@1", "clone1"), [of_clone]);
        assert_eq!(map(&home, "vol1@2", "clone1"), [of_clone, (MIB, 4 * KIB, "removed")]);
        let of_both = [of_clone, (MIB, 4 * KIB, "added"), (2 * MIB, 4 * KIB, "added")];
        assert_eq!(map(&home, "clone1", "vol1"), of_both);
    };
    check();
    serving.stop();
    let serving = home.serve(&[]);
    check();
    // The volume takes the place of what it was: both are of the same tree.
    home.run(["rollback", "vol1", "--to", "1", "--yes"]).success();
    assert_eq!(map(&home, "vol1@1", "vol1"), []);
    assert_eq!(map(&home, "vol1@3", "vol1"), [(MIB, 4 * KIB, "removed"), (2 * MIB, 4 * KIB, "removed")]);
    // What has nothing in common differs by all that there is, also behind the end of the smaller one.
    home.run(["create", "other", "--size", "1M"]).success();
    write(&home, "other", &[(4 * KIB, 4 * KIB)]);
    let all =
        [(0, 4 * KIB, "added"), (4 * KIB, 4 * KIB, "rewritten"), (8 * KIB, 56 * KIB, "added"), (MIB, 4 * KIB, "added")];
    assert_eq!(map(&home, "other", "vol1@2"), all);
    serving.stop();
    home.check();
}

#[test]
fn snapshots_between_may_go() {
    const COUNT: u64 = 6;
    let (home, serving) = serving();
    write(&home, "vol1", &[(0, MIB)]);
    for number in 1..=COUNT {
        home.run(["snapshot", "vol1"]).success();
        write(&home, "vol1", &[(number * 4 * KIB, 4 * KIB), (number * 10 * MIB, 4 * KIB)]);
    }
    home.run(["clone", "vol1@4", "clone1"]).success();
    let mut expected = vec![(4 * KIB, (COUNT - 1) * 4 * KIB, "rewritten")];
    expected.extend((1..COUNT).map(|number| (number * 10 * MIB, 4 * KIB, "added")));
    let last = format!("vol1@{COUNT}");
    assert_eq!(map(&home, "vol1@1", &last), expected);
    let of_clone = map(&home, "vol1@1", "clone1");

    home.run(["rm", "vol1@2", "vol1@3", "vol1@4", "vol1@5", "--now"]).success();
    assert_eq!(map(&home, "vol1@1", &last), expected, "at once");
    for job in home.run(["job", "ls", "-q"]).success().lines() {
        home.run(["job", "wait", job]).success();
    }
    assert_eq!(map(&home, "vol1@1", &last), expected, "once they are merged");
    assert_eq!(map(&home, "vol1@1", "clone1"), of_clone);
    // The clone takes over what it had of the volume.
    home.run(["rm", &last, "--now"]).success();
    assert!(home.run(["diff", "vol1@1", &last]).failure(4).contains("no vol1@6"));
    assert_eq!(map(&home, "vol1@1", "clone1"), of_clone);
    serving.stop();
    home.check();
}

#[test]
fn pages_of_the_api_are_bounded_and_make_one_whole() {
    let (home, serving) = serving();
    home.run(["snapshot", "vol1"]).success();
    let places: Vec<(u64, u64)> = (0..300).map(|index| (index * 12 * KIB, 4 * KIB)).collect();
    write(&home, "vol1", &places);
    let whole = map(&home, "vol1@1", "vol1");
    assert_eq!(whole.len(), 300);

    let (mut next, mut found, mut pages) = (Some(0), Vec::new(), 0);
    while let Some(offset) = next {
        let path = format!("/v1/diff?from=vol1@latest&to=vol1&limit=7&offset={offset}");
        let page = request(&home.socket(), "GET", &path, "");
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.body;
        let ranges = page["ranges"].as_array().expect("ranges");
        assert!(ranges.len() <= 7 && page["from"] == "vol1@1", "{page}");
        found.extend(ranges.iter().map(|range| (range["offset"].as_u64(), range["length"].as_u64())));
        next = page["next_offset"].as_u64();
        pages += 1;
    }
    let expected: Vec<_> = whole.iter().map(|(offset, length, _)| (Some(*offset), Some(*length))).collect();
    assert_eq!((found, pages), (expected, 43));
    for wrong in ["limit=0", "limit=100001", "offset=1073741824"] {
        let page = request(&home.socket(), "GET", &format!("/v1/diff?from=vol1@1&to=vol1&{wrong}"), "");
        assert_eq!(page.status, 400, "{wrong}: {page:?}");
    }
    home.run(["diff", "vol1@2", "vol1"]).failure(4);
    home.run(["diff", "none", "vol1"]).failure(4);
    home.run(["diff", "vol1@007", "vol1"]).failure(2);
    serving.stop();
}

#[test]
fn a_diff_under_load_has_every_block_that_differs_and_none_that_nobody_wrote() {
    const REGION: std::ops::Range<u64> = 64 * MIB..96 * MIB;
    if !are_there(&["fio", "nbdcopy"]) {
        return;
    }
    if !clients::run("fio", ["--enghelp"]).lines().any(|line| line.trim() == "nbd") {
        return skip("this fio has no nbd engine");
    }
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "128M"]).success();
    write(&home, "vol1", &[(0, MIB), (REGION.start, 8 * MIB)]);
    home.run(["snapshot", "vol1"]).success();
    write(&home, "vol1", &[(MIB, 4 * KIB)]);
    let uri = format!("--uri={}", unix_uri(&home, "vol1"));
    let (offset, size) = (format!("--offset={}", REGION.start), format!("--size={}", REGION.end - REGION.start));
    let mut fio = clients::command("fio");
    fio.args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--randseed=7919"]);
    fio.args([uri.as_str(), offset.as_str(), size.as_str(), "--loops=3"]);
    let load = std::thread::spawn(move || finish(fio).success());
    let mut rounds = 0;
    while !load.is_finished() || rounds < 3 {
        let told = map(&home, "vol1@1", "vol1");
        assert_eq!(told[0], (MIB, 4 * KIB, "added"), "{told:?}");
        let is_in_region = |range: &Range| range.0 >= REGION.start && range.0 + range.1 <= REGION.end;
        assert!(told[1..].iter().all(is_in_region), "{told:?}");
        if rounds == 1 {
            home.run(["snapshot", "vol1"]).success();
        }
        rounds += 1;
    }
    load.join().expect("fio ends well");

    for (from, to) in [("vol1@1", "vol1"), ("vol1@1", "vol1@2"), ("vol1@2", "vol1"), ("vol1", "vol1@1")] {
        let [before, after] = [from, to].map(|export| content(&home, export));
        let told = map(&home, from, to);
        for (block, (one, other)) in (0..).zip(before.chunks(4096).zip(after.chunks(4096))) {
            let is_told = told.iter().any(|(offset, length, _)| (*offset..offset + length).contains(&(block * 4096)));
            assert!(is_told || one == other, "block {block} of {from} and {to}");
        }
    }
    serving.stop();
    home.check();
}

/// All bytes of an export.
#[track_caller]
fn content(home: &Home, export: &str) -> Vec<u8> {
    let file = home.path(format!("content-of-{export}"));
    copy(unix_uri(home, export), &file);
    fs::read(&file).expect("a file")
}

/// Offset, length and status of each entry of nbdinfo's map that is not 0.
#[track_caller]
fn nbdinfo_map(home: &Home, export: &str, reference: &str) -> Vec<(u64, u64, u64)> {
    let context = format!("--map=rok:diff:{reference}");
    let printed = clients::run("nbdinfo", [&context, "--json", &unix_uri(home, export)]);
    let map: Value = serde_json::from_str(&printed).expect("JSON");
    let number = |entry: &Value, key: &str| entry[key].as_u64().unwrap_or_else(|| panic!("{key} of {entry}"));
    let entries = map.as_array().expect("a list").iter();
    let all = entries.map(|entry| (number(entry, "offset"), number(entry, "length"), number(entry, "type")));
    all.filter(|(_, _, status)| *status != 0).collect()
}

#[test]
fn nbdinfo_and_qemu_img_see_what_changed_since_a_snapshot() {
    if !are_there(&["nbdinfo", "qemu-img", "qemu-io"]) {
        return;
    }
    let (home, serving) = serving();
    let qemu_io =
        |command: &str| clients::run("qemu-io", ["-f", "raw", "-d", "unmap", "-c", command, &unix_uri(&home, "vol1")]);
    qemu_io("write -P 1 0 1M");
    home.run(["snapshot", "vol1", "--time", "2026-11-01T10:00"]).success();
    qemu_io("write -P 2 64k 8k");
    qemu_io("write -P 2 700M 4k");
    qemu_io("discard 512k 4k");
    let expected = [(64 * KIB, 8 * KIB, 1), (512 * KIB, 4 * KIB, 3), (700 * MIB, 4 * KIB, 1)];

    assert_eq!(nbdinfo_map(&home, "vol1", "vol1@1"), expected);
    assert_eq!(nbdinfo_map(&home, "vol1", "vol1@2026-11-01T10:00"), expected, "a time has colons");
    home.run(["snapshot", "vol1"]).success();
    assert_eq!(nbdinfo_map(&home, "vol1@2", "vol1@1"), expected);
    assert_eq!(
        nbdinfo_map(&home, "vol1@1", "vol1@2"),
        [(64 * KIB, 8 * KIB, 1), (512 * KIB, 4 * KIB, 1), (700 * MIB, 4 * KIB, 3)]
    );
    home.run(["clone", "vol1@1", "clone1"]).success();
    assert_eq!(nbdinfo_map(&home, "clone1", "vol1@1"), []);
    assert_eq!(nbdinfo_map(&home, "clone1", "vol1@2").len(), 3);

    // qemu takes bit 0 for "no data" and bit 1 for "reads as zeros".
    let socket = unix_socket(&home);
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=vol1,x-dirty-bitmap=rok:diff:vol1@1",
        socket.display()
    );
    let printed = clients::run("qemu-img", ["map", "--output=json", "--image-opts", &options]);
    let map: Value = serde_json::from_str(&printed).expect("JSON");
    let entries = map.as_array().expect("a list").iter().filter(|entry| entry["data"] == false);
    let changed: Vec<_> =
        entries.map(|entry| (entry["start"].as_u64(), entry["length"].as_u64(), entry["zero"] == true)).collect();
    let told = expected.map(|(offset, length, status)| (Some(offset), Some(length), status == 3));
    assert_eq!(changed, told, "{printed}");
    serving.stop();
}

#[test]
fn a_reference_that_is_no_snapshot_of_the_volume_is_no_context() {
    if !are_there(&["nbdinfo"]) {
        return;
    }
    let (home, serving) = serving();
    home.run(["create", "other", "--size", "1G"]).success();
    home.run(["snapshot", "vol1", "other"]).success();
    home.run(["clone", "other@1", "clone1"]).success();

    let refused = ["vol1@2", "vol1", "other@1", "clone1", "none@1", "vol1@", "@1", ""];
    for reference in refused {
        let mut nbdinfo = clients::command("nbdinfo");
        nbdinfo.arg(format!("--map=rok:diff:{reference}")).arg(unix_uri(&home, "vol1"));
        let finished = finish(nbdinfo);
        assert_ne!(finished.code, Some(0), "{reference}: {finished:?}");
        assert!(finished.stderr.contains("metadata context"), "{reference}: {finished:?}");
    }
    assert_eq!(nbdinfo_map(&home, "clone1", "other@1"), []);
    // A client that may not have the origin does not learn from it what was written either.
    home.run(["export", "other", "--allow", "uid:4000000000"]).success();
    let mut nbdinfo = clients::command("nbdinfo");
    nbdinfo.arg("--map=rok:diff:other@1").arg(unix_uri(&home, "clone1"));
    assert_ne!(finish(nbdinfo).code, Some(0));
    serving.stop();
}
