//! Proves that one ring on one thread carries ublk commands, pool I/O and socket I/O at the same time.
//!
//! The thread (a lane in small) serves both queues of a device in memory, writes, reads back and compares blocks of a
//! file with `O_DIRECT`, and echoes on a unix socket. Run as root on a kernel with ublk:
//!
//! ```text
//! null_shared_ring POOL_FILE SOCKET_PATH SIZE_MIB
//! null_shared_ring --delete ID
//! ```
//!
//! The second form removes what a killed one has left. The first prints `READY /dev/ublkbN`; stops the device when
//! its standard input ends; prints counts, then PASS or FAIL.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people and scripts")]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write, stdin};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rok_ublk::control::DeviceState;
use rok_ublk::io_uring::{IoUring, cqueue, opcode, squeue, types};
use rok_ublk::{Control, Device, DeviceParameters, Prefix, Queue, Request, RequestKind, ring};

type Failure = Box<dyn Error + Send + Sync>;

const POOL: Prefix = Prefix::new(1);
const SOCKET: Prefix = Prefix::new(2);
/// Prefix of queue 0; the others follow.
const QUEUE_FIRST: u16 = 0x100;
const QUEUE_COUNT: u16 = 2;
const QUEUE_DEPTH: u16 = 64;
/// Fewer than the commands at start (2 x 64), so that submitting in parts happens, too.
const SUBMISSION_ENTRIES: u32 = 64;
const COMPLETION_ENTRIES: u32 = 1024;
/// Operations in flight on the pool file, and bytes of each.
const POOL_SLOTS: usize = 8;
const POOL_SLOT_BYTES: usize = 16 << 10;
const MESSAGE_BYTES_MAX: usize = 4096;
/// Completions of a stretch in which all three kinds should be seen.
const STRETCH_COMPLETIONS: u64 = 256;
/// Such stretches that a run must have.
const STRETCHES_MIN: u64 = 20;
/// No completion for so long, with two loads that never pause, means that the ring is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run() {
        Ok(()) => {
            println!("PASS");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("null_shared_ring: {error}");
            println!("FAIL");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--delete", id] => Ok(Control::open()?.delete(id.parse()?)?),
        [pool_path, socket_path, size_mib] => run_device(pool_path, socket_path, size_mib.parse::<u64>()? << 20),
        _ => Err("usage: null_shared_ring POOL_FILE SOCKET_PATH SIZE_MIB | --delete ID".into()),
    }
}

fn run_device(pool_path: &str, socket_path: &str, size_bytes: u64) -> Result<(), Failure> {
    let control = Control::open()?;
    println!("features {}", control.features()?);
    let pool_file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(pool_path)?;
    let listener = UnixListener::bind(socket_path)?;
    let parameters =
        DeviceParameters { queue_count: QUEUE_COUNT, queue_depth: QUEUE_DEPTH, ..DeviceParameters::new(size_bytes) };
    let device = Arc::new(control.add(None, &parameters, None)?);
    let id = device.id();

    let is_closing = Arc::new(AtomicBool::new(false));
    let lane = thread::spawn({
        let (device, is_closing) = (Arc::clone(&device), Arc::clone(&is_closing));
        move || run_lane(&Task { device, size_bytes, pool_file, listener, is_closing })
    });
    let client = thread::spawn({
        let (path, is_closing) = (socket_path.to_owned(), Arc::clone(&is_closing));
        move || run_client(&path, &is_closing)
    });
    control.start(&device)?;
    if control.state(id)? != DeviceState::Live {
        return Err("the device was started and is not live".into());
    }
    println!("READY {} queues {}", device.block_path().display(), device.queue_count());
    stdin().read_to_end(&mut Vec::new())?;

    control.stop(id)?;
    let counts = lane.join().map_err(|_| "the lane panicked")??;
    let echoed = client.join().map_err(|_| "the client panicked")??;
    drop(device);
    control.delete(id)?;
    if control.state(id).is_ok() {
        return Err("the device was deleted and is still there".into());
    }
    counts.print(echoed);
    counts.check(echoed)
}

/// What happened on the lane.
#[derive(Default)]
struct Counts {
    turns: u64,
    /// Turns that reaped completions of at least two kinds from one entry into the kernel.
    turns_mixed: u64,
    stretches: u64,
    stretches_with_all: u64,
    reads: u64,
    writes: u64,
    writes_fua: u64,
    flushes: u64,
    discards: u64,
    zeroes: u64,
    queue_requests: [u64; QUEUE_COUNT as usize],
    pool_verified: u64,
    socket_messages: u64,
}

