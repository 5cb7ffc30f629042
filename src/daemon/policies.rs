//! Policies at work: taking what is due, and removing of a policy's own snapshots what retention does not keep.
//!
//! A policy's own are those that have its name in the label [`POLICY_LABEL`], which it gives to those that it takes; nobody
//! else's are touched. Whoever takes that label from a snapshot keeps it. How far the schedule is follows from the
//! snapshots themselves; so a restart needs no more than they say.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::failure_resource::{Failure, FailureDetail};
use super::host;
use super::job_table::JobTable;
use super::policy_resource::{KeptSnapshot, Policy, PolicyRunItem, PolicyVolume};
use super::policy_table::PolicyTable;
use super::resource::time_text;
use super::retention::{Kept, Reason, Retention};
use super::schedule;
use super::trash::{Thing, Trash, is_holding};
use super::unchanged::{CheckpointWait, unchanged_snapshot};
use crate::error::Result;
use crate::format::catalog::VolumeRecord;
use crate::format::policy::{PolicyKeep, PolicyRecord, PolicyVolume as AppliedTo};
use crate::format::snapshot::{Annotations, SnapshotRecord};
use crate::lane::Server;
use crate::pool::{Catalog, NewSnapshot};
use crate::units::to_u64;
use crate::volume::timestamp_of;

/// The label of the snapshots that a policy took; its value is the policy's name.
const POLICY_LABEL: &str = "rok-blk/policy";
/// Longest time until what failed is tried again.
const RETRY_SECONDS_MAX: u64 = 60;

/// How far the schedule of a policy is for a volume.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Seconds since 1970 when it was last done; 0 if not since the pool was opened.
    done_at: u64,
    /// When and why the attempt after that failed.
    failure: Option<(u64, FailureDetail)>,
}

/// Whether snapshots are removed.
enum Plan {
    /// They are.
    Do,
    /// It is said which would be, if this one were there too.
    Try(Option<Box<SnapshotRecord>>),
}

/// The policies of an open pool. What changes something is called by one at a time.
pub(super) struct Policies {
    server: Arc<Server>,
    trash: Trash,
    jobs: Arc<JobTable>,
    table: PolicyTable,
    progress: Mutex<BTreeMap<(String, Uuid), Progress>>,
    /// Milliseconds since 1970.
    clock: fn() -> i64,
}

impl Policies {
    /// Those that the pool remembers. They wait for nothing any more once `jobs` is closed.
    ///
    /// # Errors
    /// What [`PolicyTable::load`] reports.
    pub(super) fn load(server: &Arc<Server>, trash: Trash, jobs: Arc<JobTable>, clock: fn() -> i64) -> Result<Self> {
        let table = PolicyTable::load(server)?;
        Ok(Self { server: Arc::clone(server), trash, jobs, table, progress: Mutex::default(), clock })
    }

    pub(super) const fn table(&self) -> &PolicyTable {
        &self.table
    }

    /// Forgets how far a policy is: all of it, or for volumes that it has no more.
    pub(super) fn forget(&self, name: &str, left: &[AppliedTo]) {
        self.progress.lock().retain(|(of, id), _| of != name || left.iter().any(|volume| volume.id == *id));
    }

    /// Takes the snapshots that are due, and removes what retention does not keep then. Returns when the next one is due,
    /// in seconds since 1970, which may be past already.
    pub(super) fn run_due(&self) -> Option<u64> {
        let wait = self.begin_wait();
        let mut next = None;
        for record in self.table.list() {
            self.drop_removed(&record);
            for applied in &record.volumes {
                let Some(volume) = self.living_volume(applied.id) else { continue };
                let mut due = self.next_of(&record, applied);
                if due <= self.now() {
                    self.run_one(&record, &volume, &wait, false);
                    due = self.next_of(&record, applied);
                }
                next = Some(next.map_or(due, |next: u64| next.min(due)));
            }
        }
        next
    }

