//! What the cases of snapshots do with a pool beside requests: mapping without data, snapshots, clones, reclaim.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::case::Case;
use super::engine_team::EngineTeam;
use super::load::{Limit, Measured, Plan};
use super::snapshot_case::Mapping;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::Entry;
use crate::format::snapshot::Annotations;
use crate::map::{Change, ChangeKey};
use crate::meta::{RocksOptions, RocksStore};
use crate::pool::{Effort, NewClone, NewSnapshot, Placement, Removals, SnapshotId};
use crate::units::{Address, AddressRun, BlockIndex, KeyGeneration, to_u64};
use crate::volume::NewVolume;

/// Blocks that are mapped between two checkpoints.
const MAPPED_AT_ONCE: u64 = 100_000;
const SECTOR_SIZE: u32 = 4096;

/// Free blocks to be mapped; what is left of them goes back.
struct Window<'a> {
    engine: &'a EngineTeam,
    runs: Vec<AddressRun>,
}

impl Window<'_> {
    fn next(&mut self) -> Result<Address> {
        if self.runs.is_empty() {
            self.runs = self.engine.pool.reserve_window(Placement::Runs, 0);
        }
        let full =
            || Error::new(ErrorKind::NoSpace, "The pool of the bench is full").with_hint("Use a larger --pool-size");
        let run = self.runs.last_mut().ok_or_else(full)?;
        let address = run.start;
        *run = AddressRun { start: address.plus(1), count: run.count - 1 };
        if run.count == 0 {
            self.runs.pop();
        }
        Ok(address)
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.engine.pool.return_window(&self.runs);
    }
}

/// A snapshot to be made.
fn new_snapshot(volume: Uuid) -> NewSnapshot {
    let annotations = Annotations::default();
    NewSnapshot { id: Uuid::new_v4(), volume, created_at_ms: 0, time_ms: 0, expires_at: 0, annotations }
}

