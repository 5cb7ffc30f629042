//! Clones of snapshots, and the way back to one.

use uuid::Uuid;

use super::snapshots::{creator, expiry, find_snapshot};
use super::{Control, exists, with_export};
use crate::daemon::name_template::NameTemplate;
use crate::daemon::resource::{
    Action, ApiVersion, Change, ChangeList, Kind, Volume, milliseconds_since_1970, seconds_since_1970,
};
use crate::daemon::snapshot_request::{CloneSnapshot, RollBack};
use crate::daemon::snapshot_resource::RollbackAnswer;
use crate::daemon::trash::Thing;
use crate::daemon::version_rule::check_label;
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::{Annotations, SnapshotRecord};
use crate::pool::{NewClone, NewSnapshot};
use crate::units::BLOCK_SIZE_U64;
use crate::volume::reference::check_name;
use crate::volume::{Reference, VolumeInfo, find_selected};

/// What the snapshot says that keeps a head before a rollback.
const SAFETY_MESSAGE: &str = "pre-rollback";

impl Control {
    /// Makes volumes that start as a snapshot, all or none.
    ///
    /// # Errors
    /// `Usage` for a bad name, template or label, `NotFound`, `Exists`, and what the engine reports.
    pub fn clone_snapshot(&self, reference: &str, request: &CloneSnapshot, is_dry_run: bool) -> Result<ChangeList> {
        let names = match request.count {
            None => check_name(&request.name).map(|()| vec![request.name.clone()])?,
            Some(count) => NameTemplate::parse(&request.name)?.names(count)?,
        };
        request.labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let (record, planned) = self.with_catalog(|catalog| {
            let record = find_snapshot(catalog, reference)?.clone();
            if let Some(taken) = names.iter().find(|name| catalog.find(name).is_ok()) {
                return Err(exists(taken));
            }
            let origin = catalog.volume(record.volume);
            let is_own = catalog.tree(record.point.0).is_some_and(|tree| !tree.domain.is_pool());
            let planned = VolumeInfo {
                id: Uuid::nil(),
                name: String::new(),
                size_bytes: record.size_bytes,
                sector_size: origin.map_or(512, |volume| volume.sector_size),
                created_at: seconds_since_1970(),
                allocated_bytes: catalog.mapped_count(record.point) * BLOCK_SIZE_U64,
                connections: 0,
                has_own_key: is_own,
                on_full: origin.map_or_else(Default::default, |volume| volume.on_full),
                pause: None,
            };
            Ok((record, planned))
        })?;
        let items = if is_dry_run {
            let plan = |name: String| Volume::new(VolumeInfo { name, ..planned.clone() }, true);
            names.into_iter().map(plan).collect()
        } else {
            self.make_clones(&record, names, request)?
        };
        let change = |after| Change::new(Action::Clone, is_dry_run, None, Some(after));
        let items = items.into_iter().map(change).collect();
        Ok(ChangeList { api: ApiVersion::V1, kind: Kind::ChangeList, items })
    }

    fn make_clones(&self, source: &SnapshotRecord, names: Vec<String>, request: &CloneSnapshot) -> Result<Vec<Volume>> {
        let (created_at, expires_at) = (seconds_since_1970(), expiry(request.expires_in_seconds));
        let new = |name| NewClone {
            id: Uuid::new_v4(),
            name,
            created_at,
            expires_at,
            labels: request.labels.clone().into_iter().collect(),
        };
        let new = names.into_iter().map(new).collect();
        let records = self.server.volumes().clone_snapshot((source.volume, source.number), new)?;
        self.upkeep.keeper.look();
        let exports = self.server.exports();
        let volumes = self.server.volumes();
        records.iter().map(|record| Ok(with_export(volumes.find(&record.name)?, &exports))).collect()
    }

    /// Switches a volume's head to one of its snapshots, and keeps the head before as a snapshot unless told otherwise.
    ///
    /// # Errors
    /// `Usage` for what is no selector, `NotFound`, `Busy` while connections have the volume open, and what the engine
    /// reports.
    pub fn roll_back(&self, name: &str, request: &RollBack, is_dry_run: bool) -> Result<RollbackAnswer> {
        let reference = Reference::volume(name)?.with_selector(request.to.parse()?);
        let creator = creator(request.creator.as_deref())?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.find(name)?;
        let (target, next) = self.with_catalog(|catalog| {
            Ok::<_, Error>((find_selected(catalog, &reference)?.clone(), catalog.find(name)?.next_snapshot))
        })?;
        self.refuse_if_attached(Thing::Volume(before.uuid), false, &format!("{name} cannot be rolled back"))?;
        if before.connections > 0 {
            let message = format!("{name} cannot be rolled back: {} connections have it open", before.connections);
            return Err(Error::new(ErrorKind::Busy, message).with_hint(
                "Disconnect its clients, roll back, and connect them again: a disk cannot change under whoever uses it",
            ));
        }
        let to = format!("{name}@{}", target.number);
        let kept = if is_dry_run {
            (!request.no_safety).then_some(next)
        } else {
            let keep = (!request.no_safety).then(|| safety_snapshot(&target, creator));
            let kept = self.server.volumes().roll_back((target.volume, target.number), keep)?;
            kept.map(|record| record.number)
        };
        let after =
            if is_dry_run { Volume { size_bytes: target.size_bytes, ..before.clone() } } else { self.find(name)? };
        Ok(RollbackAnswer {
            api: ApiVersion::V1,
            kind: Kind::Rollback,
            reference: name.to_owned(),
            is_dry_run,
            to,
            kept: kept.map(|number| format!("{name}@{number}")),
            before,
            after,
        })
    }
}

fn safety_snapshot(target: &SnapshotRecord, creator: String) -> NewSnapshot {
    let now = milliseconds_since_1970();
    let message = format!("{SAFETY_MESSAGE} to {}", target.number);
    NewSnapshot {
        id: Uuid::new_v4(),
        volume: target.volume,
        created_at_ms: now,
        time_ms: now,
        expires_at: 0,
        annotations: Annotations { creator, message, ..Annotations::default() },
    }
}
