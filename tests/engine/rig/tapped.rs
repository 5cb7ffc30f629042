//! The doors to the disks of a rig, each with the tap in front.

use super::tap::{Fate, Kind, Tap, died};
use parking_lot::Mutex;
use rok_blk::disk::{Device, Disk, DiskCompletion, DiskOp, OpKind, SimDevice, SimDisk};
use rok_blk::meta::{Durability, KeyValue, MemoryStore, MetaError, MetaOp, MetaRead, MetaStore, Table};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// A device as the pool sees it, up to the size that is listed.
pub struct TapDevice {
    pub device: SimDevice,
    pub listed_bytes: Mutex<u64>,
    pub tap: Arc<Tap>,
}

impl TapDevice {
    pub fn new(device: SimDevice, listed_bytes: u64, tap: &Arc<Tap>) -> Arc<Self> {
        Arc::new(Self { device, listed_bytes: Mutex::new(listed_bytes), tap: Arc::clone(tap) })
    }

    fn begin(&self, kind: Kind, failing: Option<OpKind>) -> io::Result<()> {
        match (self.tap.begin(kind), failing) {
            (Fate::Done, _) => Ok(()),
            (Fate::Fails, Some(failing)) => {
                self.device.fail_nth(failing, 1);
                Ok(())
            }
            (Fate::Fails, None) => Err(io::Error::other("simulated: input/output error")),
            (Fate::Dead, _) => Err(died()),
        }
    }
}

impl Device for TapDevice {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn size_bytes(&self) -> u64 {
        *self.listed_bytes.lock()
    }
    fn read_at(&self, offset_bytes: u64, target: &mut [u8]) -> io::Result<()> {
        self.begin(Kind::Read, Some(OpKind::Read))?;
        self.device.read_at(offset_bytes, target)
    }
    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        self.begin(Kind::Write, Some(OpKind::Write))?;
        self.device.write_at(offset_bytes, source)
    }
    fn flush(&self) -> io::Result<()> {
        self.begin(Kind::Flush, Some(OpKind::Flush))?;
        self.device.flush()
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.begin(Kind::Discard, None)?;
        self.device.discard(offset_bytes, len_bytes)
    }
    fn is_thin(&self) -> bool {
        self.device.is_thin()
    }
    fn holes(&self) -> io::Result<Vec<Range<u64>>> {
        self.begin(Kind::Holes, None)?;
        self.device.holes()
    }
}

/// The metadata store.
pub struct TapStore {
    pub store: Arc<MemoryStore>,
    pub tap: Arc<Tap>,
}

/// What it shows at one moment.
struct TapView<'a> {
    view: &'a dyn MetaRead,
    tap: &'a Tap,
}

fn failure(is_out_of_space: bool) -> MetaError {
    MetaError { is_out_of_space, is_damaged: false, message: "simulated failure".into() }
}

fn begin_read(tap: &Tap, kind: Kind) -> Result<(), MetaError> {
    if tap.begin(kind) == Fate::Done { Ok(()) } else { Err(failure(false)) }
}

impl MetaRead for TapView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        begin_read(self.tap, Kind::MetaGet)?;
        self.view.get(table, key)
    }
    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        begin_read(self.tap, Kind::MetaGet)?;
        self.view.seek(table, prefix, from)
    }
    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        begin_read(self.tap, Kind::MetaScan)?;
        self.view.walk(table, prefix, from, visit)
    }
    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        begin_read(self.tap, Kind::MetaScan)?;
        self.view.scan(table, from, end, limit)
    }
}

impl TapStore {
    fn now(&self) -> TapView<'_> {
        TapView { view: &*self.store, tap: &self.tap }
    }
}

impl MetaRead for TapStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.now().get(table, key)
    }
    fn seek(&self, table: Table, prefix: &[u8], from: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.now().seek(table, prefix, from)
    }
    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        self.now().walk(table, prefix, from, visit)
    }
    fn scan(&self, table: Table, from: &[u8], end: &[u8], limit: usize) -> Result<Vec<KeyValue>, MetaError> {
        self.now().scan(table, from, end, limit)
    }
}

impl MetaStore for TapStore {
    fn commit(&self, batch: &[MetaOp], durability: Durability) -> Result<(), MetaError> {
        match self.tap.begin(Kind::Commit) {
            Fate::Done => {}
            Fate::Fails => self.store.fail_commit_after(Some(1)),
            Fate::Dead => return Err(failure(false)),
        }
        if self.tap.begin(Kind::CommitFull) == Fate::Fails {
            return Err(failure(true));
        }
        self.store.commit(batch, durability)
    }

    fn view(&self, look: &mut dyn FnMut(&dyn MetaRead)) {
        self.store.view(&mut |view| look(&TapView { view, tap: &self.tap }));
    }

    fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }
}

/// A lane's queue.
pub struct TapDisk {
    disk: SimDisk,
    devices: Vec<SimDevice>,
    tap: Arc<Tap>,
    /// What is in flight, in the order of submission: device, kind, and what becomes of it.
    in_flight: Vec<(usize, Kind, Fate)>,
}

impl TapDisk {
    pub fn new(devices: Vec<SimDevice>, tap: &Arc<Tap>) -> Self {
        Self { disk: SimDisk::new(devices.clone()), devices, tap: Arc::clone(tap), in_flight: Vec::new() }
    }

    pub fn add_device(&mut self, device: SimDevice) {
        self.disk.add_device(device.clone());
        self.devices.push(device);
    }

    /// Operations that can be completed.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.iter().filter(|(_, _, fate)| *fate != Fate::Dead).count().min(self.disk.in_flight_count())
    }

    pub fn complete_nth(&mut self, index: usize, random: &mut dyn FnMut(u64) -> u64) {
        let (device, kind, fate) = self.in_flight.remove(index);
        if kind.is_change() {
            self.tap.tell_watcher();
        }
        if fate == Fate::Fails {
            self.devices[device].fail_nth(op_kind(kind), 1);
        }
        self.disk.complete_nth(index, random);
    }
}

const fn op_kind(kind: Kind) -> OpKind {
    match kind {
        Kind::Write => OpKind::Write,
        Kind::Flush => OpKind::Flush,
        _ => OpKind::Read,
    }
}

impl Disk for TapDisk {
    fn submit(&mut self, token: u64, op: DiskOp) {
        let (device, kind) = match &op {
            DiskOp::Read { device, .. } => (device.as_usize(), Kind::Read),
            DiskOp::Write { device, .. } => (device.as_usize(), Kind::Write),
            DiskOp::Flush { device } => (device.as_usize(), Kind::Flush),
        };
        let fate = self.tap.begin(kind);
        if fate == Fate::Dead {
            // It never completes; what was in flight before neither.
            return self.in_flight.iter_mut().for_each(|(_, _, fate)| *fate = Fate::Dead);
        }
        self.in_flight.push((device, kind, fate));
        self.disk.submit(token, op);
    }

    fn has_unsubmitted(&self) -> bool {
        false
    }

    fn reap(&mut self, completions: &mut Vec<DiskCompletion>) {
        self.disk.reap(completions);
    }
}
