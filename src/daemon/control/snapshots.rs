//! Making snapshots, listing them, and finding the one that a reference means.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use super::Control;
use crate::daemon::attention::Attention;
use crate::daemon::failure_resource::Failure;
use crate::daemon::host;
use crate::daemon::resource::{ApiVersion, Kind, milliseconds_since_1970, seconds_since_1970};
use crate::daemon::snapshot_request::{CreateSnapshots, LogOptions, MetaFileContent, Resolve};
use crate::daemon::snapshot_resource::{
    Resolution, ResolutionList, Snapshot, SnapshotAction, SnapshotAnswer, SnapshotChange, SnapshotChangeList,
    SnapshotList, Surroundings,
};
use crate::daemon::space_resource::ShowOptions;
use crate::daemon::unchanged::{CheckpointWait, unchanged_snapshot};
use crate::daemon::version_rule::{check_file_name, check_label, check_line_of, check_message};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{Lifetime, VolumeRecord};
use crate::format::snapshot::{Annotations, FILES_BYTES_MAX, SnapshotRecord};
use crate::pool::{Catalog, NewSnapshot, PointId};
use crate::units::BLOCK_SIZE_U64;
use crate::volume::reference::check_tag;
use crate::volume::{Reference, Selector, find_selected, parse_time, timestamp_of};

/// Volumes of one set.
const TARGETS_MAX: usize = 1024;
/// References of one request.
const REFERENCES_MAX: usize = 10_000;
/// Labels of one snapshot.
const LABELS_MAX: usize = crate::daemon::version_rule::LABEL_COUNT_MAX;

impl Control {
    /// Makes snapshots of several volumes at one instant, all or none.
    ///
    /// # Errors
    /// `Usage` for what the request may not hold, `NotFound` for a volume, `Exists` for a tag; what the engine reports.
    pub fn snapshot(&self, request: &CreateSnapshots, is_dry_run: bool) -> Result<SnapshotChangeList> {
        let plan = SnapshotPlan::new(request)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let wait = CheckpointWait::begin(&self.server, self.jobs());
        let mut wanted = Vec::new();
        let mut changes = Vec::new();
        for name in &request.targets {
            let volume = self.with_catalog(|catalog| catalog.find(name).cloned())?;
            self.check_tags_free(&volume, &plan.annotations.tags)?;
            let unchanged = if request.if_changed { unchanged_snapshot(&volume, &wait)? } else { None };
            match unchanged {
                Some(latest) => {
                    let latest = self.with_catalog(|catalog| self.describe(catalog, &latest));
                    changes.push(SnapshotChange::new(
                        SnapshotAction::Snapshot,
                        is_dry_run,
                        Some(latest.clone()),
                        Some(latest),
                    ));
                }
                None => wanted.push((changes.len(), plan.of(&volume), volume)),
            }
        }
        let made = if is_dry_run {
            wanted.iter().map(|(_, new, volume)| planned(new, volume)).collect()
        } else if wanted.is_empty() {
            Vec::new()
        } else {
            self.server.volumes().snapshot(wanted.iter().map(|(_, new, _)| new.clone()).collect())?
        };
        self.upkeep.keeper.look();
        // From the back, so that the places in front stay what they were.
        for ((place, ..), record) in wanted.iter().zip(made).rev() {
            let after = self.with_catalog(|catalog| self.describe(catalog, &record));
            changes.insert(*place, SnapshotChange::new(SnapshotAction::Snapshot, is_dry_run, None, Some(after)));
        }
        Ok(SnapshotChangeList::new(changes))
    }

    /// The snapshots of a volume, the highest number first.
    ///
    /// # Errors
    /// `NotFound`, or `Usage` for what is no time.
    pub fn log(&self, name: &str, options: &LogOptions) -> Result<SnapshotList> {
        let since = options.since.as_deref().map(parse_time).transpose()?;
        let until = options.until.as_deref().map(parse_time).transpose()?;
        let count_max = options.count.map_or(usize::MAX, crate::units::to_usize);
        let items = self.with_catalog(|catalog| {
            let volume = catalog.find(name)?.id;
            let living = catalog.snapshots_of(volume).rev().filter(|record| !record.lifetime.is_trashed());
            let in_time = living.filter(|record| {
                let time = timestamp_of(record.time_ms);
                since.is_none_or(|since| time >= since) && until.is_none_or(|until| time <= until)
            });
            Ok::<_, Error>(in_time.take(count_max).map(|record| self.describe(catalog, record)).collect())
        })?;
        Ok(SnapshotList { api: ApiVersion::V1, kind: Kind::SnapshotList, items })
    }

