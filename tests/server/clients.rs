//! The programs of others that read and write volumes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Home, finish, skip};

/// Where the daemon of `home` listens for NBD clients.
pub fn unix_socket(home: &Home) -> PathBuf {
    home.path("run/rok-blk/nbd.sock")
}

/// The volume `name`, as clients take it.
pub fn unix_uri(home: &Home, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", unix_socket(home).display())
}

/// Whether all of these programs can be started; if not, the test is skipped.
#[track_caller]
pub fn are_there(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| !is_there(program));
    if let Some(program) = missing {
        skip(&format!("{program} is not there; deploy/install-deps.sh test installs it"));
    }
    missing.is_none()
}

/// A command whose program may be one of the administrators', which are not on everybody's path on Debian.
pub fn command(program: &str) -> Command {
    let mut command = Command::new("env");
    command.arg(format!("PATH={}", path_variable())).arg(program);
    command
}

/// Runs a program; it must succeed. Its stdout.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = command(program);
    command.args(arguments);
    finish(command).success()
}

/// Copies a file into a volume or a volume into a file, with several requests in flight on several connections.
#[track_caller]
pub fn copy(source: impl AsRef<OsStr>, target: impl AsRef<OsStr>) {
    run("nbdcopy", [source.as_ref(), target.as_ref()]);
}

/// The SHA-256 of a file, in hexadecimal.
#[track_caller]
pub fn sha256(path: &Path) -> String {
    let printed = run("sha256sum", [path]);
    printed.split_whitespace().next().expect("a sum is printed").to_owned()
}

fn is_there(program: &str) -> bool {
    path_variable().split(':').any(|directory| Path::new(directory).join(program).is_file())
}

fn path_variable() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}
