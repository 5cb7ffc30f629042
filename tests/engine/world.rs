//! The simulated machine: its devices, one metadata store, lanes that a seeded scheduler interleaves on one thread.

mod closed;
mod crashing;
mod faults;
mod growth;
mod key_slots;
mod pausing;
pub mod signals;
mod sizes;
mod trimming;

use crate::counts::Counts;
use crate::reserve::SimReserve;
use async_executor::LocalExecutor;
use growth::{Growth, ListedDevice};
use key_slots::KeySlots;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::crypto::{MasterKey, Suite};
use rok_blk::disk::{Device, OpKind, SimDevice, SimDisk};
use rok_blk::error::{Error, ErrorKind, IoError};
use rok_blk::format::shred_key;
use rok_blk::format::snapshot::Annotations;
use rok_blk::meta::{MemoryStore, MetaStore, SpaceReserve};
use rok_blk::pool::{Checkpoint, Limits, NewSnapshot, Parts, Pool, Progress, Signals, Watermarks};
use rok_blk::units::{Address, DeviceIndex, LaneIndex};
use rok_blk::volume::{Blocking, Completion, Engine, EngineParts, OpenVolume, RangeLocks, Volumes};
use signals::{SimBlocking, SimSignals};
pub use sizes::device_bytes;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Steps that a drain may take: far above what any workload here needs.
const DRAIN_STEPS_MAX: usize = 200_000;
/// Steps of a checkpoint that nothing is in the way of: more than it takes here.
const CHECKPOINT_STEPS_MAX: usize = 200;

/// Of the operations of a slow device that could end.
const SLOW_PART: f64 = 0.05;

/// One life of the pool.
pub struct Life {
    pub pool: Arc<Pool>,
    pub volumes: Arc<Volumes>,
    pub lanes: Vec<Rc<Engine<SimDisk>>>,
    pub handles: Vec<OpenVolume>,
    /// Their tasks hold the lanes, so they go with the life.
    _executors: Vec<Rc<LocalExecutor<'static>>>,
    blocking: Rc<SimBlocking>,
    signals: Arc<SimSignals>,
    checkpoint: Option<Checkpoint>,
    /// Devices as the pool sees them.
    listed: Vec<Arc<ListedDevice>>,
    growth: Growth,
}

impl Life {
    /// Jobs that wait for a blocking thread.
    pub fn job_count(&self) -> usize {
        self.blocking.jobs.borrow().len()
    }

    /// Does the jobs that wait, before anything else happens.
    pub fn run_jobs(&self) {
        self.blocking.jobs.take().into_iter().for_each(|job| job());
    }
}

/// The machine. Its devices and store outlive the lives of the pool.
pub struct World {
    pub random: SmallRng,
    /// A device of which few operations come to their end while those of others do.
    pub slow: Option<DeviceIndex>,
    /// By index; one that is being added is not listed yet.
    pub devices: Vec<SimDevice>,
    /// What the superblock says: sizes of the devices in bytes.
    listed: Vec<u64>,
    /// A device should grow, or one be added.
    pub wants_growth: bool,
    pub store: Arc<MemoryStore>,
    pub counts: Counts,
    /// Cookies of requests that waited for space.
    pub paused: BTreeSet<u64>,
    /// Blocks that were leaked on purpose, or may be.
    pub leaked: BTreeSet<Address>,
    pub trace: blake3::Hasher,
    pub limits: Limits,
    pub reserve: Option<Arc<SimReserve>>,
    /// The file of the shred key.
    pub shred_key: SimDevice,
    pub key_slots: KeySlots,
    pub pool_id: Uuid,
    pub master: Arc<MasterKey>,
    pub suite: Suite,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Kill,
    PowerLoss,
}

