//! Making a pool and opening one, given its parts: devices, metadata store and master key.
//!
//! Opening ends with a checkpoint that stores what recovery found and starts the new session's chains;
//! before it is done nothing else is written.

use crate::crypto::{DomainKey, DomainWrapping, KeyRing, MasterKey, Purpose, Random, SealKind, Suite, domain_place};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{self, STRETCH_WORDS};
use crate::format::catalog::{CheckpointRecord, DomainRecord, LANES_MAX};
use crate::format::device_header::DeviceHeader;
use crate::format::key;
use crate::format::session::Session;
use crate::format::superblock::DEVICES_MAX;
use crate::map::{Changes, LeafCache};
use crate::meta::{Durability, MetaOp, MetaRead, MetaStore, ReservedStore, SpaceReserve, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::{Catalog, meta_error};
use crate::pool::checkpoint::{Checkpoint, UnreadableTrees};
use crate::pool::devices::{ExpectedDevice, PoolDevice, header_mac};
use crate::pool::growth::{reserve_blocks, window_blocks};
use crate::pool::recovery::{Recovered, Source, replay};
use crate::pool::shred_key::ShredKeys;
use crate::pool::space::Space;
use crate::pool::space_news::SpaceNews;
use crate::pool::trim::release_holes;
use crate::pool::{LaneShared, Limits, PartCounts, Pool, StoredState};
use crate::units::{
    AddressRun, BLOCK_SIZE_U64, ChainSequence, CheckpointId, DomainId, KeyGeneration, LaneIndex, STRETCH_BLOCKS,
    Sequence, SessionId, TreeId, to_u64, to_usize,
};
use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex, RwLock};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use uuid::Uuid;

/// What a pool is made of.
pub struct Parts {
    /// The pool's id.
    pub id: Uuid,
    /// How blocks are encrypted.
    pub suite: Suite,
    /// The unwrapped master key.
    pub master: Arc<MasterKey>,
    /// Devices and their ids, by index.
    pub devices: Vec<(Arc<dyn Device>, Uuid)>,
    /// The metadata store.
    pub store: Arc<dyn MetaStore>,
    /// Space that is kept back for the store.
    pub reserve: Option<Arc<dyn SpaceReserve>>,
    /// What holds the shred key, 128 KiB; without it volumes with a key of their own stay closed, and none is made.
    pub shred_key: Option<Arc<dyn Device>>,
    /// Lanes that will run.
    pub lane_count: u16,
    /// Whether one more lane runs, for a cleaner.
    pub has_cleaner: bool,
    /// Bounds.
    pub limits: Limits,
}

/// Stretches of the bitmap that are read at once: 2 MiB.
const STRETCHES_PER_SCAN: usize = 4096;

/// Blocks that nothing but the start of a lane's chain at open may take.
pub const HOME_RESERVE_BLOCKS: u64 = LANES_MAX as u64;

/// Writes the first contents of a pool: headers, the pool's own domain, a first session.
///
/// # Errors
/// The failure of a device or of the metadata store.
pub fn create(parts: &Parts, random: Random<'_>) -> Result<()> {
    let keys = KeyRing::new(parts.suite, Arc::clone(&parts.master));
    let mut salt = [0; 32];
    random(&mut salt);
    let session = Session { id: SessionId::new(1), first_sequence: Sequence::new(1), salt };
    keys.begin_session(session.id, session.first_sequence, salt);
    let domain_key = DomainKey::generate(random);
    let generation = KeyGeneration::new(0);
    let wrapping = DomainWrapping::of_pool(&parts.master);
    let wrapped = domain_key.wrap(&wrapping, &domain_place(&parts.id, DomainId::POOL, generation), random);
    let domain = DomainRecord { id: DomainId::POOL, shred_key: 0, keys: vec![(generation, wrapped)] };
    let record_key = key::domain(domain.id);
    let sealed = keys.seal(SealKind::Domain, &record_key, &domain.encode());
    let session_mac = parts.master.static_mac(Purpose::Session);
    let batch = [
        MetaOp::Put(Table::Sessions, key::session(session.id), session.encode(&session_mac)),
        MetaOp::Put(Table::Catalog, record_key, sealed),
    ];
    parts.store.commit(&batch, Durability::Synced).map_err(|error| meta_error("Creating meta/", error))?;
    let mac = header_mac(&parts.master);
    for (device, expected) in parts.devices.iter().zip(expected_devices(parts)) {
        let pool_device = PoolDevice::new(Arc::clone(&device.0), &expected);
        for _copy in 0..2 {
            let written = pool_device.write_header(parts.id, session.id, CheckpointId::new(0), &mac);
            written.map_err(|error| {
                Error::new(ErrorKind::Other, format!("Writing the header of {} failed: {error}", device.0.name()))
                    .with_source(error)
            })?;
        }
    }
    Ok(())
}

