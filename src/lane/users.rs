//! Who has each volume open: connections and devices, and which of them may write.
//!
//! Invariant: while a device is a volume's only writer, no connection has the volume open for writes, nor another device.

use parking_lot::Mutex;
use rok_nbd::server::FindError;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// How a device uses its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceAccess {
    /// It only reads.
    ReadOnly,
    /// Nobody else writes.
    Exclusive,
    /// Others may write too: whoever uses it sees to it that they agree.
    Shared,
}

/// The users of every volume that has any.
#[derive(Default)]
pub(super) struct VolumeUsers(Mutex<BTreeMap<Uuid, Users>>);

#[derive(Default)]
struct Users {
    /// Connections, whether they write or not.
    connections: u32,
    /// Connections and devices that may write.
    writers: u32,
    /// The writer is a device that wants no other.
    is_exclusive: bool,
}

impl VolumeUsers {
    /// A place for a connection, if there are fewer than `count_max` and it does not write what has a writer.
    ///
    /// # Errors
    /// [`FindError::Crowded`], [`FindError::HasWriter`].
    pub(super) fn connect(
        self: &Arc<Self>,
        id: Uuid,
        count_max: u32,
        is_read_only: bool,
    ) -> Result<ConnectionPlace, FindError> {
        let mut all = self.0.lock();
        let users = all.entry(id).or_default();
        let refusal = if users.connections >= count_max {
            Some(FindError::Crowded)
        } else {
            (users.is_exclusive && !is_read_only).then_some(FindError::HasWriter)
        };
        if let Some(refusal) = refusal {
            forget_unused(&mut all, id);
            return Err(refusal);
        }
        users.connections += 1;
        users.writers += u32::from(!is_read_only);
        drop(all);
        Ok(ConnectionPlace { users: Arc::clone(self), id, is_read_only })
    }

    /// A place for a device; `None` if others write what it wants for itself, or one of them wants it so.
    pub(super) fn attach(self: &Arc<Self>, id: Uuid, access: DeviceAccess) -> Option<DevicePlace> {
        if access != DeviceAccess::ReadOnly {
            let mut all = self.0.lock();
            let users = all.entry(id).or_default();
            let is_exclusive = access == DeviceAccess::Exclusive;
            if users.is_exclusive || is_exclusive && users.writers > 0 {
                forget_unused(&mut all, id);
                return None;
            }
            users.writers += 1;
            users.is_exclusive = is_exclusive;
        }
        Some(DevicePlace { users: Arc::clone(self), id, access })
    }

    fn leave(&self, id: Uuid, change: impl FnOnce(&mut Users)) {
        let mut all = self.0.lock();
        change(all.get_mut(&id).expect("it was counted"));
        forget_unused(&mut all, id);
    }
}

fn forget_unused(all: &mut BTreeMap<Uuid, Users>, id: Uuid) {
    if all.get(&id).is_some_and(|users| users.connections == 0 && users.writers == 0) {
        all.remove(&id);
    }
}

/// A connection's place among the users of a volume, until it is dropped.
pub(super) struct ConnectionPlace {
    users: Arc<VolumeUsers>,
    id: Uuid,
    is_read_only: bool,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.users.leave(self.id, |users| {
            users.connections -= 1;
            users.writers -= u32::from(!self.is_read_only);
        });
    }
}

/// A device's place among the users of a volume, until it is dropped.
pub(super) struct DevicePlace {
    users: Arc<VolumeUsers>,
    id: Uuid,
    access: DeviceAccess,
}

impl DevicePlace {
    pub(super) const fn access(&self) -> DeviceAccess {
        self.access
    }
}

impl Drop for DevicePlace {
    fn drop(&mut self) {
        if self.access != DeviceAccess::ReadOnly {
            self.users.leave(self.id, |users| {
                users.writers -= 1;
                users.is_exclusive = false;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn users() -> Arc<VolumeUsers> {
        Arc::default()
    }

    fn refusal(result: Result<ConnectionPlace, FindError>) -> Option<FindError> {
        result.err()
    }

    #[test]
    fn device_that_is_the_only_writer_keeps_writing_connections_out_and_lets_readers_in() {
        let users = users();
        let device = users.attach(ID, DeviceAccess::Exclusive).expect("nobody writes");
        let reader = users.connect(ID, 1, true).expect("it only reads");
        assert_eq!(refusal(users.connect(ID, 9, false)), Some(FindError::HasWriter));
        assert_eq!(refusal(users.connect(ID, 1, true)), Some(FindError::Crowded));
        assert!(users.attach(ID, DeviceAccess::Shared).is_none());
        assert!(users.attach(ID, DeviceAccess::ReadOnly).is_some());
        drop(device);
        drop(reader);
        assert_eq!(refusal(users.connect(ID, 1, false)), None);
        assert!(users.0.lock().is_empty(), "what has no user is forgotten");
    }

    #[test]
    fn device_gets_a_volume_for_itself_only_when_no_connection_writes_it() {
        let users = users();
        let writer = users.connect(ID, 9, false).expect("nobody else");
        assert!(users.attach(ID, DeviceAccess::Exclusive).is_none());
        let shared = users.attach(ID, DeviceAccess::Shared).expect("they agree");
        drop(writer);
        assert!(users.attach(ID, DeviceAccess::Exclusive).is_none(), "another device writes");
        drop(shared);
        assert!(users.attach(ID, DeviceAccess::Exclusive).is_some());
    }
}
