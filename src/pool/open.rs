//! Making a pool and opening one, given its parts: devices, metadata store and master key.
//!
//! Opening ends with a checkpoint that stores what recovery found and starts the new session's chains;
//! before it is done nothing else is written.

use crate::crypto::{DomainKey, DomainWrapping, KeyRing, MasterKey, Purpose, Random, SealKind, Suite, domain_place};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{DomainRecord, LANES_MAX};
use crate::format::device_header::DeviceHeader;
use crate::format::entry::Entry;
use crate::format::key;
use crate::format::session::Session;
use crate::format::superblock::DEVICES_MAX;
use crate::map::{Change, ChangeKey, Changes, LeafCache, StoredLeaf, StoredLeaves};
use crate::meta::{Durability, MetaOp, MetaRead, MetaStore, ReservedStore, SpaceReserve, Table};
use crate::planted::{Bug, is_planted};
use crate::pool::catalog::{Catalog, meta_error};
use crate::pool::checkpoint::{Checkpoint, UnreadableTrees};
use crate::pool::devices::{PoolDevice, header_mac};
use crate::pool::growth::{reserve_blocks, window_blocks};
use crate::pool::loading::{
    check_age, expected_devices, load_checkpoint, load_domains, load_sessions, load_used, open_devices,
};
use crate::pool::recovery::{Recovered, Source, replay};
use crate::pool::shred_key::ShredKeys;
use crate::pool::space::Space;
use crate::pool::space_news::SpaceNews;
use crate::pool::trim::release_holes;
use crate::pool::{LaneShared, Limits, PartCounts, Pool, StoredState};
use crate::units::{
    AddressRun, BlockIndex, ChainSequence, CheckpointId, DomainId, Epoch, KeyGeneration, LEAF_ENTRIES_U64, LaneIndex,
    LeafIndex, Sequence, SessionId, TreeId, to_u64,
};
use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex, RwLock};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
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

/// What an opening without the shred key may do to volumes with keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unverified {
    /// Nothing: where a power loss may have torn what they have behind their last flush, the pool is refused. Without the
    /// key nobody can tell, and what such a block replaced would become free.
    Refused,
    /// It is taken for whole: the key is lost for good, and what the volumes held with it.
    Taken,
}

/// Opens a pool: checks its parts, recovers, and starts a session. [`Unverified::Refused`] holds.
///
/// # Errors
/// As [`open_with`].
pub fn open(parts: Parts, random: Random<'_>) -> Result<Arc<Pool>> {
    open_with(parts, Unverified::Refused, random)
}

/// Opens a pool: checks its parts, recovers, and starts a session.
///
/// # Errors
/// [`ErrorKind::Integrity`] naming what is foreign, older or damaged; [`ErrorKind::Key`] for what nobody can verify, if that
/// is refused; the failure of a device or of `meta/`.
pub fn open_with(mut parts: Parts, unverified: Unverified, random: Random<'_>) -> Result<Arc<Pool>> {
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
    if unverified == Unverified::Refused && !is_planted(Bug::UnverifiedTaken) {
        check_verified(&*parts.store, &catalog, &recovered)?;
    }
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
            tracing::error!(%error, "the pool is open for reads only: copy what is needed to another");
            lay_newer_stored(&pool)?;
            pool.watch_space();
        }
        stored => stored?,
    }
    Ok(pool)
}

