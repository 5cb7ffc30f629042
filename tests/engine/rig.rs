//! A small machine for sweeps: every I/O of its pool can be seen, failed, or be the last one, and the machine can be copied at
//! any moment, with what is on its way to the disks.

pub mod oracle;
pub mod stage;
pub mod tap;
pub mod tapped;

use crate::world::signals::{SimBlocking, SimSignals};
use async_executor::LocalExecutor;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::crypto::{MasterKey, Suite};
use rok_blk::disk::{CrashMode, Device, IoBuffer, SimDevice};
use rok_blk::error::{Error, IoError};
use rok_blk::format::shred_key;
use rok_blk::meta::{MemoryStore, MetaStore};
use rok_blk::pool::{CheckReport, Limits, Parts, Pool, Unverified, Watermarks};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64, LaneIndex};
use rok_blk::volume::{Blocking, Completion, Engine, EngineParts, OpenVolume, RangeLocks, Volumes};
use std::rc::Rc;
use std::sync::Arc;
use tap::Tap;
use tapped::{TapDevice, TapDisk, TapStore};
use uuid::Uuid;

/// Room for both copies.
const SUPERBLOCK_FILE_BYTES: u64 = 128 << 10;
/// Turns in which everything that is under way comes to an end: far above what any use here needs.
const TURNS_MAX: usize = 20_000;
pub const POOL: Uuid = Uuid::from_u128(0x5112);
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };

/// What a pool here is like.
#[derive(Clone)]
pub struct Settings {
    pub suite: Suite,
    pub lane_count: u16,
    pub has_cleaner: bool,
    pub limits: Limits,
}

impl Settings {
    /// No checkpoint by itself, and batches as small as they can be.
    pub fn new(suite: Suite, lane_count: u16) -> Self {
        let limits = Limits {
            changes_soft_max: 10_000,
            changes_hard_max: 20_000,
            records_soft_max: 10_000,
            map_cache_bytes: 1 << 20,
            watermarks: Watermarks::default(),
            leaves_per_batch: 1,
            reclaimed_per_batch: 1,
            reclaimed_per_checkpoint: 6,
            lineage_max: 2,
        };
        Self { suite, lane_count, has_cleaner: false, limits }
    }
}

/// The machine.
pub struct Rig {
    /// With sizes in bytes that are listed.
    pub devices: Vec<(SimDevice, u64)>,
    pub shred_key: SimDevice,
    pub superblock: SimDevice,
    pub store: Arc<MemoryStore>,
    pub tap: Arc<Tap>,
    pub settings: Settings,
    pub pool_id: Uuid,
    pub master: Arc<MasterKey>,
    /// How often it was opened: no two openings draw the same salt.
    opened: u64,
}

/// One life of its pool.
pub struct RigLife {
    pub pool: Arc<Pool>,
    pub volumes: Arc<Volumes>,
    pub lanes: Vec<Rc<Engine<TapDisk>>>,
    /// Devices as the pool sees them.
    pub listed: Vec<Arc<TapDevice>>,
    /// Their tasks hold the lanes, so they go with the life.
    _executors: Vec<Rc<LocalExecutor<'static>>>,
    blocking: Rc<SimBlocking>,
}

/// Answers of requests, by cookie.
pub type Answers = Vec<(Completion, Result<(), IoError>)>;

impl Rig {
    /// A machine with a new pool.
    pub fn new(settings: Settings, device_bytes: &[u64]) -> Self {
        let rig = Self::blank(settings, device_bytes);
        rig.create_pool().expect("a healthy machine");
        rig
    }

    /// Makes a pool.
    ///
    /// # Errors
    /// As the pool.
    pub fn create_pool(&self) -> Result<(), Error> {
        rok_blk::pool::create(&self.parts(&self.listed(&self.tap), &self.tap), &mut filler(0))
    }

    /// A machine without a pool.
    pub fn blank(settings: Settings, device_bytes: &[u64]) -> Self {
        let device = |(index, bytes): (u64, &u64)| {
            let device = SimDevice::new(&format!("sim-{index}"), *bytes);
            device.reseed(index);
            (device, *bytes)
        };
        Self {
            devices: (0..).zip(device_bytes).map(device).collect(),
            shred_key: SimDevice::new("shred-key", shred_key::FILE_BYTES),
            superblock: SimDevice::new("superblock", SUPERBLOCK_FILE_BYTES),
            store: Arc::new(MemoryStore::new()),
            tap: Arc::default(),
            settings,
            pool_id: POOL,
            master: Arc::new(MasterKey::from_bytes([7; 32])),
            opened: 0,
        }
    }