impl Counts {
    fn print(&self, echoed: u64) {
        println!("turns {} mixed {}", self.turns, self.turns_mixed);
        println!("stretches {} with all three kinds {}", self.stretches, self.stretches_with_all);
        println!(
            "ublk reads {} writes {} (fua {}) flushes {} discards {} zeroes {} by queue {:?}",
            self.reads, self.writes, self.writes_fua, self.flushes, self.discards, self.zeroes, self.queue_requests
        );
        println!("pool blocks verified {}", self.pool_verified);
        println!("socket messages {} echoed {echoed}", self.socket_messages);
    }

    fn check(&self, echoed: u64) -> Result<(), Failure> {
        let is_complete = self.reads > 0 && self.writes > 0 && self.flushes > 0 && self.pool_verified > 0 && echoed > 0;
        if !is_complete {
            return Err("one of the loads did nothing".into());
        }
        if self.turns_mixed == 0 || self.stretches_with_all < STRETCHES_MIN {
            return Err(format!("the loads did not run side by side {STRETCHES_MIN} times").into());
        }
        Ok(())
    }

    fn count_request(&mut self, request: &Request) {
        match request.kind {
            RequestKind::Read => self.reads += 1,
            RequestKind::Write => self.writes += 1,
            RequestKind::Flush => self.flushes += 1,
            RequestKind::Discard => self.discards += 1,
            RequestKind::WriteZeroes => self.zeroes += 1,
        }
        self.writes_fua += u64::from(request.is_fua);
    }
}

/// The kinds of completions seen in a stretch or a turn.
#[derive(Default, Clone, Copy)]
struct Seen {
    is_queue: bool,
    is_pool: bool,
    is_socket: bool,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.is_queue |= other.is_queue;
        self.is_pool |= other.is_pool;
        self.is_socket |= other.is_socket;
    }

    fn count(self) -> u8 {
        u8::from(self.is_queue) + u8::from(self.is_pool) + u8::from(self.is_socket)
    }
}

/// What the lane works with.
struct Task {
    device: Arc<Device>,
    size_bytes: u64,
    pool_file: File,
    listener: UnixListener,
    is_closing: Arc<AtomicBool>,
}

/// The lane: all that one thread does through its ring.
struct Lane {
    queues: Vec<Queue>,
    memory: Vec<u8>,
    pool: Pool,
    echo: Echo,
    counts: Counts,
    stretch: Seen,
    stretch_count: u64,
}

impl Lane {
    fn new(task: &Task) -> Result<Self, Failure> {
        let queue = |id| Queue::new(Arc::clone(&task.device), id, Prefix::new(QUEUE_FIRST + id));
        Ok(Self {
            queues: (0..task.device.queue_count()).map(queue).collect::<Result<_, _>>()?,
            memory: vec![0; usize::try_from(task.size_bytes)?],
            pool: Pool::new(task.pool_file.as_raw_fd()),
            echo: Echo::new(task.listener.as_raw_fd()),
            counts: Counts::default(),
            stretch: Seen::default(),
            stretch_count: 0,
        })
    }

    /// The only loop that enters the ring and reaps it.
    fn run(&mut self, ring: &mut IoUring, is_closing: &AtomicBool) -> Result<(), Failure> {
        self.echo.start(ring)?;
        for slot in 0..POOL_SLOTS {
            self.pool.submit(ring, slot)?;
        }
        let mut completions: Vec<cqueue::Entry> = Vec::with_capacity(usize::try_from(COMPLETION_ENTRIES)?);
        loop {
            let waiting: usize = self.queues.iter_mut().map(|queue| queue.submit(ring)).sum();
            // Commands that found no room go out in the next turn, which must therefore not wait.
            ring::enter(ring, usize::from(waiting == 0), Some(SILENCE_MAX))?;
            completions.clear();
            completions.extend(ring.completion());
            if completions.is_empty() && waiting == 0 {
                return Err("the ring is silent".into());
            }
            self.turn(ring, &completions)?;
            if self.queues.iter().all(Queue::is_ended) {
                is_closing.store(true, Ordering::Relaxed);
                self.pool.is_closing = true;
                if self.pool.in_flight == 0 && self.echo.is_ended {
                    return Ok(());
                }
            }
        }
    }

