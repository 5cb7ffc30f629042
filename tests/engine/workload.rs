//! A seed's life: random operations against the engine and the model, crashes, and the comparison of the two.

mod cleaning;
mod diff;
mod ending;
mod faithless;
mod faults;
mod key_slots;
mod leaks;
mod lives;
mod mapped;
mod own_keys;
mod partial;
mod pausing;
mod reading;
mod removing;
mod resizing;
mod rotten_leaf;
mod scrubbing;
mod side_by_side;
mod snapshots;
mod volumes;

use crate::counts::Counts;
use crate::model::{Model, Value};
use crate::sector::fill;
use crate::shrinking::Part;
use crate::world::{End, Life, World, device_bytes};
use own_keys::OldKeys;
use rand::Rng;
use reading::value_of;
use rok_blk::crypto::watch_pairs;
use rok_blk::disk::IoBuffer;
use rok_blk::error::IoError;
use rok_blk::pool::Stretch;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, MapRuns, OnFull, OpenVolume, ScrubResult};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

const SECTOR: u64 = 512;
const SECTORS: usize = 8;
const VOLUME_COUNT: usize = 2;
/// Requests in flight before the next one waits.
const IN_FLIGHT_MAX: usize = 24;

/// What a request in flight is about.
enum Pending {
    Write {
        volume: usize,
        blocks: Vec<u64>,
        write: u64,
        is_fua: bool,
        begin: u64,
        pausing_since: Option<u64>,
    },
    Piece {
        group: u64,
        is_fua: bool,
        pausing_since: Option<u64>,
        sectors: Option<(usize, usize, u64)>,
    },
    Read {
        volume: usize,
        offset: u64,
        target: IoBuffer,
        allowed: BTreeMap<u64, Vec<Value>>,
        faults_before: u64,
        begin: u64,
    },
    Walk {
        volume: usize,
        first: u64,
        count: u64,
        runs: MapRuns,
        allowed: BTreeMap<u64, Vec<Value>>,
    },
    Cache {
        volume: usize,
    },
    Flush {
        begin: u64,
    },
    Clean,
    Scrub {
        result: ScrubResult,
        is_brief: bool,
    },
    Diff(Box<diff::Comparison>),
    ReadSnapshot {
        id: (Uuid, u64),
        first: u64,
        target: IoBuffer,
        faults_before: u64,
        _handle: OpenVolume,
    },
    WalkSnapshot {
        id: (Uuid, u64),
        first: u64,
        count: u64,
        runs: MapRuns,
        _handle: OpenVolume,
    },
}

pub struct Workload {
    world: World,
    life: Option<Life>,
    models: Vec<Model>,
    sizes: Vec<u64>,
    pending: BTreeMap<u64, Pending>,
    /// Blocks of which a part is being written: the model does not follow another write that meets it.
    exclusive: BTreeSet<(usize, u64)>,
    /// Pieces of blocks that are being written at the same time.
    pieces: BTreeMap<u64, side_by_side::Pieces>,
    /// Groups of blocks that the cleaner was moving while a snapshot was made.
    groups_at_gates: usize,
    /// Blocks that a diff told of although nobody but the cleaner wrote them.
    moved_by_cleaner: BTreeSet<u64>,
    next_cookie: u64,
    next_write: u64,
    next_volume_id: u128,
    snapshots: Vec<snapshots::Snapshot>,
    repair: Option<leaks::Repair>,
    /// Stretches that are being emptied.
    closed: Vec<Stretch>,
    /// Volumes whose removal or creation failed: a crash may find them or not.
    doubtful: BTreeSet<usize>,
    now: u64,
    /// What writes of each volume do that find no space; `None` if a failure left that open.
    on_full: Vec<Option<OnFull>>,
    other_sizes: resizing::OtherSizes,
    old_keys: OldKeys,
    scrubbing: scrubbing::Scrubbing,
    /// Whether a flush failed in this life: then acknowledged writes may be gone after any crash.
    has_failed: bool,
    /// Operations that had failed on purpose when this life began.
    faults_before_life: u64,
    failed_flushes_before_life: u64,
    /// What a device does at the end of the seed.
    faithless: Option<faithless::Faithless>,
    is_short_of_space: bool,
    /// Whether small changes and snapshots alternate often, so that leaves are stored in parts.
    has_many_snapshots: bool,
}

