//! Starting the program, waiting for what it says, and talking to it. Every wait is bounded.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine; reaching it fails the test.
pub const WAIT_MAX: Duration = Duration::from_secs(300);
/// Small enough to be filled with zeros in no time, large enough for every lane's reserve.
pub const POOL_SIZE: &str = "64M";
/// What opens a pool, and what does not.
pub const PASSPHRASE: &str = "correct horse battery staple";
pub const OTHER_PASSPHRASE: &str = "wrong horse battery staple";

/// What a command came to.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its stdout; it must have succeeded.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Its stderr; it must have failed with `code`, said something, and printed no data.
    #[track_caller]
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(!self.stderr.is_empty(), "{self:?}");
        self.stderr
    }

    /// Its stdout as JSON; it must have succeeded.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.success()).expect("stdout is JSON")
    }
}

/// A user's directories, and the program run in them.
pub struct Home {
    directory: TempDir,
}

impl Home {
    /// Empty ones.
    pub fn new() -> Self {
        let home = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(home.path("run")).expect("a runtime directory");
        home
    }

    /// With a pool `pool`, whose key is in `pool.key`.
    pub fn with_pool() -> Self {
        let home = Self::new();
        home.create_pool("pool");
        home
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Creates the pool `name` with the new key `name.key`.
    #[track_caller]
    pub fn create_pool(&self, name: &str) {
        self.create_pool_of(name, POOL_SIZE);
    }

    /// The same, of a size.
    #[track_caller]
    pub fn create_pool_of(&self, name: &str, size: &str) {
        let (pool, key) = (self.text(name), self.text(&format!("{name}.key")));
        self.run(["pool", "create", &pool, "--size", size, "--key-file", &key, "--generate-key"]).success();
    }

    /// The program with these arguments and this home's directories.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rok-blk"));
        command
            .args(arguments)
            .env_remove("ROK_SOCKET")
            .env_remove("ROK_ALLOW_CORE")
            .env("HOME", self.directory.path())
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        finish(self.command(arguments))
    }

    /// Serves the pool `pool` and a free TCP port, with further arguments.
    #[track_caller]
    pub fn serve(&self, further: &[&str]) -> Serving {
        let (pool, key) = (self.text("pool"), self.text("pool.key"));
        let arguments = ["serve", "--pool", &pool, "--key-file", &key, "--nbd-listen", "127.0.0.1:0"];
        Serving::start(self.command(arguments.iter().chain(further)))
    }

    /// Checks the pool `pool`, which nobody serves; there must be no difference.
    #[track_caller]
    pub fn check(&self) {
        self.run(["check", "--pool", &self.text("pool"), "--key-file", &self.text("pool.key")]).success();
    }

    /// Writes a passphrase to a file that only its owner can read; the file's path.
    pub fn passphrase_file(&self, name: &str, passphrase: &str) -> String {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(self.path(name));
        writeln!(file.expect("a file"), "{passphrase}").expect("it takes a line");
        self.text(name)
    }

    /// With a pool `pool` that a passphrase opens, and the passphrase's file.
    pub fn with_passphrase() -> (Self, String) {
        let home = Self::new();
        let file = home.passphrase_file("passphrase", PASSPHRASE);
        let pool = home.text("pool");
        home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--passphrase-file", &file]).success();
        (home, file)
    }

    /// Serves the pool `pool` with these options.
    pub fn serve_with(&self, options: &[&str]) -> Serving {
        Serving::start(self.command(["serve", "--pool", &self.text("pool")].iter().chain(options)))
    }

    /// Tries to serve the pool `pool` with these options, which must not work.
    pub fn serve_fails(&self, options: &[&str]) -> Finished {
        self.run(["serve", "--pool", &self.text("pool")].iter().chain(options))
    }

