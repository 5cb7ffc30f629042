//! Calls without an io_uring: each is tried without waiting, and poll(2) waits for the files of those that would block.
//!
//! It keeps nothing about a file between calls, so it cannot be out of step with one. A lane has few: its connections,
//! its listeners and its alarm.

#![expect(unsafe_code, reason = "system calls on memory and files that the lane's calls name")]

use super::{Call, CallEnd, Submission};
use crate::lane::limits::TICK_PERIOD;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// The calls of a lane that have not ended.
#[derive(Default)]
pub(in crate::lane) struct Readiness {
    /// Those that wait for a file; bounded by what lanes have open, three calls for a connection.
    pending: Vec<Submission>,
    /// What poll(2) is asked, in the order of `pending`.
    polled: Vec<libc::pollfd>,
    /// The user data of a tick, and when it is over.
    tick: Option<(u64, Instant)>,
}

impl Readiness {
    /// Takes calls, does what can be done, waits if the lane `is_idle`, and appends what has ended.
    ///
    /// # Errors
    /// The kernel refuses to poll.
    pub(in crate::lane) fn turn(
        &mut self,
        submissions: &mut VecDeque<Submission>,
        is_idle: bool,
        ends: &mut Vec<CallEnd>,
    ) -> io::Result<()> {
        for submission in submissions.drain(..) {
            self.begin(submission, ends);
        }
        let time_max = if is_idle && ends.is_empty() { self.time_left() } else { Some(Duration::ZERO) };
        self.poll(time_max)?;
        self.finish(ends);
        Ok(())
    }

    fn begin(&mut self, submission: Submission, ends: &mut Vec<CallEnd>) {
        let Submission { user_data, call } = submission;
        match call {
            Call::Tick => {
                assert!(self.tick.is_none(), "a lane has one tick at a time");
                self.tick = Some((user_data, Instant::now() + TICK_PERIOD));
            }
            Call::Cancel { user_data: cancelled } => {
                let before_count = self.pending.len();
                self.pending.retain(|submission| submission.user_data != cancelled);
                let is_found = self.pending.len() < before_count;
                if is_found {
                    ends.push(last(cancelled, -libc::ECANCELED));
                }
                ends.push(last(user_data, if is_found { 0 } else { -libc::ENOENT }));
            }
            // Most sockets have room.
            Call::Send { .. } => match attempt(call) {
                Some(result) => ends.push(last(user_data, result)),
                None => self.pending.push(submission),
            },
            // Most have nothing yet.
            Call::Receive { .. } | Call::ReadAlarm { .. } | Call::AwaitHangup { .. } => self.pending.push(submission),
            Call::Accept { listener, .. } => match set_nonblocking(listener) {
                Ok(()) => self.pending.push(submission),
                Err(error) => ends.push(last(user_data, -error.raw_os_error().unwrap_or(libc::EIO))),
            },
        }
    }

    /// Until the tick is over; `None` without one.
    fn time_left(&self) -> Option<Duration> {
        self.tick.map(|(_, until)| until.saturating_duration_since(Instant::now()))
    }

