//! What a server exports: volumes by name, and by reference each of their snapshots for reads, to whom, and how.

use super::access::{AllowRule, Peer, is_allowed};
use super::diff_context::{DIFF_CONTEXTS_MAX, is_diff_name};
use super::settings::{Expose, ListenSettings, NbdLimits};
use super::status::StatusContext;
use super::target::{ExportTarget, Found, NULL_EXPORT};
use super::tls::TlsAuthority;
use super::users::VolumeUsers;
use crate::error::ErrorKind;
use crate::volume::{VolumeInfo, Volumes};
use parking_lot::Mutex;
use rok_nbd::BlockSizes;
use rok_nbd::server::{Export, ExportFeatures, Exports, FindError, SelectedContext, TlsOffer};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// Everything that our engine does.
const FEATURES: ExportFeatures = ExportFeatures {
    is_read_only: false,
    has_flush: true,
    has_fua: true,
    has_trim: true,
    has_write_zeroes: true,
    has_fast_zero: true,
    has_cache: true,
    // One engine behind all connections, and its flush covers all lanes.
    is_multi_connection_safe: true,
    is_rotational: false,
};

/// How a volume is exported. The default leaves it to the listener whether it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPolicy {
    /// Whether clients may choose it; `None` is what the listener exposes.
    pub is_exported: Option<bool>,
    /// Clients cannot change it.
    pub is_read_only: bool,
    /// How many connections may have it open; `None` is the server's bound.
    pub connections_max: Option<u32>,
    /// Only encrypted connections may open it.
    pub requires_tls: bool,
    /// Who may open it; everybody if there is no rule.
    pub allow: Vec<AllowRule>,
}

/// The exports of a server.
pub(super) struct ExportTable {
    pub volumes: Arc<Volumes>,
    pub limits: NbdLimits,
    /// What TLS needs, if it is offered.
    pub tls: Option<Arc<TlsAuthority>>,
    policies: Mutex<BTreeMap<Uuid, ExportPolicy>>,
    /// Volumes that nobody may open now.
    closed: Mutex<BTreeSet<Uuid>>,
    /// Who has each volume open.
    pub users: Arc<VolumeUsers>,
    is_closing: AtomicBool,
}

impl ExportTable {
    pub(super) fn new(volumes: Arc<Volumes>, limits: NbdLimits, tls: Option<Arc<TlsAuthority>>) -> Self {
        Self {
            volumes,
            limits,
            tls,
            policies: Mutex::default(),
            closed: Mutex::default(),
            users: Arc::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    pub(super) fn policy(&self, id: Uuid) -> ExportPolicy {
        self.policies.lock().get(&id).cloned().unwrap_or_default()
    }

    pub(super) fn set_policy(&self, id: Uuid, policy: ExportPolicy) {
        self.policies.lock().insert(id, policy);
    }

    /// All that differ from the default.
    pub(super) fn policies(&self) -> BTreeMap<Uuid, ExportPolicy> {
        self.policies.lock().clone()
    }

    /// Whether a listener with these settings offers the volume.
    pub(super) fn is_exported(&self, id: Uuid, expose: Expose) -> bool {
        self.policies.lock().get(&id).and_then(|policy| policy.is_exported).unwrap_or(expose == Expose::All)
    }

    /// Keeps clients away from a volume until the guard is dropped; `None` if somebody does so already.
    pub(super) fn close(&self, id: Uuid) -> Option<ClosedVolume<'_>> {
        self.closed.lock().insert(id).then_some(ClosedVolume { table: self, id })
    }

    /// Whether somebody keeps clients away from a volume.
    pub(super) fn is_closed(&self, id: Uuid) -> bool {
        self.closed.lock().contains(&id)
    }

    /// From now on no handshake gets an export.
    pub(super) fn shut_down(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// What a client may choose.
    fn offered(&self, client: &Client) -> Vec<VolumeInfo> {
        let mut infos = self.volumes.list();
        infos.retain(|info| self.may_open(info.id, client));
        infos
    }

    /// Whether a client may choose a volume.
    pub(super) fn may_open(&self, id: Uuid, client: &Client) -> bool {
        let policy = self.policy(id);
        let is_reached = client.is_encrypted || !policy.requires_tls;
        is_reached && self.is_exported(id, client.settings.expose) && is_allowed(&policy.allow, &client.peer)
    }

    /// Whether a client that has found a volume may still have it as it was told. A volume that is closed since is no matter:
    /// who closed it sees the client as a user.
    pub(super) fn may_serve(&self, id: Uuid, is_read_only: bool, client: &Client) -> bool {
        self.may_open(id, client) && (is_read_only || !self.policy(id).is_read_only)
    }

    fn open(&self, name: &str, client: &Client) -> Result<Found, FindError> {
        if let Some(size_bytes) = client.settings.null_size_bytes.filter(|_| name == NULL_EXPORT) {
            let place = self.users.connect(Uuid::nil(), self.limits.connections_per_export_max, false)?;
            let target = ExportTarget::Null(size_bytes);
            return Ok(Found { target, place, name: NULL_EXPORT.to_owned(), is_read_only: false });
        }
        let name = if name.is_empty() {
            match self.offered(client).as_slice() {
                [only] => only.name.clone(),
                _ => return Err(FindError::Unknown),
            }
        } else {
            name.to_owned()
        };
        let volume = self.volumes.open_reference(&name).map_err(|error| {
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Usage) {
                return FindError::Unknown;
            }
            tracing::warn!(%error, "a client cannot have a volume");
            FindError::Unavailable
        })?;
        let id = volume.volume().id();
        if !self.is_exported(id, client.settings.expose) {
            return Err(FindError::Unknown);
        }
        let policy = self.policy(id);
        if policy.requires_tls && !client.is_encrypted {
            // Where the listener has no TLS there is no way in.
            let has_tls = client.settings.tls != TlsOffer::Off;
            return Err(if has_tls { FindError::TlsRequired } else { FindError::Forbidden });
        }
        if !is_allowed(&policy.allow, &client.peer) {
            return Err(FindError::Forbidden);
        }
        // Asked after the opening: who closes the volume looks for users after it did.
        if self.is_closed(id) {
            return Err(FindError::Unavailable);
        }
        let connections_max = policy.connections_max.unwrap_or(self.limits.connections_per_export_max);
        let target = ExportTarget::Volume(Arc::new(volume));
        let is_read_only = policy.is_read_only || target.is_read_only();
        let place = self.users.connect(id, connections_max, is_read_only)?;
        Ok(Found { target, place, name, is_read_only })
    }
}

/// A client, and the listener that it came by.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub peer: Peer,
    pub settings: ListenSettings,
    pub is_encrypted: bool,
}

