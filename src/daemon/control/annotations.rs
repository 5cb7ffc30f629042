//! What users say of a snapshot later on: tags, labels, holds.

use super::Control;
use super::snapshots::find_snapshot;
use crate::daemon::resource::seconds_since_1970;
use crate::daemon::snapshot_request::{AddHold, AddTag, ChangeLabels, RemoveHold, RemoveTag};
use crate::daemon::snapshot_resource::{SnapshotAction, SnapshotChange};
use crate::daemon::version_rule::{LABEL_COUNT_MAX, check_hold, check_label, check_label_key};
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::{Annotations, Hold, SnapshotRecord};
use crate::volume::parse_time;
use crate::volume::reference::check_tag;

/// Holds of one snapshot.
const HOLDS_MAX: usize = 64;
/// Tags of one snapshot.
const TAGS_MAX: usize = 64;

impl Control {
    /// Gives a snapshot a tag; one that it has already is a success that changes nothing.
    ///
    /// # Errors
    /// `Usage` for what is no tag, `NotFound`, `Exists` if another snapshot of the volume has it and it is not to be moved;
    /// what the engine reports.
    pub fn tag(&self, reference: &str, request: &AddTag, is_dry_run: bool) -> Result<SnapshotChange> {
        check_tag(&request.tag)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let (record, other) = self.with_catalog(|catalog| {
            let record = find_snapshot(catalog, reference)?.clone();
            let mut others = catalog.snapshots_of(record.volume).filter(|other| other.number != record.number);
            let other = others.find(|other| other.annotations.tags.contains(&request.tag)).cloned();
            Ok::<_, Error>((record, other))
        })?;
        if let Some(other) = other {
            if !request.is_moved {
                let message = format!("Snapshot {} of the volume has the tag {} already", other.number, request.tag);
                return Err(Error::new(ErrorKind::Exists, message).with_hint("Move it with --move"));
            }
            if !is_dry_run {
                self.annotate(&other, |notes| notes.tags.retain(|tag| *tag != request.tag))?;
            }
        }
        self.change_notes(SnapshotAction::Tag, &record, is_dry_run, |notes| {
            if !notes.tags.contains(&request.tag) {
                check_count("tags", notes.tags.len() + 1, TAGS_MAX)?;
                notes.tags.push(request.tag.clone());
                notes.tags.sort_unstable();
            }
            Ok(())
        })
    }

