//! Removing volumes and snapshots, and the trash between that and the end.

use uuid::Uuid;

use super::snapshots::find_snapshot;
use super::{Control, exists, refuse_if_open};
use crate::crypto::system_random;
use crate::daemon::attention::Attention;
use crate::daemon::failure_resource::Failure;
use crate::daemon::job_resource::job_reference;
use crate::daemon::request::{RemoveOptions, RestoreFromTrash};
use crate::daemon::resource::{Action, ApiVersion, Change, Kind, seconds_since_1970, time_text};
use crate::daemon::snapshot_resource::{SnapshotAction, SnapshotChange};
use crate::daemon::trash::{TRASH_SECONDS, Thing};
use crate::daemon::trash_resource::{
    EmptiedItem, EmptyAnswer, EmptyOptions, RestoreAnswer, TrashItem, TrashList, TrashedThing,
};
use crate::error::{Error, ErrorKind, Result};
use crate::volume::reference::check_name;

impl Control {
    /// Puts a volume with its snapshots into the trash; removes it for good, or destroys its key, if the options say so.
    ///
    /// # Errors
    /// `Usage` if a volume without a key of its own is to be shredded, `NotFound`, `Busy` while connections have it open or
    /// a snapshot of it is held, and what the engine reports.
    pub fn remove(&self, name: &str, options: RemoveOptions) -> Result<Change> {
        let RemoveOptions { dry_run: is_dry_run, now: is_now, shred: is_shredded } = options;
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.find(name)?;
        let (thing, now) = (Thing::Volume(before.uuid), seconds_since_1970());
        if is_shredded {
            self.server.pool().check_shred(name)?;
        }
        self.upkeep.trash.check_not_held(thing, now)?;
        self.refuse_if_attached(thing, true, &format!("{name} cannot be removed"))?;
        refuse_if_open(&before, "removed", "Disconnect its clients first")?;
        let is_for_good = is_now || is_shredded;
        let mut job = None;
        if !is_dry_run {
            if is_shredded {
                self.server.volumes().shred(name, &mut system_random)?;
                tracing::info!(volume = %before.uuid, "a volume's key was destroyed");
            } else if is_now {
                self.upkeep.trash.remove(thing, now)?;
            } else {
                self.upkeep.trash.put(thing, now)?;
            }
            job = self.after_removal(name, is_for_good);
        }
        if is_dry_run {
            self.upkeep.trash.check_removable(thing, now)?;
        }
        let delete_at = (!is_for_good).then(|| time_text(now.saturating_add(TRASH_SECONDS)));
        Ok(Change { job, delete_at, ..Change::new(Action::Remove, is_dry_run, Some(before), None) })
    }

    /// Puts a snapshot into the trash, or removes it for good.
    ///
    /// # Errors
    /// `Usage` for what is no reference to a snapshot, or if it is to be shredded, `NotFound`, `Busy` if it is held or open,
    /// and what the engine reports.
    pub fn remove_snapshot(&self, reference: &str, options: RemoveOptions) -> Result<SnapshotChange> {
        if options.shred {
            return Err(Error::new(ErrorKind::Usage, format!("{reference} has no key of its own: its volume has"))
                .with_hint("Shred the volume, or remove the snapshot with --now"));
        }
        let _one_at_a_time = self.upkeep.changes.lock();
        let (record, before) = self.with_catalog(|catalog| {
            let record = find_snapshot(catalog, reference)?.clone();
            let before = self.describe(catalog, &record);
            Ok::<_, Error>((record, before))
        })?;
        let id = (record.volume, record.number);
        let now = seconds_since_1970();
        self.upkeep.trash.check_not_held(Thing::Snapshot(id), now)?;
        self.refuse_if_attached(Thing::Snapshot(id), false, &format!("{} cannot be removed", before.reference))?;
        let mut job = None;
        if !options.dry_run {
            if options.now {
                self.upkeep.trash.remove(Thing::Snapshot(id), now)?;
            } else {
                self.upkeep.trash.put(Thing::Snapshot(id), now)?;
            }
            job = self.after_removal(&before.reference, options.now);
        }
        if options.dry_run {
            self.upkeep.trash.check_removable(Thing::Snapshot(id), now)?;
        }
        let after = if options.now {
            None
        } else {
            let mut record = record;
            (record.lifetime.trashed_at, record.lifetime.delete_at) = (now, now.saturating_add(TRASH_SECONDS));
            Some(self.with_catalog(|catalog| self.describe(catalog, &record)))
        };
        let change = SnapshotChange::new(SnapshotAction::Remove, options.dry_run, Some(before), after);
        Ok(SnapshotChange { job, ..change })
    }

