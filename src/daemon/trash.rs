//! The trash of a pool: what was removed and can come back for a while, and what ends by itself.
//!
//! Nothing moves: a volume or snapshot in the trash is as it was, but nobody finds it by its name. What is held stays, in
//! the trash too, until it is released. What is open does not go there: whoever uses it would lose it for good with the
//! first connection that breaks later on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::overdue::Overdue;
use super::resource::time_text;
use super::trash_resource::{TrashItem, TrashedThing};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{Lifetime, VolumeRecord};
use crate::format::snapshot::{Hold, SnapshotRecord};
use crate::lane::Server;
use crate::pool::{Catalog, SnapshotId};
use crate::units::{BLOCK_SIZE_U64, Epoch, to_u64};

/// How long things stay in the trash at least: 14 days.
pub const TRASH_SECONDS: u64 = 14 * 86_400;

/// A volume or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Volume(Uuid),
    Snapshot(SnapshotId),
}

/// The trash of the pool that a server serves. Its methods are called one at a time.
#[derive(Clone)]
pub(super) struct Trash {
    server: Arc<Server>,
    overdue: Arc<Mutex<Overdue>>,
}

impl Trash {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, overdue: Arc::default() }
    }

    /// What is there, what leaves first in front.
    pub(super) fn list(&self) -> Vec<(Thing, TrashItem)> {
        let mut items = self.server.pool().with_catalog(|catalog, _| trashed(catalog));
        items.sort_by(|(_, one), (_, other)| {
            (&one.delete_at, &one.reference).cmp(&(&other.delete_at, &other.reference))
        });
        items
    }

    /// Bytes that what is there maps.
    pub(super) fn size_bytes(&self) -> u64 {
        let items = self.server.pool().with_catalog(|catalog, _| trashed(catalog));
        items.iter().map(|(_, item)| item.allocated_bytes).sum()
    }

    /// Puts something there.
    ///
    /// # Errors
    /// `NotFound`, `Busy` if it is held or open, a volume also as one of its snapshots; what the engine reports.
    pub(super) fn put(&self, thing: Thing, now: u64) -> Result<()> {
        self.check_not_held(thing, now)?;
        let change = |lifetime: &mut Lifetime| {
            (lifetime.trashed_at, lifetime.delete_at) = (now, now.saturating_add(TRASH_SECONDS));
        };
        match thing {
            Thing::Volume(id) => self.server.volumes().change_unused(id, change),
            Thing::Snapshot(id) => self.server.volumes().change_unused_snapshot(id, change),
        }
    }

    /// Takes something out again. An end of its own that has passed meanwhile is forgotten.
    ///
    /// # Errors
    /// What the engine reports.
    pub(super) fn take(&self, thing: Thing, now: u64) -> Result<()> {
        self.change(thing, |lifetime| {
            let expires_at = if lifetime.expires_at > now { lifetime.expires_at } else { 0 };
            *lifetime = Lifetime { expires_at, ..Lifetime::default() };
        })
    }

    /// Removes something for good, in the trash or not.
    ///
    /// # Errors
    /// `NotFound`, `Busy` if it is held or open; what the engine reports.
    pub(super) fn remove(&self, thing: Thing, now: u64) -> Result<()> {
        self.check_not_held(thing, now)?;
        let volumes = self.server.volumes();
        match thing {
            Thing::Volume(id) => volumes.remove_id(id),
            Thing::Snapshot(id) => volumes.remove_snapshots(&[id]),
        }
    }

    /// Does what is due at `now`, in a daemon that has run for `uptime`: what has expired goes to the trash; what was there
    /// long enough goes for good, once it is overdue. Returns whether something went for good, and when the next thing is due,
    /// which may be past already: then it is to be looked at again soon.
    pub(super) fn tidy(&self, now: u64, uptime: Duration) -> (bool, Option<u64>) {
        let is_over = |time: u64| time != 0 && time <= now;
        let all = self.server.pool().with_catalog(|catalog, _| lifetimes(catalog));
        let is_due = |(_, lifetime): &&(Thing, Lifetime)| lifetime.is_trashed() && is_over(lifetime.delete_at);
        let due: BTreeSet<Thing> = all.iter().filter(is_due).map(|(thing, _)| *thing).collect();
        let overdue = self.overdue.lock().look(&due, uptime);
        let mut has_removed = false;
        for (thing, lifetime) in all {
            let result = if overdue.contains(&thing) {
                let result = self.remove(thing, now);
                has_removed |= result.is_ok();
                result
            } else if !lifetime.is_trashed() && is_over(lifetime.expires_at) {
                self.put(thing, now)
            } else {
                continue;
            };
            match result {
                Ok(()) => tracing::info!(?thing, "its time was over"),
                // It is held or open: later.
                Err(error) => tracing::debug!(?thing, %error, "its time is over, but it stays"),
            }
        }
        let next = self.server.pool().with_catalog(|catalog, _| {
            let due = |(_, lifetime): (Thing, Lifetime)| {
                let time = if lifetime.is_trashed() { lifetime.delete_at } else { lifetime.expires_at };
                (time != 0).then_some(time)
            };
            lifetimes(catalog).into_iter().filter_map(due).min()
        });
        (has_removed, next)
    }

    /// Whether it could be removed now.
    ///
    /// # Errors
    /// `Busy` naming what holds it, or how many have it open.
    pub(super) fn check_removable(&self, thing: Thing, now: u64) -> Result<()> {
        self.check_not_held(thing, now)?;
        match thing {
            Thing::Volume(id) => self.server.volumes().check_id_unused(id),
            Thing::Snapshot(id) => self.server.volumes().check_snapshot_unused(id),
        }
    }

    /// # Errors
    /// `Busy` naming what holds it.
    pub(super) fn check_not_held(&self, thing: Thing, now: u64) -> Result<()> {
        let held = self.server.pool().with_catalog(|catalog, _| match thing {
            Thing::Snapshot(id) => held_by(catalog, catalog.snapshot(id), now),
            Thing::Volume(id) => catalog.snapshots_of(id).find_map(|record| held_by(catalog, Some(record), now)),
        });
        held.map_or(Ok(()), |(reference, reason)| {
            let message = format!("{reference} is held ({reason}): it was not removed");
            let hint = format!("rok-blk release {reference} '{reason}' ends the hold");
            Err(Error::new(ErrorKind::Busy, message).with_hint(hint))
        })
    }

    fn change(&self, thing: Thing, change: impl FnOnce(&mut Lifetime)) -> Result<()> {
        let pool = self.server.pool();
        match thing {
            Thing::Volume(id) => pool
                .change_catalog(|catalog, at| catalog.change_volume(at, id, |volume| change(&mut volume.lifetime)))
                .map(drop),
            Thing::Snapshot(id) => pool
                .change_catalog(|catalog, at| catalog.change_snapshot(at, id, |_, lifetime| change(lifetime)))
                .map(drop),
        }
    }
}