/// What a seed gave.
pub struct Outcome {
    pub trace: [u8; 32],
    pub counts: Counts,
}

/// Runs a seed.
///
/// # Panics
/// At the first difference between the engine and the model.
pub fn run(seed: u64, part: &Part) -> Outcome {
    // A quarter of the seeds has devices that the volumes do not fit into.
    let is_short_of_space = seed % 4 == 3;
    watch_pairs();
    let mut workload = Workload {
        world: World::new(seed, device_bytes(seed, is_short_of_space)),
        life: None,
        models: (0..VOLUME_COUNT).map(|_| Model::default()).collect(),
        sizes: Vec::new(),
        pending: BTreeMap::new(),
        exclusive: BTreeSet::new(),
        pieces: BTreeMap::new(),
        groups_at_gates: 0,
        moved_by_cleaner: BTreeSet::new(),
        next_cookie: 0,
        next_write: 1,
        next_volume_id: 1,
        snapshots: Vec::new(),
        repair: None,
        closed: Vec::new(),
        on_full: vec![None; VOLUME_COUNT],
        doubtful: BTreeSet::new(),
        other_sizes: resizing::OtherSizes::default(),
        old_keys: OldKeys::default(),
        scrubbing: scrubbing::Scrubbing::default(),
        now: 1,
        has_failed: false,
        faults_before_life: 0,
        failed_flushes_before_life: 0,
        faithless: None,
        is_short_of_space,
        has_many_snapshots: seed % 3 == 1,
    };
    workload.start();
    for index in part.kept() {
        // Each has numbers of its own: what is left out changes no other one's.
        workload.world.reseed(seed, index);
        workload.operation();
    }
    workload.world.reseed(seed, u64::MAX);
    workload.finish()
}

impl Workload {
    fn start(&mut self) {
        let life = self.world.open().expect("a new pool opens");
        self.sizes = vec![0; VOLUME_COUNT];
        self.doubtful.extend(0..VOLUME_COUNT);
        self.begin_life(life);
    }

    fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("a life was begun")
    }

    fn operation(&mut self) {
        self.now += 1;
        self.world.counts.operations += 1;
        self.go_on_scrubbing();
        let kind = self.world.random.random_range(0..1000_u64);
        self.world.trace.update(&kind.to_le_bytes());
        match kind {
            0..250 if self.has_many_snapshots => self.snapshots_in_a_row(),
            0..345 => self.write(),
            345..350 => self.change_key_slots(),
            350..405 => self.write_partial(),
            405..420 => self.write_side_by_side(),
            420..630 => self.read(),
            630..650 => self.scrub(),
            650..720 => self.remove(),
            720..810 => self.flush(),
            810..830 => self.snapshot(),
            830..840 => self.ask_mapped(),
            840..848 => self.set_on_full(),
            848..855 => self.resize(),
            855..870 => self.read_snapshot(),
            870..885 => self.remove_snapshot(),
            885..893 => self.roll_back(),
            893..897 => self.ask_diff(),
            897..900 => self.leak_or_repair(),
            900..920 => self.clean(),
            920..935 => self.world.wants_growth = true,
            935..950 => self.fill_or_empty_meta(),
            950..960 => self.replace_volume(),
            960..975 => self.inject(),
            975..985 => self.reopen_cleanly(),
            985..992 => self.crash(End::Kill),
            _ => self.crash(End::PowerLoss),
        }
        let mut steps = self.world.random.random_range(0..8);
        while steps > 0 || self.pending.len() > IN_FLIGHT_MAX {
            self.step();
            steps = i32::max(steps - 1, 0);
            if self.pending.len() > IN_FLIGHT_MAX && self.world.random.random_bool(0.01) {
                self.drain();
            }
        }
        if self.has_failed && self.world.random.random_bool(0.2) {
            self.crash(End::Kill);
        }
    }

    fn step(&mut self) {
        let mut done = Vec::new();
        let mut life = self.life.take().expect("a life was begun");
        self.world.step(&mut life, &mut done);
        self.life = Some(life);
        self.take_done(done);
    }

    fn drain(&mut self) {
        let mut done = Vec::new();
        let mut life = self.life.take().expect("a life was begun");
        self.world.drain(&mut life, &mut done);
        self.life = Some(life);
        self.take_done(done);
        self.learn_on_full();
        assert!(self.pending.is_empty(), "an idle engine owes {} answers", self.pending.len());
    }

    fn random_volume(&mut self) -> usize {
        self.world.random.random_range(0..VOLUME_COUNT)
    }

    /// First block and count; most in a hot part, so that blocks are written again and again.
    fn random_range(&mut self, volume: usize, count_max: u64) -> (u64, u64) {
        let blocks = self.sizes[volume] / BLOCK_SIZE_U64;
        let hot = if self.world.random.random_bool(0.7) { blocks.min(64) } else { blocks };
        let first = self.world.random.random_range(0..hot);
        let count = self.world.random.random_range(1..=count_max).min(blocks - first);
        (first, count)
    }

    fn lane(&mut self) -> usize {
        let count = self.life().lanes.len();
        self.world.random.random_range(0..count)
    }

    fn completion(&mut self, pending: Pending) -> Completion {
        self.next_cookie += 1;
        self.pending.insert(self.next_cookie, pending);
        Completion { owner: 0, cookie: self.next_cookie }
    }

    fn write(&mut self) {
        let volume = self.random_volume();
        let count_max = *[1, 1, 1, 4, 16, 64, 300].get(self.world.random.random_range(0..7)).expect("in range");
        self.write_up_to(volume, count_max);
    }

    /// A write of so many blocks at most.
    fn write_up_to(&mut self, volume: usize, count_max: u64) {
        let (first, count) = self.random_range(volume, count_max);
        if (first..first + count).any(|block| self.exclusive.contains(&(volume, block))) {
            return;
        }
        let write = self.next_write;
        self.next_write += 1;
        let source = IoBuffer::allocate(usize::try_from(count).expect("small") * BLOCK_SIZE);
        source.with_bytes_mut(|bytes| fill(bytes, write));
        let blocks: Vec<u64> = (first..first + count).collect();
        let is_fua = self.world.random.random_bool(0.1);
        for block in &blocks {
            self.begin(volume, *block, write, [write; SECTORS]);
        }
        self.send_write((volume, write), first * BLOCK_SIZE_U64, source, is_fua, blocks);
    }

    /// A write begins: reads under way may see it, even if another one replaces it before they end.
    fn begin(&mut self, volume: usize, block: u64, write: u64, value: Value) {
        self.models[volume].begin(block, write, value, self.now);
        for pending in self.pending.values_mut() {
            if let Pending::Read { volume: of, allowed, .. } | Pending::Walk { volume: of, allowed, .. } = pending
                && *of == volume
                && let Some(values) = allowed.get_mut(&block)
            {
                values.push(value);
            }
            if let Pending::Diff(comparison) = pending {
                let of_volume = comparison.sides.iter_mut().filter(|side| side.head == Some(volume));
                of_volume.filter_map(|side| side.allowed.get_mut(&block)).for_each(|values| values.push(value));
            }
        }
    }

    fn send_write(
        &mut self,
        (volume, write): (usize, u64),
        offset: u64,
        source: IoBuffer,
        is_fua: bool,
        blocks: Vec<u64>,
    ) {
        let begin = self.now;
        self.note(|| format!("write {write} of volume {volume}, blocks {:?}", (blocks.first(), blocks.len())));
        let pausing_since = self.is_pausing(volume).then_some(self.world.counts.set_to_error);
        let completion = self.completion(Pending::Write { volume, blocks, write, is_fua, begin, pausing_since });
        let lane = self.lane();
        let life = self.life();
        let handle = life.handles[volume].volume().clone();
        life.lanes[lane].write(&handle, offset, source, is_fua, completion);
    }

    fn flush(&mut self) {
        let begin = self.now;
        let completion = self.completion(Pending::Flush { begin });
        let lane = self.lane();
        self.life().lanes[lane].flush(completion);
    }

    fn take_done(&mut self, done: Vec<(Completion, Result<(), IoError>)>) {
        for (completion, result) in done {
            self.now += 1;
            let cookie = completion.cookie;
            let code = result.map_or_else(IoError::errno, |()| 0);
            self.world.trace.update(&cookie.to_le_bytes());
            self.world.trace.update(&code.to_le_bytes());
            match self.pending.remove(&cookie).expect("each request is answered once") {
                Pending::Piece { group, is_fua, pausing_since, sectors } => {
                    self.paused_done(cookie, group, pausing_since, result);
                    self.piece_done(group, is_fua, sectors, result);
                }
                Pending::Write { volume, blocks, write, is_fua, begin, pausing_since } => {
                    self.paused_done(cookie, write, pausing_since, result);
                    self.write_done(volume, &blocks, write, is_fua && begin < self.now, result);
                }
                Pending::Flush { begin } => match self.noted_flush(begin, result) {
                    Ok(()) => self.flush_done(begin),
                    Err(_) => self.failed(),
                },
                Pending::Clean => self.cleaned(result),
                Pending::Scrub { result: found, is_brief } => self.scrubbed(&found, is_brief, result),
                Pending::Cache { .. } => assert_eq!(result, Ok(()), "a look at the map reads no device"),
                Pending::Walk { volume, first, count, runs, allowed } => {
                    self.walked(volume, (first, count), &runs, &allowed, result);
                }
                Pending::WalkSnapshot { id, first, count, runs, .. } => {
                    self.snapshot_walked(id, (first, count), &runs, result);
                }
                Pending::Diff(comparison) => self.compared(&comparison, result),
                Pending::ReadSnapshot { first, target, faults_before, .. } if result.is_err() => {
                    self.failed_at(faults_before, first..first + (target.len() / BLOCK_SIZE) as u64);
                }
                Pending::Read { allowed, faults_before, .. } if result.is_err() => {
                    self.failed_at(faults_before, allowed.into_keys());
                }
                Pending::ReadSnapshot { id, first, target, .. } => self.snapshot_read_done(id, first, &target),
                Pending::Read { volume, offset, target, allowed, begin, .. } => {
                    self.read_done(volume, (offset, begin), &target, allowed);
                }
            }
        }
    }

    fn noted_flush(&self, begin: u64, result: Result<(), IoError>) -> Result<(), IoError> {
        self.note(|| format!("flush of {begin} ended: {result:?}"));
        result
    }

    /// A write is answered that may have waited for space.
    fn paused_done(&mut self, cookie: u64, write: u64, pausing_since: Option<u64>, result: Result<(), IoError>) {
        let is_fail_possible = pausing_since != Some(self.world.counts.set_to_error);
        assert!(result != Err(IoError::NoSpace) || is_fail_possible, "write {write} got no space, and was to wait");
        self.world.counts.resumed += u64::from(self.world.paused.remove(&cookie) && result.is_ok());
    }

    /// An answer to a write must have a reason.
    fn check_written(&mut self, volume: usize, write: u64, blocks: &[u64], result: Result<(), IoError>) {
        match result {
            Ok(()) => assert!(
                !self.doubtful.contains(&volume),
                "write {write} was acknowledged although nobody knows whether volume {volume} is removed"
            ),
            Err(IoError::NoSpace) => {
                let is_explained = self.world.reserves_used() > 0 || self.world.counts.restock_failures > 0;
                assert!(self.is_short_of_space || is_explained, "a write got no space on a device with plenty");
                self.world.counts.no_space += 1;
            }
            Err(IoError::ShuttingDown) => assert!(self.world.counts.owners_left > 0, "nobody has left"),
            // Of a part of a block the rest is read.
            Err(_) => self.failed_at(self.faults_before_life, blocks.iter().copied()),
        }
    }

    fn write_done(&mut self, volume: usize, blocks: &[u64], write: u64, is_fua: bool, result: Result<(), IoError>) {
        self.check_written(volume, write, blocks, result);
        let (now, is_faithless) = (self.now, self.is_device_faithless());
        self.note(|| format!("write {write} of volume {volume} ended: {result:?}, durable {is_fua}"));
        for block in blocks {
            self.models[volume].end(*block, write, result.is_ok(), is_fua && !is_faithless, now);
            self.exclusive.remove(&(volume, *block));
        }
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if std::env::var_os("ROK_TRACE").is_some() {
            println!("{:6} {}", self.now, what());
        }
    }
}