    /// What is in the trash.
    #[must_use]
    pub fn trash(&self) -> TrashList {
        let items = self.upkeep.trash.list().into_iter().map(|(_, item)| item).collect();
        TrashList { api: ApiVersion::V1, kind: Kind::TrashList, items }
    }

    /// Takes something out of the trash.
    ///
    /// # Errors
    /// `NotFound`, `Exists` if several things there have that name, or if the name was given to another volume, `Usage` for
    /// a bad name, and what the engine reports.
    pub fn restore(&self, request: &RestoreFromTrash, is_dry_run: bool) -> Result<RestoreAnswer> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let (thing, before) = self.find_trashed(&request.reference)?;
        let reference = match (before.thing, &request.name) {
            (TrashedThing::Volume, Some(name)) => check_name(name).map(|()| name.clone())?,
            (TrashedThing::Snapshot, Some(_)) => {
                return Err(Error::new(ErrorKind::Usage, "A snapshot keeps its number: it takes no new name")
                    .with_hint("Leave the name out"));
            }
            (_, None) => before.reference.clone(),
        };
        if before.thing == TrashedThing::Volume && self.find(&reference).is_ok() {
            return Err(exists(&reference).with_hint("Name another one with --as"));
        }
        if !is_dry_run {
            if let (Thing::Volume(id), true) = (thing, request.name.is_some()) {
                let pool = self.server.pool();
                let rename = |volume: &mut crate::format::catalog::VolumeRecord| volume.name.clone_from(&reference);
                pool.change_catalog(|catalog, at| catalog.change_volume(at, id, rename))?;
            }
            self.upkeep.trash.take(thing, seconds_since_1970())?;
            self.upkeep.keeper.look();
        }
        Ok(RestoreAnswer { api: ApiVersion::V1, kind: Kind::TrashRestore, reference, is_dry_run, before })
    }

    /// Removes for good what is in the trash, all that can be.
    ///
    /// # Errors
    /// Those of counting what a dry run would free; what stays is told in its item.
    pub fn empty_trash(&self, options: EmptyOptions, attention: &Attention) -> Result<EmptyAnswer> {
        let (answer, gone) = self.empty_trash_at_once(options);
        let freed = if options.dry_run { self.freed_from_trash(&gone, attention)? } else { None };
        Ok(EmptyAnswer { freed, ..answer })
    }

    /// The answer, and what is gone or would be.
    fn empty_trash_at_once(&self, options: EmptyOptions) -> (EmptyAnswer, Vec<Thing>) {
        let _one_at_a_time = self.upkeep.changes.lock();
        let now = seconds_since_1970();
        let latest = time_text(now.saturating_sub(options.older_than_seconds));
        let (mut items, mut gone) = (Vec::new(), Vec::new());
        for (thing, item) in self.upkeep.trash.list() {
            // Both are RFC 3339 in UTC to the second, which sorts as the times do.
            if item.trashed_at > latest {
                continue;
            }
            let result = if options.dry_run {
                self.upkeep.trash.check_removable(thing, now)
            } else {
                self.upkeep.trash.remove(thing, now)
            };
            gone.extend(result.is_ok().then_some(thing));
            let error = result.err().map(|error| Failure::new(&error, Some(item.reference.clone())).error);
            items.push(EmptiedItem { item, error });
        }
        let job = if !options.dry_run && !gone.is_empty() { self.after_removal("", true) } else { None };
        let (api, kind, is_dry_run) = (ApiVersion::V1, Kind::TrashEmpty, options.dry_run);
        (EmptyAnswer { api, kind, is_dry_run, items, freed: None, job }, gone)
    }

    fn find_trashed(&self, reference: &str) -> Result<(Thing, TrashItem)> {
        let id = Uuid::parse_str(reference).ok();
        let mut found = self.upkeep.trash.list();
        found.retain(|(_, item)| id.map_or(item.reference == reference, |id| item.uuid == id));
        if found.len() > 1 {
            let ids: Vec<String> = found.iter().map(|(_, item)| item.uuid.to_string()).collect();
            let message = format!("The trash has {} volumes that were called {reference}", found.len());
            return Err(
                Error::new(ErrorKind::Exists, message).with_hint(format!("Name one by its id: {}", ids.join(", ")))
            );
        }
        found.pop().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no {reference} in the trash"))
                .with_hint("rok-blk trash ls lists what is there")
        })
    }

    /// The job that watches the space of what was removed come back. It does also if no job can begin.
    fn after_removal(&self, target: &str, is_for_good: bool) -> Option<String> {
        self.upkeep.keeper.look();
        if !is_for_good {
            return None;
        }
        let begun = self.upkeep.reclaim.begin(target);
        let job = begun.unwrap_or_else(|error| {
            tracing::warn!(%error, "there is no job that watches space come back");
            None
        });
        job.map(job_reference)
    }
}