/// Whether a hold still holds.
pub(super) const fn is_holding(hold: &Hold, now: u64) -> bool {
    hold.until == 0 || hold.until > now
}

/// Whether something holds a snapshot.
pub(super) fn is_held(record: &SnapshotRecord, now: u64) -> bool {
    record.annotations.holds.iter().any(|hold| is_holding(hold, now))
}

fn held_by(catalog: &Catalog, record: Option<&SnapshotRecord>, now: u64) -> Option<(String, String)> {
    let record = record?;
    let hold = record.annotations.holds.iter().find(|hold| is_holding(hold, now))?;
    Some((reference_of(catalog, record), hold.reason.clone()))
}

pub(super) fn reference_of(catalog: &Catalog, record: &SnapshotRecord) -> String {
    let name = catalog.volume(record.volume).map_or("?", |volume| volume.name.as_str());
    format!("{name}@{}", record.number)
}

/// Volumes and snapshots that end at some time, with the snapshots of volumes in the trash left out.
fn lifetimes(catalog: &Catalog) -> Vec<(Thing, Lifetime)> {
    let volumes = catalog.volumes().map(|record| (Thing::Volume(record.id), record.lifetime));
    let is_alone =
        |record: &&SnapshotRecord| catalog.volume(record.volume).is_some_and(|volume| !volume.lifetime.is_trashed());
    let of_snapshot = |record: &SnapshotRecord| (Thing::Snapshot((record.volume, record.number)), record.lifetime);
    let all = volumes.chain(catalog.snapshots().filter(is_alone).map(of_snapshot));
    all.filter(|(_, lifetime)| *lifetime != Lifetime::default()).collect()
}