/// Opens a pool: checks its parts, recovers, and starts a session.
///
/// # Errors
/// [`ErrorKind::Integrity`] naming what is foreign, older or damaged; the failure of a device or of `meta/`.
pub fn open(mut parts: Parts, random: Random<'_>) -> Result<Arc<Pool>> {
    let store = Arc::new(ReservedStore::new(Arc::clone(&parts.store), parts.reserve.take()));
    parts.store = Arc::clone(&store) as Arc<dyn MetaStore>;
    let keys = KeyRing::new(parts.suite, Arc::clone(&parts.master));
    let (devices, headers) = open_devices(&parts)?;
    let (last_session, sessions_sequence) = load_sessions(&parts, &keys)?;
    let mut shred_keys = ShredKeys::read(parts.shred_key.take(), parts.id, Arc::clone(&parts.master))?;
    let shred_key = load_domains(&parts, &keys, &shred_keys)?;
    shred_keys.choose(shred_key);
    let checkpoint = load_checkpoint(&*parts.store, &keys)?;
    check_age(&parts, &headers, &checkpoint, last_session)?;
    let catalog = Catalog::load(&*parts.store, &keys, checkpoint.next_tree)?;
    catalog.check_domains(&keys, shred_keys.is_there())?;
    let block_counts: Vec<u64> = devices.iter().map(|device| device.block_count()).collect();
    let mut space = Space::new(&block_counts);
    space.distrust();
    let mut stored = load_used(&parts, &keys, &block_counts, &mut space)?;
    stored.checkpoint = checkpoint.id;
    let raw_devices: Vec<Arc<dyn Device>> = parts.devices.iter().map(|(device, _)| Arc::clone(device)).collect();
    let source = Source { pool: parts.id, devices: &raw_devices, keys: &keys, catalog: &catalog, space: &space };
    // A session that recovered more than this one, and was cut off before it wrote, still owns its sequences: the
    // first sequences of sessions never go back.
    // Nor is anything written from now on older than a snapshot.
    let next_sequence = checkpoint.next_sequence.max(sessions_sequence).max(catalog.sequence_floor());
    let recovered = replay(&source, &checkpoint.chains, next_sequence)?;
    claim(&mut space, &recovered)?;
    let kept_blocks = reserve_blocks(space.block_count()) + HOME_RESERVE_BLOCKS;
    release_holes(&mut space, &devices, kept_blocks);
    catch_up_headers(&parts, &devices, &headers, checkpoint.id)?;
    // Ends or takes back a shredding that was cut off.
    if let Err(error) = shred_keys.settle() {
        tracing::error!(%error, "the shred key cannot be written: a shredded volume's key may still be there");
    }
    let session = begin_session(&parts, &keys, last_session, recovered.next_sequence, random)?;
    let pool =
        assemble(parts, keys, devices, Loaded { store, catalog, space, stored, shred_keys }, &recovered, session)?;
    {
        let lay = pool.changes.lay();
        for (key, change) in &recovered.changes {
            lay.lay(*key, *change);
        }
    }
    pool.lanes[0].spent.lock().extend(recovered.record_runs.iter().map(|run| (ChainSequence::new(0), *run)));
    let mut checkpoint = Checkpoint::begin(Arc::clone(&pool));
    match checkpoint.run() {
        // The log has changes of a leaf that cannot be read. The pool has stopped, as it did when it found that while it was
        // used; all else in it can be read, and saved.
        Err(error) if checkpoint.has_met_damage() => {
            tracing::error!(%error, "the pool is open for reads only: copy what is needed to another")
        }
        stored => stored?,
    }
    Ok(pool)
}

