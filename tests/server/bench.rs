//! The command `bench`: its report, and that nothing of it stays.

use std::collections::BTreeSet;
use std::fs;

use tempfile::TempDir;

use crate::support::{Home, Serving};

/// The least that it takes: what counts here is not how fast anything is.
const LEAST: [&str; 6] = ["--pool-size", "1GiB", "--seconds", "0.01", "--rounds", "1"];

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

fn case_names() -> BTreeSet<String> {
    let accesses = ["random-read-4k", "random-write-4k", "sequential-read-1m", "sequential-write-1m"];
    accesses.iter().flat_map(|access| [1, 32, 128].map(|depth| format!("{access}-qd{depth}"))).collect()
}

#[test]
fn the_table_has_a_row_for_each_case_and_nothing_stays() {
    let place = Place::new();

    let table = place.home.run(place.arguments(&LEAST)).success();

    let (header, rows) = table.split_once('\n').expect("a header");
    assert!(header.starts_with("CASE") && header.contains("RATIO"), "{table}");
    let rows: Vec<Vec<&str>> = rows.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), case_names().len(), "{table}");
    assert_eq!(rows.iter().map(|row| row[0].to_owned()).collect::<BTreeSet<_>>(), case_names());
    for row in rows {
        // The ratio of the only round is also the smallest and the largest.
        assert_eq!(row[5], format!("({0}-{0})", row[4]), "{table}");
        assert!(row[4].parse::<f64>().is_ok_and(f64::is_finite), "{table}");
    }
    place.assert_is_empty();
}

#[test]
fn every_figure_of_the_report_is_positive_without_encryption_too() {
    let place = Place::new();

    let report = place.home.run(place.arguments(&[&LEAST[..], &["--no-encryption", "--json"]].concat())).json();

    assert_eq!(report["kind"], "BenchReport");
    assert_eq!(report["is_encrypted"], false);
    assert_eq!(report["volume_size"], 256 << 20);
    let items = report["items"].as_array().expect("items");
    assert_eq!(items.len(), case_names().len(), "{report:#}");
    for item in items {
        assert!(case_names().contains(item["ref"].as_str().expect("a name")), "{item:#}");
        for figure in ["raw", "engine", "ratio", "control", "raw_cpu_us", "engine_cpu_us"] {
            for value in ["min", "median", "max"] {
                // What is not finite is null in JSON.
                assert!(item[figure][value].as_f64().is_some_and(|value| value > 0.0), "{figure} {value}: {item:#}");
            }
        }
        assert!(item["target"].is_null(), "targets are for encrypted pools: {item:#}");
    }
    place.assert_is_empty();
}

#[test]
fn interrupted_while_it_writes_its_files_it_removes_them() {
    let place = Place::new();
    let bench = Serving::start_until(place.home.command(place.arguments(&LEAST)), "Writing a pool");

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
    let cases = ["--case", "random-read-4k-qd1", "--case", "random-read-4k-qd32", "--seconds", "2"];
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
