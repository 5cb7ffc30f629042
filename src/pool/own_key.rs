//! Volumes with a key of their own: making one, and shredding one, which destroys its key.
//!
//! A shredding is decided by one commit of `meta/`, which removes the volume and wraps the keys of all others under a new
//! shred key; it is told only after the old shred key is overwritten. `ShredKeys` has the steps around the commit.

use crate::crypto::{DomainKey, DomainWrapping, Random, SealKind, Suite, domain_place};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{DomainRecord, VolumeRecord};
use crate::format::key;
use crate::meta::MetaOp;
use crate::pool::catalog::KeyChange;
use crate::pool::{CatalogStore, Pool, Turn};
use crate::units::{DomainId, KeyGeneration};

/// The one generation that the key of a volume has.
const GENERATION: KeyGeneration = KeyGeneration::new(0);

impl Pool {
    /// Makes a volume with a domain, and thus a key, of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the pool is not encrypted, those of [`Catalog::create`](super::Catalog::create), and the
    /// failure of what holds the shred key.
    pub fn create_with_own_key(&self, volume: VolumeRecord, random: Random<'_>) -> Result<VolumeRecord> {
        self.check_own_keys()?;
        let turn = self.take_turn();
        let mut shred_keys = self.shred_keys.lock();
        self.check_catalog_writable()?;
        let (number, wrapping) = shred_keys.ensure(random)?;
        let domain_key = DomainKey::generate(random);
        self.change_catalog_in(&turn, |catalog, at| {
            let id = DomainId::new(catalog.next_tree().get());
            let wrapped = domain_key.wrap(&wrapping, &domain_place(&self.id, id, GENERATION), random);
            let domain = DomainRecord { id, shred_key: number, keys: vec![(GENERATION, wrapped)] };
            let change = catalog.create_in_domain(at, volume, &domain)?;
            Ok(change.with_key(KeyChange::Added(id, GENERATION, domain_key)))
        })
    }

    /// Whether a volume could have a key of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the pool is not encrypted.
    pub fn check_own_keys(&self) -> Result<()> {
        if self.keys.suite() == Suite::Plain {
            let message = "The pool is not encrypted: a volume's own key would protect nothing";
            return Err(Error::new(ErrorKind::Usage, message)
                .with_hint("Leave --own-key out, or create the volume in an encrypted pool"));
        }
        Ok(())
    }

    /// Reads both copies of the shred key, and writes anew what is not as it should be; how many that were. Never on a lane.
    ///
    /// # Errors
    /// The failure of their file; [`ErrorKind::Other`] if the pool has failed: then the next opening sees which key counts.
    pub fn scrub_shred_key(&self) -> Result<usize> {
        let mut shred_keys = self.shred_keys.lock();
        self.check_healthy()?;
        shred_keys.scrub()
    }

    /// Removes a volume and destroys its key: what is left of its data, in this pool's files or in copies of them without
    /// `shred-key`, nobody can decrypt any more. The caller knows that nobody has the volume open.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Usage`] if it has no key of its own. After any other error the volume may be
    /// removed and its key may exist: the next opening of the pool, or the next shredding, ends what was begun.
    pub fn shred(&self, turn: &Turn, name: &str, random: Random<'_>) -> Result<()> {
        let mut shred_keys = self.shred_keys.lock();
        let end = self.end_of_writes();
        self.check_catalog_writable()?;
        let domain = self.check_shred(name)?;
        if self.is_meta_reserve_gone() {
            return Err(Error::new(ErrorKind::NoSpace, "The file system that holds meta/ is full")
                .with_hint("Free some space there, or remove the volume without --shred; nothing was changed"));
        }
        let (next, wrapping) = shred_keys.begin_next(random)?;
        let removed = self.change_catalog_in(turn, |catalog, at| {
            let others = at.keys.volume_domains().into_iter().filter(|other| *other != domain);
            let wrapped = others.map(|other| self.wrap_again(at, other, (next.number, &wrapping), random));
            let id = catalog.find(name)?.id;
            catalog.shred(at, id, end, wrapped.collect())
        });
        if let Err(error) = removed {
            // The key is still needed: nothing was changed, or the next opening decides.
            if error.kind() == ErrorKind::NoSpace {
                shred_keys.leave_undecided();
            } else if self.check_writable().is_ok()
                && let Err(error) = shred_keys.settle()
            {
                tracing::warn!(%error, "a copy of the shred key could not be put back");
            }
            return Err(error);
        }
        let result = shred_keys.replace(next).map_err(|error| {
            let message =
                format!("Volume \"{name}\" is removed, but its key is not destroyed yet: {}", error.message());
            Error::new(ErrorKind::Other, message)
                .with_hint("Repair the file system that holds the pool, then start the daemon again, which destroys it")
                .with_source(error)
        });
        drop(shred_keys);
        if let Some(signals) = self.signals.get() {
            // Idle ones too have ciphers to drop.
            signals.wake_lanes();
        }
        self.want_checkpoint();
        result
    }

    /// Whether a volume could be shredded; the domain that would go.
    ///
    /// # Errors
    /// As [`Self::shred`].
    pub fn check_shred(&self, name: &str) -> Result<DomainId> {
        self.with_catalog(|catalog, _| {
            let id = catalog.find(name)?.id;
            catalog.domain_only_of(id).ok_or_else(|| {
                let message =
                    format!("Volume \"{name}\" has no key of its own: others are encrypted with the same one");
                Error::new(ErrorKind::Usage, message).with_hint(
                    "Remove it without --shred; data to be shredded one day belongs into a volume made with --own-key",
                )
            })
        })
    }

    fn wrap_again(
        &self,
        at: CatalogStore<'_>,
        id: DomainId,
        (shred_key, wrapping): (u32, &DomainWrapping),
        random: Random<'_>,
    ) -> MetaOp {
        at.put_domain(&DomainRecord { id, shred_key, keys: at.keys.wrap_domain((&self.id, id), wrapping, random) })
    }

    /// After a failure nobody knows what `meta/` holds, so that no shred key may be given up.
    fn check_catalog_writable(&self) -> Result<()> {
        self.check_writable().map_err(|_| {
            Error::new(ErrorKind::Other, "The pool has failed: nothing is stored any more")
                .with_hint("`rok-blk status` says why; restart the daemon once the device is repaired")
        })
    }
}

impl CatalogStore<'_> {
    /// What stores a domain's record.
    pub(super) fn put_domain(&self, domain: &DomainRecord) -> MetaOp {
        let record_key = key::domain(domain.id);
        let value = self.keys.seal(SealKind::Domain, &record_key, &domain.encode());
        MetaOp::Put(crate::meta::Table::Catalog, record_key, value)
    }
}
