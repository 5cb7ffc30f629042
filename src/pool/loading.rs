//! What an opening and a check load: devices with their headers, and the records of `meta/` that come before the map.

use crate::crypto::{DomainKey, DomainWrapping, KeyRing, Purpose, SealKind, domain_place};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{self, STRETCH_WORDS};
use crate::format::catalog::{CheckpointRecord, DomainRecord};
use crate::format::device_header::DeviceHeader;
use crate::format::key;
use crate::format::session::Session;
use crate::meta::{MetaRead, Table};
use crate::pool::catalog::meta_error;
use crate::pool::devices::{ExpectedDevice, PoolDevice, header_mac};
use crate::pool::shred_key::ShredKeys;
use crate::pool::space::Space;
use crate::pool::{Parts, StoredState};
use crate::units::{BLOCK_SIZE_U64, CheckpointId, DeviceIndex, STRETCH_BLOCKS, Sequence, SessionId, TreeId, to_usize};
use std::sync::Arc;

/// Stretches of the bitmap that are read at once: 2 MiB.
const STRETCHES_PER_SCAN: usize = 4096;

pub(super) fn expected_devices(parts: &Parts) -> Vec<ExpectedDevice> {
    let index = (0..).map(DeviceIndex::new);
    let devices = parts.devices.iter().zip(index);
    devices
        .map(|((device, id), index)| ExpectedDevice {
            pool: parts.id,
            id: *id,
            index,
            block_count: device.size_bytes() / BLOCK_SIZE_U64,
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

pub(super) fn load_used(parts: &Parts, keys: &KeyRing, block_counts: &[u64], space: &mut Space) -> Result<StoredState> {
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