    /// The same machine at this moment, with a tap of its own.
    pub fn image(&self) -> Self {
        Self {
            devices: self.devices.iter().map(|(device, bytes)| (device.image(), *bytes)).collect(),
            shred_key: self.shred_key.image(),
            superblock: self.superblock.image(),
            store: Arc::new(self.store.image()),
            tap: Arc::default(),
            settings: self.settings.clone(),
            pool_id: self.pool_id,
            master: Arc::clone(&self.master),
            opened: self.opened,
        }
    }

    /// From now on it draws other random numbers than the machine it is a copy of.
    pub fn draw_otherwise(&mut self) {
        self.opened += 1 << 32;
    }

    /// The same machine again, not a copy.
    pub fn handle(&self) -> Self {
        Self {
            devices: self.devices.clone(),
            shred_key: self.shred_key.clone(),
            superblock: self.superblock.clone(),
            store: Arc::clone(&self.store),
            tap: Arc::clone(&self.tap),
            settings: self.settings.clone(),
            pool_id: self.pool_id,
            master: Arc::clone(&self.master),
            opened: self.opened,
        }
    }

    pub fn files(&self) -> impl Iterator<Item = &SimDevice> {
        self.devices.iter().map(|(device, _)| device).chain([&self.shred_key, &self.superblock])
    }

    pub fn has_own_keys(&self) -> bool {
        self.settings.suite != Suite::Plain
    }

    fn listed(&self, tap: &Arc<Tap>) -> Vec<Arc<TapDevice>> {
        self.devices.iter().map(|(device, bytes)| TapDevice::new(device.process_handle(), *bytes, tap)).collect()
    }

    fn parts(&self, listed: &[Arc<TapDevice>], tap: &Arc<Tap>) -> Parts {
        let devices =
            (0..).zip(listed).map(|(index, device)| (Arc::clone(device) as Arc<dyn Device>, device_id(index)));
        let shred_key = TapDevice::new(self.shred_key.process_handle(), shred_key::FILE_BYTES, tap);
        Parts {
            id: self.pool_id,
            suite: self.settings.suite,
            master: Arc::clone(&self.master),
            devices: devices.collect(),
            store: Arc::new(TapStore { store: Arc::clone(&self.store), tap: Arc::clone(tap) }) as Arc<dyn MetaStore>,
            reserve: None,
            shred_key: self.has_own_keys().then_some(shred_key as Arc<dyn Device>),
            lane_count: self.settings.lane_count,
            has_cleaner: self.settings.has_cleaner,
            limits: self.settings.limits,
        }
    }

    /// Opens the pool.
    ///
    /// # Errors
    /// As the pool.
    pub fn open(&mut self) -> Result<RigLife, Error> {
        self.open_with(|parts, random| rok_blk::pool::open(parts, random))
    }

    /// Opens it without the shred key.
    ///
    /// # Errors
    /// As the pool.
    pub fn open_without_own_keys(&mut self, unverified: Unverified) -> Result<RigLife, Error> {
        self.open_with(|parts, random| rok_blk::pool::open_with(Parts { shred_key: None, ..parts }, unverified, random))
    }

    fn open_with(
        &mut self,
        open: impl FnOnce(Parts, &mut dyn FnMut(&mut [u8])) -> Result<Arc<Pool>, Error>,
    ) -> Result<RigLife, Error> {
        self.opened += 1;
        let listed = self.listed(&self.tap);
        let pool = open(self.parts(&listed, &self.tap), &mut filler(self.opened))?;
        // Nobody makes checkpoints that are asked for.
        pool.set_signals(Arc::new(SimSignals::default()));
        let lane_count = u16::try_from(pool.lane_count()).expect("few lanes");
        let locks = Arc::new(RangeLocks::new(usize::from(lane_count)));
        let blocking = Rc::new(SimBlocking::default());
        let executors: Vec<Rc<LocalExecutor<'static>>> = (0..lane_count).map(|_| Rc::default()).collect();
        let devices: Vec<SimDevice> = listed.iter().map(|listed| listed.device.clone()).collect();
        let lane = |(lane, executor): (u16, &Rc<LocalExecutor<'static>>)| {
            Engine::new(EngineParts {
                pool: Arc::clone(&pool),
                locks: Arc::clone(&locks),
                lane: LaneIndex::new(lane),
                disk: TapDisk::new(devices.clone(), &self.tap),
                blocking: Rc::clone(&blocking) as Rc<dyn Blocking>,
                executor: Rc::clone(executor),
            })
        };
        let lanes = (0..lane_count).zip(&executors).map(lane).collect();
        let volumes = Arc::new(Volumes::new(Arc::clone(&pool)));
        Ok(RigLife { pool, volumes, lanes, listed, _executors: executors, blocking })
    }