    /// The wait for checkpoints of one run, of however many volumes.
    pub(super) fn begin_wait(&self) -> CheckpointWait<'_> {
        CheckpointWait::begin(&self.server, &self.jobs)
    }

    /// Does what a policy would do for a volume if it were due.
    pub(super) fn run_one(
        &self,
        record: &PolicyRecord,
        volume: &VolumeRecord,
        wait: &CheckpointWait<'_>,
        is_dry_run: bool,
    ) -> PolicyRunItem {
        let mut item = PolicyRunItem {
            reference: volume.name.clone(),
            taken: None,
            kept: Vec::new(),
            removed: Vec::new(),
            error: None,
        };
        let begun_at = self.now();
        let result = self.take(record, volume, wait, is_dry_run).and_then(|taken| {
            item.taken = taken.as_ref().map(|taken| format!("{}@{}", volume.name, taken.number));
            let plan = if is_dry_run { Plan::Try(taken.map(Box::new)) } else { Plan::Do };
            self.remove_rest(record, volume, &plan, &mut item)
        });
        item.error = result.err().map(|error| Failure::new(&error, Some(volume.name.clone())).error);
        if !is_dry_run {
            self.note(record, volume, begun_at, &item);
        }
        item
    }

    /// A policy as the API tells of it.
    pub(super) fn describe(&self, record: &PolicyRecord) -> Policy {
        let of = |applied: &AppliedTo| {
            let (name, is_trashed, own_count) = self.server.pool().with_catalog(|catalog, _| {
                let volume = catalog.volume(applied.id)?;
                let count = own(catalog, record, applied.id).count();
                Some((volume.name.clone(), volume.lifetime.is_trashed(), to_u64(count)))
            })?;
            let progress = self.progress_of(record, applied);
            Some(PolicyVolume {
                reference: name,
                uuid: applied.id,
                is_trashed,
                snapshots: own_count,
                last_at: time_text(progress.done_at),
                next_at: (!is_trashed).then(|| time_text(self.next_of(record, applied))),
                failure: progress.failure.map(|(_, failure)| failure),
            })
        };
        let mut volumes: Vec<PolicyVolume> = record.volumes.iter().filter_map(of).collect();
        volumes.sort_by(|one, other| one.reference.cmp(&other.reference));
        Policy {
            reference: record.name.clone(),
            every_seconds: record.every_seconds,
            if_changed: record.is_if_changed,
            keep: retention_of(record.keep),
            created_at: time_text(record.created_at),
            volumes,
        }
    }

    /// A volume that is there and not in the trash.
    pub(super) fn living_volume(&self, id: Uuid) -> Option<VolumeRecord> {
        let volume = self.server.pool().with_catalog(|catalog, _| catalog.volume(id).cloned());
        volume.filter(|volume| !volume.lifetime.is_trashed())
    }

    /// Takes a snapshot, unless nothing has changed and the policy wants none then; `None` is that.
    fn take(
        &self,
        record: &PolicyRecord,
        volume: &VolumeRecord,
        wait: &CheckpointWait<'_>,
        is_dry_run: bool,
    ) -> Result<Option<SnapshotRecord>> {
        if record.is_if_changed && unchanged_snapshot(volume, wait)?.is_some() {
            return Ok(None);
        }
        let time_ms = (self.clock)();
        let annotations = Annotations {
            creator: host::user_at_host(),
            labels: vec![(POLICY_LABEL.to_owned(), record.name.clone())],
            ..Annotations::default()
        };
        if is_dry_run {
            return Ok(Some(SnapshotRecord {
                id: Uuid::nil(),
                volume: volume.id,
                number: volume.next_snapshot,
                point: (volume.tree, crate::units::Epoch::NEWEST),
                size_bytes: volume.size_bytes,
                created_at_ms: time_ms,
                time_ms,
                lifetime: crate::format::catalog::Lifetime::default(),
                annotations,
            }));
        }
        let new = NewSnapshot {
            id: Uuid::new_v4(),
            volume: volume.id,
            created_at_ms: time_ms,
            time_ms,
            expires_at: 0,
            annotations,
        };
        Ok(self.server.volumes().snapshot(vec![new])?.pop())
    }

    /// Puts into the trash what retention does not keep, or says what would go.
    fn remove_rest(
        &self,
        record: &PolicyRecord,
        volume: &VolumeRecord,
        plan: &Plan,
        item: &mut PolicyRunItem,
    ) -> Result<()> {
        let now_ms = (self.clock)();
        let now = seconds(now_ms);
        let mut snapshots = self.server.pool().with_catalog(|catalog, _| {
            own(catalog, record, volume.id).map(|snapshot| kept_of(snapshot, now)).collect::<Vec<_>>()
        });
        if let Plan::Try(Some(planned)) = plan {
            snapshots.push(kept_of(planned, now));
        }
        let mut result = Ok(());
        for mut verdict in schedule::plan(&retention_of(record.keep), timestamp_of(now_ms), &snapshots) {
            let id = (volume.id, verdict.number);
            if !verdict.is_kept() && self.server.volumes().check_snapshot_unused(id).is_err() {
                verdict.reasons.push(Reason::Open);
            }
            let reference = format!("{}@{}", volume.name, verdict.number);
            if verdict.is_kept() {
                item.kept.push(KeptSnapshot { reference, reasons: verdict.reasons });
                continue;
            }
            let gone = match plan {
                Plan::Try(_) => Ok(()),
                Plan::Do => self.trash.put(Thing::Snapshot(id), now),
            };
            match gone {
                Ok(()) => item.removed.push(reference),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Remembers how a run ended, and tells it.
    fn note(&self, record: &PolicyRecord, volume: &VolumeRecord, now: u64, item: &PolicyRunItem) {
        let (policy, name) = (&record.name, &volume.name);
        let mut all = self.progress.lock();
        let progress = all.entry((policy.clone(), volume.id)).or_default();
        match &item.error {
            None => {
                *progress = Progress { done_at: now, failure: None };
                tracing::info!(%policy, volume = %name, taken = ?item.taken, removed = ?item.removed, "a policy was run");
            }
            Some(failure) => {
                // What was taken is not taken again, although something could not be removed.
                if item.taken.is_some() {
                    progress.done_at = now;
                }
                let is_news = progress.failure.as_ref().is_none_or(|(_, before)| before.message != failure.message);
                progress.failure = Some((now, failure.clone()));
                if is_news {
                    tracing::warn!(%policy, volume = %name, error = %failure.message, "a policy failed; it is tried again");
                }
            }
        }
    }

    fn now(&self) -> u64 {
        seconds((self.clock)())
    }

    fn progress_of(&self, record: &PolicyRecord, applied: &AppliedTo) -> Progress {
        let known = self.progress.lock().get(&(record.name.clone(), applied.id)).cloned().unwrap_or_default();
        if known.done_at != 0 {
            return known;
        }
        let latest = self.server.pool().with_catalog(|catalog, _| {
            let mut all = catalog.snapshots_of(applied.id).rev().filter(|snapshot| is_of(snapshot, record));
            all.next().map_or(0, |latest| seconds(latest.created_at_ms))
        });
        Progress { done_at: latest.max(applied.applied_at), failure: known.failure }
    }

    /// When a volume is to be looked after next.
    fn next_of(&self, record: &PolicyRecord, applied: &AppliedTo) -> u64 {
        let now = self.now();
        let progress = self.progress_of(record, applied);
        let due = schedule::next_due(record.every_seconds, progress.done_at, now);
        match progress.failure {
            // A clock that was set back since then must not put it off.
            Some((failed_at, _)) if failed_at <= now => {
                let retry_at = failed_at.saturating_add(record.every_seconds.min(RETRY_SECONDS_MAX));
                due.max(retry_at)
            }
            _ => due,
        }
    }

    /// Takes volumes that are gone for good out of a policy.
    fn drop_removed(&self, record: &PolicyRecord) {
        let mut after = record.clone();
        self.server
            .pool()
            .with_catalog(|catalog, _| after.volumes.retain(|applied| catalog.volume(applied.id).is_some()));
        if after == *record {
            return;
        }
        self.forget(&record.name, &after.volumes);
        if let Err(error) = self.table.put(after) {
            tracing::warn!(policy = %record.name, %error, "a policy still lists a volume that is gone");
        }
    }
}

/// Whole seconds since 1970.
fn seconds(milliseconds: i64) -> u64 {
    u64::try_from(milliseconds / 1000).unwrap_or(0)
}

/// The snapshots of a volume that a policy took, but for those in the trash.
fn own<'a>(
    catalog: &'a Catalog,
    record: &'a PolicyRecord,
    volume: Uuid,
) -> impl Iterator<Item = &'a SnapshotRecord> + 'a {
    catalog.snapshots_of(volume).filter(|snapshot| !snapshot.lifetime.is_trashed() && is_of(snapshot, record))
}

fn is_of(snapshot: &SnapshotRecord, record: &PolicyRecord) -> bool {
    snapshot.annotations.labels.iter().any(|(key, value)| key == POLICY_LABEL && *value == record.name)
}

fn kept_of(snapshot: &SnapshotRecord, now: u64) -> Kept {
    Kept {
        number: snapshot.number,
        valid_at: timestamp_of(snapshot.time_ms),
        is_held: snapshot.annotations.holds.iter().any(|hold| is_holding(hold, now)),
        is_tagged: !snapshot.annotations.tags.is_empty(),
        is_expiring: snapshot.lifetime.expires_at != 0,
    }
}

pub(super) const fn retention_of(keep: PolicyKeep) -> Retention {
    let PolicyKeep { last, hourly, daily, weekly, monthly, yearly } = keep;
    Retention { last, hourly, daily, weekly, monthly, yearly }
}

pub(super) const fn keep_of(retention: Retention) -> PolicyKeep {
    let Retention { last, hourly, daily, weekly, monthly, yearly } = retention;
    PolicyKeep { last, hourly, daily, weekly, monthly, yearly }
}
