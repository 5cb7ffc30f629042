//! A pool, its lanes on threads of their own, and the threads beside them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::background::{Background, Waker};
use super::case::Case;
use super::engine_side::{EngineSide, LaneParts, VOLUME_NAME};
use super::load::{Measured, Plan};
use super::place::Place;
use super::ring_turn::{DISK, MemoryTurn, RingTurn, Turn};
use super::worker::Team;
use crate::crypto::{MasterKey, Suite};
use crate::disk::{Device, FileDevice, MemoryDevice, MemoryDisk, UringDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::lane::Alarm;
use crate::meta::MemoryStore;
use crate::pool::directory::{self, CreateOptions, Credential, DeviceSource, OpenOptions, OpenPool, OwnKeys};
use crate::pool::{Cleaner, CleanerStep, Limits, Parts, Pool, Urgency, Watermarks};
use crate::units::LaneIndex;
use crate::volume::{NewVolume, RangeLocks, Volumes};

const SECTOR_SIZE: u32 = 4096;

/// What a pool is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolPlan {
    /// Of its directory.
    pub(super) name: &'static str,
    pub(super) size_bytes: u64,
    /// Of its volume.
    pub(super) span_bytes: u64,
    pub(super) is_encrypted: bool,
    pub(super) lane_count: u16,
    pub(super) map_cache_bytes: u64,
    pub(super) meta_cache_bytes: u64,
}

/// See the head of the file. The lanes end before the threads beside them.
pub(super) struct EngineTeam {
    pub(super) pool: Arc<Pool>,
    pub(super) volumes: Arc<Volumes>,
    /// The lanes that are measured; behind them the cleaner's, where the pool has one.
    team: Team,
    background: Background,
}

impl PoolPlan {
    const fn suite(&self) -> Suite {
        if self.is_encrypted { Suite::XtsGmac } else { Suite::Plain }
    }
}

impl EngineTeam {
    /// Makes a pool in `place` and opens it.
    ///
    /// # Errors
    /// What making and opening a pool can fail with; `Unsupported` if io_uring is refused.
    pub(super) fn on_files(place: &Place, plan: &PoolPlan) -> Result<Self> {
        let key_file = place.path(&format!("{}.key", plan.name));
        if plan.is_encrypted {
            directory::generate_key_file(&key_file)?;
        }
        let credential = plan.is_encrypted.then(|| Credential::KeyFile(key_file));
        let device = DeviceSource::File { size_bytes: plan.size_bytes };
        let path = place.path(plan.name);
        directory::create(&path, &CreateOptions { devices: vec![device], suite: plan.suite(), credential })?;
        Self::open_files(place, plan).map(|(engine, _)| engine)
    }

    /// Opens a pool that [`Self::on_files`] made, and tells how long that took.
    ///
    /// # Errors
    /// What opening a pool can fail with; `Unsupported` if io_uring is refused.
    pub(super) fn open_files(place: &Place, plan: &PoolPlan) -> Result<(Self, Duration)> {
        let key_file = place.path(&format!("{}.key", plan.name));
        let credential = plan.is_encrypted.then(|| Credential::KeyFile(key_file));
        let (lane_count, map_cache_bytes, meta_cache_bytes) =
            (plan.lane_count, plan.map_cache_bytes, plan.meta_cache_bytes);
        let options = OpenOptions {
            credential,
            lane_count,
            map_cache_bytes,
            meta_cache_bytes,
            own_keys: OwnKeys::Opened,
            watermarks: Watermarks::default(),
        };
        let begun = Instant::now();
        let OpenPool { pool, devices, .. } = directory::open(&place.path(plan.name), &options)?;
        let open_time = begun.elapsed();
        Ok((Self::on_devices(&pool, plan, &devices)?, open_time))
    }

