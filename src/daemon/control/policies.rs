//! Retention policies: making, changing, applying and running them.

use std::collections::BTreeSet;

use super::Control;
use crate::daemon::policies::keep_of;
use crate::daemon::policy_resource::{
    CreatePolicy, Policy, PolicyAction, PolicyAnswer, PolicyChange, PolicyList, PolicyRun, PolicyTargets, SetPolicy,
};
use crate::daemon::resource::{ApiVersion, Kind, seconds_since_1970};
use crate::error::{Error, ErrorKind, Result};
use crate::format::policy::{PolicyRecord, PolicyVolume};
use crate::volume::reference::check_name;

/// Longest period: 100 years.
const EVERY_SECONDS_MAX: u64 = 100 * 365 * 86_400;
/// Policies of a pool.
const POLICIES_MAX: usize = 1000;
/// Volumes of a policy; the record counts them in 16 bits.
const VOLUMES_MAX: usize = 10_000;

impl Control {
    /// All policies, by name.
    #[must_use]
    pub fn policies(&self) -> PolicyList {
        let items = self.upkeep.policies.table().list().iter().map(|record| self.policy_of(record)).collect();
        PolicyList { api: ApiVersion::V1, kind: Kind::PolicyList, items }
    }

    /// One policy.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn policy(&self, name: &str) -> Result<PolicyAnswer> {
        let policy = self.policy_of(&self.upkeep.policies.table().find(name)?);
        Ok(PolicyAnswer { api: ApiVersion::V1, kind: Kind::Policy, policy })
    }

    /// Makes a policy that is applied to nothing yet.
    ///
    /// # Errors
    /// `Usage` for a bad name or period, or too many; `Exists`; what the store reports.
    pub fn create_policy(&self, request: &CreatePolicy, is_dry_run: bool) -> Result<PolicyChange> {
        check_name(&request.name).map_err(|_| {
            Error::new(ErrorKind::Usage, "That is not a name for a policy")
                .with_hint("A name is a letter and up to 62 more letters, digits, - and _")
        })?;
        check_every(request.every_seconds)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let table = self.upkeep.policies.table();
        if table.find(&request.name).is_ok() {
            return Err(Error::new(ErrorKind::Exists, format!("There is a policy {} already", request.name))
                .with_hint("Change it with rok-blk policy set"));
        }
        if table.list().len() >= POLICIES_MAX {
            return Err(Error::new(ErrorKind::Usage, format!("A pool has at most {POLICIES_MAX} policies"))
                .with_hint("Apply one policy to several volumes"));
        }
        let record = PolicyRecord {
            name: request.name.clone(),
            every_seconds: request.every_seconds,
            created_at: seconds_since_1970(),
            keep: keep_of(request.keep),
            is_if_changed: request.if_changed,
            volumes: Vec::new(),
        };
        self.change_policy(PolicyAction::Create, None, record, is_dry_run)
    }

    /// Changes a policy; its next run does the rest.
    ///
    /// # Errors
    /// `Usage` for a bad period, or if nothing is to be changed; `NotFound`; what the store reports.
    pub fn edit_policy(&self, name: &str, request: &SetPolicy, is_dry_run: bool) -> Result<PolicyChange> {
        if request.every_seconds.is_none() && request.if_changed.is_none() && request.keep.is_none() {
            return Err(Error::new(ErrorKind::Usage, "The request changes nothing")
                .with_hint("Name a period (--every), numbers to keep (--keep-daily and others) or --if-changed"));
        }
        request.every_seconds.map_or(Ok(()), check_every)?;
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.upkeep.policies.table().find(name)?;
        let after = PolicyRecord {
            every_seconds: request.every_seconds.unwrap_or(before.every_seconds),
            is_if_changed: request.if_changed.unwrap_or(before.is_if_changed),
            keep: request.keep.map_or(before.keep, keep_of),
            ..before.clone()
        };
        self.change_policy(PolicyAction::Set, Some(before), after, is_dry_run)
    }

    /// Applies a policy to volumes; those that have it stay as they are. The first snapshots are taken when they are due.
    ///
    /// # Errors
    /// `Usage` for no or too many volumes, `NotFound` for the policy, a volume, or a pattern that matches none; what the
    /// store reports.
    pub fn apply_policy(&self, name: &str, request: &PolicyTargets, is_dry_run: bool) -> Result<PolicyChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.upkeep.policies.table().find(name)?;
        let mut after = before.clone();
        let applied_at = seconds_since_1970();
        for id in self.volumes_matching(request)? {
            if after.volumes.iter().all(|applied| applied.id != id) {
                after.volumes.push(PolicyVolume { id, applied_at });
            }
        }
        if after.volumes.len() > VOLUMES_MAX {
            return Err(Error::new(ErrorKind::Usage, format!("A policy cannot have {} volumes", after.volumes.len()))
                .with_hint(format!("At most {VOLUMES_MAX} are allowed: make a second policy")));
        }
        self.change_policy(PolicyAction::Apply, Some(before), after, is_dry_run)
    }

    /// Takes a policy from volumes; their snapshots stay.
    ///
    /// # Errors
    /// `Usage` for no volumes, `NotFound` for the policy, for a volume, or if none of the volumes has it; what the store
    /// reports.
    pub fn detach_policy(&self, name: &str, request: &PolicyTargets, is_dry_run: bool) -> Result<PolicyChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.upkeep.policies.table().find(name)?;
        let ids = self.volumes_matching(request)?;
        let mut after = before.clone();
        after.volumes.retain(|applied| !ids.contains(&applied.id));
        if after == before {
            return Err(Error::new(ErrorKind::NotFound, format!("The policy {name} is not applied to any of these"))
                .with_hint(format!("rok-blk policy show {name} lists its volumes")));
        }
        self.change_policy(PolicyAction::Detach, Some(before), after, is_dry_run)
    }

    /// Removes a policy; the snapshots that it took stay.
    ///
    /// # Errors
    /// `NotFound`; what the store reports.
    pub fn remove_policy(&self, name: &str, is_dry_run: bool) -> Result<PolicyChange> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let before = self.policy_of(&self.upkeep.policies.table().find(name)?);
        if !is_dry_run {
            self.upkeep.policies.table().remove(name)?;
            self.upkeep.policies.forget(name, &[]);
        }
        Ok(change(PolicyAction::Remove, is_dry_run, Some(before), None))
    }

    /// Does what a policy would do if it were due now: a snapshot of each volume, then what retention says. As a dry run
    /// nothing but, under `if_changed`, a checkpoint.
    ///
    /// # Errors
    /// `NotFound`; what fails for a volume is told in its item.
    pub fn run_policy(&self, name: &str, is_dry_run: bool) -> Result<PolicyRun> {
        let _one_at_a_time = self.upkeep.changes.lock();
        let policies = &self.upkeep.policies;
        let record = policies.table().find(name)?;
        let living = record.volumes.iter().filter_map(|applied| policies.living_volume(applied.id));
        let wait = policies.begin_wait();
        let items = living.map(|volume| policies.run_one(&record, &volume, &wait, is_dry_run)).collect();
        self.upkeep.keeper.look();
        Ok(PolicyRun { api: ApiVersion::V1, kind: Kind::PolicyRun, reference: name.to_owned(), is_dry_run, items })
    }

    fn policy_of(&self, record: &PolicyRecord) -> Policy {
        self.upkeep.policies.describe(record)
    }

    fn change_policy(
        &self,
        action: PolicyAction,
        before: Option<PolicyRecord>,
        after: PolicyRecord,
        is_dry_run: bool,
    ) -> Result<PolicyChange> {
        let described = (before.as_ref().map(|before| self.policy_of(before)), self.policy_of(&after));
        if !is_dry_run && before.as_ref() != Some(&after) {
            self.upkeep.policies.forget(&after.name, &after.volumes);
            self.upkeep.policies.table().put(after)?;
            self.upkeep.keeper.look();
        }
        Ok(change(action, is_dry_run, described.0, Some(described.1)))
    }

    /// The ids of the volumes that names and patterns mean.
    fn volumes_matching(&self, request: &PolicyTargets) -> Result<BTreeSet<uuid::Uuid>> {
        if request.targets.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "The request names no volume").with_hint("Name one, or a pattern"));
        }
        self.with_catalog(|catalog| {
            let mut ids = BTreeSet::new();
            for target in &request.targets {
                if !target.contains(['*', '?']) {
                    ids.insert(catalog.find(target)?.id);
                    continue;
                }
                let living = catalog.volumes().filter(|volume| !volume.lifetime.is_trashed());
                let matching: Vec<_> =
                    living.filter(|volume| matches(target.as_bytes(), volume.name.as_bytes())).collect();
                if matching.is_empty() {
                    return Err(Error::new(ErrorKind::NotFound, format!("No volume matches {target:?}"))
                        .with_hint("rok-blk ls lists the volumes"));
                }
                ids.extend(matching.iter().map(|volume| volume.id));
            }
            Ok(ids)
        })
    }
}