    /// Hands each completion to whom its prefix names.
    fn turn(&mut self, ring: &mut IoUring, completions: &[cqueue::Entry]) -> Result<(), Failure> {
        let mut turn = Seen::default();
        for completion in completions {
            let mut seen = Seen::default();
            match Prefix::of(completion.user_data()) {
                POOL => {
                    self.pool.on_completion(ring, completion, &mut self.counts)?;
                    seen.is_pool = true;
                }
                SOCKET => {
                    self.echo.on_completion(ring, completion, &mut self.counts)?;
                    seen.is_socket = true;
                }
                _ => {
                    serve(&mut self.queues, &mut self.memory, completion, &mut self.counts)?;
                    seen.is_queue = true;
                }
            }
            turn.add(seen);
            self.stretch.add(seen);
            self.stretch_count += 1;
            if self.stretch_count == STRETCH_COMPLETIONS {
                self.counts.stretches += 1;
                self.counts.stretches_with_all += u64::from(self.stretch.count() == 3);
                (self.stretch, self.stretch_count) = (Seen::default(), 0);
            }
        }
        self.counts.turns += 1;
        self.counts.turns_mixed += u64::from(turn.count() > 1);
        Ok(())
    }
}

fn run_lane(task: &Task) -> Result<Counts, Failure> {
    let setup = ring::Setup { submission_entries: SUBMISSION_ENTRIES, completion_entries: COMPLETION_ENTRIES };
    ring::init(&setup)?;
    ring::become_io_flusher()?;
    let mut lane = Lane::new(task)?;
    let result = ring::with(|ring| lane.run(ring, &task.is_closing));
    // The ring goes first: it may still have operations on the lane's buffers after an error.
    drop(ring::take()?);
    result??;
    Ok(lane.counts)
}

/// Serves a request of the device in memory, at once.
fn serve(
    queues: &mut [Queue],
    memory: &mut [u8],
    completion: &cqueue::Entry,
    counts: &mut Counts,
) -> Result<(), Failure> {
    let user_data = completion.user_data();
    let index = queues.iter().position(|queue| queue.owns(user_data)).ok_or("a completion without an owner")?;
    let queue = &mut queues[index];
    let Some(request) = queue.on_completion(user_data, completion.result())? else { return Ok(()) };
    counts.count_request(&request);
    counts.queue_requests[index] += 1;
    let start = usize::try_from(request.offset_bytes)?;
    let end = start + usize::try_from(request.len_bytes)?;
    let outcome = match (request.kind, memory.get_mut(start..end)) {
        (_, None) => Err(libc::EIO),
        (RequestKind::Read, Some(range)) => {
            queue.write_data(request.tag, 0, range)?;
            Ok(())
        }
        (RequestKind::Write, Some(range)) => {
            queue.read_data(request.tag, 0, range)?;
            Ok(())
        }
        (RequestKind::Flush, Some(_)) => Ok(()),
        (RequestKind::Discard | RequestKind::WriteZeroes, Some(range)) => {
            range.fill(0);
            Ok(())
        }
    };
    queue.complete(request.tag, outcome)?;
    Ok(())
}

/// Blocks of a file, each written, read back and compared, over and over.
struct Pool {
    fd: RawFd,
    slots: Vec<Slot>,
    in_flight: usize,
    is_closing: bool,
}

/// A page-aligned buffer and what it is used for.
struct Slot {
    buffer: Box<AlignedBuffer>,
    generation: u64,
    is_reading: bool,
}

#[repr(C, align(4096))]
struct AlignedBuffer([u8; POOL_SLOT_BYTES]);

impl Pool {
    fn new(fd: RawFd) -> Self {
        let slot = |_| Slot { buffer: Box::new(AlignedBuffer([0; POOL_SLOT_BYTES])), generation: 0, is_reading: false };
        Self { fd, slots: (0..POOL_SLOTS).map(slot).collect(), in_flight: 0, is_closing: false }
    }

    /// Puts the slot's next operation in the ring: a write of a new content, or the read that follows it.
    fn submit(&mut self, ring: &mut IoUring, index: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let offset = u64::try_from(index * POOL_SLOT_BYTES)?;
        let len = u32::try_from(POOL_SLOT_BYTES)?;
        let entry = if slot.is_reading {
            // Nothing of the written content is left that a read that did nothing could pass off as its own.
            slot.buffer.0.fill(0xee);
            opcode::Read::new(types::Fd(self.fd), slot.buffer.0.as_mut_ptr(), len).offset(offset).build()
        } else {
            slot.generation += 1;
            slot.buffer.0.chunks_exact_mut(8).zip(content(index, slot.generation)).for_each(|(chunk, word)| {
                chunk.copy_from_slice(&word);
            });
            opcode::Write::new(types::Fd(self.fd), slot.buffer.0.as_ptr(), len).offset(offset).build()
        };
        let entry = entry.user_data(POOL.pack(u64::try_from(index)?));
        // SAFETY: the slot's buffer stays where it is, and is not touched, until the completion; the file outlives
        // the ring.
        unsafe { ring::push(ring, &entry) }?;
        self.in_flight += 1;
        Ok(())
    }