    /// Makes a pool on a device and with a metadata store in memory.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn in_memory(plan: &PoolPlan) -> Result<Self> {
        Self::on_memory(plan, MemoryDevice::new("memory", plan.size_bytes))
    }

    /// The same on a device that takes only the memory of what is written.
    ///
    /// # Errors
    /// As [`Self::in_memory`].
    pub(super) fn in_thin_memory(plan: &PoolPlan) -> Result<Self> {
        Self::on_memory(plan, MemoryDevice::thin("memory", plan.size_bytes))
    }

    fn on_memory(plan: &PoolPlan, device: MemoryDevice) -> Result<Self> {
        let device = Arc::new(device);
        let pool = pool_without_files(plan, Arc::clone(&device) as Arc<dyn Device>)?;
        let wakers = (0..plan.lane_count).map(|_| Arc::new(Waker::Parked(parking_lot::Mutex::default()))).collect();
        Self::start(&pool, plan, wakers, |parts| {
            let disk = MemoryDisk::new(vec![Arc::clone(&device)]);
            let waker = Arc::clone(&parts.waker);
            move || EngineSide::open(parts, disk, MemoryTurn::new(&waker))
        })
    }

    /// Makes a pool with one device, a file in `directory` that nobody sees, and a metadata store in memory.
    ///
    /// # Errors
    /// If the file cannot be made, or io_uring is refused.
    pub(super) fn on_hidden_file(directory: &Path, plan: &PoolPlan) -> Result<Self> {
        let path = directory.join(format!("rok-blk-count-{}", std::process::id()));
        let device = Arc::new(FileDevice::create(&path, plan.size_bytes)?);
        std::fs::remove_file(&path).map_err(|error| Error::from_io("Removing", &path, error))?;
        let pool = pool_without_files(plan, Arc::clone(&device) as Arc<dyn Device>)?;
        Self::on_devices(&pool, plan, &[device])
    }

    /// Lanes with a ring each.
    fn on_devices(pool: &Arc<Pool>, plan: &PoolPlan, devices: &[Arc<FileDevice>]) -> Result<Self> {
        let alarms = (0..pool.lane_count()).map(|_| Alarm::new().map(Arc::new)).collect::<std::io::Result<Vec<_>>>();
        let alarms =
            alarms.map_err(|error| Error::new(ErrorKind::Other, "An eventfd could not be made").with_source(error))?;
        let wakers = alarms.iter().map(|alarm| Arc::new(Waker::Ring(Arc::clone(alarm)))).collect();
        Self::start(pool, plan, wakers, |parts| {
            let (alarm, devices) = (Arc::clone(&alarms[parts.lane.as_usize()]), devices.to_vec());
            move || EngineSide::open(parts, UringDisk::new(devices, DISK.value(), None), RingTurn::new(alarm)?)
        })
    }

    fn start<T: Turn, B>(
        pool: &Arc<Pool>,
        plan: &PoolPlan,
        wakers: Vec<Arc<Waker>>,
        build: impl Fn(LaneParts) -> B,
    ) -> Result<Self>
    where
        B: FnOnce() -> Result<EngineSide<T>> + Send + 'static,
    {
        let volumes = Arc::new(Volumes::new(Arc::clone(pool)));
        let volume = NewVolume::new(Uuid::new_v4(), VOLUME_NAME, plan.span_bytes);
        match volumes.create(&NewVolume { sector_size: SECTOR_SIZE, ..volume }) {
            Err(error) if error.kind() == ErrorKind::Exists => {}
            created => drop(created?),
        }
        let background = Background::start(pool, wakers.clone())?;
        let locks = Arc::new(RangeLocks::new(wakers.len()));
        let lanes = (0..).map(LaneIndex::new).zip(wakers);
        let builds = lanes.map(|(lane, waker)| {
            build(LaneParts {
                pool: Arc::clone(pool),
                volumes: Arc::clone(&volumes),
                locks: Arc::clone(&locks),
                jobs: Arc::clone(background.jobs()),
                waker,
                lane,
            })
        });
        let team = Team::start(builds.collect())?;
        Ok(Self { pool: Arc::clone(pool), volumes, team, background })
    }

    /// Its lanes.
    pub(super) const fn team(&self) -> &Team {
        &self.team
    }

    /// Discards the volume and frees its blocks, so that the pool is as good as new.
    ///
    /// # Errors
    /// If the discard or the checkpoint fails.
    pub(super) fn empty(&self) -> Result<()> {
        self.team.discard()?;
        self.store()
    }

    /// Cleans until there is nothing more to clean, as the server does while nobody uses the pool.
    ///
    /// # Errors
    /// If a request or a checkpoint fails.
    pub(super) fn clean(&self) -> Result<()> {
        self.store()?;
        let mut cleaner = Cleaner::new(Arc::clone(&self.pool));
        while self.clean_step(&mut cleaner)? {}
        Ok(())
    }

    /// Whether there was something to clean.
    fn clean_step(&self, cleaner: &mut Cleaner) -> Result<bool> {
        match cleaner.next(Urgency::Idle) {
            CleanerStep::Move(group) => {
                if !self.team.move_group(group)? {
                    cleaner.refused();
                }
            }
            CleanerStep::Checkpoint => {
                self.store()?;
                cleaner.checkpointed();
            }
            CleanerStep::Rest => return Ok(false),
        }
        Ok(true)
    }

    /// Measures with some lanes, while checkpoints follow each other without a pause and the cleaner moves all that an
    /// idle pool would have it move.
    ///
    /// # Errors
    /// If a request or a checkpoint fails.
    pub(super) fn measure_busy(&self, case: &Case, plan: &Plan, seed_and_lanes: (u64, usize)) -> Result<Measured> {
        let mut cleaner = Cleaner::new(Arc::clone(&self.pool));
        // Where nothing is left to clean, a checkpoint's writes may make some.
        let mut clean = || if self.clean_step(&mut cleaner)? { Ok(()) } else { self.store() };
        self.background.set_checkpoints_back_to_back(true);
        let measured = self.team.measure_beside(case, plan, seed_and_lanes, Some(&mut clean));
        self.background.set_checkpoints_back_to_back(false);
        measured
    }

    /// Stores the changes, so that what follows does not pay for them.
    ///
    /// # Errors
    /// If the checkpoint fails.
    pub(super) fn store(&self) -> Result<()> {
        self.background.run_checkpoint()
    }
}

/// A new pool on this device, with a metadata store in memory.
fn pool_without_files(plan: &PoolPlan, device: Arc<dyn Device>) -> Result<Arc<Pool>> {
    let parts = Parts {
        id: Uuid::from_u128(1),
        suite: plan.suite(),
        master: Arc::new(MasterKey::from_bytes([1; 32])),
        devices: vec![(device, Uuid::from_u128(2))],
        store: Arc::new(MemoryStore::new()),
        reserve: None,
        shred_key: None,
        lane_count: plan.lane_count,
        has_cleaner: false,
        limits: Limits { map_cache_bytes: plan.map_cache_bytes, ..Limits::default() },
    };
    // Nothing of it is kept, and gathering real randomness takes longer than all else that counting tools look at.
    let mut random = SmallRng::seed_from_u64(0);
    let mut random = |bytes: &mut [u8]| random.fill(bytes);
    crate::pool::create(&parts, &mut random)?;
    crate::pool::open(parts, &mut random)
}
