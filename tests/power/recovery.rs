//! What happens behind a cut: the file systems recover, the real program opens the pool, and everything is read.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use aws_lc_rs::digest::{SHA256, digest};

use crate::claims::{Expected, Files, check_slots};
use crate::cut::Images;
use crate::{Context as _, Result, Run};

/// No program takes that long, unless it hangs.
const SECONDS_MAX: &str = "120";

/// A program that has ended.
pub(crate) struct Ended {
    command: String,
    status: ExitStatus,
    said: String,
}

impl Ended {
    pub(crate) fn success(self) -> Result<String> {
        self.code_of(&[0])
    }

    fn code_of(self, codes: &[i32]) -> Result<String> {
        if self.status.code().is_some_and(|code| codes.contains(&code)) {
            return Ok(self.said);
        }
        Err(format!("{} ended with {}:\n{}", self.command, self.status, self.said))
    }
}

/// Runs a program to its end.
pub(crate) fn run<'a>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<Ended> {
    let mut command = Command::new("timeout");
    command.arg(SECONDS_MAX).arg(program).args(arguments).stdin(Stdio::null());
    let told = format!("{command:?}");
    // Programs of administrators are not on everybody's path.
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let output = command.output().context("timeout")?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(Ended { command: told, status: output.status, said })
}

fn run_words(program: impl AsRef<OsStr>, words: &[&OsStr]) -> Result<Ended> {
    run(program, words.iter().copied())
}

/// How much had to be there, and was.
pub(crate) struct Found {
    pub files: usize,
    pub snapshots: usize,
}

/// Recovers the disks of one cut.
pub(crate) struct Recovery<'a> {
    program: &'a Path,
    place: &'a Path,
}

impl<'a> Recovery<'a> {
    pub(crate) fn new(run: &'a Run, place: &'a Path) -> Self {
        Self { program: &run.program, place }
    }

    /// Everything that must hold, in the order in which a machine that boots comes to it.
    pub(crate) fn verify(&self, images: &Images, expected: &Expected) -> Result<Found> {
        recover_ext4(&images.meta).context("the file system of meta/")?;
        let pool = self.fetch_pool(images)?;
        self.check(&pool).context("before it was opened")?;
        self.read_volumes(&pool, expected)?;
        self.check(&pool).context("after it was closed")?;
        let volume = self.files_of("vol1.img")?;
        has_files(&volume, &expected.files)?;
        let slots = fs::read(volume.join("slots")).context("the slots")?;
        check_slots(&slots, &expected.slots)?;
        let snapshots = expected.snapshot.iter().len();
        if let Some((name, files)) = &expected.snapshot {
            let snapshot = self.files_of("snapshot.img").context(name)?;
            has_files(&snapshot, files).context(name)?;
        }
        Ok(Found { files: expected.files.len(), snapshots })
    }

    /// The pool's directory, with the data's disk as its device.
    fn fetch_pool(&self, images: &Images) -> Result<PathBuf> {
        let pool = self.place.join("pool");
        let _gone = fs::remove_dir_all(&pool);
        for command in [
            format!("rdump /pool {}", self.place.display()),
            format!("dump -p /pool.key {}", self.place.join("pool.key").display()),
        ] {
            run_words("debugfs", &["-R".as_ref(), command.as_ref(), images.meta.as_ref()])?.success()?;
        }
        // The daemon would attach on this machine what was attached on that one.
        let attachments = pool.join("attachments.json");
        let text = fs::read(&attachments).context("what is attached is forgotten")?;
        serde_json::from_slice::<serde_json::Value>(&text).context("attachments.json")?;
        fs::remove_file(&attachments).context("attachments.json")?;
        let device = pool.join("data-0");
        fs::remove_file(&device).context("the pool's device")?;
        symlink(&images.data, &device).context("the pool's device")?;
        Ok(pool)
    }

    fn key(&self) -> PathBuf {
        self.place.join("pool.key")
    }

    fn check(&self, pool: &Path) -> Result<()> {
        let key = self.key();
        let words = ["check".as_ref(), "--pool".as_ref(), pool.as_ref(), "--key-file".as_ref(), key.as_os_str()];
        run_words(self.program, &words)?.success().map(drop)
    }