    /// One snapshot, if asked for with what its removal alone would free.
    ///
    /// # Errors
    /// `Usage` for what is no reference to a snapshot, `NotFound`; with its space also `TimedOut` if nobody waits any more,
    /// and what reading the metadata reports.
    pub fn show_snapshot(
        &self,
        reference: &str,
        options: ShowOptions,
        attention: &Attention,
    ) -> Result<SnapshotAnswer> {
        let mut snapshot = self.with_catalog(|catalog| {
            let record = find_snapshot(catalog, reference)?;
            Ok::<_, Error>(self.describe(catalog, record))
        })?;
        if options.space {
            snapshot.unique_bytes = self.unique_bytes(&snapshot.reference, attention)?;
        }
        Ok(SnapshotAnswer { api: ApiVersion::V1, kind: Kind::Snapshot, snapshot })
    }

    /// What references mean. A volume's name alone means its latest snapshot.
    ///
    /// # Errors
    /// `Usage` for too many.
    pub fn resolve(&self, request: &Resolve) -> Result<ResolutionList> {
        if request.references.len() > REFERENCES_MAX {
            let message = format!("{} references are too many for one request", request.references.len());
            return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("Ask for {REFERENCES_MAX} at a time")));
        }
        let items = self.with_catalog(|catalog| {
            let of = |asked: &String| {
                let found = parse_or_latest(asked).and_then(|reference| find_selected(catalog, &reference));
                let found = found.map(|record| self.describe(catalog, record));
                let error = found.as_ref().err().map(|error| Failure::new(error, Some(asked.clone())).error);
                let snapshot = found.ok();
                let reference = snapshot.as_ref().map(|snapshot| snapshot.reference.clone());
                Resolution { asked: asked.clone(), reference, snapshot, error }
            };
            request.references.iter().map(of).collect()
        });
        Ok(ResolutionList { api: ApiVersion::V1, kind: Kind::ResolutionList, items })
    }

    pub(super) fn with_catalog<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        self.server.pool().with_catalog(|catalog, _| look(catalog))
    }

    /// A snapshot as the API tells of it.
    pub(super) fn describe(&self, catalog: &Catalog, record: &SnapshotRecord) -> Snapshot {
        let held = catalog.point(record.point).map_or(0, |point| point.held.own_count);
        let around = Surroundings {
            volume: catalog.volume(record.volume).map_or_else(String::new, |volume| volume.name.clone()),
            parents: parent_of(catalog, record.point).into_iter().collect(),
            allocated_bytes: catalog.mapped_count(record.point) * BLOCK_SIZE_U64,
            changed_bytes: held * BLOCK_SIZE_U64,
        };
        Snapshot::new(record, around)
    }

    fn check_tags_free(&self, volume: &VolumeRecord, tags: &[String]) -> Result<()> {
        let taken = self.with_catalog(|catalog| {
            let has = |tag: &String| {
                let mut all = catalog.snapshots_of(volume.id);
                all.find(|record| record.annotations.tags.contains(tag)).map(|record| (tag.clone(), record.number))
            };
            tags.iter().find_map(has)
        });
        taken.map_or(Ok(()), |(tag, number)| {
            let message = format!("{}@{number} has the tag {tag} already", volume.name);
            Err(Error::new(ErrorKind::Exists, message).with_hint("Move it afterwards with rok-blk tag --move"))
        })
    }
}

/// What all snapshots of a request have in common.
struct SnapshotPlan {
    annotations: Annotations,
    time_ms: Option<i64>,
    expires_at: u64,
}