impl EngineTeam {
    /// Makes a volume.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn create_volume(&self, name: &str, size_bytes: u64) -> Result<Uuid> {
        let volume = NewVolume::new(Uuid::new_v4(), name, size_bytes);
        self.volumes.create(&NewVolume { sector_size: SECTOR_SIZE, ..volume }).map(|info| info.id)
    }

    /// Maps blocks of a volume, each to a free block of the pool whose content nobody will read, and stores the map.
    ///
    /// # Errors
    /// If there is no space, or a checkpoint fails.
    pub(super) fn map(&self, volume: Uuid, mapping: Mapping) -> Result<()> {
        let gone = || Error::new(ErrorKind::NotFound, "The volume is gone");
        let head = self.pool.with_catalog(|catalog, _| {
            let tree = catalog.tree(catalog.volume(volume)?.tree)?;
            Some((tree.id, tree.epoch))
        });
        let (tree, epoch) = head.ok_or_else(gone)?;
        let mut window = Window { engine: self, runs: Vec::new() };
        for index in 0..mapping.block_count {
            let address = window.next()?;
            let sequence = self.pool.take_sequences(1);
            let block = BlockIndex::new(index * mapping.stride());
            let entry = Entry::new(address, KeyGeneration::new(0), sequence, sequence.get());
            let key = ChangeKey { tree, block, epoch };
            self.pool.changes().lay().lay(key, Change { sequence, entry: Some(entry) });
            if index % MAPPED_AT_ONCE == MAPPED_AT_ONCE - 1 {
                self.store()?;
            }
        }
        drop(window);
        self.store()
    }

    /// Makes a snapshot, and tells how long that took.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn take_snapshot(&self, volume: Uuid) -> Result<(SnapshotId, Duration)> {
        let new = vec![new_snapshot(volume)];
        let begun = Instant::now();
        let made = self.volumes.snapshot(new)?;
        let time = begun.elapsed();
        let made = made.first().ok_or_else(|| Error::new(ErrorKind::Other, "No snapshot was made"))?;
        Ok(((made.volume, made.number), time))
    }

    /// Makes a snapshot of each of these volumes at once.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn take_set(&self, volumes: &[Uuid]) -> Result<()> {
        self.volumes.snapshot(volumes.iter().map(|volume| new_snapshot(*volume)).collect()).map(|_| ())
    }

    /// Makes clones of a snapshot at once, and tells how long that took.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn clone_as(&self, source: SnapshotId, names: Vec<String>) -> Result<Duration> {
        let clone = |name| NewClone { id: Uuid::new_v4(), name, created_at: 0, expires_at: 0, labels: Vec::new() };
        let new: Vec<NewClone> = names.into_iter().map(clone).collect();
        let begun = Instant::now();
        self.volumes.clone_snapshot(source, new)?;
        Ok(begun.elapsed())
    }

    /// The id of a volume.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn volume_id(&self, name: &str) -> Result<Uuid> {
        self.volumes.find(name).map(|info| info.id)
    }

    /// Removes all snapshots, and frees what they held.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn remove_snapshots(&self) -> Result<()> {
        let ids: Vec<SnapshotId> = self.pool.with_catalog(|catalog, _| {
            catalog.snapshots().map(|snapshot| (snapshot.volume, snapshot.number)).collect()
        });
        self.volumes.remove_snapshots(&ids)?;
        self.reclaim().map(|_| ())
    }

    /// Blocks that removing one snapshot would free, and how long it took to tell.
    ///
    /// # Errors
    /// If it cannot be told.
    pub(super) fn forecast(&self, id: SnapshotId) -> Result<Measured> {
        let begun = Instant::now();
        let freed = self.pool.would_free(&Removals::of_snapshot(id), &mut Effort::whatever_it_takes(&|| false))?;
        let unknown = || Error::new(ErrorKind::Other, "What a removal would free was not counted to the end");
        Ok(Measured::of(freed.ok_or_else(unknown)?, begun.elapsed()))
    }

    /// Removes one snapshot, without waiting for what it held.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn remove_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.volumes.remove_snapshots(&[id])
    }

    /// Runs checkpoints until nothing that was removed is left; how long that took.
    ///
    /// # Errors
    /// If a checkpoint fails.
    pub(super) fn reclaim(&self) -> Result<Duration> {
        let begun = Instant::now();
        while self.pool.is_reclaiming() {
            self.store()?;
        }
        Ok(begun.elapsed())
    }

    /// Whether more than half of the pool is taken.
    pub(super) fn is_half_full(&self) -> bool {
        let status = self.pool.status();
        status.free_bytes < status.capacity_bytes / 2
    }

    /// Measures requests until `meanwhile`, which is called again and again on this thread, has no more to do.
    ///
    /// # Errors
    /// If a request or `meanwhile` fails.
    pub(super) fn measure_until(
        &self,
        case: &Case,
        (span_bytes, stride): (u64, u64),
        seed: u64,
        mut meanwhile: impl FnMut() -> Result<bool>,
    ) -> Result<Measured> {
        let is_over = Arc::new(AtomicBool::new(false));
        let limit = Limit::Until(Arc::clone(&is_over));
        let plan = Plan { span_bytes, stride, limit, is_timed: true };
        let mut step = || {
            if is_over.load(Ordering::Relaxed) {
                std::thread::yield_now();
                return Ok(());
            }
            let has_more = meanwhile();
            if !matches!(has_more, Ok(true)) {
                is_over.store(true, Ordering::Release);
            }
            has_more.map(|_| ())
        };
        self.team().measure_beside(case, &plan, (seed, 1), Some(&mut step))
    }

    /// Measures requests for a time.
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn measure_alone(
        &self,
        case: &Case,
        span_and_stride: (u64, u64),
        seed: u64,
        time: Duration,
    ) -> Result<Measured> {
        self.measure_until(case, span_and_stride, seed, || {
            std::thread::sleep(time);
            Ok(false)
        })
    }
}

/// Bytes of the tables in the metadata store of a closed pool, after all was merged.
///
/// # Errors
/// If the store cannot be opened or merged.
pub(super) fn stored_meta_bytes(pool: &Path) -> Result<u64> {
    let path = pool.join("meta");
    let failed = |error: crate::meta::MetaError| Error::new(ErrorKind::Other, error.to_string());
    let store = RocksStore::open(&path, RocksOptions::default()).map_err(failed)?;
    store.compact().map_err(failed)?;
    store.close().map_err(failed)?;
    let entries = std::fs::read_dir(&path).map_err(|error| Error::from_io("Reading", &path, error))?;
    let tables = entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "sst"));
    Ok(tables.filter_map(|table| table.metadata().ok()).map(|table| table.len()).sum())
}

/// The time that all but so many of a hundred stay below, in milliseconds.
pub(super) fn percentile_ms(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// The times together.
pub(super) fn measured(times: &[Duration]) -> Measured {
    Measured::of(to_u64(times.len()), times.iter().sum())
}
