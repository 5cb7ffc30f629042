//! Volumes with keys of their own: made, shredded, and then looked for by somebody who has the master key, all that the
//! metadata store ever held, and the disks as they are.

use super::Workload;
use super::volumes::name;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::crypto::{CipherCache, DomainKey, DomainWrapping, SealKind, ShredKey, Suite, domain_place};
use rok_blk::disk::SimDevice;
use rok_blk::error::{ErrorKind, Result};
use rok_blk::format::catalog::{DomainRecord, VolumeRecord};
use rok_blk::format::entry::Entry;
use rok_blk::format::key;
use rok_blk::format::shred_key::ShredKeyCopy;
use rok_blk::map::StoredLeaves;
use rok_blk::meta::{MetaRead, Table};
use rok_blk::units::{Address, BLOCK_SIZE, BLOCK_SIZE_U64, DomainId, TreeId};
use rok_blk::volume::{NewVolume, VolumeInfo};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What an attacker has collected.
#[derive(Default)]
pub struct OldKeys {
    /// Records of domains that the store held at some time.
    records: Vec<DomainRecord>,
    /// Domains whose shredding was acknowledged.
    shredded: BTreeSet<DomainId>,
}

impl Workload {
    pub(super) fn is_encrypted(&self) -> bool {
        self.world.suite != Suite::Plain
    }

    pub(super) fn create_with_own_key(&mut self, new: &NewVolume<'_>) -> Result<VolumeInfo> {
        let mut random = self.key_random();
        let created = self.life().volumes.create_with_own_key(new, &mut |bytes| random.fill(bytes))?;
        assert!(created.has_own_key, "a volume was created without the key that it was to have");
        self.world.counts.own_keys += 1;
        self.collect_domains();
        Ok(created)
    }

    /// Shreds a volume, if it has a key of its own; else it is refused, and removed in another way.
    pub(super) fn shred(&mut self, volume: usize, id: Uuid) -> Result<()> {
        let mut random = self.key_random();
        let frozen = self.freeze(&[id])?;
        let volumes = self.life().volumes.clone();
        let info = volumes.find(&name(volume)).expect("the volume is there");
        let (tree, domain, is_only) = self.life().pool.with_catalog(|catalog, _| {
            let record = catalog.find(&name(volume)).expect("the volume is there");
            let domain = catalog.tree(record.tree).expect("each volume has a tree").domain;
            // Clones of others' snapshots have their key, too.
            let in_domain = |other: &&VolumeRecord| catalog.tree(other.tree).is_some_and(|tree| tree.domain == domain);
            (record.tree, domain, catalog.volumes().filter(in_domain).count() == 1)
        });
        if !info.has_own_key || !is_only {
            let is_writable = self.life().pool.check_writable().is_ok();
            let refused = volumes.shred_frozen(&frozen, &mut |bytes| random.fill(bytes)).expect_err("it has no key");
            assert!(matches!(refused.kind(), ErrorKind::Usage | ErrorKind::Busy) || !is_writable, "{refused}");
            return volumes.remove_frozen(&frozen);
        }
        self.collect_domains();
        self.heal_rot();
        self.check_blocks(tree, domain);
        self.rot_again();
        volumes.shred_frozen(&frozen, &mut |bytes| random.fill(bytes))?;
        self.old_keys.shredded.insert(domain);
        self.world.counts.shredded += 1;
        self.collect_domains();
        self.check_shredded();
        Ok(())
    }

    fn key_random(&mut self) -> SmallRng {
        SmallRng::seed_from_u64(self.world.random.random())
    }

    /// Remembers how the store holds the keys of domains now.
    fn collect_domains(&mut self) {
        let pool = self.life().pool.clone();
        let found = self.world.store.scan(Table::Catalog, key::DOMAIN_PREFIX, b"E", usize::MAX).expect("memory");
        for (record_key, value) in found {
            let body = pool.keys().open(SealKind::Domain, &record_key, &value).expect("a sealed domain");
            let record = DomainRecord::decode(&body).expect("a domain");
            if !self.old_keys.records.contains(&record) {
                self.old_keys.records.push(record);
            }
        }
    }