struct Loaded {
    store: Arc<ReservedStore>,
    catalog: Catalog,
    space: Space,
    stored: StoredState,
    shred_keys: ShredKeys,
}

fn assemble(
    parts: Parts,
    keys: KeyRing,
    devices: Vec<Arc<PoolDevice>>,
    loaded: Loaded,
    recovered: &Recovered,
    session: SessionId,
) -> Result<Arc<Pool>> {
    let Loaded { store, catalog, mut space, stored, shred_keys } = loaded;
    let lane_count = usize::from(parts.lane_count) + usize::from(parts.has_cleaner);
    assert!((1..=LANES_MAX).contains(&lane_count), "the caller bounds the number of lanes");
    let cleaner_lane = parts.has_cleaner.then(|| LaneIndex::new(parts.lane_count));
    let block_count = space.block_count();
    let window_blocks = window_blocks(block_count, lane_count);
    let mut lanes = Vec::new();
    let mut homes = Vec::new();
    for lane in (0..).map(LaneIndex::new).take(lane_count) {
        let share = (space.free_count() / (4 * to_u64(lane_count))).max(1);
        let is_cleaner = cleaner_lane == Some(lane);
        let runs = if is_cleaner { space.reserve_holes(1, 0) } else { space.reserve(window_blocks.min(share), 0) };
        let Some((home, rest)) = split_first(runs) else {
            return Err(Error::new(ErrorKind::NoSpace, "The pool has not one free block for the log of a lane")
                .with_hint("Open it with fewer lanes (--lanes 1), or grow it"));
        };
        rest.into_iter().for_each(|run| space.free_run(run));
        lanes.push(CachePadded::new(LaneShared::new(home.start)));
        homes.push(Some(home));
    }
    Ok(Arc::new(Pool {
        id: parts.id,
        session,
        session_keys: keys.current(),
        devices: RwLock::new(devices),
        header_writes: Mutex::new(()),
        // Each may have what recovery relies on in its cache.
        is_written: (0..DEVICES_MAX).map(|_| AtomicBool::new(true)).collect(),
        store,
        keys: Arc::new(keys),
        shred_keys: Mutex::new(shred_keys),
        limits: parts.limits,
        changes: Changes::default(),
        leaves: LeafCache::new(parts.limits.map_cache_bytes),
        space: Mutex::new(space),
        stored: Mutex::new(stored),
        catalog: Mutex::new(catalog),
        turns: Arc::default(),
        whole_count: AtomicU64::new(0),
        commits: Mutex::default(),
        lanes: lanes.into_boxed_slice(),
        cleaner_lane,
        homes: Mutex::new(homes),
        next_sequence: CachePadded::new(AtomicU64::new(recovered.next_sequence.get())),
        write_generation: CachePadded::new(AtomicU64::new(1)),
        flushed_generation: AtomicU64::new(0),
        is_flushing: Mutex::new(false),
        flush_ended: Condvar::new(),
        cuts_begun: AtomicU64::new(0),
        taken_since_cut: AtomicU64::new(0),
        checkpoints_done: AtomicU64::new(0),
        is_failed: AtomicBool::new(false),
        failure: RwLock::new(None),
        exits: Arc::default(),
        reserve_uses: [AtomicU64::new(0), AtomicU64::new(0)],
        space_level: Mutex::default(),
        unreadable: UnreadableTrees::default(),
        damaged_blocks: AtomicU64::new(0),
        moved_blocks: AtomicU64::new(0),
        parts: PartCounts::default(),
        restocked: AtomicU64::new(0),
        is_restock_failing: AtomicBool::new(false),
        is_restocking: AtomicBool::new(false),
        space_news: SpaceNews::default(),
        signals: OnceLock::new(),
        recovery: recovered.report,
        window_blocks: AtomicU64::new(window_blocks),
        reserve_blocks: AtomicU64::new(reserve_blocks(block_count)),
    }))
}

