//! What a removal would free, and the explanation of space: what needs leaves of the map to be read.
//!
//! Nothing here holds the lock of changes while it reads, so that snapshots and removals go on; and what nobody waits for any
//! more ends after some leaves. What is asked for by the way, `show` and `status`, has a bound of leaves; what a dry run
//! says has none.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Control;
use super::snapshots::find_snapshot;
use crate::daemon::attention::Attention;
use crate::daemon::request::ForecastRemoval;
use crate::daemon::resource::{ApiVersion, Kind, seconds_since_1970};
use crate::daemon::space_resource::{HeldSpace, RemovalForecast, VolumeSpace};
use crate::daemon::trash::{Thing, is_held, reference_of};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Catalog, Effort, Removals, Sharer};
use crate::units::BLOCK_SIZE_U64;
use crate::volume::Reference;

/// References of one request.
const REFERENCES_MAX: usize = 10_000;
/// How long a forecast waits for a checkpoint, and for space of earlier removals to be reclaimed.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);
/// Leaves that the explanation of one thing reads: some two seconds.
const SHOWN_LEAVES_MAX: u64 = 65_536;
/// Leaves that the advice of `status` reads: less than a second.
const ADVISED_LEAVES_MAX: u64 = 16_384;
/// For how long an advice is good.
const ADVICE_TIME: Duration = Duration::from_secs(60);
/// Versions that an advice names.
const ADVISED_MAX: usize = 3;
/// Versions that an explanation names as holding space.
const HELD_BY_MAX: usize = 8;
/// Those that it names as sharing.
const SHARERS_MAX: usize = 16;

/// The versions whose removal would free most, as of some moment.
#[derive(Default)]
pub(super) struct Advice {
    made: Option<Instant>,
    items: Vec<HeldSpace>,
}

impl Control {
    /// What removing all of these together, for good, would free: of what was written before this call, to the byte.
    ///
    /// # Errors
    /// `Usage` for what is no reference or too many, `NotFound`, `TimedOut` if nobody waits any more, and what reading the
    /// metadata reports.
    pub fn forecast(&self, request: &ForecastRemoval, attention: &Attention) -> Result<RemovalForecast> {
        if request.refs.len() > REFERENCES_MAX {
            let message = format!("{} references are too many for one request", request.refs.len());
            return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Ask for {REFERENCES_MAX} at a time")));
        }
        let mut removals = Removals::default();
        let mut refs = Vec::new();
        self.with_catalog(|catalog| {
            for text in &request.refs {
                let reference: Reference = text.parse()?;
                if reference.selector().is_some() {
                    let record = find_snapshot(catalog, text)?;
                    removals.snapshots.insert((record.volume, record.number));
                    refs.push(reference_of(catalog, record));
                } else {
                    removals.volumes.insert(catalog.find(reference.volume_name())?.id);
                    refs.push(reference.volume_name().to_owned());
                }
            }
            Ok::<_, Error>(())
        })?;
        let freed = self.freed_bytes(&removals, attention)?;
        Ok(RemovalForecast { api: ApiVersion::V1, kind: Kind::RemovalForecast, refs, freed })
    }

    /// What removing things from the trash would free.
    ///
    /// # Errors
    /// As [`Self::forecast`].
    pub(super) fn freed_from_trash(&self, things: &[Thing], attention: &Attention) -> Result<Option<u64>> {
        let mut removals = Removals::default();
        for thing in things {
            match thing {
                Thing::Volume(id) => drop(removals.volumes.insert(*id)),
                Thing::Snapshot(id) => drop(removals.snapshots.insert(*id)),
            }
        }
        self.freed_bytes(&removals, attention)
    }

