//! The program where io_uring is refused: the same suite, over threads.

use std::env;
use std::process::Command;
use std::time::Duration;

use crate::io_method::EXPECTED_IO_VARIABLE;
use crate::refusal;
use crate::support::finish_within;

/// What must hold however I/O is done: the parts of this program's own tests that put data through the server, damage it,
/// close it, or kill it.
const SUITE: &[&str] =
    &["lane_nbd::", "images::", "kill::", "process::", "devices::", "damage::", "full_file_system::", "io_method::"];
/// Its port is another test's while this runs beside the others.
const TAKES_A_PORT: &str = "the_first_journey";
/// Kills of the run inside: enough that each kind of moment is among them, fewer than a run of its own makes.
const KILL_CYCLES: &str = "60";
/// The suite takes more than a minute by itself, and everything else runs beside it.
const SUITE_TIME_MAX: Duration = Duration::from_secs(900);

#[test]
fn the_suite_passes_where_io_uring_is_refused() {
    let mut suite = Command::new(env::current_exe().expect("this program has a path"));
    suite
        .args(SUITE)
        .args(["--skip", TAKES_A_PORT])
        .env(EXPECTED_IO_VARIABLE, "threads")
        .env("ROK_KILL_CYCLES", env::var("ROK_KILL_CYCLES").unwrap_or(KILL_CYCLES.to_owned()));
    refusal::refuse(&mut suite, refusal::ALL, libc::EPERM);

    let finished = finish_within(suite, SUITE_TIME_MAX);

    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}