fn split_first(runs: Vec<AddressRun>) -> Option<(AddressRun, Vec<AddressRun>)> {
    let mut runs = runs.into_iter();
    Some((runs.next()?, runs.collect()))
}

fn expected_devices(parts: &Parts) -> Vec<ExpectedDevice> {
    let index = (0..).map(crate::units::DeviceIndex::new);
    let devices = parts.devices.iter().zip(index);
    devices
        .map(|((device, id), index)| ExpectedDevice {
            pool: parts.id,
            id: *id,
            index,
            block_count: device.size_bytes() / crate::units::BLOCK_SIZE_U64,
        })
        .collect()
}

pub(super) fn open_devices(parts: &Parts) -> Result<(Vec<Arc<PoolDevice>>, Vec<DeviceHeader>)> {
    let mac = header_mac(&parts.master);
    let expected = expected_devices(parts);
    let opened = parts.devices.iter().zip(&expected).map(|((device, _), expected)| {
        let (opened, header) = PoolDevice::open(Arc::clone(device), expected, &mac)?;
        if header.block_count > expected.block_count {
            let [lists, has] = [expected.block_count, header.block_count].map(|count| count * BLOCK_SIZE_U64);
            let message =
                format!("Device {} had {has} bytes in the pool, and {lists} are left or listed", device.name());
            return Err(Error::new(ErrorKind::Integrity, message)
                .with_hint("Was the superblock restored from a time before the device grew? Nothing was changed"));
        }
        Ok((Arc::new(opened), header))
    });
    Ok(opened.collect::<Result<Vec<_>>>()?.into_iter().unzip())
}

/// The last session, and the first sequence that none of them owns for sure.
pub(super) fn load_sessions(parts: &Parts, keys: &KeyRing) -> Result<(SessionId, Sequence)> {
    let mac = parts.master.static_mac(Purpose::Session);
    let found = parts.store.scan(Table::Sessions, &[], &[], usize::MAX);
    let mut last = None;
    let mut first_sequence = Sequence::new(1);
    for (_, value) in found.map_err(|error| meta_error("Reading sessions", error))? {
        let session = Session::decode(&value, &mac).map_err(|error| {
            Error::new(
                ErrorKind::Integrity,
                format!("A session record in meta/ is damaged or of another pool: {error}"),
            )
            .with_hint("Is meta/ the one of this pool? Restore it and the devices from the same backup")
        })?;
        keys.add_past_session(session.id, session.first_sequence, session.salt);
        last = last.max(Some(session.id));
        first_sequence = first_sequence.max(session.first_sequence);
    }
    let last = last.ok_or_else(|| {
        Error::new(ErrorKind::Integrity, "meta/ is empty: it holds no session of this pool")
            .with_hint("Restore meta/ and the devices from the same backup")
    })?;
    Ok((last, first_sequence))
}

