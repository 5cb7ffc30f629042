//! A Debian system that lives on a volume: copied in over NBD, booted, killed under, and checked.
//!
//! The image and what the guest does are in `boot-image.sh` and `boot/exercise`. The machine is emulated, so that no
//! KVM is needed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::clients::{self, copy, sha256, unix_socket, unix_uri};
use crate::support::{Home, Serving, finish_within, skip};

/// Only ends what hangs: one boot with its work takes a minute on an idle machine.
const BOOT_MAX: Duration = Duration::from_secs(720);
/// Downloads and the making of the image, the first time; the script bounds its own steps below this.
const IMAGE_MAX: Duration = Duration::from_secs(900);
/// Holds the image, what the guest writes and the copies that are not free before the next checkpoint.
const POOL_SIZE: &str = "1G";
/// A prime, so that it is not by chance what something else counts.
const SEED: u32 = 7919;
/// The guest has this many lines `wrote N` to say; the daemon is killed after some of them.
const FILES_WRITTEN: u32 = 12;
const KILLED_AFTER: [u32; 3] = [2, 5, 9];
/// How long the guest's disk waits for a daemon that is gone, before its requests fail.
const RECONNECT_SECONDS: u32 = 60;
/// What boot-image.sh says where it cannot work.
const EXIT_SKIPPED: i32 = 77;

#[test]
fn a_debian_on_a_volume_boots_writes_and_survives_kills() {
    let Some(image) = debian_image() else { return };
    let home = Home::new();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    let serving = home.serve(&[]);
    let size = fs::metadata(image.join("image.raw")).expect("the image").len();
    home.run(["create", "vol1", "--size", &size.to_string()]).success();

    let uri = unix_uri(&home, "vol1");
    let untouched = home.path("untouched.raw");
    copy(image.join("image.raw"), &uri);
    copy(&uri, &untouched);
    assert_eq!(sha256(&untouched), sha256(&image.join("image.raw")));
    fs::remove_file(&untouched).expect("the copy");

    // The way that people write it down, without a reconnect.
    let drive = format!("file={uri},format=raw,if=virtio,cache=none,discard=unmap");
    let mut machine = Machine::boot(&image, 1, &["-drive", &drive]);
    machine.wait_for("GUEST done boot 1");
    machine.wait_for_power_off();
    check_file_system(&home, FILES_WRITTEN);

    let serving = boot_and_kill(&home, &image, serving);
    check_file_system(&home, 2 * FILES_WRITTEN);
    serving.stop();
}

/// Boots again; whenever the guest has come to the next of `KILLED_AFTER`, the daemon is killed and started again. The
/// one that serves at the end.
fn boot_and_kill(home: &Home, image: &Path, serving: Serving) -> Serving {
    let socket = unix_socket(home);
    let disk = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export=vol1,reconnect-delay={RECONNECT_SECONDS},\
         discard=unmap,cache.direct=on",
        socket.display()
    );
    let mut machine = Machine::boot(image, 2, &["-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk"]);
    machine.wait_for(&format!("GUEST verified {FILES_WRITTEN} files"));
    let mut serving = serving;
    for count in KILLED_AFTER {
        machine.wait_for(&format!("GUEST wrote {count} of {FILES_WRITTEN}"));
        serving.kill();
        serving = home.serve(&[]);
    }
    machine.wait_for(&format!("GUEST verified {} files", 2 * FILES_WRITTEN));
    machine.wait_for("GUEST done boot 2");
    machine.wait_for_power_off();
    serving
}

