//! The systemd unit of `deploy/`: systemd understands it, it stays hardened, and what it forbids the daemon does not need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::clients::{self, are_there, unix_uri};
use crate::support::{Finished, Home, Serving, WAIT_MAX, finish};

const UNIT: &str = "rok-blk.service";

/// Exposure by `systemd-analyze security`, of 10. It counts 1.8 with systemd 252; what is left has its reason in the unit: the two
/// capabilities and their being ambient (0.5), sockets and this host's network (0.9), devices (0.3), limits and
/// priorities (0.2), the host's users and files of /proc (0.3). Other versions weigh some of it otherwise.
const EXPOSURE_MAX: f64 = 2.0;

/// The unit with a program that there is, in a directory of its own.
fn unit(directory: &TempDir) -> String {
    let text = text_of(UNIT);
    let path = directory.path().join(UNIT);
    assert!(text.contains("ExecStart=/usr/bin/rok-blk "), "{text}");
    fs::write(&path, text.replace("/usr/bin/rok-blk", env!("CARGO_BIN_EXE_rok-blk"))).expect("space");
    path.to_str().expect("UTF-8").to_owned()
}

fn text_of(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).expect("it is in deploy/")
}

/// Values of a setting, in order; each may be there several times.
fn values<'a>(unit: &'a str, setting: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('=')).collect()
}

fn analyze(arguments: &[&str]) -> Finished {
    let mut command = Command::new("systemd-analyze");
    command.arg("--no-pager").args(arguments);
    finish(command)
}

#[test]
fn unit_is_understood() {
    if !are_there(&["systemd-analyze"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    // A word that it does not know would be a warning.
    let verified = analyze(&["verify", "--man=no", &unit(&directory)]);
    assert_eq!((verified.code, verified.stderr.trim()), (Some(0), ""), "{verified:?}");
}

#[test]
fn unit_stays_hardened() {
    if !are_there(&["systemd-analyze"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let report = analyze(&["security", "--offline=true", &unit(&directory)]).success();
    let line = report.lines().find(|line| line.contains("Overall exposure level")).expect("it tells the level");
    println!("{line}");
    let level = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).expect("a number");
    assert!(level <= EXPOSURE_MAX, "{level} is above {EXPOSURE_MAX}: {report}");
}

#[test]
fn unit_has_the_capabilities_that_the_emulated_machine_tests() {
    let unit = text_of(UNIT);
    let wanted = ["CAP_SYS_ADMIN CAP_SYS_RESOURCE"];
    assert_eq!(values(&unit, "CapabilityBoundingSet"), wanted);
    assert_eq!(values(&unit, "AmbientCapabilities"), wanted);
    assert_eq!(values(&unit, "NoNewPrivileges"), ["yes"]);
    assert_eq!(values(&unit, "MountFlags"), ["slave"]);
}

/// System calls of a filter: names, groups, and with a tilde what is taken out again.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut group = String::new();
    for line in analyze(&["syscall-filter"]).success().lines() {
        match line.trim() {
            name if line.starts_with('@') => name.clone_into(&mut group),
            name if name.is_empty() || name.starts_with('#') => {}
            name => groups.entry(group.clone()).or_default().push(name.to_owned()),
        }
    }
    let mut allowed = BTreeSet::new();
    for filter in values(unit, "SystemCallFilter") {
        let (is_taken_out, words) = filter.strip_prefix('~').map_or((false, filter), |words| (true, words));
        let mut left: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        while let Some(word) = left.pop() {
            match groups.get(&word) {
                Some(members) => left.extend(members.iter().cloned()),
                None if is_taken_out => drop(allowed.remove(&word)),
                None => drop(allowed.insert(word)),
            }
        }
    }
    allowed
}

fn serve(home: &Home) -> Command {
    home.command(["serve", "--pool", &home.text("pool"), "--key-file", &home.text("pool.key")])
}

/// A command as an argument of another program.
fn under(program: &str, options: &[&str], command: &Command) -> Command {
    let mut whole = Command::new(program);
    whole.args(options).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => whole.env(name, value),
            None => whole.env_remove(name),
        };
    }
    whole
}

/// Everything but the driver's own, which are ioctl and io_uring: a pool, volumes, snapshots, NBD, a clean end.
#[test]
fn daemon_needs_no_system_call_that_the_unit_forbids() {
    if !are_there(&["systemd-analyze", "strace", "qemu-io"]) {
        return;
    }
    let home = Home::with_pool();
    let trace = home.text("trace");
    // The daemon is the child, and the tracer its child.
    let options = ["-D", "-f", "-qq", "-e", "signal=none", "-o", &trace];
    let daemon = Serving::start(under("strace", &options, &serve(&home)));
    home.run(["create", "vol1", "--size", "16M"]).success();
    let changes = ["-f", "raw", "-c", "write -f 0 1M", "-c", "discard 0 64k", "-c", "flush", "-c", "read 0 1M"];
    clients::run("qemu-io", changes.iter().chain([&unix_uri(&home, "vol1").as_str()]));
    home.run(["snapshot", "vol1"]).success();
    home.run(["rm", "vol1", "--now"]).success();
    daemon.stop();

    let allowed = allowed(&text_of(UNIT));
    assert!(allowed.contains("io_uring_enter") && !allowed.contains("mount"), "{allowed:?}");
    let trace = fs::read_to_string(&trace).expect("strace wrote it");
    let called: BTreeSet<&str> = trace
        .lines()
        // PID NAME(..., or PID <... NAME resumed>...
        .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('))
        .map(|(name, _)| name)
        .collect();
    assert!(called.contains("execve") && called.len() > 30, "{called:?}");
    let forbidden: Vec<&&str> = called.iter().filter(|name| !allowed.contains(**name)).collect();
    assert!(forbidden.is_empty(), "the unit forbids {forbidden:?}");
}

#[test]
fn systemd_is_told_when_clients_can_connect_and_when_the_daemon_ends() {
    let home = Home::with_pool();
    let path = home.path("notify");
    let listener = UnixDatagram::bind(&path).expect("a short path");
    listener.set_read_timeout(Some(WAIT_MAX)).expect("it can be");
    let told = || {
        let mut memory = [0; 64];
        let len = listener.recv(&mut memory).expect("the daemon tells");
        String::from_utf8_lossy(&memory[..len]).into_owned()
    };
    let mut command = serve(&home);
    command.env("NOTIFY_SOCKET", &path);
    let daemon = Serving::start(command);
    assert_eq!(told(), "READY=1");
    daemon.stop();
    assert_eq!(told(), "STOPPING=1");
}