    /// Takes a tag from a snapshot.
    ///
    /// # Errors
    /// `NotFound` for the snapshot, or if it does not have the tag; what the engine reports.
    pub fn untag(&self, reference: &str, request: &RemoveTag, is_dry_run: bool) -> Result<SnapshotChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let record = self.record_of(reference)?;
        self.change_notes(SnapshotAction::Untag, &record, is_dry_run, |notes| {
            remove(&mut notes.tags, |tag| *tag == request.tag).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("{reference} does not have the tag {:?}", request.tag))
                    .with_hint(format!("rok-blk show {reference} lists its tags"))
            })
        })
    }

    /// Gives labels of a snapshot new values, and takes others away.
    ///
    /// # Errors
    /// `Usage` for what is no label, `NotFound`, what the engine reports.
    pub fn set_labels(&self, reference: &str, request: &ChangeLabels, is_dry_run: bool) -> Result<SnapshotChange> {
        request.set.iter().try_for_each(|(key, value)| check_label(key, value))?;
        request.unset.iter().try_for_each(|key| check_label_key(key))?;
        if let Some(key) = request.unset.iter().find(|key| request.set.contains_key(*key)) {
            return Err(Error::new(ErrorKind::Usage, format!("The label {key} cannot be set and unset at once"))
                .with_hint("Do one of the two"));
        }
        let _one_at_a_time = self.upkeep.changes.lock();
        let record = self.record_of(reference)?;
        self.change_notes(SnapshotAction::Set, &record, is_dry_run, |notes| {
            notes.labels.retain(|(key, _)| !request.unset.contains(key) && !request.set.contains_key(key));
            notes.labels.extend(request.set.clone());
            notes.labels.sort_unstable();
            check_count("labels", notes.labels.len(), LABEL_COUNT_MAX)
        })
    }

    /// Keeps a snapshot from being removed. A hold of the same reason gets the new end.
    ///
    /// # Errors
    /// `Usage` for what is no reason or no time to come, `NotFound`, what the engine reports.
    pub fn hold(&self, reference: &str, request: &AddHold, is_dry_run: bool) -> Result<SnapshotChange> {
        check_hold(&request.reason)?;
        let until = request.until.as_deref().map_or(Ok(0), end_of_hold)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let record = self.record_of(reference)?;
        self.change_notes(SnapshotAction::Hold, &record, is_dry_run, |notes| {
            notes.holds.retain(|hold| hold.reason != request.reason);
            check_count("holds", notes.holds.len() + 1, HOLDS_MAX)?;
            notes.holds.push(Hold { reason: request.reason.clone(), until });
            notes.holds.sort_unstable_by(|one, other| one.reason.cmp(&other.reason));
            Ok(())
        })
    }

    /// Ends a hold of a snapshot.
    ///
    /// # Errors
    /// `NotFound` for the snapshot, or if it has no such hold; what the engine reports.
    pub fn release(&self, reference: &str, request: &RemoveHold, is_dry_run: bool) -> Result<SnapshotChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let record = self.record_of(reference)?;
        self.change_notes(SnapshotAction::Release, &record, is_dry_run, |notes| {
            remove(&mut notes.holds, |hold| hold.reason == request.reason).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("{reference} has no hold {:?}", request.reason))
                    .with_hint(format!("rok-blk show {reference} lists its holds"))
            })
        })
    }

    fn record_of(&self, reference: &str) -> Result<SnapshotRecord> {
        self.with_catalog(|catalog| find_snapshot(catalog, reference).cloned())
    }

    /// Has `change` change what is said of a snapshot; for a dry run, of a copy.
    fn change_notes(
        &self,
        action: SnapshotAction,
        record: &SnapshotRecord,
        is_dry_run: bool,
        change: impl FnOnce(&mut Annotations) -> Result<()>,
    ) -> Result<SnapshotChange> {
        let mut after = record.clone();
        change(&mut after.annotations)?;
        if !is_dry_run && after != *record {
            let notes = after.annotations.clone();
            after = self.annotate(record, |present| *present = notes)?;
        }
        let (before, after) =
            self.with_catalog(|catalog| (self.describe(catalog, record), self.describe(catalog, &after)));
        Ok(SnapshotChange::new(action, is_dry_run, Some(before), Some(after)))
    }

    fn annotate(&self, record: &SnapshotRecord, change: impl FnOnce(&mut Annotations)) -> Result<SnapshotRecord> {
        let id = (record.volume, record.number);
        self.server.pool().change_catalog(|catalog, at| catalog.change_snapshot(at, id, |notes, _| change(notes)))
    }
}

fn end_of_hold(text: &str) -> Result<u64> {
    let until = u64::try_from(parse_time(text)?.as_second()).unwrap_or(0);
    if until <= seconds_since_1970() {
        return Err(Error::new(ErrorKind::Usage, format!("A hold until {text} is over already"))
            .with_hint("Name a time to come, or none to hold for ever"));
    }
    Ok(until)
}

fn check_count(what: &str, count: usize, count_max: usize) -> Result<()> {
    if count <= count_max {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("A snapshot cannot have {count} {what}"))
        .with_hint(format!("At most {count_max} are allowed")))
}

/// Takes the first item that matches out; `None` if there is none.
fn remove<T>(items: &mut Vec<T>, matches: impl FnMut(&T) -> bool) -> Option<()> {
    let index = items.iter().position(matches)?;
    drop(items.remove(index));
    Some(())
}