    /// Checks the pool as who opens it now would find it.
    ///
    /// # Errors
    /// As the check.
    pub fn check(&self, tap: &Arc<Tap>) -> Result<CheckReport, Error> {
        rok_blk::pool::check(&self.parts(&self.listed(tap), tap))
    }

    /// The process dies, the machine stays. Of the metadata nothing is lost: 0 batches.
    pub fn kill(&self, mode: CrashMode, random: &mut SmallRng) -> u64 {
        self.files().for_each(|file| file.crash(mode, &mut |below| random.random_range(0..below)));
        self.lose_batches(|count| count)
    }

    /// `keep` says how many of the batches of the metadata that were not synced are there; how many are not.
    pub fn lose_batches(&self, keep: impl FnOnce(usize) -> usize) -> u64 {
        let mut lost = 0;
        self.store.crash(|count| {
            let kept = keep(count).min(count);
            lost = (count - kept) as u64;
            kept
        });
        lost
    }

    /// The power goes: each write that was not flushed and each batch that was not synced is there, is not, or is there in part.
    pub fn lose_power(&self, random: &mut SmallRng) {
        self.files().for_each(|file| file.crash(CrashMode::PowerLoss, &mut |below| random.random_range(0..below)));
        self.lose_batches(|count| random.random_range(0..=count));
    }
}

impl RigLife {
    /// Completes one operation of a device, if one is in flight, or does one job.
    pub fn progress(&self, random: &mut SmallRng) -> bool {
        let first = random.random_range(0..self.lanes.len());
        for step in 0..self.lanes.len() {
            let lane = &self.lanes[(first + step) % self.lanes.len()];
            let is_done = lane.with_disk(|disk| {
                let count = disk.in_flight_count();
                if count == 0 {
                    return false;
                }
                disk.complete_nth(random.random_range(0..count), &mut |below| random.random_range(0..below));
                true
            });
            if is_done {
                lane.turn();
                return true;
            }
        }
        let job = self.blocking.jobs.borrow_mut().pop_front();
        let is_done = job.is_some();
        job.into_iter().for_each(|job| job());
        is_done
    }

    /// The same; where there is nothing, lanes get turns first: one may have what another one waited for in its turn.
    pub fn progress_or_turn(&self, answers: &mut Answers, random: &mut SmallRng) -> bool {
        self.progress(random)
            || self.lanes.iter().any(|_| {
                self.turn(answers);
                self.progress(random)
            })
    }

    /// One turn of every lane; what they answered.
    pub fn turn(&self, answers: &mut Answers) {
        for lane in &self.lanes {
            lane.turn();
            lane.drain_done(answers);
        }
    }

    /// Runs until every request is answered, or nothing goes on any more because the machine has died or there is no space.
    pub fn settle(&self, answers: &mut Answers, random: &mut SmallRng) -> bool {
        for _ in 0..TURNS_MAX {
            self.turn(answers);
            if self.lanes.iter().all(|lane| lane.is_idle()) {
                return true;
            }
            if !self.progress_or_turn(answers, random) {
                return self.lanes.iter().all(|lane| lane.is_idle());
            }
        }
        panic!("requests hang: nothing completes them");
    }

    /// Reads blocks.
    ///
    /// # Errors
    /// The answer of the read.
    pub fn read(
        &self,
        open: &OpenVolume,
        (block, count): (u64, u64),
        random: &mut SmallRng,
    ) -> Result<Vec<u8>, IoError> {
        let buffer = IoBuffer::allocate(usize::try_from(count).expect("small") * BLOCK_SIZE);
        self.lanes[0].read(open.volume(), block * BLOCK_SIZE_U64, buffer.clone(), COMPLETION);
        let mut answers = Vec::new();
        self.settle(&mut answers, random);
        let (_, result) = answers.pop().expect("a read is answered");
        result.map(|()| buffer.with_bytes(<[u8]>::to_vec))
    }

    /// What the checks of the open pool find wrong, where nothing is under way.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let report = self.pool.check().map_err(|error| error.to_string())?;
        if !report.is_clean() {
            return Err(format!("the check of the open pool: {report:#?}"));
        }
        let reserved: Vec<_> = self.lanes.iter().flat_map(|lane| lane.reserved_runs()).collect();
        let report = self.pool.check_space(&reserved);
        if report.is_clean() { Ok(()) } else { Err(format!("the check of the free space: {report:#?}")) }
    }
}

/// The id of a device, as the superblock has it.
pub fn device_id(index: u64) -> Uuid {
    Uuid::from_u64_pair(0x5112, 2 + index)
}

/// Deterministic bytes for keys and salts.
pub fn filler(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x5a17);
    move |bytes| random.fill(bytes)
}