    fn freed_bytes(&self, removals: &Removals, attention: &Attention) -> Result<Option<u64>> {
        if removals.volumes.is_empty() && removals.snapshots.is_empty() {
            return Ok(Some(0));
        }
        self.settle(attention)?;
        let is_given_up = || attention.is_over();
        let mut effort = Effort::whatever_it_takes(&is_given_up);
        match self.server.pool().would_free(removals, &mut effort) {
            Ok(blocks) => Ok(blocks.map(|blocks| blocks * BLOCK_SIZE_U64)),
            Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits, for a bounded time, until a checkpoint has stored what was written before this call, and until the space of
    /// what was removed before is back.
    fn settle(&self, attention: &Attention) -> Result<()> {
        let pool = self.server.pool();
        let (begun, cuts) = (Instant::now(), pool.cuts_begun());
        let has_changes = pool.changes().active_count() + pool.changes().frozen_count() > 0;
        if has_changes {
            pool.want_checkpoint();
        }
        loop {
            let seen = self.server.events().count();
            let is_stored = !has_changes || pool.checkpoints_done() > cuts;
            if is_stored && !pool.is_reclaiming() || pool.check_writable().is_err() || attention.is_over() {
                return Ok(());
            }
            let left = SETTLE_TIME_MAX.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let is_stuck = || {
                    Error::new(ErrorKind::TimedOut, "What was written is not stored yet, so it cannot be counted")
                        .with_hint("See the warnings of rok-blk status, and try again")
                };
                return if is_stored { Ok(()) } else { Err(is_stuck()) };
            }
            self.server.events().wait_beyond_for(seen, left.min(Duration::from_secs(1)));
        }
    }

    /// Bytes that the removal of a snapshot alone would free; `None` if that takes too long or cannot be known now.
    ///
    /// # Errors
    /// `TimedOut` if nobody waits any more, and what reading the metadata reports.
    pub(super) fn unique_bytes(&self, reference: &str, attention: &Attention) -> Result<Option<u64>> {
        let id = self
            .with_catalog(|catalog| find_snapshot(catalog, reference).map(|record| (record.volume, record.number)))?;
        let is_given_up = || attention.is_over();
        self.bounded(&Removals::of_snapshot(id), &mut Effort::new(SHOWN_LEAVES_MAX, &is_given_up))
    }

    /// Where the space of a volume is.
    ///
    /// # Errors
    /// As [`Self::unique_bytes`].
    pub(super) fn volume_space(&self, volume: Uuid, attention: &Attention) -> Result<VolumeSpace> {
        let is_given_up = || attention.is_over();
        let mut effort = Effort::new(SHOWN_LEAVES_MAX, &is_given_up);
        let (shares, shared_with, versions) = self.with_catalog(|catalog| {
            let shares = catalog.head_shares(volume, SHARERS_MAX);
            let shared_with = shares.sharers.iter().map(|sharer| name_of(catalog, *sharer)).collect();
            let of_volume = catalog.snapshots_of(volume).map(|record| (record.volume, record.number));
            (shares, shared_with, Removals { snapshots: of_volume.collect(), ..Removals::default() })
        });
        let held_by = self.most_freeing(HELD_BY_MAX, Some(volume), &mut effort)?;
        let [allocated, unique] = [shares.mapped_count, shares.own_count].map(|count| count * BLOCK_SIZE_U64);
        Ok(VolumeSpace {
            allocated,
            unique,
            shared: allocated.saturating_sub(unique),
            shared_with,
            versions: self.bounded(&versions, &mut effort)?,
            held_by,
            freed: self.bounded(&Removals::of_volume(volume), &mut effort)?,
        })
    }

    /// The versions whose removal would free most, for who is short of space; asked again only after a minute. Who asks
    /// meanwhile gets what there was before.
    pub(super) fn advice(&self) -> Vec<HeldSpace> {
        let Some(mut advice) = self.advice.try_lock() else { return Vec::new() };
        if advice.made.is_none_or(|made| made.elapsed() >= ADVICE_TIME) {
            let found = self.most_freeing(ADVISED_MAX, None, &mut Effort::new(ADVISED_LEAVES_MAX, &|| false));
            match found {
                Ok(items) => *advice = Advice { made: Some(Instant::now()), items },
                Err(error) => tracing::warn!(%error, "which versions hold most is not known"),
            }
        }
        // What was removed meanwhile is no advice.
        let is_there = |item: &&HeldSpace| self.with_catalog(|catalog| find_snapshot(catalog, &item.reference).is_ok());
        advice.items.iter().filter(is_there).cloned().collect()
    }

    /// Of all versions, or those of a volume, that nothing holds and that are not in the trash.
    fn most_freeing(&self, count: usize, of: Option<Uuid>, effort: &mut Effort<'_>) -> Result<Vec<HeldSpace>> {
        let now = seconds_since_1970();
        let trashed: Vec<Uuid> = self.with_catalog(|catalog| {
            let volumes = catalog.volumes().filter(|volume| volume.lifetime.is_trashed());
            volumes.map(|volume| volume.id).collect()
        });
        let is_candidate = |record: &crate::format::snapshot::SnapshotRecord| {
            let is_asked = of.is_none_or(|volume| record.volume == volume);
            is_asked && !record.lifetime.is_trashed() && !trashed.contains(&record.volume) && !is_held(record, now)
        };
        let found = match self.server.pool().most_freeing(count, &is_candidate, effort) {
            Err(error) if error.kind() == ErrorKind::Busy => Vec::new(),
            found => found?,
        };
        Ok(self.with_catalog(|catalog| {
            let held = found.into_iter().filter_map(|(id, blocks)| {
                let reference = reference_of(catalog, catalog.snapshot(id)?);
                Some(HeldSpace { reference, unique: blocks * BLOCK_SIZE_U64 })
            });
            held.collect()
        }))
    }

    fn bounded(&self, removals: &Removals, effort: &mut Effort<'_>) -> Result<Option<u64>> {
        match self.server.pool().would_free(removals, effort) {
            Ok(blocks) => Ok(blocks.map(|blocks| blocks * BLOCK_SIZE_U64)),
            // While space is being reclaimed, or somebody removed it at this moment.
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn name_of(catalog: &Catalog, sharer: Sharer) -> String {
    match sharer {
        Sharer::Snapshot(id) => catalog.snapshot(id).map_or_else(String::new, |record| reference_of(catalog, record)),
        Sharer::Head(id) => catalog.volume(id).map_or_else(String::new, |volume| volume.name.clone()),
    }
}