/// Unwraps the keys of all domains; returns the number of the shred key that those of volumes name.
pub(super) fn load_domains(parts: &Parts, keys: &KeyRing, shred_keys: &ShredKeys) -> Result<Option<u32>> {
    let mut shred_key = None;
    let damaged =
        |reason: &str| Error::new(ErrorKind::Integrity, format!("A domain record in meta/ is damaged: {reason}"));
    let found = parts.store.scan(Table::Catalog, key::DOMAIN_PREFIX, b"E", usize::MAX);
    for (record_key, value) in found.map_err(|error| meta_error("Reading domains", error))? {
        let body = keys.open(SealKind::Domain, &record_key, &value).map_err(|error| damaged(&error.to_string()))?;
        let record = DomainRecord::decode(&body).map_err(|error| damaged(&error.to_string()))?;
        let wrapping = if record.id.is_pool() {
            DomainWrapping::of_pool(&parts.master)
        } else if shred_key.replace(record.shred_key).is_some_and(|other| other != record.shred_key) {
            return Err(damaged("domains name different shred keys"));
        } else if shred_keys.is_there() {
            shred_keys.wrapping_of(record.shred_key)?
        } else {
            tracing::warn!(domain = %record.id, "the volume that has this domain as its own stays closed");
            continue;
        };
        for (generation, wrapped) in record.keys {
            let place = domain_place(&parts.id, record.id, generation);
            let unwrapped = DomainKey::unwrap(&wrapping, &place, &wrapped);
            let domain_key = unwrapped.ok_or_else(|| damaged("its key does not unwrap"))?;
            keys.add_domain_key(record.id, generation, domain_key);
        }
    }
    Ok(shred_key)
}

/// The last checkpoint; number 0 if there was none.
pub(super) fn load_checkpoint(store: &dyn MetaRead, keys: &KeyRing) -> Result<CheckpointRecord> {
    let value = store.get(Table::Catalog, key::CHECKPOINT);
    let value = value.map_err(|error| meta_error("Reading the checkpoint", error))?;
    let Some(value) = value else {
        let (next_tree, next_sequence) = (TreeId::new(1), Sequence::new(1));
        return Ok(CheckpointRecord { id: CheckpointId::new(0), next_tree, next_sequence, chains: Vec::new() });
    };
    let damaged = |reason: String| {
        Error::new(ErrorKind::Integrity, format!("The checkpoint record in meta/ is damaged: {reason}"))
            .with_hint("Restore meta/ and the devices from the same backup")
    };
    let body = keys.open(SealKind::Checkpoint, key::CHECKPOINT, &value).map_err(|error| damaged(error.to_string()))?;
    CheckpointRecord::decode(&body).map_err(|error| damaged(error.to_string()))
}

/// Refuses a device or a `meta/` that is older than the other: one of them was restored alone.
pub(super) fn check_age(
    parts: &Parts,
    headers: &[DeviceHeader],
    checkpoint: &CheckpointRecord,
    last_session: SessionId,
) -> Result<()> {
    for (header, (device, _)) in headers.iter().zip(&parts.devices) {
        let name = device.name();
        if header.checkpoint > checkpoint.id || header.session > last_session {
            return Err(Error::new(
                ErrorKind::Integrity,
                format!(
                    "meta/ is older than device {name}: it holds checkpoint {} and the device knows of {}",
                    checkpoint.id, header.checkpoint
                ),
            )
            .with_hint("Restore meta/ and the devices from the same backup"));
        }
        if header.checkpoint.get() + 1 < checkpoint.id.get() {
            return Err(Error::new(
                ErrorKind::Integrity,
                format!(
                    "Device {name} is older than meta/: it knows of checkpoint {} and meta/ holds {}",
                    header.checkpoint, checkpoint.id
                ),
            )
            .with_hint("Restore meta/ and the devices from the same backup"));
        }
    }
    Ok(())
}