fn change(action: PolicyAction, is_dry_run: bool, before: Option<Policy>, after: Option<Policy>) -> PolicyChange {
    let reference = after.as_ref().or(before.as_ref()).map_or_else(String::new, |policy| policy.reference.clone());
    PolicyChange {
        api: ApiVersion::V1,
        kind: Kind::PolicyChange,
        action,
        reference,
        is_dry_run,
        has_changed: before != after,
        before,
        after,
    }
}

fn check_every(seconds: u64) -> Result<()> {
    if (1..=EVERY_SECONDS_MAX).contains(&seconds) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("A policy cannot take a snapshot every {seconds} seconds"))
        .with_hint("A period has from 1 second to 100 years"))
}

/// Whether a name fits a pattern of letters, `*` and `?`: from the last `*` on it is tried again one letter further, so
/// the time is bounded by the product of the lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut place, mut star) = (0, 0, None);
    while place < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(letter) if *letter == b'?' || *letter == name[place] => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((star_at, star_place)) = star else { return false };
                (at, place) = (star_at + 1, star_place + 1);
                star = Some((star_at, star_place + 1));
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_shell_does() {
        let fits = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());

        for (pattern, name) in
            [("*", ""), ("*", "db"), ("db-*", "db-1"), ("*-1", "db-1-1"), ("d?-*", "db-"), ("a*b*c", "axbxbc")]
        {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "a"), ("?", ""), ("db-*", "db"), ("*-1", "db-12"), ("a*b*c", "axbx"), ("db", "db1")]
        {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