impl SnapshotPlan {
    fn new(request: &CreateSnapshots) -> Result<Self> {
        check_targets(&request.targets)?;
        check_message(&request.message)?;
        request.tags.iter().try_for_each(|tag| check_tag(tag))?;
        if request.labels.len() > LABELS_MAX {
            let message = format!("A snapshot cannot have {} labels", request.labels.len());
            return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("At most {LABELS_MAX} are allowed")));
        }
        request.labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
        let annotations = Annotations {
            creator: creator(request.creator.as_deref())?,
            message: request.message.clone(),
            tags: request.tags.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
            labels: request.labels.clone().into_iter().collect(),
            holds: Vec::new(),
            files: files(&request.files)?,
        };
        let time_ms = request.time.as_deref().map(parse_time).transpose()?.map(|time| time.as_millisecond());
        Ok(Self { annotations, time_ms, expires_at: expiry(request.expires_in_seconds) })
    }

    fn of(&self, volume: &VolumeRecord) -> NewSnapshot {
        let created_at_ms = milliseconds_since_1970();
        NewSnapshot {
            id: Uuid::new_v4(),
            volume: volume.id,
            created_at_ms,
            time_ms: self.time_ms.unwrap_or(created_at_ms),
            expires_at: self.expires_at,
            annotations: self.annotations.clone(),
        }
    }
}

/// When something expires that has so many seconds; 0 is never.
pub(super) fn expiry(seconds: Option<u64>) -> u64 {
    seconds.map_or(0, |seconds| seconds_since_1970().saturating_add(seconds))
}

/// Who makes something: as the request says, else the daemon's own user.
pub(super) fn creator(asked: Option<&str>) -> Result<String> {
    match asked {
        Some(creator) => check_line_of("The name of who makes it", creator).map(|()| creator.to_owned()),
        None => Ok(host::user_at_host()),
    }
}

fn check_targets(targets: &[String]) -> Result<()> {
    if targets.is_empty() || targets.len() > TARGETS_MAX {
        let message = format!("A set of {} volumes cannot be snapshot", targets.len());
        return Err(Error::new(ErrorKind::Usage, message).with_hint(format!("From 1 to {TARGETS_MAX} can")));
    }
    let mut names = BTreeSet::new();
    for name in targets {
        crate::volume::reference::check_name(name)?;
        if !names.insert(name) {
            return Err(
                Error::new(ErrorKind::Usage, format!("{name} is named twice")).with_hint("Name each volume once")
            );
        }
    }
    Ok(())
}

fn files(request: &[MetaFileContent]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut names = BTreeSet::new();
    let mut size_bytes = 0;
    let mut files = Vec::new();
    for file in request {
        check_file_name(&file.name)?;
        if !names.insert(&file.name) {
            let message = format!("Two files would be called {}", file.name);
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Give each its own name"));
        }
        let content = BASE64.decode(&file.content).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("The content of {} is no base64: {error}", file.name))
        })?;
        size_bytes += content.len();
        files.push((file.name.clone(), content));
    }
    if size_bytes > FILES_BYTES_MAX {
        let message = format!("The files have {size_bytes} bytes together, which is too much to keep with a snapshot");
        return Err(Error::new(ErrorKind::Usage, message).with_hint("Keep large files on a volume; 1 MiB fits here"));
    }
    Ok(files)
}

/// The record that a snapshot would have; its id is zero.
fn planned(new: &NewSnapshot, volume: &VolumeRecord) -> SnapshotRecord {
    SnapshotRecord {
        id: Uuid::nil(),
        volume: volume.id,
        number: volume.next_snapshot,
        point: (volume.tree, crate::units::Epoch::new(u64::MAX)),
        size_bytes: volume.size_bytes,
        created_at_ms: new.created_at_ms,
        time_ms: new.time_ms,
        lifetime: Lifetime { expires_at: new.expires_at, ..Lifetime::default() },
        annotations: new.annotations.clone(),
    }
}

/// The snapshot that a text means, which names one.
pub(super) fn find_snapshot<'a>(catalog: &'a Catalog, text: &str) -> Result<&'a SnapshotRecord> {
    let reference: Reference = text.parse()?;
    find_selected(catalog, &reference)
}

fn parse_or_latest(text: &str) -> Result<Reference> {
    let reference: Reference = text.parse()?;
    if reference.selector().is_some() { Ok(reference) } else { Ok(reference.with_selector(Selector::Latest)) }
}

/// What the snapshot of a frozen epoch builds on: the nearest one before it that has a name.
fn parent_of(catalog: &Catalog, point: PointId) -> Option<String> {
    let mut base = catalog.base(point);
    while let Some(found) = base {
        let at = (found.tree, found.epoch);
        let is_living = |record: &&SnapshotRecord| !record.lifetime.is_trashed();
        if let Some(record) = catalog.snapshot_at(at).filter(is_living) {
            let volume = catalog.volume(record.volume)?;
            return Some(format!("{}@{}", volume.name, record.number));
        }
        base = catalog.base(at);
    }
    None
}