/// Brings headers up to the stored checkpoint, where a crash came between the two. Without it, a second such
/// crash would leave a device two checkpoints behind, which looks like an old copy.
fn catch_up_headers(
    parts: &Parts,
    devices: &[Arc<PoolDevice>],
    headers: &[DeviceHeader],
    checkpoint: CheckpointId,
) -> Result<()> {
    let mac = header_mac(&parts.master);
    for (device, header) in devices.iter().zip(headers) {
        if header.checkpoint < checkpoint {
            let written = device.write_header(parts.id, header.session, checkpoint, &mac);
            written.map_err(|error| {
                let name = device.device.name();
                Error::new(ErrorKind::Other, format!("Writing the header of {name} failed: {error}")).with_source(error)
            })?;
        }
    }
    Ok(())
}

fn load_used(parts: &Parts, keys: &KeyRing, block_counts: &[u64], space: &mut Space) -> Result<StoredState> {
    let stretches = |count: &u64| vec![[0; STRETCH_WORDS]; to_usize(count.div_ceil(STRETCH_BLOCKS))];
    let mut used: Vec<Vec<bitmap::StretchBits>> = block_counts.iter().map(stretches).collect();
    let free_before = space.free_count();
    let damaged = |reason: &str| {
        Error::new(ErrorKind::Integrity, format!("The bitmap of used blocks in meta/ is damaged: {reason}"))
            .with_hint("Restore meta/ and the devices from the same backup")
    };
    // Page by page: memory that was used a moment ago is used again, where new memory costs as much as the decoding.
    let mut from = Vec::new();
    loop {
        let found = parts.store.scan(Table::Used, &from, &[], STRETCHES_PER_SCAN);
        let found = found.map_err(|error| meta_error("Reading the bitmap of used blocks", error))?;
        let Some((last_key, _)) = found.last() else { break };
        from = [last_key.as_slice(), &[0]].concat();
        for (stretch_key, value) in &found {
            let (device, stretch) = key::parse_stretch(stretch_key).map_err(|error| damaged(&error.to_string()))?;
            let body = keys.open(SealKind::Bitmap, stretch_key, value).map_err(|error| damaged(&error.to_string()))?;
            let bits = bitmap::decode(&body).map_err(|error| damaged(&error.to_string()))?;
            let place = used.get_mut(device.as_usize()).and_then(|device| device.get_mut(to_usize(stretch)));
            *place.ok_or_else(|| damaged("it names a place behind the device's end"))? = bits;
            if !space.claim_stretch(device, stretch, &bits) {
                return Err(damaged("it names a block that cannot be used"));
            }
        }
    }
    let used_count = free_before - space.free_count();
    Ok(StoredState { used, used_count, checkpoint: CheckpointId::new(0), is_trusted: false })
}

/// Allocates what the log holds: it is in no stored leaf yet, but for what an interrupted checkpoint stored.
fn claim(space: &mut Space, recovered: &Recovered) -> Result<()> {
    for run in &recovered.record_runs {
        for step in 0..run.count {
            let address = run.start.plus(step);
            if !space.claim(address) {
                let message = format!("meta/ contradicts the log: a leaf maps {address}, which holds a record");
                return Err(Error::new(ErrorKind::Integrity, message)
                    .with_hint("Restore meta/ and the devices from the same backup"));
            }
        }
    }
    for change in recovered.changes.values() {
        if let Some(entry) = change.entry {
            space.claim(entry.address());
        }
    }
    Ok(())
}

fn begin_session(
    parts: &Parts,
    keys: &KeyRing,
    last: SessionId,
    first_sequence: Sequence,
    random: Random<'_>,
) -> Result<SessionId> {
    let mut salt = [0; 32];
    if !is_planted(Bug::SaltNotDrawn) {
        random(&mut salt);
    }
    let session = Session { id: SessionId::new(last.get() + 1), first_sequence, salt };
    let value = session.encode(&parts.master.static_mac(Purpose::Session));
    let batch = [MetaOp::Put(Table::Sessions, key::session(session.id), value)];
    parts.store.commit(&batch, Durability::Synced).map_err(|error| meta_error("Starting a session", error))?;
    keys.begin_session(session.id, first_sequence, salt);
    Ok(session.id)
}
