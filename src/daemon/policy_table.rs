//! The policies that a pool remembers: in its catalog, and in memory as they are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::crypto::SealKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::key;
use crate::format::policy::PolicyRecord;
use crate::lane::Server;
use crate::meta::{MetaError, MetaOp, Table};

/// The policies of an open pool. Changed by one at a time.
pub(super) struct PolicyTable {
    server: Arc<Server>,
    records: Mutex<BTreeMap<String, PolicyRecord>>,
}

impl PolicyTable {
    /// Those that the pool remembers.
    ///
    /// # Errors
    /// `Integrity` naming a damaged record, and the store's failure.
    pub(super) fn load(server: &Arc<Server>) -> Result<Self> {
        let pool = server.pool();
        let end = [key::POLICY_PREFIX[0] + 1];
        let found = pool.store().scan(Table::Catalog, key::POLICY_PREFIX, &end, usize::MAX);
        let mut records = BTreeMap::new();
        for (record_key, value) in found.map_err(|error| store_error("Reading policies", error))? {
            let damaged = |reason: String| {
                Error::new(ErrorKind::Integrity, format!("The record of a policy in meta/ is damaged: {reason}"))
                    .with_hint("Restore meta/ and the devices from the same backup")
            };
            let body =
                pool.keys().open(SealKind::Policy, &record_key, &value).map_err(|error| damaged(error.to_string()))?;
            let record = PolicyRecord::decode(&body).map_err(|error| damaged(error.to_string()))?;
            if key::policy(&record.name) != record_key {
                return Err(damaged("it is at the place of another one".to_owned()));
            }
            records.insert(record.name.clone(), record);
        }
        Ok(Self { server: Arc::clone(server), records: Mutex::new(records) })
    }

    /// All, by name.
    pub(super) fn list(&self) -> Vec<PolicyRecord> {
        self.records.lock().values().cloned().collect()
    }

    /// # Errors
    /// `NotFound`.
    pub(super) fn find(&self, name: &str) -> Result<PolicyRecord> {
        self.records.lock().get(name).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("There is no policy {name:?}"))
                .with_hint("rok-blk policy ls lists them")
        })
    }

    /// Stores a policy, in the place of one of the same name.
    ///
    /// # Errors
    /// The store's failure.
    pub(super) fn put(&self, record: PolicyRecord) -> Result<()> {
        let record_key = key::policy(&record.name);
        let value = self.server.pool().keys().seal(SealKind::Policy, &record_key, &record.encode());
        self.commit("Storing a policy", MetaOp::Put(Table::Catalog, record_key, value))?;
        self.records.lock().insert(record.name.clone(), record);
        Ok(())
    }

    /// Forgets a policy.
    ///
    /// # Errors
    /// The store's failure.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.commit("Removing a policy", MetaOp::Delete(Table::Catalog, key::policy(name)))?;
        self.records.lock().remove(name);
        Ok(())
    }

    fn commit(&self, action: &str, change: MetaOp) -> Result<()> {
        self.server.pool().commit_beside(&[change]).map_err(|error| store_error(action, error))
    }
}

fn store_error(action: &str, error: MetaError) -> Error {
    let kind = if error.is_out_of_space { ErrorKind::NoSpace } else { ErrorKind::Other };
    Error::new(kind, format!("{action} failed: {}", error.message)).with_source(error)
}