    fn on_completion(
        &mut self,
        ring: &mut IoUring,
        completion: &cqueue::Entry,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        self.in_flight -= 1;
        let index = usize::try_from(Prefix::payload(completion.user_data()))?;
        if usize::try_from(completion.result()) != Ok(POOL_SLOT_BYTES) {
            return Err(format!("pool I/O of slot {index} gave {}", completion.result()).into());
        }
        let slot = &mut self.slots[index];
        if slot.is_reading {
            let is_equal = slot.buffer.0.chunks_exact(8).zip(content(index, slot.generation)).all(|(a, b)| a == b);
            if !is_equal {
                return Err(format!("pool slot {index} reads back something else").into());
            }
            counts.pool_verified += 1;
        }
        slot.is_reading = !slot.is_reading;
        if self.is_closing { Ok(()) } else { self.submit(ring, index) }
    }
}

/// The words that a slot holds in a generation, all different.
fn content(index: usize, generation: u64) -> impl Iterator<Item = [u8; 8]> {
    let start = (generation << 8 | u64::try_from(index).unwrap_or(0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0_u64..).map(move |word| start.wrapping_add(word).to_le_bytes())
}

/// A server that accepts one connection and sends back what it receives.
struct Echo {
    listener: RawFd,
    connection: RawFd,
    buffer: Box<[u8; MESSAGE_BYTES_MAX]>,
    /// Bytes of the buffer that are to be sent back.
    sending: std::ops::Range<usize>,
    is_ended: bool,
}

impl Echo {
    fn new(listener: RawFd) -> Self {
        let buffer = Box::new([0; MESSAGE_BYTES_MAX]);
        Self { listener, connection: -1, buffer, sending: 0..0, is_ended: false }
    }

    fn start(&mut self, ring: &mut IoUring) -> Result<(), Failure> {
        let accept = opcode::Accept::new(types::Fd(self.listener), std::ptr::null_mut(), std::ptr::null_mut());
        Self::push(ring, &accept.build())
    }

    fn on_completion(
        &mut self,
        ring: &mut IoUring,
        completion: &cqueue::Entry,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        let result = completion.result();
        if result < 0 {
            return Err(format!("socket I/O gave {result}").into());
        }
        if self.connection < 0 {
            self.connection = result;
            return self.receive(ring);
        }
        let len = usize::try_from(result)?;
        if self.sending.is_empty() {
            if len == 0 {
                self.is_ended = true;
                return Ok(());
            }
            counts.socket_messages += 1;
            self.sending = 0..len;
        } else {
            self.sending.start += len;
        }
        if self.sending.is_empty() { self.receive(ring) } else { self.send(ring) }
    }

    fn receive(&mut self, ring: &mut IoUring) -> Result<(), Failure> {
        let len = u32::try_from(self.buffer.len())?;
        Self::push(ring, &opcode::Recv::new(types::Fd(self.connection), self.buffer.as_mut_ptr(), len).build())
    }

    fn send(&mut self, ring: &mut IoUring) -> Result<(), Failure> {
        let bytes = &self.buffer[self.sending.clone()];
        let send = opcode::Send::new(types::Fd(self.connection), bytes.as_ptr(), u32::try_from(bytes.len())?);
        Self::push(ring, &send.build())
    }

    fn push(ring: &mut IoUring, entry: &squeue::Entry) -> Result<(), Failure> {
        let entry = entry.clone().user_data(SOCKET.pack(0));
        // SAFETY: the buffer is boxed and not touched until the completion; one operation is in flight at a time; the
        // sockets outlive the ring.
        unsafe { ring::push(ring, &entry) }?;
        Ok(())
    }
}

/// Sends messages of changing length and content, and compares what comes back. Returns how many.
fn run_client(path: &str, is_closing: &AtomicBool) -> Result<u64, Failure> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let mut count = 0_u64;
    while !is_closing.load(Ordering::Relaxed) {
        let len = 1 + usize::try_from(count * 97)? % MESSAGE_BYTES_MAX;
        let message: Vec<u8> = count.to_le_bytes().iter().copied().cycle().take(len).collect();
        stream.write_all(&message)?;
        let mut answer = vec![0; len];
        stream.read_exact(&mut answer)?;
        if answer != message {
            return Err(format!("message {count} came back changed").into());
        }
        count += 1;
    }
    Ok(count)
}