    /// A daemon serves the pool, and clients read the volume and the newest snapshot in full.
    fn read_volumes(&self, pool: &Path, expected: &Expected) -> Result<()> {
        let daemon = Daemon::start(self, pool)?;
        self.read_volume("vol1", "vol1.img")?;
        if let Some((name, _)) = &expected.snapshot {
            self.read_volume(name, "snapshot.img")?;
        }
        daemon.stop()
    }

    fn read_volume(&self, name: &str, file: &str) -> Result<()> {
        let target = self.place.join(file);
        let _gone = fs::remove_file(&target);
        let source = format!("nbd+unix:///{name}?socket={}", self.place.join("nbd").display());
        run_words("nbdcopy", &[source.as_ref(), target.as_ref()])?.success().map(drop)
    }

    /// The files of a disk image, once its file system has recovered.
    fn files_of(&self, image: &str) -> Result<PathBuf> {
        let image = self.place.join(image);
        recover_ext4(&image).context("the volume's file system")?;
        let target = self.place.join("files");
        let _gone = fs::remove_dir_all(&target);
        fs::create_dir(&target).context(target.display())?;
        let command = format!("rdump / {}", target.display());
        run_words("debugfs", &["-R".as_ref(), command.as_ref(), image.as_ref()])?.success()?;
        Ok(target)
    }
}

/// The file system replays its journal, and needs nothing else.
fn recover_ext4(image: &Path) -> Result<()> {
    let said = run_words("e2fsck", &["-f".as_ref(), "-p".as_ref(), image.as_ref()])?.code_of(&[0, 1])?;
    // Not a repair: what the kernel does as well when it mounts a file system that was not unmounted.
    let is_usual = |line: &str| {
        let usual =
            ["recovering journal", "Clearing orphaned inode", "Setting free ", " files (", "Truncating orphaned inode"];
        line.is_empty() || usual.iter().any(|words| line.contains(words))
    };
    if let Some(line) = said.lines().find(|line| !is_usual(line)) {
        return Err(format!("e2fsck has repaired more than its journal: {line}"));
    }
    run_words("e2fsck", &["-f".as_ref(), "-n".as_ref(), image.as_ref()])?.success().map(drop)
}

fn has_files(directory: &Path, files: &Files) -> Result<()> {
    for (name, hash) in files {
        let content = fs::read(directory.join(name)).context(format!("{name}, which was synced"))?;
        let its_hash: String = digest(&SHA256, &content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if its_hash != *hash {
            return Err(format!("{name}, which was synced, has another content ({} bytes)", content.len()));
        }
    }
    Ok(())
}

/// A daemon that serves.
struct Daemon {
    child: Child,
    said: Option<thread::JoinHandle<String>>,
}

impl Daemon {
    fn start(recovery: &Recovery, pool: &Path) -> Result<Self> {
        let mut command = Command::new("timeout");
        // In the foreground it passes a signal on once; otherwise twice, and the second one means "at once".
        command
            .args(["--foreground", "--kill-after=5", SECONDS_MAX])
            .arg(recovery.program)
            .args(["serve", "--lanes", "1", "--pool"]);
        command.arg(pool).arg("--key-file").arg(recovery.key());
        command.arg("--socket").arg(recovery.place.join("control"));
        command.arg("--nbd-unix").arg(recovery.place.join("nbd"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("the daemon")?;
        let mut messages = BufReader::new(child.stderr.take().ok_or("it has messages")?);
        let mut said = String::new();
        while !said.ends_with("Ready.\n") {
            if messages.read_line(&mut said).context("the daemon's messages")? == 0 {
                let status = child.wait().context("the daemon")?;
                return Err(format!("the daemon does not start ({status}):\n{said}"));
            }
        }
        // Nobody else reads them: a pipe that is full would stop the daemon.
        let said = thread::spawn(move || {
            let _end = messages.read_to_string(&mut said);
            said
        });
        Ok(Self { child, said: Some(said) })
    }

    /// As systemd does; it must end well.
    fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        let said = self.said.take().map(thread::JoinHandle::join);
        let said = said.transpose().map_err(|_| "a thread has panicked".to_owned())?.unwrap_or_default();
        if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}:\n{said}")) }
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let id = self.child.id().to_string();
        run_words("kill", &["-TERM".as_ref(), id.as_ref()])?.success()?;
        self.child.wait().context("the daemon")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that was stopped is gone; of another one, how it ends says nothing more.
        if self.said.is_some() {
            let _status = self.end();
        }
    }
}
