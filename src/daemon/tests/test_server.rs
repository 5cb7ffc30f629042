//! A server over a fresh pool, whose metadata is in memory, for tests of what the daemon does beside requests.

use std::sync::Arc;

use uuid::Uuid;

use crate::crypto::{MasterKey, Suite};
use crate::disk::{Device, FileDevice};
use crate::format::catalog::VolumeRecord;
use crate::format::snapshot::{Annotations, SnapshotRecord};
use crate::lane::{IoChoice, NbdLimits, Server, ServerOptions};
use crate::map::{Change, ChangeKey};
use crate::meta::{MemoryStore, MetaStore};
use crate::pool::directory::Copies;
use crate::pool::{self, Limits, NewSnapshot, Parts};
use crate::units::{BlockIndex, Sequence};
use crate::volume::NewVolume;

/// Room for a lane's reserve.
const DEVICE_BYTES: u64 = 64 << 20;
const VOLUME_BYTES: u64 = 1 << 30;

/// A server, its metadata, and its device's directory.
pub(super) struct TestServer {
    pub(super) server: Arc<Server>,
    pub(super) store: Arc<MemoryStore>,
    directory: tempfile::TempDir,
}

impl TestServer {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let device = Arc::new(FileDevice::create(&directory.path().join("data-0"), DEVICE_BYTES).expect("space"));
        let store = Arc::new(MemoryStore::new());
        let parts = Parts {
            id: Uuid::from_u128(1),
            suite: Suite::Plain,
            master: Arc::new(MasterKey::from_bytes([7; 32])),
            devices: vec![(Arc::clone(&device) as Arc<dyn Device>, Uuid::from_u128(2))],
            store: Arc::clone(&store) as Arc<dyn MetaStore>,
            reserve: None,
            shred_key: None,
            lane_count: 1,
            has_cleaner: false,
            limits: Limits::default(),
        };
        pool::create(&parts, &mut |bytes| bytes.fill(5)).expect("a new pool");
        let pool = pool::open(parts, &mut |bytes| bytes.fill(6)).expect("a new pool opens");
        let options = ServerOptions { devices: vec![device], io: IoChoice::Auto, nbd: NbdLimits::default(), tls: None };
        Self { server: Server::start(pool, options).expect("a server"), store, directory }
    }

    /// Of its pool, which has none.
    pub(super) fn copies(&self) -> Copies {
        Copies::new(self.directory.path(), Arc::clone(self.server.pool()), Arc::default())
    }

    /// Makes a volume.
    pub(super) fn create_volume(&self, name: &str) -> Uuid {
        let new = NewVolume::new(Uuid::new_v4(), name, VOLUME_BYTES);
        self.server.volumes().create(&new).expect("a new name").id
    }

    /// Makes a snapshot of a volume.
    pub(super) fn create_snapshot(&self, volume: Uuid) -> SnapshotRecord {
        let annotations = Annotations::default();
        let new = NewSnapshot { id: Uuid::new_v4(), volume, created_at_ms: 0, time_ms: 0, expires_at: 0, annotations };
        self.server.volumes().snapshot(vec![new]).expect("the volume is there").remove(0)
    }

    /// Makes a volume with a snapshot and, in memory, a change that nothing tells to be older than that; checkpoints, which
    /// could, find no space.
    pub(super) fn create_touched_volume(&self, name: &str) -> VolumeRecord {
        let id = self.create_volume(name);
        self.create_snapshot(id);
        let pool = self.server.pool();
        let (volume, epoch) = pool.with_catalog(|catalog, _| {
            let volume = catalog.volume(id).expect("it was made").clone();
            let epoch = catalog.tree(volume.tree).expect("each volume has a tree").epoch;
            (volume, epoch)
        });
        self.store.fill_after(Some(1));
        let key = ChangeKey { tree: volume.tree, block: BlockIndex::new(0), epoch };
        pool.changes().lay().lay(key, Change { sequence: Sequence::new(1000), entry: None });
        volume
    }
}