fn trashed(catalog: &Catalog) -> Vec<(Thing, TrashItem)> {
    let volumes = catalog.volumes().filter(|record| record.lifetime.is_trashed());
    let of_volume = |record: &VolumeRecord| {
        let mapped = catalog.mapped_count((record.tree, Epoch::NEWEST));
        let item = TrashItem {
            reference: record.name.clone(),
            uuid: record.id,
            thing: TrashedThing::Volume,
            size_bytes: record.size_bytes,
            allocated_bytes: mapped * BLOCK_SIZE_U64,
            snapshots: to_u64(catalog.snapshots_of(record.id).count()),
            trashed_at: time_text(record.lifetime.trashed_at),
            delete_at: time_text(record.lifetime.delete_at),
        };
        (Thing::Volume(record.id), item)
    };
    let is_alone = |record: &&SnapshotRecord| {
        record.lifetime.is_trashed()
            && catalog.volume(record.volume).is_some_and(|volume| !volume.lifetime.is_trashed())
    };
    let of_snapshot = |record: &SnapshotRecord| {
        let item = TrashItem {
            reference: reference_of(catalog, record),
            uuid: record.id,
            thing: TrashedThing::Snapshot,
            size_bytes: record.size_bytes,
            allocated_bytes: catalog.mapped_count(record.point) * BLOCK_SIZE_U64,
            snapshots: 0,
            trashed_at: time_text(record.lifetime.trashed_at),
            delete_at: time_text(record.lifetime.delete_at),
        };
        (Thing::Snapshot((record.volume, record.number)), item)
    };
    volumes.map(of_volume).chain(catalog.snapshots().filter(is_alone).map(of_snapshot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_server::TestServer;

    const NOW: u64 = 1_795_881_600;

    fn is_trashed(server: &Server, id: Uuid) -> bool {
        server.pool().with_catalog(|catalog, _| catalog.volume(id).is_some_and(|volume| volume.lifetime.is_trashed()))
    }

    /// Gives a volume an end.
    fn expire(server: &Server, id: Uuid, expires_at: u64) {
        let change = |volume: &mut VolumeRecord| volume.lifetime.expires_at = expires_at;
        server.pool().change_catalog(|catalog, at| catalog.change_volume(at, id, change)).expect("it is there");
    }

    #[test]
    fn a_volume_that_is_open_does_not_go_to_the_trash() {
        let world = TestServer::new();
        let (trash, id) = (Trash::new(Arc::clone(&world.server)), world.create_volume("vol1"));
        let number = world.create_snapshot(id).number;

        let open = world.server.volumes().open_reference("vol1").expect("it is there");
        assert_eq!(trash.put(Thing::Volume(id), NOW).expect_err("it is open").kind(), ErrorKind::Busy);
        drop(open);
        let open = world.server.volumes().open_snapshot((id, number)).expect("it is there");
        assert_eq!(trash.put(Thing::Volume(id), NOW).expect_err("its snapshot is open").kind(), ErrorKind::Busy);
        assert!(!is_trashed(&world.server, id));
        drop(open);
        trash.put(Thing::Volume(id), NOW).expect("nobody has it open");

        assert!(is_trashed(&world.server, id));
    }

    #[test]
    fn a_volume_that_expires_while_it_is_open_stays_until_it_is_closed() {
        let world = TestServer::new();
        let (trash, id) = (Trash::new(Arc::clone(&world.server)), world.create_volume("vol1"));
        expire(&world.server, id, NOW);
        let open = world.server.volumes().open("vol1").expect("it is there");

        assert_eq!(trash.tidy(NOW, Duration::ZERO), (false, Some(NOW)), "it is looked at again");
        assert!(!is_trashed(&world.server, id));
        drop(open);
        trash.tidy(NOW, Duration::ZERO);

        assert!(is_trashed(&world.server, id));
    }

    #[test]
    fn removing_what_is_open_holds_no_write_back() {
        let world = TestServer::new();
        let (trash, id) = (Trash::new(Arc::clone(&world.server)), world.create_volume("vol1"));
        let _open = world.server.volumes().open("vol1").expect("it is there");
        // Who has the turn of this one to wait for would wait for ever.
        let _frozen = world.server.volumes().freeze(&[id]).expect("nobody else does");

        let error = trash.remove(Thing::Volume(id), NOW).expect_err("it is open");

        assert!(error.message().contains("in use by 1 connection"), "{error}");
    }

    #[test]
    fn a_clock_that_was_ahead_and_is_set_back_removes_nothing() {
        let world = TestServer::new();
        let (trash, id) = (Trash::new(Arc::clone(&world.server)), world.create_volume("vol1"));
        trash.put(Thing::Volume(id), NOW).expect("nobody has it open");
        let is_there = || is_trashed(&world.server, id);
        let (ahead, minute) = (NOW + TRASH_SECONDS, Duration::from_secs(60));

        assert_eq!(trash.tidy(ahead, minute), (false, Some(ahead)), "it is looked at again soon");
        trash.tidy(ahead, minute * 60);
        assert!(is_there());
        trash.tidy(NOW, minute * 61);
        trash.tidy(ahead, minute * 62);
        trash.tidy(ahead, minute * 121);
        assert!(is_there(), "the hour began anew");
        assert_eq!(trash.tidy(ahead, minute * 122), (true, None));

        assert!(!is_there());
    }

    #[test]
    fn what_is_due_is_not_removed_while_it_is_open() {
        let world = TestServer::new();
        let (trash, id) = (Trash::new(Arc::clone(&world.server)), world.create_volume("vol1"));
        let number = world.create_snapshot(id).number;
        trash.put(Thing::Snapshot((id, number)), NOW).expect("nobody has it open");
        let open = world.server.volumes().open_snapshot((id, number)).expect("it is there");
        let (due, hour) = (NOW + TRASH_SECONDS, Duration::from_secs(3600));

        trash.tidy(due, Duration::ZERO);
        assert_eq!(trash.tidy(due, hour), (false, Some(due)));
        drop(open);

        assert_eq!(trash.tidy(due, hour), (true, None));
    }
}
