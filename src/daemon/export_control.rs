//! What the control API can do with exports.

use super::control::{Control, export_uri, refuse_if_open};
use super::export_resource::{Export, ExportList};
use super::export_store;
use super::request::{ExportVolume, UnexportOptions};
use super::resource::{Action, ApiVersion, Change, Kind, Volume};
use crate::error::{Error, ErrorKind, Result};
use crate::lane::{AllowRule, BadRule, ExportInfo, ExportPolicy};

impl Control {
    /// Offers a volume to clients, and says to whom and how. What is absent stays as it was.
    ///
    /// # Errors
    /// `NotFound`, `Usage` for a rule that is none, and those of storing it.
    pub fn export(&self, name: &str, request: &ExportVolume, is_dry_run: bool) -> Result<Change> {
        let _one_at_a_time = self.lock_changes();
        let before = self.find(name)?;
        let mut policy = self.server().export_policies().remove(&before.uuid).unwrap_or_default();
        policy.is_exported = Some(true);
        if let Some(is_read_only) = request.read_only {
            policy.is_read_only = is_read_only;
        }
        if let Some(connections_max) = request.max_connections {
            policy.connections_max = (connections_max > 0).then_some(connections_max);
        }
        if let Some(requires_tls) = request.require_tls {
            policy.requires_tls = requires_tls;
        }
        if let Some(rules) = &request.allow {
            let rules: std::result::Result<Vec<AllowRule>, BadRule> = rules.iter().map(|rule| rule.parse()).collect();
            policy.allow = rules.map_err(|error| Error::new(ErrorKind::Usage, format!("The rule {error}")))?;
        }
        self.set_policy(Action::Export, &before, policy, is_dry_run)
    }

    /// Hides a volume from clients.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while connections have it open, unless they are to end, and those of storing it.
    pub fn unexport(&self, name: &str, options: UnexportOptions) -> Result<Change> {
        let _one_at_a_time = self.lock_changes();
        let before = self.find(name)?;
        if !options.force {
            // Devices are no clients: they stay.
            let connections = before.connections - self.device_count(before.uuid).min(before.connections);
            let clients = Volume { connections, ..before.clone() };
            refuse_if_open(&clients, "hidden", "Disconnect its clients first, or end their connections with --force")?;
        }
        let policy = self.server().export_policies().remove(&before.uuid).unwrap_or_default();
        let policy = ExportPolicy { is_exported: Some(false), ..policy };
        let change = self.set_policy(Action::Unexport, &before, policy, options.dry_run)?;
        if options.force && !options.dry_run {
            // Behind the change: nobody comes back.
            self.server().disconnect(name)?;
        }
        Ok(change)
    }

    /// Stores a policy, then has it apply.
    fn set_policy(&self, action: Action, before: &Volume, policy: ExportPolicy, is_dry_run: bool) -> Result<Change> {
        let is_exported = policy.is_exported == Some(true);
        if !is_dry_run {
            let mut policies = self.server().export_policies();
            policies.insert(before.uuid, policy.clone());
            // What is in the trash may come back: then as it was exported before.
            self.server().pool().with_catalog(|catalog, _| policies.retain(|id, _| catalog.volume(*id).is_some()));
            export_store::write(self.pool_path(), &policies)?;
            self.server().set_export_policy(before.uuid, policy);
        }
        let after = Volume { is_exported, ..before.clone() };
        Ok(Change::new(action, is_dry_run, Some(before.clone()), Some(after)))
    }

    /// What the listeners offer.
    #[must_use]
    pub fn exports(&self) -> ExportList {
        let mut policies = self.server().export_policies();
        let ids: std::collections::BTreeMap<String, uuid::Uuid> =
            self.server().volumes().list().into_iter().map(|info| (info.name, info.id)).collect();
        let describe = |export: ExportInfo| {
            let policy = ids.get(&export.name).and_then(|id| policies.remove(id)).unwrap_or_default();
            Export {
                uris: export.offered_at.iter().map(|listener| export_uri(listener, &export.name)).collect(),
                reference: export.name,
                connections: export.connections,
                is_read_only: policy.is_read_only,
                requires_tls: policy.requires_tls,
                max_connections: policy.connections_max.unwrap_or(0),
                allow: policy.allow.iter().map(ToString::to_string).collect(),
            }
        };
        let offered = self.server().exports().into_iter().filter(|export| export.is_exported);
        let mut items: Vec<Export> = offered.map(describe).collect();
        items.sort_by(|left, right| left.reference.cmp(&right.reference));
        ExportList { api: ApiVersion::V1, kind: Kind::ExportList, items }
    }
}