/// Copies the volume out; its file system must be clean without its journal, and hold what the guest says it wrote.
#[track_caller]
fn check_file_system(home: &Home, file_count: u32) {
    let copied = home.path("copied.raw");
    copy(unix_uri(home, "vol1"), &copied);
    check_is_clean(&clients::run("e2fsck", ["-fn".as_ref(), copied.as_os_str()]));

    let files = home.path("files");
    fs::create_dir(&files).expect("a directory");
    let dump = format!("rdump /var/lib/exercise {}", files.display());
    clients::run("debugfs", ["-R".as_ref(), dump.as_ref(), copied.as_os_str()]);
    let sums = files.join("exercise/sums");
    let sums = fs::read_to_string(sums).expect("the sums of what the guest wrote");
    assert_eq!(sums.lines().count(), usize::try_from(file_count).expect("a small number"), "{sums}");
    let directory = files.join("exercise");
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").expect("a sum and a name");
        assert_eq!(sha256(&directory.join(name)), sum, "{name}");
    }

    fs::remove_dir_all(&files).expect("the directory");
    fs::remove_file(&copied).expect("the copy");
}

/// What e2fsck printed must be its passes and the summary. It exits with 0 as well after it has printed wrong counts, or
/// has left a journal alone that should be replayed.
#[track_caller]
fn check_is_clean(printed: &str) {
    let beginnings = ["Pass 1:", "Pass 2:", "Pass 3:", "Pass 4:", "Pass 5:", "debian: "];
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), beginnings.len(), "{printed}");
    for (line, beginning) in lines.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "{printed}");
    }
}

/// The directory with the image, its kernel and initramfs; none if a need is missing.
#[track_caller]
fn debian_image() -> Option<PathBuf> {
    if !clients::are_there(&["qemu-system-x86_64", "nbdcopy", "e2fsck", "debugfs"]) {
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/boot-image.sh");
    let made = finish_within(Command::new(script), IMAGE_MAX);
    if made.code == Some(EXIT_SKIPPED) {
        skip(made.stderr.trim().trim_start_matches("SKIP "));
        return None;
    }
    let printed = made.success();
    Some(PathBuf::from(printed.lines().last().expect("the directory is printed")))
}

/// An emulated machine. Dropped, it is killed.
struct Machine {
    child: Child,
    lines: Receiver<String>,
    /// All that its console showed so far.
    console: Vec<String>,
    deadline: Instant,
}

impl Machine {
    /// Boots the Debian on the disk that `disk` describes, for the `boot`-th time.
    fn boot(image: &Path, boot: u32, disk: &[&str]) -> Self {
        // A kernel that panics leaves the machine (panic=-1 with -no-reboot), so that a failure is seen at once. norandmaps, -erms
        // and -fsrm: see tests/kernel/vm.sh.
        let kernel_line = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr norandmaps tsc=reliable random.trust_cpu=on \
             exercise.boot={boot} exercise.seed={SEED}"
        );
        let mut command = clients::command("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", "512"])
            .args(["-machine", "q35", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-monitor", "none"])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initramfs"))
            .args(["-append", &kernel_line])
            .args(disk)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the machine starts");
        let console = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in console.split(b'\n') {
                // The console may show bytes of any kind.
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, console: Vec::new(), deadline: Instant::now() + BOOT_MAX }
    }

    /// Waits for a line that begins with `beginning`.
    #[track_caller]
    fn wait_for(&mut self, beginning: &str) {
        loop {
            let Some(line) = self.next_line() else {
                let status = self.child.wait().expect("it can be waited for");
                panic!("the machine ended ({status}) and never said {beginning:?}, but {:#?}", self.console);
            };
            assert!(!line.contains("GUEST FAILED"), "{:#?}", self.console);
            if line.starts_with(beginning) {
                return;
            }
        }
    }

    /// The next line of the console, which is kept; none when the machine is off.
    #[track_caller]
    fn next_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.console.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the machine takes too long: {:#?}", self.console),
        }
    }

    /// Waits until the guest has shut down and the machine is off.
    #[track_caller]
    fn wait_for_power_off(mut self) {
        while self.next_line().is_some() {}
        let status = self.child.wait().expect("it can be waited for");
        assert_eq!(status.code(), Some(0), "{:#?}", self.console);
        let is_off = self.console.iter().any(|line| line.contains("reboot: Power down"));
        assert!(is_off, "the guest did not shut down: {:#?}", self.console);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _was_killed = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}