    /// No key that is on a disk, be it durable or not, opens the key of a volume whose shredding was acknowledged; and
    /// the store does not hold that key any more, whatever a crash took back.
    pub(super) fn check_shredded(&self) {
        let mut wrappings = vec![DomainWrapping::of_pool(&self.world.master)];
        self.world.shred_key.scan(|_, bytes| {
            for block in bytes.chunks(BLOCK_SIZE) {
                let Ok(copy) = ShredKeyCopy::decode(block) else { continue };
                let key = ShredKey::unwrap(&self.world.master, (&self.world.pool_id, copy.number), &copy.wrapped);
                wrappings.extend(key.map(|key| DomainWrapping::of_volumes(&self.world.master, &key)));
            }
        });
        for record in self.old_keys.records.iter().filter(|record| self.old_keys.shredded.contains(&record.id)) {
            for (generation, wrapped) in &record.keys {
                let place = domain_place(&self.world.pool_id, record.id, *generation);
                let opens = |wrapping| DomainKey::unwrap(wrapping, &place, wrapped).is_some();
                assert!(!wrappings.iter().any(opens), "the key of domain {} was shredded and can be opened", record.id);
            }
        }
        for domain in &self.old_keys.shredded {
            let found = self.world.store.get(Table::Catalog, &key::domain(*domain)).expect("memory");
            assert!(found.is_none(), "the key of domain {domain} was shredded and is stored");
        }
    }

    /// The stored blocks of a tree open with the key of its domain and with no other one.
    fn check_blocks(&mut self, tree: TreeId, own: DomainId) {
        let pool = self.life().pool.clone();
        let mut others = pool.keys().volume_domains();
        others.push(DomainId::POOL);
        others.retain(|domain| *domain != own);
        let entries = self.stored_entries(tree);
        let blocks = blocks_of(&self.world.devices, &entries);
        let mut ciphers = CipherCache::default();
        let mut opens = |domain, entry: &Entry| {
            let cipher = ciphers.get(pool.keys(), domain, entry.generation(), entry.sequence());
            cipher.is_some_and(|cipher| cipher.verify(entry.sequence(), &blocks[&entry.address()], entry.mac()))
        };
        for entry in entries.iter().filter(|entry| blocks.contains_key(&entry.address())) {
            assert!(opens(own, entry), "{} does not open with its own key", entry.address());
            assert!(!others.iter().any(|other| opens(*other, entry)), "{} opens with another key", entry.address());
            self.world.counts.own_key_blocks += 1;
        }
    }

    fn stored_entries(&mut self, tree: TreeId) -> Vec<Entry> {
        let pool = self.life().pool.clone();
        let stored = StoredLeaves { store: &*self.world.store, keys: pool.keys() };
        let (from, end) = (key::tree_start(tree), key::tree_end(tree));
        let leaves = self.world.store.scan(Table::Leaves, &from, &end, usize::MAX).expect("memory");
        let mut entries = Vec::new();
        for (leaf_key, value) in leaves {
            let (_, _, epoch) = key::parse_leaf(&leaf_key).expect("a leaf's key");
            let opened = stored.open(&leaf_key, epoch, &value).expect("a stored leaf");
            entries.extend(opened.change.entries.iter().map(|(_, entry)| entry));
        }
        entries
    }
}

/// What is on the devices at the addresses of entries, as far as it is not zeros.
fn blocks_of(devices: &[SimDevice], entries: &[Entry]) -> BTreeMap<Address, Vec<u8>> {
    let wanted: BTreeSet<Address> = entries.iter().map(|entry| entry.address()).collect();
    let mut blocks = BTreeMap::new();
    for (device, index) in devices.iter().zip((0..).map(rok_blk::units::DeviceIndex::new)) {
        device.scan(|offset, bytes| {
            for (block, content) in (offset / BLOCK_SIZE_U64..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
                let address = Address::new(index, block);
                if wanted.contains(&address) {
                    blocks.entry(address).or_insert_with(|| content.to_vec());
                }
            }
        });
    }
    blocks
}
