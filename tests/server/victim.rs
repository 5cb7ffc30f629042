//! A daemon that is to be killed: what it said and when, and its sudden end at any moment, also before it is ready.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{WAIT_MAX, send_signal};

/// What its log says of checkpoints.
pub const CHECKPOINT_BEGINS: &str = "checkpoint begins";
/// What its log says at a checkpoint's end.
pub const CHECKPOINT_DONE: &str = "checkpoint done";
/// Log of checkpoints and of what goes wrong, nothing else.
const LOG_FILTER: &str = "warn,rok_blk::pool::checkpoint=debug";

/// A daemon under test. Dropped, it is killed.
pub struct Victim {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    said: Vec<String>,
}

/// What came before the end of a daemon.
pub struct Obituary {
    /// All lines of its stderr.
    pub said: Vec<String>,
}

impl Victim {
    /// Starts it; it is not ready yet.
    pub fn spawn(mut command: Command) -> Self {
        command.env("ROK_LOG", LOG_FILTER).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().expect("the program starts");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, started, lines, said: Vec::new() }
    }

    /// Waits until it says that it is ready; how long that took since its start.
    ///
    /// # Panics
    /// If it ends before.
    #[track_caller]
    pub fn wait_until_ready(&mut self) -> Duration {
        assert!(self.wait_for("Ready.", WAIT_MAX), "it did not become ready; it said {:#?}", self.said);
        self.started.elapsed()
    }

    /// Waits until it is ready, or has ended by itself: then its exit code and what it said.
    pub fn ready_or_refused(mut self) -> Result<Self, (Option<i32>, String)> {
        if self.wait_for("Ready.", WAIT_MAX) {
            return Ok(self);
        }
        // The pipe is closed, or the time is over; then it is to be killed, and has no exit code.
        let _was_killed = self.started.elapsed() >= WAIT_MAX && self.child.kill().is_ok();
        let status = self.child.wait().expect("it can be waited for");
        Err((status.code(), self.said.join("\n")))
    }

    /// Waits for a line that contains `words`; false when the time is over or the daemon ended first.
    pub fn wait_for(&mut self, words: &str, time_max: Duration) -> bool {
        let deadline = Instant::now() + time_max;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let is_found = line.contains(words);
                    self.said.push(line);
                    if is_found {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// What it said, if it has ended by itself.
    pub fn refusal(&mut self) -> Option<String> {
        let status = self.child.try_wait().expect("it can be waited for")?;
        self.said.extend(self.lines.iter());
        Some(format!("it ended by itself with {status}; it said {:#?}", self.said))
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        send_signal(self.child.id(), libc::SIGTERM);
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// If it does not end well.
    #[track_caller]
    pub fn finish(mut self) {
        self.terminate();
        let end = Instant::now() + WAIT_MAX;
        // Nobody says this: until its pipe is closed, or the time is over.
        let _has_said = self.wait_for("\n", WAIT_MAX);
        let _was_killed = Instant::now() >= end && self.child.kill().is_ok();
        let status = self.child.wait().expect("it can be waited for");
        assert!(status.success(), "it ended with {status}; it said {:#?}", self.said);
    }

    /// Ends it as a crash does, if it has not ended by itself.
    ///
    /// # Panics
    /// If it had ended otherwise than cleanly.
    #[track_caller]
    pub fn kill(mut self) -> Obituary {
        self.child.kill().expect("it was not waited for yet");
        let status = self.child.wait().expect("it can be waited for");
        // The channel closes when the pipe does, which is when the process has ended.
        while let Ok(line) = self.lines.recv_timeout(WAIT_MAX) {
            self.said.push(line);
        }
        let said = std::mem::take(&mut self.said);
        let is_killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL);
        assert!(is_killed || status.success(), "it ended by itself with {status}; it said {said:#?}");
        Obituary { said }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _was_killed = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}

impl Obituary {
    /// Whether it got ready.
    pub fn was_ready(&self) -> bool {
        self.said.iter().any(|line| line.starts_with("Ready."))
    }

    /// Whether a checkpoint had begun and was not done.
    pub fn was_inside_checkpoint(&self) -> bool {
        let mut events = self.said.iter().rev();
        let last = events.find(|line| line.contains(CHECKPOINT_BEGINS) || line.contains(CHECKPOINT_DONE));
        last.is_some_and(|line| line.contains(CHECKPOINT_BEGINS))
    }
}
