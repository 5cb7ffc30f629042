//! Stamped writes over several connections, noted in a history, and the comparison of a volume with it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rok_nbd::{CommandFlags, RequestKind, WireError};

use crate::history::{Blow, History, Moment, SnapshotValues};
use crate::nbd_client::NbdClient;
use crate::stamp::{self, BLOCK_BYTES, BLOCK_BYTES_U64, Value};

/// Connections of a load.
pub const CLIENT_COUNT: u64 = 2;
/// Requests in flight on each; together that is QD32.
pub const DEPTH: usize = 16;
/// The largest request of a mixed load: 64 KiB.
const REQUEST_BLOCKS_MAX: u64 = 16;
/// A comparison reads this much at once: 512 KiB.
const COMPARED_BLOCKS_MAX: u64 = 128;

/// What a load writes.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// Writes of 4 to 64 KiB with and without FUA, flushes, trims and zeroes, all over the range.
    Mixed,
    /// Writes of so many blocks one after the other, round and round: each one a change of other blocks.
    Fill(u64),
}

/// What a load is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The NBD socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
    /// Blocks of the volume that are written.
    pub blocks: Range<u64>,
    /// What is written there.
    pub pattern: Pattern,
    /// Seed of all choices.
    pub seed: u64,
}

/// A history that connections share.
#[derive(Clone, Default)]
pub struct Shared {
    history: Arc<Mutex<History>>,
    /// Numbers of writes: never used twice, so that no stamp is.
    next_sequence: Arc<AtomicU64>,
    acknowledged_count: Arc<AtomicU64>,
}

/// A load that runs until its server ends.
pub struct Load {
    connections: Vec<JoinHandle<()>>,
}

impl Shared {
    /// A history that outlives more than the server's end.
    pub fn that_outlives(blow: Blow) -> Self {
        Self { history: Arc::new(Mutex::new(History::that_outlives(blow))), ..Self::default() }
    }

    /// The history. Short: connections wait for it.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no connection panicked")
    }

    /// Requests that were acknowledged by all loads so far.
    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged_count.load(Ordering::Relaxed)
    }
}

impl Load {
    /// Connects and begins.
    #[track_caller]
    pub fn start(plan: &Plan, shared: &Shared) -> Self {
        let cursor = Arc::new(AtomicU64::new(0));
        let connections = (0..CLIENT_COUNT).map(|client| {
            let server = NbdClient::connect(&plan.socket, &plan.export).expect("the server is ready");
            let writer = Writer {
                server,
                client,
                plan: plan.clone(),
                shared: shared.clone(),
                cursor: Arc::clone(&cursor),
                random: SmallRng::seed_from_u64(plan.seed ^ client),
                in_flight: HashMap::new(),
            };
            thread::spawn(move || writer.work())
        });
        Self { connections: connections.collect() }
    }

    /// Waits until the server has ended all connections.
    ///
    /// # Panics
    /// If one of them saw what may not be.
    #[track_caller]
    pub fn finish(self) {
        for connection in self.connections {
            connection.join().expect("a connection only sees what may be");
        }
    }
}

/// One connection of a load.
struct Writer {
    server: NbdClient,
    client: u64,
    plan: Plan,
    shared: Shared,
    cursor: Arc<AtomicU64>,
    random: SmallRng,
    /// What each request in flight changes.
    in_flight: HashMap<u64, Change>,
}

/// What a request changes.
enum Change {
    Write { blocks: Range<u64>, moment: Moment, is_flushed: bool },
    Flush(Moment),
}

impl Writer {
    /// Writes until the server ends.
    fn work(mut self) {
        loop {
            while self.server.in_flight_count() < DEPTH {
                if self.submit().is_err() {
                    return;
                }
            }
            let Ok(completion) = self.server.complete() else { return };
            let change = self.in_flight.remove(&completion.request.cookie);
            match (completion.result, change) {
                (Ok(_), change) => {
                    self.shared.acknowledged_count.fetch_add(1, Ordering::Relaxed);
                    match change.expect("each request changes something") {
                        Change::Write { blocks, moment, is_flushed } => {
                            self.shared.history().acknowledge(blocks, moment, is_flushed);
                        }
                        Change::Flush(moment) => self.shared.history().acknowledge_flush(moment),
                    }
                }
                // A server that was told to end may refuse; what it refused may have happened or not.
                (Err(WireError::ShuttingDown), _) => {}
                (Err(error), _) => panic!("{:?} failed with {error:?}", completion.request),
            }
        }
    }

    fn submit(&mut self) -> std::io::Result<()> {
        let (kind, flags, blocks) = self.choose();
        if kind == RequestKind::Flush {
            let moment = self.shared.history().submit_flush();
            let cookie = self.server.submit(kind, flags, (0, 0), &[])?;
            self.in_flight.insert(cookie, Change::Flush(moment));
            return Ok(());
        }
        let is_write = kind == RequestKind::Write;
        let sequence = self.shared.next_sequence.fetch_add(1, Ordering::Relaxed);
        let value = if is_write { Value::Stamp { client: self.client, sequence } } else { Value::Zeros };
        let mut payload = Vec::new();
        if is_write {
            payload.resize(to_usize(blocks.end - blocks.start) * BLOCK_BYTES, 0);
            for (block, index) in payload.chunks_exact_mut(BLOCK_BYTES).zip(blocks.clone()) {
                stamp::fill(block, index, value);
            }
        }
        let moment = self.shared.history().submit(blocks.clone(), value);
        let cookie = self.server.submit(kind, flags, byte_range(&blocks), &payload)?;
        let is_flushed = flags.contains(CommandFlags::FUA);
        self.in_flight.insert(cookie, Change::Write { blocks, moment, is_flushed });
        Ok(())
    }