    /// Waits until a file is ready, or the time is over (`None`: no bound), or the thread is interrupted.
    fn poll(&mut self, time_max: Option<Duration>) -> io::Result<()> {
        self.polled.clear();
        self.polled.extend(self.pending.iter().map(|submission| {
            let (fd, events) = awaited(submission.call);
            libc::pollfd { fd, events, revents: 0 }
        }));
        let time = time_max.map(|time| libc::timespec {
            tv_sec: i64::try_from(time.as_secs()).expect("a tick is short"),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let count = libc::nfds_t::try_from(self.polled.len()).expect("a lane has few files");
        // SAFETY: the array has `count` entries and is ours; the time and the absent signal mask outlive the call.
        if unsafe { libc::ppoll(self.polled.as_mut_ptr(), count, time, std::ptr::null()) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        self.polled.iter_mut().for_each(|polled| polled.revents = 0);
        Ok(())
    }

    /// Ends the calls whose files are ready, and the tick.
    fn finish(&mut self, ends: &mut Vec<CallEnd>) {
        let mut polled = self.polled.iter();
        self.pending.retain(|submission| {
            // Whatever happened to the file, the call itself says it best.
            let is_ready = polled.next().is_some_and(|polled| polled.revents != 0);
            let Some(result) = is_ready.then(|| attempt(submission.call)).flatten() else { return true };
            let is_going_on = result >= 0 && matches!(submission.call, Call::Accept { is_many: true, .. });
            ends.push(CallEnd { user_data: submission.user_data, result, is_going_on });
            is_going_on
        });
        if let Some((user_data, until)) = self.tick
            && until <= Instant::now()
        {
            self.tick = None;
            ends.push(last(user_data, -libc::ETIME));
        }
    }
}

fn last(user_data: u64, result: i32) -> CallEnd {
    CallEnd { user_data, result, is_going_on: false }
}

/// The file that a call waits for, and for what.
fn awaited(call: Call) -> (RawFd, libc::c_short) {
    match call {
        Call::Send { socket, .. } => (socket, libc::POLLOUT),
        Call::AwaitHangup { socket } => (socket, libc::POLLRDHUP),
        Call::Receive { socket: fd, .. } | Call::Accept { listener: fd, .. } | Call::ReadAlarm { alarm: fd, .. } => {
            (fd, libc::POLLIN)
        }
        Call::Tick | Call::Cancel { .. } => unreachable!("these wait for no file"),
    }
}

/// Does a call now: its result as a ring would give it, or `None` if it would have to wait. A part counts as a result:
/// the connections ask for the rest.
fn attempt(call: Call) -> Option<i32> {
    let no_wait = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let result = match call {
        // SAFETY: the owner of the call keeps socket and memory, which nobody else uses, until its end, which is not
        // before this returns (see the head of `driver.rs`).
        Call::Receive { socket, memory, len, .. } => unsafe { libc::recv(socket, memory.cast(), len, no_wait) },
        // SAFETY: as above; message, vectors and what they point to are only read.
        Call::Send { socket, message } => unsafe { libc::sendmsg(socket, message, no_wait) },
        Call::Accept { listener, .. } => {
            let (address, len) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: the owner of the call keeps the listener; the kernel is to write no address.
            let socket = unsafe { libc::accept4(listener, address, len, libc::SOCK_CLOEXEC) };
            isize::try_from(socket).expect("a descriptor is small")
        }
        // SAFETY: as for a receive. It does not wait: poll said that there is something, and nobody else reads it.
        Call::ReadAlarm { alarm, memory } => unsafe { libc::read(alarm, memory.cast(), 8) },
        // That poll(2) says it is all there is to it.
        Call::AwaitHangup { .. } => 0,
        Call::Tick | Call::Cancel { .. } => unreachable!("these are never tried"),
    };
    if result >= 0 {
        return Some(i32::try_from(result).expect("buffers are far below 2 GiB"));
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => None,
        errno => Some(-errno.unwrap_or(libc::EIO)),
    }
}

/// So that an accept never waits for a client that was there and is gone.
fn set_nonblocking(listener: RawFd) -> io::Result<()> {
    // SAFETY: the owner of the accept keeps the listener open while the call is under way.
    let listener = unsafe { std::os::fd::BorrowedFd::borrow_raw(listener) };
    socket2::SockRef::from(&listener).set_nonblocking(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::sender::{Head, Reply, Sender};
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    const RECEIVE: u64 = 1;
    const SEND: u64 = 2;
    const ACCEPT: u64 = 3;
    const TICK: u64 = 4;
    const CANCEL: u64 = 5;
    const HANGUP: u64 = 6;
    /// More than a socket takes before somebody reads.
    const LONG: usize = 8 << 20;

    #[derive(Default)]
    struct Bench {
        readiness: Readiness,
        submissions: VecDeque<Submission>,
    }

    impl Bench {
        fn submit(&mut self, user_data: u64, call: Call) {
            self.submissions.push_back(Submission { user_data, call });
        }

        fn turn(&mut self, is_idle: bool) -> Vec<(u64, i32, bool)> {
            let mut ends = Vec::new();
            self.readiness.turn(&mut self.submissions, is_idle, &mut ends).expect("the kernel polls");
            ends.into_iter().map(|end| (end.user_data, end.result, end.is_going_on)).collect()
        }
    }

    fn receive(socket: &UnixStream, memory: &mut [u8]) -> Call {
        Call::Receive { socket: socket.as_raw_fd(), memory: memory.as_mut_ptr(), len: memory.len(), is_whole: true }
    }

    #[test]
    fn receive_waits_for_bytes_and_takes_what_is_there() {
        let (lane, mut client) = UnixStream::pair().expect("a pair");
        let (mut bench, mut memory) = (Bench::default(), [0; 8]);
        bench.submit(RECEIVE, receive(&lane, &mut memory));
        assert_eq!(bench.turn(false), [], "there is nothing yet, and a busy lane does not wait");
        let writer = std::thread::spawn(move || client.write_all(b"bytes").map(|()| client));
        assert_eq!(bench.turn(true), [(RECEIVE, 5, false)], "a part is a result");
        assert_eq!(&memory, b"bytes\0\0\0");
        assert!(bench.readiness.pending.is_empty());

        bench.submit(RECEIVE, receive(&lane, &mut memory));
        drop(writer.join().expect("no panic").expect("the lane reads"));
        assert_eq!(bench.turn(true), [(RECEIVE, 0, false)], "the client has gone");
    }

    #[test]
    fn hangup_is_told_although_nothing_is_read() {
        let (lane, mut client) = UnixStream::pair().expect("a pair");
        let mut bench = Bench::default();
        client.write_all(b"bytes").expect("room");
        bench.submit(HANGUP, Call::AwaitHangup { socket: lane.as_raw_fd() });
        assert_eq!(bench.turn(false), [], "bytes are no hangup");

        drop(client);

        assert_eq!(bench.turn(true), [(HANGUP, 0, false)]);
    }

    #[test]
    fn send_that_finds_no_room_goes_on_when_there_is_some() {
        let (lane, mut client) = UnixStream::pair().expect("a pair");
        let (mut bench, mut sender) = (Bench::default(), Sender::default());
        let bytes: Vec<u8> = (0..=250).cycle().take(LONG).collect();
        let head = Head::Bytes(bytes.clone());
        sender.push(Reply { head, payload: None, held_bytes: 0, is_request: true });
        let mut call = sender.begin(lane.as_raw_fd(), None);
        let reader = std::thread::spawn(move || {
            let mut received = vec![0; LONG];
            client.read_exact(&mut received).map(|()| received)
        });
        let mut send_count = 0;
        while let Some(next) = call.take() {
            bench.submit(SEND, next);
            let ends = bench.turn(true);
            assert_eq!(ends.len(), 1, "an idle lane waits for the end of its only call");
            send_count += 1;
            call = sender.advance(usize::try_from(ends[0].1).expect("no error"), lane.as_raw_fd()).err();
        }
        assert!(send_count > 1, "it is longer than what a socket takes at once");
        assert!(reader.join().expect("no panic").expect("all of it comes") == bytes);
    }

    #[test]
    fn send_to_nobody_is_an_error_and_no_signal() {
        let (lane, client) = UnixStream::pair().expect("a pair");
        drop(client);
        let (mut bench, mut sender) = (Bench::default(), Sender::default());
        let head = Head::Bytes(vec![1]);
        sender.push(Reply { head, payload: None, held_bytes: 0, is_request: true });
        bench.submit(SEND, sender.begin(lane.as_raw_fd(), None).expect("something to send"));
        assert_eq!(bench.turn(true), [(SEND, -libc::EPIPE, false)]);
    }

    #[test]
    fn accept_goes_on_until_it_is_cancelled() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut bench = Bench::default();
        bench.submit(ACCEPT, Call::Accept { listener: listener.as_raw_fd(), is_many: true });
        let clients = [(); 2].map(|()| UnixStream::connect(&path).expect("it listens"));
        for _ in &clients {
            let ends = bench.turn(true);
            assert!(matches!(ends[..], [(ACCEPT, 3.., true)]), "{ends:?}");
            // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ends[0].1) });
        }
        assert_eq!(bench.turn(false), [], "there is no third");

        bench.submit(CANCEL, Call::Cancel { user_data: ACCEPT });
        assert_eq!(bench.turn(true), [(ACCEPT, -libc::ECANCELED, false), (CANCEL, 0, false)]);
        bench.submit(CANCEL, Call::Cancel { user_data: ACCEPT });
        assert_eq!(bench.turn(true), [(CANCEL, -libc::ENOENT, false)]);
    }

    #[test]
    fn accept_of_one_ends_with_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let _client = UnixStream::connect(&path).expect("it listens");
        let mut bench = Bench::default();
        bench.submit(ACCEPT, Call::Accept { listener: listener.as_raw_fd(), is_many: false });
        let ends = bench.turn(true);
        assert!(matches!(ends[..], [(ACCEPT, 3.., false)]), "{ends:?}");
        // SAFETY: as above.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ends[0].1) });
        assert!(bench.readiness.pending.is_empty());
    }

    #[test]
    fn tick_is_over_after_its_time_and_not_before() {
        let mut bench = Bench::default();
        let begun = Instant::now();
        bench.submit(TICK, Call::Tick);
        let mut ends = bench.turn(false);
        while ends.is_empty() {
            ends = bench.turn(true);
        }
        assert_eq!(ends, [(TICK, -libc::ETIME, false)]);
        assert!(begun.elapsed() >= TICK_PERIOD);
    }

    #[test]
    fn alarm_wakes_a_lane_that_sleeps() {
        let alarm = std::sync::Arc::new(crate::lane::alarm::Alarm::new().expect("an eventfd"));
        let mut bench = Bench::default();
        for _ in 0..2 {
            let mut memory = [0; 8];
            bench.submit(RECEIVE, Call::ReadAlarm { alarm: alarm.raw_fd(), memory: memory.as_mut_ptr() });
            assert_eq!(bench.turn(false), []);
            let raised = std::sync::Arc::clone(&alarm);
            let raising = std::thread::spawn(move || raised.raise());
            assert_eq!(bench.turn(true), [(RECEIVE, 8, false)]);
            raising.join().expect("no panic");
            assert_ne!(memory, [0; 8]);
            alarm.lower();
        }
    }
}