/// A snapshot of a volume, with nothing special about it.
pub fn new_snapshot(volume: Uuid) -> NewSnapshot {
    NewSnapshot {
        id: Uuid::from_u128(2),
        volume,
        created_at_ms: 1,
        time_ms: 1,
        expires_at: 0,
        annotations: Annotations::default(),
    }
}

impl World {
    pub fn new(seed: u64, device_bytes: &[u64]) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let suite = if random.random_bool(0.8) { Suite::XtsGmac } else { Suite::Plain };
        let changes_soft_max = random.random_range(20..400);
        let limits = Limits {
            changes_soft_max,
            changes_hard_max: changes_soft_max * random.random_range(1..5),
            records_soft_max: random.random_range(5..200),
            // One leaf, two leaves at most, or all.
            map_cache_bytes: *[1, 13_000, 32 << 20].get(random.random_range(0..3)).expect("in range"),
            watermarks: Watermarks::default(),
            // Few, so that a checkpoint has batches between which everything else happens.
            leaves_per_batch: random.random_range(1..4),
            reclaimed_per_batch: random.random_range(1..4),
            reclaimed_per_checkpoint: random.random_range(1..12),
            // Few, so that clones and rollbacks get there.
            lineage_max: random.random_range(1..4),
        };
        let store = Arc::new(MemoryStore::new());
        let pool_id = Uuid::from_u64_pair(seed, 1);
        let master = Arc::new(MasterKey::from_bytes([7; 32]));
        let sizes = (0..).zip(device_bytes);
        let mut world = Self {
            slow: seed.is_multiple_of(5).then(|| DeviceIndex::new(0)),
            reserve: random.random_bool(0.5).then(|| SimReserve::new(&store)),
            devices: sizes.map(|(index, bytes): (u64, _)| SimDevice::new(&format!("sim-{index}"), *bytes)).collect(),
            listed: device_bytes.to_vec(),
            wants_growth: false,
            store,
            counts: Counts::default(),
            paused: BTreeSet::new(),
            leaked: BTreeSet::new(),
            trace: blake3::Hasher::new(),
            limits,
            shred_key: SimDevice::new("shred-key", shred_key::FILE_BYTES),
            key_slots: KeySlots::new(seed, suite, &pool_id, Arc::clone(&master)),
            pool_id,
            master,
            suite,
            random,
        };
        for (index, device) in (0..).zip(&world.devices) {
            device.reseed(seed.wrapping_add(index << 32));
            device.set_thin(seed.wrapping_add(index) % 3 != 0);
        }
        world.shred_key.reseed(seed ^ 0x5a17);
        let parts = world.parts(1, false, &world.listed_devices(&world.devices), Some(&world.shred_key));
        rok_blk::pool::create(&parts, &mut filler(seed)).expect("a new pool on a healthy device");
        world.change_key_slots_offline();
        world
    }

    /// Starts the numbers of an operation.
    pub fn reseed(&mut self, seed: u64, index: u64) {
        self.random = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index);
    }

    fn listed_devices(&self, devices: &[SimDevice]) -> Vec<Arc<ListedDevice>> {
        let listed = self.listed.iter().zip(devices);
        listed.map(|(bytes, device)| Arc::new(ListedDevice::new(device.clone(), *bytes))).collect()
    }

    fn parts(
        &self,
        lane_count: u16,
        has_cleaner: bool,
        devices: &[Arc<ListedDevice>],
        shred_key: Option<&SimDevice>,
    ) -> Parts {
        let devices = (0..)
            .zip(devices)
            .map(|(index, device)| (Arc::clone(device) as Arc<dyn Device>, device_id(self.pool_id, index)));
        Parts {
            id: self.pool_id,
            suite: self.suite,
            master: Arc::clone(&self.master),
            devices: devices.collect(),
            store: Arc::clone(&self.store) as Arc<dyn MetaStore>,
            reserve: self.reserve.clone().map(|reserve| reserve as Arc<dyn SpaceReserve>),
            shred_key: shred_key
                .filter(|_| self.suite != Suite::Plain)
                .map(|device| Arc::new(device.clone()) as Arc<dyn Device>),
            lane_count,
            has_cleaner,
            limits: self.limits,
        }
    }

    /// Times that the metadata store took its reserve.
    pub fn reserves_used(&self) -> u64 {
        self.reserve.as_ref().map_or(0, |reserve| reserve.used_count())
    }

    /// Opens the pool with a random number of lanes.
    pub fn open(&mut self) -> Result<Life, Error> {
        self.open_with(Some(&self.shred_key.process_handle()))
    }

    fn open_with(&mut self, shred_key: Option<&SimDevice>) -> Result<Life, Error> {
        self.key_slots.open();
        let lane_count = self.random.random_range(1..4);
        let process: Vec<SimDevice> = self.devices.iter().map(SimDevice::process_handle).collect();
        let mut fill = filler(self.random.random());
        let listed = self.listed_devices(&process);
        let has_cleaner = self.random.random_bool(0.7);
        let pool = rok_blk::pool::open(self.parts(lane_count, has_cleaner, &listed, shred_key), &mut fill)?;
        let lane_count = u16::try_from(pool.lane_count()).expect("few lanes");
        self.counts.recovered_records += pool.recovery().record_count;
        self.counts.lost_blocks += pool.recovery().lost_block_count;
        let signals = Arc::new(SimSignals::default());
        pool.set_signals(Arc::clone(&signals) as Arc<dyn Signals>);
        let locks = Arc::new(RangeLocks::new(usize::from(lane_count)));
        let blocking = Rc::new(SimBlocking::default());
        let executors: Vec<Rc<LocalExecutor<'static>>> = (0..lane_count).map(|_| Rc::default()).collect();
        let lanes = (0..lane_count)
            .zip(&executors)
            .map(|(lane, executor)| {
                Engine::new(EngineParts {
                    pool: Arc::clone(&pool),
                    locks: Arc::clone(&locks),
                    lane: LaneIndex::new(lane),
                    disk: SimDisk::new(process.clone()),
                    blocking: Rc::clone(&blocking) as Rc<dyn Blocking>,
                    executor: Rc::clone(executor),
                })
            })
            .collect();
        let volumes = Arc::new(Volumes::new(Arc::clone(&pool)));
        Ok(Life {
            pool,
            volumes,
            lanes,
            handles: Vec::new(),
            _executors: executors,
            blocking,
            signals,
            checkpoint: None,
            listed,
            growth: Growth::None,
        })
    }

    /// Lets one thing happen: a device completion, a job, a step of a checkpoint, or nothing; then a turn.
    pub fn step(&mut self, life: &mut Life, done: &mut Vec<(Completion, Result<(), IoError>)>) {
        let lane = self.random.random_range(0..life.lanes.len());
        match self.random.random_range(0..10) {
            0..6 => self.complete_one(life, lane),
            6 => life.run_job(),
            7 | 8 => self.checkpoint_step(life, false),
            _ if self.random.random_bool(0.5) => self.trim_step(life),
            _ => self.growth_step(life),
        }
        life.lanes[lane].turn();
        for engine in &life.lanes {
            engine.drain_done(done);
        }
        self.note_paused(life);
    }

    fn complete_one(&mut self, life: &Life, lane: usize) {
        let (random, slow) = (&mut self.random, self.slow);
        let slow_count = &mut self.counts.slow_waits;
        life.lanes[lane].with_disk(|disk| {
            let count = disk.in_flight_count();
            if count > 0 {
                let index = random.random_range(0..count);
                if slow == Some(disk.device_of(index)) && !random.random_bool(SLOW_PART) {
                    *slow_count += 1;
                    return;
                }
                disk.complete_nth(index, &mut |below| random.random_range(0..below));
            }
        });
    }

    fn checkpoint_step(&mut self, life: &mut Life, is_urgent: bool) {
        if life.checkpoint.is_none() {
            let is_wanted = life.signals.wants_checkpoint.swap(false, Ordering::Relaxed);
            if (is_wanted || is_urgent || self.random.random_bool(0.02)) && life.pool.check_writable().is_ok() {
                life.checkpoint = Some(Checkpoint::begin(Arc::clone(&life.pool)));
            }
        }
        let Some(checkpoint) = &mut life.checkpoint else { return };
        // It would wait for who holds writes back, which is this thread.
        if checkpoint.needs_turn() && life.pool.is_turn_taken() {
            return;
        }
        let whole_count = life.pool.whole_count();
        let step = checkpoint.step();
        self.counts.copied_down += life.pool.whole_count() - whole_count;
        match step {
            Ok(Progress::Working | Progress::Waiting) => {}
            Ok(Progress::Done) => {
                self.counts.checkpoints += 1;
                life.checkpoint = None;
            }
            // The same step comes again: it is to find everything as it was before.
            Err(error) if error.kind() == ErrorKind::NoSpace => self.counts.meta_full += 1,
            // The pool has failed, and says so to each write.
            Err(_) => life.checkpoint = None,
        }
    }

    /// Lets the checkpoint go on that has begun, then another one, while no lane has a turn: to their ends, unless one of
    /// them waits for a lane or for space.
    pub fn checkpoints_alone(&mut self, life: &mut Life) {
        for _ in 0..2 {
            self.checkpoint_step(life, true);
            for _ in 0..CHECKPOINT_STEPS_MAX {
                if life.checkpoint.is_some() {
                    self.checkpoint_step(life, false);
                }
            }
        }
    }

    /// Runs until every request is answered, for which `meta/` gets space. What waits for space and gets none fails.
    pub fn drain(&mut self, life: &mut Life, done: &mut Vec<(Completion, Result<(), IoError>)>) {
        let slow = self.slow.take();
        self.drain_at_one_speed(life, done);
        self.slow = slow;
    }

    fn drain_at_one_speed(&mut self, life: &mut Life, done: &mut Vec<(Completion, Result<(), IoError>)>) {
        self.store.fill_after(None);
        for _ in 0..DRAIN_STEPS_MAX {
            let news = life.pool.space_news();
            for engine in &life.lanes {
                engine.turn();
                engine.drain_done(done);
            }
            if life.lanes.iter().all(|engine| engine.is_idle()) {
                return;
            }
            self.note_paused(life);
            if self.is_paused(life, news) {
                self.relieve(life);
                continue;
            }
            for lane in 0..life.lanes.len() {
                self.complete_one(life, lane);
            }
            life.run_job();
            self.restock_step(life);
            self.checkpoint_step(life, false);
        }
        panic!("requests hang: nothing completes them");
    }

    /// Lets a checkpoint end that has begun.
    pub fn finish_checkpoint(&mut self, life: &mut Life) {
        if let Some(mut checkpoint) = life.checkpoint.take() {
            checkpoint.run().expect("a healthy machine");
        }
    }

    /// Runs a checkpoint, be it one that has begun.
    ///
    /// # Errors
    /// As the checkpoint.
    pub fn checkpoint(&mut self, life: &mut Life) -> Result<(), Error> {
        life.checkpoint.take().unwrap_or_else(|| Checkpoint::begin(Arc::clone(&life.pool))).run()
    }

    /// Closes the pool: everything answered, everything stored; `meta/` has space for so many more commits, if that is
    /// said. `false` if not everything is stored.
    pub fn close(
        &mut self,
        mut life: Life,
        commits_left: Option<u64>,
        done: &mut Vec<(Completion, Result<(), IoError>)>,
    ) -> bool {
        self.drain(&mut life, done);
        self.count_life(&life);
        self.store.fill_after(commits_left);
        if life.pool.check_writable().is_err() {
            return false;
        }
        // What the checkpoint thread has begun goes on first.
        if life.checkpoint.take().is_some_and(|mut checkpoint| checkpoint.run().is_err())
            || Checkpoint::begin(Arc::clone(&life.pool)).run().is_err()
        {
            return false;
        }
        self.counts.checkpoints += 1;
        true
    }

    /// Adds what a life that ends has counted.
    fn count_life(&mut self, life: &Life) {
        self.counts.moved_blocks += life.pool.cleaning_status().moved;
        self.counts.restocked += life.pool.restocked();
        let parts = life.pool.part_counts();
        self.counts.parts_stored += parts.stored();
        self.counts.parts_beside += parts.beside();
        self.counts.parts_rebased += parts.rebased();
    }

    /// Stores everything, and goes on.
    pub fn close_and_keep(&mut self, life: &mut Life) -> bool {
        self.drain(life, &mut Vec::new());
        life.checkpoint.is_none() && Checkpoint::begin(Arc::clone(&life.pool)).run().is_ok()
    }

    /// Checks the pool as it would be found by who opens it now; panics at a difference.
    pub fn check_closed(&self) {
        let parts = self.parts(1, false, &self.listed_devices(&self.devices), Some(&self.shred_key));
        let report = rok_blk::pool::check(&parts);
        self.assert_only_leaked(&report.expect("nothing is in the way of reading"));
    }

    /// Opens the pool; now and then something fails or the machine crashes on the way, and it is tried again.
    ///
    /// Bad blocks are readable behind an attempt: a lane's first record may go there, and where such a place cannot be
    /// read behind another crash nobody knows whether the record is there, so that the pool is refused.
    ///
    /// # Panics
    /// If the pool refuses to open although nothing was injected.
    pub fn reopen(&mut self) -> (Life, bool) {
        if self.counts.bad_blocks == 0 {
            self.check_closed();
        }
        self.open_without_own_keys();
        let mut has_lost_power = false;
        while self.random.random_bool(0.3) {
            let nth = self.random.random_range(1..30);
            match self.random.random_range(0..4) {
                0 => self.any_file().fail_nth(OpKind::Read, nth.min(4)),
                1 => self.any_file().fail_nth(OpKind::Write, nth.min(3)),
                2 => self.any_file().fail_nth(OpKind::Flush, nth.min(3)),
                _ => self.store.fail_commit_after(Some(nth.min(12))),
            }
            let life = self.open().ok();
            self.clear_faults();
            self.files().for_each(SimDevice::heal);
            self.counts.crashes_in_recovery += u64::from(life.is_none());
            // A failed flush may have dropped what was only in the cache.
            has_lost_power = true;
            self.crash(life, End::PowerLoss);
        }
        match self.open() {
            Ok(life) => {
                self.files().for_each(SimDevice::heal);
                (life, has_lost_power)
            }
            Err(error) => panic!("the pool does not open after a crash: {error}"),
        }
    }
}

impl Life {
    /// Checks the pool where nothing is under way; panics at a difference.
    pub fn check(&self) {
        let report = self.pool.check().expect("the store can be read");
        assert!(report.is_clean(), "the check of the open pool: {report:#?}");
        let reserved: Vec<_> = self.lanes.iter().flat_map(|lane| lane.reserved_runs()).collect();
        let report = self.pool.check_space(&reserved);
        assert!(report.is_clean(), "the check of the free space: {report:#?}");
    }

    fn run_job(&self) {
        let job = self.blocking.jobs.borrow_mut().pop_front();
        if let Some(job) = job {
            job();
        }
    }
}

/// The id of a device, as the superblock has it.
fn device_id(pool: Uuid, index: u64) -> Uuid {
    Uuid::from_u64_pair(pool.as_u64_pair().0, 2 + index)
}

/// Deterministic bytes for keys and salts.
fn filler(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x5a17);
    move |bytes| random.fill(bytes)
}
