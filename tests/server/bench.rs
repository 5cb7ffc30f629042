//! The command `bench`: its report, and that nothing of it stays.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Home, Serving};

/// The least that it takes: what counts here is not how fast anything is.
const LEAST: [&str; 8] = ["--pool-size", "1GiB", "--mapped-size", "256MiB", "--seconds", "0.01", "--rounds", "1"];

/// Where a bench writes. Beside the build, since it takes 2 GiB, which a file system in memory may not have.
struct Place {
    home: Home,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory beside the build");
        Self { home: Home::new(), directory }
    }

    fn arguments<'a>(&'a self, further: &[&'a str]) -> Vec<&'a str> {
        let directory = self.directory.path().to_str().expect("the path of the build is UTF-8");
        [&["bench", "--directory", directory], further].concat()
    }

    #[track_caller]
    fn assert_is_empty(&self) {
        let left: Vec<_> = fs::read_dir(self.directory.path()).expect("it is there").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The names of the cases of a group, from the report itself.
fn case_names(report: &Value) -> BTreeSet<String> {
    let items = report["items"].as_array().expect("items");
    items.iter().map(|item| item["ref"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_table_has_a_row_for_each_case_and_nothing_stays() {
    let place = Place::new();

    let table =
        place.home.run(place.arguments(&[&LEAST[..], &["--group", "fresh", "--case", "4k"]].concat())).success();

    let (header, rows) = table.split_once('\n').expect("a header");
    assert!(header.starts_with("CASE") && header.contains("FIGURE"), "{table}");
    let rows: Vec<Vec<&str>> = rows.lines().map(|row| row.split_whitespace().collect()).collect();
    let names = ["random-read-4k", "random-write-4k"]
        .iter()
        .flat_map(|kind| [1, 8, 32, 128].map(|depth| format!("{kind}-qd{depth}")));
    let expected: Vec<String> = names.chain(["random-write-4k-qd32-flush32".to_owned()]).collect();
    assert_eq!(rows.iter().map(|row| row[0].to_owned()).collect::<Vec<_>>(), expected);
    for row in rows {
        // The figure of the only round is also the smallest and the largest.
        assert_eq!(row[7], format!("({0}-{0})", row[6]), "{table}");
        assert!(row[6].parse::<f64>().is_ok_and(f64::is_finite), "{table}");
    }
    place.assert_is_empty();
}

/// All groups but the one that takes fifty thousand samples, each with its first case of reads and of writes.
#[test]
fn every_group_measures_and_every_rate_is_positive() {
    let place = Place::new();
    let plot = place.home.path("bench.svg");
    let groups = ["fresh", "aged", "cleaned", "all-lanes", "encryption", "cold-leaves", "memory", "memory-lanes"];
    let groups: Vec<&str> = groups.iter().flat_map(|group| ["--group", group]).collect();
    let further = ["--case", "4k-qd32", "--json", "--plot", plot.to_str().expect("UTF-8")];

    let report = place.home.run(place.arguments(&[&LEAST[..], &groups, &further].concat())).json();

    assert_eq!(report["kind"], "BenchReport");
    assert_eq!(report["is_encrypted"], true);
    assert_eq!(report["volume_size"], 256 << 20);
    let expected = [
        "random-read-4k-qd32",
        "random-write-4k-qd32",
        "random-write-4k-qd32-flush32",
        "aged-random-read-4k-qd32",
        "aged-random-write-4k-qd32",
        "cleaned-random-write-4k-qd32",
        "all-lanes-random-read-4k-qd32",
        "all-lanes-random-write-4k-qd32",
        "encryption-random-read-4k-qd32",
        "encryption-random-write-4k-qd32",
        "cold-leaves-random-read-4k-qd32",
        "memory-random-read-4k-qd32",
        "memory-random-write-4k-qd32",
        "memory-lanes-random-read-4k-qd32",
        "memory-lanes-random-write-4k-qd32",
    ];
    assert_eq!(case_names(&report), expected.map(str::to_owned).into());
    let drawn = fs::read_to_string(plot).expect("a picture");
    for item in report["items"].as_array().expect("items") {
        for side in ["first", "second"] {
            for value in ["min", "median", "max"] {
                // What is not finite is null in JSON.
                let rate = item[side]["requests_per_second"][value].as_f64();
                assert!(rate.is_some_and(|rate| rate > 0.0), "{side} {value}: {item:#}");
            }
        }
        assert!(item["figure"]["median"].is_f64(), "{item:#}");
        let name = item["ref"].as_str().expect("a name");
        assert_eq!(drawn.contains(&format!(">{name}<")), item["group"] != "memory", "{name}");
    }
    place.assert_is_empty();
}

#[test]
fn targets_are_for_encrypted_pools() {
    let place = Place::new();
    let of = |further: &[&str]| {
        let arguments = [&LEAST[..], &["--group", "targets", "--case", "1m", "--json"], further].concat();
        place.home.run(place.arguments(&arguments)).json()
    };

    let encrypted = of(&[]);
    let plain = of(&["--no-encryption"]);

    let items = encrypted["items"].as_array().expect("items");
    assert!(items.iter().all(|item| item["target"].is_f64() && item["is_target_met"].is_boolean()), "{encrypted:#}");
    assert_eq!(plain["is_encrypted"], false);
    let items = plain["items"].as_array().expect("items");
    assert_eq!(case_names(&plain), ["sequential-read-1m-qd8", "sequential-write-1m-qd8"].map(str::to_owned).into());
    assert!(items.iter().all(|item| item["target"].is_null()), "{plain:#}");
    place.assert_is_empty();
}

#[test]
fn the_tail_is_that_of_fifty_thousand_writes() {
    let place = Place::new();

    let report = place.home.run(place.arguments(&[&LEAST[..], &["--group", "tail", "--json"]].concat())).json();

    let item = &report["items"][0];
    assert_eq!(item["metric"], "tail_latency_ratio");
    assert!(item["second"]["tail_us"]["median"].as_f64().is_some_and(|tail| tail > 0.0), "{item:#}");
    place.assert_is_empty();
}

#[test]
fn opening_a_pool_with_a_full_log_is_timed() {
    let place = Place::new();

    let report = place.home.run(place.arguments(&[&LEAST[..], &["--group", "recovery", "--json"]].concat()));

    let verdict = report.stderr.lines().last().map(str::to_owned);
    let item = &report.json()["items"][0];
    assert_eq!((item["metric"].as_str(), item["target"].as_f64()), (Some("seconds_to_open"), Some(2.0)));
    assert!(item["figure"]["median"].as_f64().is_some_and(|seconds| seconds > 0.0), "{item:#}");
    assert!(verdict.is_some_and(|said| said.starts_with("Targets met: ")));
    place.assert_is_empty();
}

/// The quick ones of each kind: what counts here is that each has its figure, its target and a verdict.
#[test]
fn snapshots_clones_and_reclaim_are_measured_beside_their_targets() {
    let place = Place::new();
    let cases = [
        ("snapshots-take-1t-thousand-scattered", "snapshot_milliseconds", 20.0),
        ("snapshots-writes-1t-thousand-scattered", "tail_difference_milliseconds", 25.0),
        ("snapshots-clone-1000-time", "seconds_to_clone", 5.0),
        ("snapshots-clone-1000-metadata", "bytes_each", 1024.0),
        ("snapshots-open-10000", "seconds_to_open", 3.0),
    ];
    let chosen: Vec<&str> = cases.iter().flat_map(|(name, ..)| ["--case", name]).collect();

    let report = place.home.run(place.arguments(&[&LEAST[..], &["--group", "snapshots", "--json"], &chosen].concat()));

    let verdict = report.stderr.lines().last().map(str::to_owned);
    let report = report.json();
    assert_eq!(case_names(&report), cases.map(|(name, ..)| name.to_owned()).into());
    for (item, (_, metric, target)) in report["items"].as_array().expect("items").iter().zip(cases) {
        assert_eq!((item["metric"].as_str(), item["target"].as_f64()), (Some(metric), Some(target)), "{item:#}");
        assert!(item["figure"]["median"].is_f64() && item["is_target_met"].is_boolean(), "{item:#}");
        assert_eq!(item["usual"].is_null(), metric != "snapshot_milliseconds", "{item:#}");
    }
    assert!(verdict.is_some_and(|said| said.starts_with("Targets met: ")));
    place.assert_is_empty();
}

#[test]
fn interrupted_while_it_writes_its_files_it_removes_them() {
    let place = Place::new();
    let bench = Serving::start_until(place.home.command(place.arguments(&LEAST)), "Writing pools");

    bench.signal(libc::SIGINT);

    let (status, printed, said) = bench.wait();
    assert_eq!(status.code(), Some(130), "{said:#?}");
    assert_eq!(printed, "");
    place.assert_is_empty();
}

/// The bench took what it had measured until then for a result, and succeeded.
#[test]
fn interrupted_in_the_last_case_it_reports_nothing_and_removes_its_files() {
    let place = Place::new();
    // Long enough for the signal to come while the second case is measured.
    let group = ["--group", "fresh", "--seconds", "2"];
    let cases = [&group[..], &["--case", "random-read-4k-qd1", "--case", "random-read-4k-qd32"]].concat();
    let command =
        place.home.command(place.arguments(&[&cases[..], &["--pool-size", "1GiB", "--rounds", "1"]].concat()));
    let bench = Serving::start_until(command, "random-read-4k-qd1: ");

    bench.signal(libc::SIGINT);

    let (status, printed, said) = bench.wait();
    assert_eq!(status.code(), Some(130), "{said:#?}");
    assert_eq!(printed, "");
    assert!(!said.iter().any(|line| line.starts_with("random-read-4k-qd32")), "{said:#?}");
    place.assert_is_empty();
}

#[test]
fn what_it_cannot_measure_is_refused_before_anything_is_written() {
    let place = Place::new();
    for (arguments, word) in [
        (["--pool-size", "512MiB"], "at least 1GiB"),
        (["--seconds", "0"], "0.01"),
        (["--rounds", "0"], "1..=100"),
        (["--case", "nothing"], "random-read-4k-qd1"),
    ] {
        let message = place.home.run(place.arguments(&arguments)).failure(2);
        assert!(message.contains(word), "{arguments:?}: {message}");
    }
    place.assert_is_empty();
}
