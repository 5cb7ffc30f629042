//! The engine's side: one lane, on whose own thread the requests are made, as a frontend on that lane would.

use std::rc::Rc;
use std::sync::Arc;

use async_executor::LocalExecutor;
use io_uring::IoUring;
use rok_ublk::ring;
use uuid::Uuid;

use super::background::Background;
use super::load::Side;
use super::place::Place;
use super::raw_side::build_ring;
use crate::disk::{Disk, IoBuffer, UringDisk};
use crate::error::{Error, ErrorKind, IoError, Result};
use crate::pool::directory::{OpenOptions, OpenPool, open};
use crate::units::{LaneIndex, to_u64, to_usize};
use crate::volume::{Completion, Engine, EngineParts, NewVolume, OpenVolume, RangeLocks, RemoveMode, Volumes};

/// The upper bits of the disk's user data; nobody else uses this ring.
const DISK_PREFIX: u16 = 1;
const VOLUME_NAME: &str = "bench";
const SECTOR_SIZE: u32 = 4096;
/// More leaves than the volumes of usual benches have: leaf misses are not what is measured.
const MAP_CACHE_BYTES: u64 = 2 << 30;
const META_CACHE_BYTES: u64 = 256 << 20;

/// A lane with one open volume.
pub(super) struct EngineSide {
    // In the order in which they may go: the lane, then the threads it gives work to.
    engine: Rc<Engine<UringDisk>>,
    /// The engine's tasks are its, and end with it.
    _executor: Rc<LocalExecutor<'static>>,
    ring: IoUring,
    volume: OpenVolume,
    background: Background,
    done: Vec<(Completion, std::result::Result<(), IoError>)>,
    /// The engine has more to do, once the lane has submitted what there is.
    is_yielding: bool,
}

impl EngineSide {
    /// Opens the pool and makes the volume.
    ///
    /// # Errors
    /// What opening a pool can fail with; `Unsupported` if io_uring is refused.
    pub(super) fn open(place: &Place) -> Result<Self> {
        let ring = build_ring()?;
        let options = OpenOptions {
            credential: place.credential(),
            lane_count: 1,
            map_cache_bytes: MAP_CACHE_BYTES,
            meta_cache_bytes: META_CACHE_BYTES,
        };
        let OpenPool { pool, devices, .. } = open(&place.pool(), &options)?;
        let volumes = Volumes::new(Arc::clone(&pool));
        let id = Uuid::new_v4();
        volumes
            .create(&NewVolume { sector_size: SECTOR_SIZE, ..NewVolume::new(id, VOLUME_NAME, place.span_bytes()) })?;
        let volume = volumes.open(VOLUME_NAME)?;
        let background = Background::start(&pool)?;
        let executor = Rc::new(LocalExecutor::new());
        let engine = Engine::new(EngineParts {
            pool,
            locks: Arc::new(RangeLocks::new(1)),
            lane: LaneIndex::new(0),
            disk: UringDisk::new(devices, DISK_PREFIX, None),
            blocking: background.blocking(),
            executor: Rc::clone(&executor),
        });
        Ok(Self { engine, _executor: executor, ring, volume, background, done: Vec::new(), is_yielding: false })
    }

    /// Discards the volume and frees its blocks, so that the pool is as good as new.
    ///
    /// # Errors
    /// If the discard or the checkpoint fails.
    pub(super) fn empty(&mut self) -> Result<()> {
        let volume = self.volume.volume();
        let range = (0, volume.size_bytes());
        self.engine.remove(volume, range, RemoveMode::Discard, false, Completion { owner: 0, cookie: 0 });
        self.wait(&mut Vec::new())?;
        self.store()
    }

    /// Stores the changes, so that what follows does not pay for them.
    ///
    /// # Errors
    /// If the checkpoint fails.
    pub(super) fn store(&self) -> Result<()> {
        self.background.run_checkpoint()
    }

    /// Submits, then takes what has completed; sleeps if there is nothing to do before something completes.
    fn enter(&mut self) -> Result<()> {
        let (in_flight_count, has_unsubmitted) = self.engine.with_disk(|disk| {
            disk.prepare(&mut self.ring.submission());
            (disk.in_flight_count(), disk.has_unsubmitted())
        });
        if in_flight_count == 0 {
            if !self.is_yielding {
                self.background.wait();
            }
            return Ok(());
        }
        let is_idle = !has_unsubmitted && !self.is_yielding;
        ring::enter(&mut self.ring, usize::from(is_idle), None)
            .map_err(|error| Error::new(ErrorKind::Other, "The ring of the lane failed").with_source(error))?;
        for completion in self.ring.completion() {
            self.engine.with_disk(|disk| disk.complete(completion.user_data(), completion.result()));
        }
        Ok(())
    }
}

impl Side for EngineSide {
    fn request(&mut self, is_write: bool, slot: usize, offset_bytes: u64, buffer: &IoBuffer) {
        let completion = Completion { owner: 0, cookie: to_u64(slot) };
        let volume = self.volume.volume();
        if is_write {
            self.engine.write(volume, offset_bytes, buffer.clone(), false, completion);
        } else {
            self.engine.read(volume, offset_bytes, buffer.clone(), completion);
        }
    }

    fn wait(&mut self, done: &mut Vec<usize>) -> Result<()> {
        loop {
            // As a lane: what was handed in goes to the device before the engine goes on.
            if self.is_yielding {
                self.enter()?;
            }
            self.is_yielding = self.engine.turn();
            self.engine.drain_done(&mut self.done);
            if !self.done.is_empty() {
                break;
            }
            if !self.is_yielding {
                self.enter()?;
            }
        }
        for (completion, result) in self.done.drain(..) {
            result.map_err(|error| {
                Error::new(ErrorKind::Other, format!("A request to the engine failed: {error}"))
                    .with_hint("Run it again with -v")
            })?;
            done.push(to_usize(completion.cookie));
        }
        Ok(())
    }
}

impl Drop for EngineSide {
    fn drop(&mut self) {
        // What the kernel reads or writes must not be freed. After an error requests may be under way.
        while !self.engine.is_idle() {
            self.engine.turn();
            self.engine.drain_done(&mut self.done);
            self.done.clear();
            if !self.engine.is_idle() && self.enter().is_err() {
                return;
            }
        }
    }
}
