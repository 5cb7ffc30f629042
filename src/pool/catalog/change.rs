//! A change of the catalog that is planned, and not yet committed.

use super::{Catalog, CatalogStore, Edit};
use crate::crypto::{DomainKey, KeyRing};
use crate::error::Result;
use crate::meta::{Durability, MetaOp};
use crate::units::{DomainId, KeyGeneration};

/// What is to be stored in one batch, and what is true from then on.
pub struct Change<R> {
    edit: Edit,
    ops: Vec<MetaOp>,
    durability: Durability,
    keys: KeyChange,
    result: R,
}

/// What becomes of the key of a domain.
pub(in crate::pool) enum KeyChange {
    Nothing,
    Added(DomainId, KeyGeneration, DomainKey),
    Forgotten(DomainId),
}

impl<R> Change<R> {
    /// What an edit does, and what else is stored with it.
    pub(in crate::pool) fn new(at: CatalogStore<'_>, edit: Edit, more: Vec<MetaOp>, result: R) -> Self {
        let mut ops = edit.ops(at);
        ops.extend(more);
        Self { edit, ops, durability: Durability::Synced, keys: KeyChange::Nothing, result }
    }

    /// The same, stored in another way. Only for a planted bug.
    pub(super) fn stored_as(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// The same, with a key that comes or goes with it.
    pub(in crate::pool) fn with_key(self, keys: KeyChange) -> Self {
        Self { keys, ..self }
    }

    /// Stores it; what is then to be taken by the catalog.
    ///
    /// # Errors
    /// The store's failure. Whether it is stored only the next open tells.
    pub(in crate::pool) fn commit(self, at: CatalogStore<'_>) -> Result<Committed<R>> {
        at.commit_as(&self.ops, self.durability)?;
        Ok(Committed { edit: self.edit, keys: self.keys, result: self.result })
    }
}

/// A change that is stored.
#[must_use]
pub(in crate::pool) struct Committed<R> {
    edit: Edit,
    keys: KeyChange,
    result: R,
}

impl Catalog {
    /// Takes a change that is stored. Nothing else was changed since it was planned.
    pub(in crate::pool) fn take<R>(&mut self, committed: Committed<R>, keys: &KeyRing) -> R {
        match committed.keys {
            KeyChange::Nothing => {}
            KeyChange::Added(domain, generation, domain_key) => keys.add_domain_key(domain, generation, domain_key),
            KeyChange::Forgotten(domain) => keys.forget_domain(domain),
        }
        self.apply(committed.edit);
        committed.result
    }
}