/// A volume that clients cannot open while this lives.
pub(super) struct ClosedVolume<'a> {
    table: &'a ExportTable,
    id: Uuid,
}

impl Drop for ClosedVolume<'_> {
    fn drop(&mut self) {
        self.table.closed.lock().remove(&self.id);
    }
}

/// The exports as one call of a client's handshake sees them. Keeps what was found last, so that it is what gets served.
pub(super) struct ExportView<'a> {
    table: &'a ExportTable,
    client: &'a Client,
    found: RefCell<Option<Found>>,
    /// Names of the diff contexts that it was found to have.
    diffs: RefCell<BTreeSet<String>>,
}

impl<'a> ExportView<'a> {
    pub(super) const fn new(table: &'a ExportTable, client: &'a Client) -> Self {
        Self { table, client, found: RefCell::new(None), diffs: RefCell::new(BTreeSet::new()) }
    }

    /// What was found last, with the contexts that the client chose of it; `None` if there is nothing, or one of them is
    /// gone meanwhile.
    pub(super) fn into_found(self, chosen: &[SelectedContext]) -> Option<(Found, Vec<StatusContext>)> {
        let found = self.found.into_inner()?;
        let context = |selected: &SelectedContext| {
            StatusContext::named(selected).or_else(|| {
                let base = self.table.open_base(&selected.name, found.target.volume()?, self.client)?;
                Some(StatusContext::Diff(base))
            })
        };
        let contexts: Option<Vec<_>> = chosen.iter().map(context).collect();
        Some((found, contexts?))
    }
}

impl Exports for ExportView<'_> {
    fn list(&self) -> Vec<String> {
        let volumes = self.table.offered(self.client).into_iter().map(|info| info.name);
        volumes.chain(self.client.settings.null_size_bytes.map(|_| NULL_EXPORT.to_owned())).collect()
    }

    fn find(&self, name: &str) -> Result<Export, FindError> {
        // A place that this very client has found before is not in its own way.
        self.found.replace(None);
        self.diffs.borrow_mut().clear();
        let found = self.table.open(name, self.client)?;
        let features = ExportFeatures { is_read_only: found.is_read_only, ..FEATURES };
        let mut export = Export::new(found.name.clone(), found.target.size_bytes(), features);
        let request_bytes_max = self.table.limits.request_bytes_max;
        export.block_sizes = BlockSizes::new(1, 4096, request_bytes_max).expect("the limits were checked");
        export.payload_size_bytes_max = request_bytes_max;
        if found.target.volume().is_some() {
            export.contexts = StatusContext::LISTED.map(|(name, _)| name.to_owned()).to_vec();
        }
        self.found.replace(Some(found));
        Ok(export)
    }

    fn has_context(&self, export: &Export, name: &str) -> bool {
        if !is_diff_name(name) {
            return export.contexts.iter().any(|context| context == name);
        }
        let mut diffs = self.diffs.borrow_mut();
        let is_there = || {
            let found = self.found.borrow();
            let open = found.as_ref().and_then(|found| found.target.volume());
            open.is_some_and(|open| self.table.open_base(name, open, self.client).is_some())
        };
        diffs.contains(name) || diffs.len() < DIFF_CONTEXTS_MAX && is_there() && diffs.insert(name.to_owned())
    }
}