    fn choose(&mut self) -> (RequestKind, CommandFlags, Range<u64>) {
        let Range { start, end } = self.plan.blocks;
        if let Pattern::Fill(count) = self.plan.pattern {
            let step_count = (end - start) / count;
            let first = start + self.cursor.fetch_add(1, Ordering::Relaxed) % step_count * count;
            return (RequestKind::Write, CommandFlags::NONE, first..first + count);
        }
        let count = if self.random.random_bool(0.5) { 1 } else { self.random.random_range(1..=REQUEST_BLOCKS_MAX) };
        let first = self.random.random_range(start..=end - count);
        let kind = match self.random.random_range(0..100) {
            0..4 => RequestKind::Flush,
            4..10 => RequestKind::Trim,
            10..18 => RequestKind::WriteZeroes,
            _ => RequestKind::Write,
        };
        let flags = CommandFlags::NONE
            .with_if(kind != RequestKind::Flush && self.random.random_bool(0.1), CommandFlags::FUA)
            .with_if(kind == RequestKind::WriteZeroes && self.random.random_bool(0.5), CommandFlags::NO_HOLE);
        (kind, flags, first..first + count)
    }
}

/// Which blocks to compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Those touched since they were last compared.
    New,
    /// All that were ever touched.
    All,
}

/// Reads blocks of the volume and compares them with the history; how many there were. Nothing may write meanwhile.
///
/// # Errors
/// What differs, a few blocks of it.
///
/// # Panics
/// If the server ends.
pub fn compare(socket: &Path, export: &str, history: &mut History, scope: Scope) -> Result<u64, String> {
    let runs = match scope {
        Scope::New => history.unverified_runs(COMPARED_BLOCKS_MAX),
        Scope::All => history.touched_runs(COMPARED_BLOCKS_MAX),
    };
    read_blocks(socket, export, &runs, |index, found| history.settle(index, found))
}

/// Reads the first `count` blocks of a snapshot and compares them with what they may hold; how many there were.
///
/// # Errors
/// What differs, a few blocks of it.
///
/// # Panics
/// If the server ends.
pub fn compare_snapshot(socket: &Path, export: &str, values: &SnapshotValues, count: u64) -> Result<u64, String> {
    let run = |first| first..count.min(first + COMPARED_BLOCKS_MAX);
    let runs: Vec<_> = (0..count).step_by(to_usize(COMPARED_BLOCKS_MAX)).map(run).collect();
    read_blocks(socket, export, &runs, |index, found| {
        let allowed = values.get(&index).map_or(&[Value::Zeros][..], Vec::as_slice);
        let is_allowed = found.is_some_and(|found| allowed.contains(&found));
        is_allowed
            .then_some(())
            .ok_or_else(|| format!("block {index} of {export} holds {found:?}, which is none of {allowed:?}"))
    })
}

/// Reads runs of blocks and has each verified; how many there were.
fn read_blocks(
    socket: &Path,
    export: &str,
    runs: &[Range<u64>],
    mut verify: impl FnMut(u64, Option<Value>) -> Result<(), String>,
) -> Result<u64, String> {
    let mut server = NbdClient::connect(socket, export).expect("the server is ready");
    let mut pending = runs.iter();
    let mut failures = Vec::new();
    let mut compared = 0;
    loop {
        while server.in_flight_count() < DEPTH
            && let Some(run) = pending.next()
        {
            server.submit(RequestKind::Read, CommandFlags::NONE, byte_range(run), &[]).expect("the server goes on");
        }
        if server.in_flight_count() == 0 {
            break;
        }
        let completion = server.complete().expect("the server goes on");
        let first = completion.request.offset / BLOCK_BYTES_U64;
        match completion.result {
            Ok(data) => {
                for (block, index) in data.chunks_exact(BLOCK_BYTES).zip(first..) {
                    compared += 1;
                    failures.extend(verify(index, stamp::recognise(block, index)).err());
                }
            }
            Err(error) => failures.push(format!("{:?} failed with {error:?}", completion.request)),
        }
    }
    server.disconnect();
    if failures.is_empty() {
        return Ok(compared);
    }
    let count = failures.len();
    failures.truncate(4);
    Err(format!("{count} failures, among them:\n{}", failures.join("\n")))
}

fn byte_range(blocks: &Range<u64>) -> (u64, u32) {
    let length = u32::try_from((blocks.end - blocks.start) * BLOCK_BYTES_U64).expect("requests are short");
    (blocks.start * BLOCK_BYTES_U64, length)
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).expect("64-bit")
}