/// The checkpoint before the last end of the pool may have stored newer entries than the log has, where their blocks are damaged
/// now. They count, as if this opening's checkpoint had come to their leaves: what the log has is older data.
///
/// # Errors
/// The store's failure. A leaf that is damaged says nothing.
fn lay_newer_stored(pool: &Pool) -> Result<()> {
    let stored = StoredLeaves { store: &*pool.store, keys: &pool.keys };
    for stripe in 0..pool.changes.stripe_count() {
        let mut changes: BTreeMap<ChangeKey, Change> = pool.changes.frozen(stripe).into_iter().collect();
        let leaves: BTreeSet<(TreeId, LeafIndex)> = changes.keys().map(|key| (key.tree, key.block.leaf())).collect();
        let mut is_newer = false;
        for (tree, leaf) in leaves {
            let mut epoch = Epoch::NEWEST;
            loop {
                let found = match stored.newest(tree, epoch, leaf) {
                    Ok(Some(found)) => found,
                    Ok(None) => break,
                    Err(error) if error.kind() == ErrorKind::Integrity => break,
                    Err(error) => return Err(error),
                };
                is_newer |= take_newer(&mut changes, (tree, leaf), &found);
                let Some(before) = found.epoch.get().checked_sub(1) else { break };
                epoch = Epoch::new(before);
            }
        }
        if is_newer {
            // All of them: what is laid now hides what was before, whatever the epochs are.
            let lay = pool.changes.lay();
            changes.into_iter().for_each(|(key, change)| lay.lay(key, change));
        }
    }
    Ok(())
}

/// Takes what a stored leaf has newer than the changes that hide it; whether that was anything.
fn take_newer(
    changes: &mut BTreeMap<ChangeKey, Change>,
    (tree, leaf): (TreeId, LeafIndex),
    found: &StoredLeaf,
) -> bool {
    let mut newer = Vec::new();
    let key_of = |block: BlockIndex, epoch: Epoch| ChangeKey { tree, block, epoch };
    let end = key_of(leaf.first_block().plus(LEAF_ENTRIES_U64), Epoch::default());
    for (key, change) in changes.range(key_of(leaf.first_block(), Epoch::default())..end) {
        let entry = found.leaf.get(key.block.slot());
        let stored = Change { sequence: entry.map(Entry::sequence).unwrap_or_default(), entry };
        match key.epoch.cmp(&found.epoch) {
            Ordering::Equal if stored.sequence.max(change.sequence) != change.sequence => newer.push((*key, stored)),
            // It was stored behind all changes of older epochs.
            Ordering::Less if !changes.contains_key(&key_of(key.block, found.epoch)) => {
                newer.push((key_of(key.block, found.epoch), stored));
            }
            _ => {}
        }
    }
    let has_any = !newer.is_empty();
    changes.extend(newer);
    has_any
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

/// Fails if the log has blocks of volumes whose key is missing and of which nobody knows that they are whole.
fn check_verified(store: &dyn MetaRead, catalog: &Catalog, recovered: &Recovered) -> Result<()> {
    let domain_of = |tree: TreeId| catalog.tree(tree).map(|tree| tree.domain);
    let mut domains: BTreeSet<DomainId> = recovered.unverified.iter().filter_map(|key| domain_of(key.tree)).collect();
    for domain in domains.clone() {
        let record = store.get(Table::Catalog, &key::domain(domain));
        if record.map_err(|error| meta_error("Reading domains", error))?.is_none() {
            // Its volume was shredded: nobody reads any of it again.
            domains.remove(&domain);
        }
    }
    let is_closed = |tree: TreeId| domain_of(tree).is_some_and(|domain| domains.contains(&domain));
    let count = recovered.unverified.iter().filter(|key| is_closed(key.tree)).count();
    if count == 0 {
        return Ok(());
    }
    let closed = catalog.volumes().filter(|volume| is_closed(volume.tree));
    let names: Vec<&str> = closed.map(|volume| volume.name.as_str()).collect();
    let message = format!(
        "{count} blocks of volumes with a key of their own ({}) were written behind their last flush, and without the file \
         shred-key nobody can tell whether the power went meanwhile and tore them",
        names.join(", ")
    );
    Err(Error::new(ErrorKind::Key, message).with_hint(
        "Put the file back from a backup and open the pool with it once; if it is lost for good, so are these volumes: \
         serve --give-up-own-keys goes on with all others. Nothing was changed",
    ))
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