    /// Where the program's control socket is.
    pub fn socket(&self) -> PathBuf {
        self.path("run/rok-blk/control.sock")
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: Command) -> Finished {
    finish_within(command, WAIT_MAX)
}

/// Runs a command that may take longer, or must not take as long, as others.
#[track_caller]
pub fn finish_within(mut command: Command, duration_max: Duration) -> Finished {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let process_id = child.id();
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(duration_max) else {
        send_signal(process_id, libc::SIGKILL);
        panic!("{command:?} did not end");
    };
    let output = output.expect("the program can be waited for");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// A program that serves. Dropped, it is killed.
pub struct Serving {
    child: Child,
    messages: Receiver<String>,
    /// What it said on stderr so far.
    pub said: Vec<String>,
}

impl Serving {
    /// Starts it and waits until it says that it is ready.
    #[track_caller]
    pub fn start(command: Command) -> Self {
        Self::start_until(command, "Ready.")
    }

    /// Starts it and waits for a message that starts with `beginning`.
    #[track_caller]
    pub fn start_until(mut command: Command, beginning: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let messages = read_lines(child.stderr.take().expect("stderr is a pipe"));
        let mut serving = Self { child, messages, said: Vec::new() };
        serving.wait_for(beginning);
        serving
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a message that starts with `beginning`.
    #[track_caller]
    pub fn wait_for(&mut self, beginning: &str) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.messages.recv_timeout(left) else {
                panic!("it never said {beginning:?}, but {:#?}", self.said);
            };
            let is_found = line.starts_with(beginning);
            self.said.push(line);
            if is_found {
                return;
            }
        }
    }

    pub fn signal(&self, signal: i32) {
        send_signal(self.process_id(), signal);
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it can be waited for");
    }

    /// Waits for its end: how it ended, and all that it printed and said.
    #[track_caller]
    pub fn wait(mut self) -> (ExitStatus, String, Vec<String>) {
        let deadline = Instant::now() + WAIT_MAX;
        // The channel closes when stderr does, which is when the process ends.
        while let Ok(line) = self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.said.push(line);
        }
        assert!(Instant::now() < deadline, "it did not end; it said {:#?}", self.said);
        let status = self.child.wait().expect("it can be waited for");
        let mut stdout = String::new();
        self.child.stdout.take().expect("a pipe").read_to_string(&mut stdout).expect("stdout is UTF-8");
        (status, stdout, std::mem::take(&mut self.said))
    }

    /// Sends SIGTERM; it must end cleanly. What it printed.
    #[track_caller]
    pub fn stop(self) -> String {
        self.signal(libc::SIGTERM);
        let (status, stdout, said) = self.wait();
        assert_eq!(status.code(), Some(0), "{said:#?}");
        stdout
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _was_killed = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}

fn read_lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

pub fn send_signal(process_id: u32, signal: i32) {
    let process_id = i32::try_from(process_id).expect("process ids are positive integers");
    // SAFETY: takes integers only; the process is a child that was not waited for yet, so the id is still its own.
    assert_eq!(unsafe { libc::kill(process_id, signal) }, 0, "the child takes signals");
}

/// An answer of the control API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

/// Sends a request over the control socket; an empty answer body is null, and text a string.
#[track_caller]
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    let written = write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).map(|_| ());
    // A daemon that refuses a body answers and closes before it has read all of it.
    for (result, refused) in [(written, ErrorKind::BrokenPipe), (read, ErrorKind::ConnectionReset)] {
        assert!(result.as_ref().err().is_none_or(|error| error.kind() == refused), "{result:?}");
    }
    let answer = String::from_utf8(answer).expect("the answer is UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status line").parse().expect("a status");
    let body = match body {
        "" => Value::Null,
        text if head.contains("content-type: text/plain") => text.into(),
        json => serde_json::from_str(json).expect("the body is JSON"),
    };
    Answer { status, head: head.to_owned(), body }
}

/// The port of the TCP listener among `status`'s listeners.
#[track_caller]
pub fn tcp_address(home: &Home) -> SocketAddr {
    let status = home.run(["status", "--json"]).json();
    let listeners = status["listeners"].as_array().expect("listeners").clone();
    let uri = listeners.iter().filter_map(Value::as_str).find(|uri| uri.starts_with("nbd://")).expect("a TCP listener");
    uri.trim_start_matches("nbd://").trim_end_matches('/').parse().expect("an address")
}

/// Opens `export` over NBD (fixed newstyle, `NBD_OPT_EXPORT_NAME`) and returns the connection and the export's size.
/// When it returns, the daemon has the volume open for it.
#[track_caller]
pub fn open_export(address: SocketAddr, export: &str) -> (TcpStream, u64) {
    const GREETING_LEN: usize = 18;
    // Size and flags; without NBD_FLAG_C_NO_ZEROES 124 zeros follow.
    const EXPORT_LEN: usize = 10 + 124;
    const CLIENT_FIXED_NEWSTYLE: u32 = 1;
    const OPT_EXPORT_NAME: u32 = 1;
    let mut stream = TcpStream::connect(address).expect("the daemon listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    let mut greeting = [0; GREETING_LEN];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    let mut option = CLIENT_FIXED_NEWSTYLE.to_be_bytes().to_vec();
    option.extend(b"IHAVEOPT");
    option.extend(OPT_EXPORT_NAME.to_be_bytes());
    option.extend(u32::try_from(export.len()).expect("a short name").to_be_bytes());
    option.extend(export.as_bytes());
    stream.write_all(&option).expect("the daemon reads");
    let mut answer = [0; EXPORT_LEN];
    stream.read_exact(&mut answer).expect("the export is there");
    let size = u64::from_be_bytes(answer[..8].try_into().expect("eight bytes"));
    (stream, size)
}

/// Says why a test cannot run here; with `ROK_REQUIRE_ALL=1` that is a failure.
#[expect(clippy::print_stdout, reason = "the count of skipped tests reads it")]
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var_os("ROK_REQUIRE_ALL").is_none_or(|value| value != "1"), "must not be skipped: {reason}");
    println!("SKIPPED: {reason}");
}
