//! The commands on retention policies: `policy create ls show set apply detach run rm`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use super::arguments::{DryRun, parse_name};
use super::client::Client;
use super::duration::{format_duration, parse_duration};
use super::failure::{EXIT_PARTIAL, Outcome, report_error};
use super::output::Output;
use super::table::Table;
use crate::daemon::failure_resource::Failure;
use crate::daemon::policy_resource::{
    CreatePolicy, Policy, PolicyAction, PolicyAnswer, PolicyChange, PolicyList, PolicyRun, PolicyTargets, PolicyVolume,
    SetPolicy,
};
use crate::daemon::retention::Retention;
use crate::error::{Error, ErrorKind};

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Make a policy; policy apply gives it volumes
    #[command(
        after_help = "Snapshots are taken at the multiples of --every since 1970 in UTC: with 1h on the hour, with 1d at \
        midnight, with 7d on Thursdays. A daemon that was down then takes one when it starts again. Then those that no \
        number keeps go to the trash: only snapshots that this policy took (label rok-blk/policy), never the newest, \
        nor one that is held, tagged or open. --keep-daily 7 keeps the newest of each of the last 7 days that have one. \
        Without any number all stay."
    )]
    Create(Create),
    /// List the policies
    #[command(name = "ls")]
    List,
    /// Show a policy with its volumes
    Show(PolicyName),
    /// Change a policy; what is not said stays as it was
    Set(SetArguments),
    /// Apply a policy to volumes; the first snapshots are taken when they are due
    Apply(Targets),
    /// Take a policy from volumes; their snapshots stay
    Detach(Targets),
    /// Do now what a policy does when it is due
    Run(NamedChange),
    /// Remove a policy; the snapshots that it took stay
    #[command(name = "rm")]
    Remove(NamedChange),
}

#[derive(Clone, Debug, Args)]
pub(super) struct PolicyName {
    /// The policy
    #[arg(value_name = "POLICY")]
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct NamedChange {
    #[command(flatten)]
    policy: PolicyName,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Targets {
    #[command(flatten)]
    policy: PolicyName,
    /// Volumes, or patterns of those that there are now, like 'db-*'
    #[arg(value_name = "VOLUME|PATTERN", required = true)]
    targets: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

/// How many snapshots stay.
#[derive(Clone, Copy, Debug, Args)]
struct Keep {
    /// Keep the newest N
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep the newest of each of the last N weeks (from Monday) that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep the newest of each of the last N years that have one
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
}

impl Keep {
    /// Whether any number was given.
    fn is_said(self) -> bool {
        let all =
            [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        all.iter().any(Option::is_some)
    }

    /// These numbers over those of `before`.
    fn over(self, before: Retention) -> Retention {
        Retention {
            last: self.keep_last.unwrap_or(before.last),
            hourly: self.keep_hourly.unwrap_or(before.hourly),
            daily: self.keep_daily.unwrap_or(before.daily),
            weekly: self.keep_weekly.unwrap_or(before.weekly),
            monthly: self.keep_monthly.unwrap_or(before.monthly),
            yearly: self.keep_yearly.unwrap_or(before.yearly),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name
    #[arg(value_name = "POLICY", value_parser = parse_name)]
    name: String,
    /// The time between two snapshots, like 1h or 1d; at least 1s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    every: u64,
    /// Leave a volume alone that has not changed since its last snapshot
    #[arg(long)]
    if_changed: bool,
    #[command(flatten)]
    keep: Keep,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct SetArguments {
    #[command(flatten)]
    policy: PolicyName,
    /// The time between two snapshots
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    every: Option<u64>,
    /// Whether to leave a volume alone that has not changed since its last snapshot
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    if_changed: Option<bool>,
    #[command(flatten)]
    keep: Keep,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `policy create|ls|show|set|apply|detach|run|rm`.
pub(super) fn run(command: &PolicyCommand, client: &Client, output: &Output) -> Outcome<ExitCode> {
    match command {
        PolicyCommand::Create(arguments) => create(arguments, client, output)?,
        PolicyCommand::List => list(client, output)?,
        PolicyCommand::Show(policy) => show(policy, client, output)?,
        PolicyCommand::Set(arguments) => set(arguments, client, output)?,
        PolicyCommand::Apply(arguments) => change_targets("apply", arguments, client, output)?,
        PolicyCommand::Detach(arguments) => change_targets("detach", arguments, client, output)?,
        PolicyCommand::Run(arguments) => return run_now(arguments, client, output),
        PolicyCommand::Remove(arguments) => remove(arguments, client, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(arguments: &Create, client: &Client, output: &Output) -> Outcome<()> {
    let request = CreatePolicy {
        name: arguments.name.clone(),
        every_seconds: arguments.every,
        if_changed: arguments.if_changed,
        keep: arguments.keep.over(Retention::default()),
    };
    let path = format!("/v1/policies?dry_run={}", arguments.dry_run.is_dry_run);
    tell(&client.post(&path, &request, &arguments.name)?, output)
}

fn list(client: &Client, output: &Output) -> Outcome<()> {
    let answer: PolicyList = client.get("/v1/policies", None)?;
    let mut table = Table::new(&["POLICY", "EVERY", "KEEP", "VOLUMES", "SNAPSHOTS", "NEXT", "FAILURE"], &[3, 4]);
    for policy in &answer.items {
        let next = policy.volumes.iter().filter_map(|volume| volume.next_at.as_ref()).min();
        let failed = policy.volumes.iter().find_map(|volume| Some((volume, volume.failure.as_ref()?)));
        let cells = vec![
            policy.reference.clone(),
            every_text(policy),
            keep_text(&policy.keep),
            policy.volumes.len().to_string(),
            policy.volumes.iter().map(|volume| volume.snapshots).sum::<u64>().to_string(),
            next.map_or_else(|| "-".to_owned(), Clone::clone),
            failed.map_or_else(|| "-".to_owned(), |(volume, why)| format!("{}: {}", volume.reference, why.message)),
        ];
        table.row(&policy.reference, cells);
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

fn show(policy: &PolicyName, client: &Client, output: &Output) -> Outcome<()> {
    let answer: PolicyAnswer = client.get(&path_of(&policy.name)?, Some(&policy.name))?;
    let policy = &answer.policy;
    let mut fields = vec![
        ("policy", policy.reference.clone()),
        ("every", every_text(policy)),
        ("keep", keep_text(&policy.keep)),
        ("created", policy.created_at.clone()),
    ];
    fields.extend(policy.volumes.iter().map(|volume| ("volume", volume_text(volume))));
    Ok(output.one(&answer, &Table::of_fields(&policy.reference, fields))?)
}

fn set(arguments: &SetArguments, client: &Client, output: &Output) -> Outcome<()> {
    let name = &arguments.policy.name;
    let path = path_of(name)?;
    let before: PolicyAnswer = client.get(&path, Some(name))?;
    let request = SetPolicy {
        every_seconds: arguments.every,
        if_changed: arguments.if_changed,
        keep: arguments.keep.is_said().then(|| arguments.keep.over(before.policy.keep)),
    };
    tell(&client.patch(&format!("{path}?dry_run={}", arguments.dry_run.is_dry_run), &request, name)?, output)
}

fn change_targets(verb: &str, arguments: &Targets, client: &Client, output: &Output) -> Outcome<()> {
    let name = &arguments.policy.name;
    let request = PolicyTargets { targets: arguments.targets.clone() };
    let path = format!("{}/{verb}?dry_run={}", path_of(name)?, arguments.dry_run.is_dry_run);
    tell(&client.post(&path, &request, name)?, output)
}

fn remove(arguments: &NamedChange, client: &Client, output: &Output) -> Outcome<()> {
    let name = &arguments.policy.name;
    let path = format!("{}?dry_run={}", path_of(name)?, arguments.dry_run.is_dry_run);
    tell(&client.change(Method::DELETE, &path, name)?, output)
}

/// All volumes are tried; some failures among successes have an exit code of their own.
fn run_now(arguments: &NamedChange, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let name = &arguments.policy.name;
    let is_dry_run = arguments.dry_run.is_dry_run;
    let path = format!("{}/run?dry_run={is_dry_run}", path_of(name)?);
    let answer: PolicyRun = client.change(Method::POST, &path, name)?;
    let mut table = Table::new(&["SNAPSHOT", "FATE", "WHY"], &[]);
    let mut codes = Vec::new();
    for item in &answer.items {
        for kept in &item.kept {
            let fate = if item.taken.as_ref() == Some(&kept.reference) { "taken" } else { "kept" };
            let why: Vec<String> = kept.reasons.iter().map(|reason| format!("{reason:?}").to_lowercase()).collect();
            table.row(&kept.reference, vec![kept.reference.clone(), fate.to_owned(), why.join(" ")]);
        }
        for reference in &item.removed {
            table.row(reference, vec![reference.clone(), "removed".to_owned(), "-".to_owned()]);
        }
        if let Some(failure) = &item.error {
            let error = Failure { error: failure.clone() }.into_error();
            codes.push(ExitCode::from(error.kind().exit_code()));
            report_error(&error, Some(item.reference.clone()), output.is_json());
        }
    }
    if is_dry_run {
        output.message("This is the plan; nothing was changed.");
    }
    output.list(&answer, &answer.items, &table)?;
    Ok(match codes.as_slice() {
        [] => ExitCode::SUCCESS,
        [first, ..] if codes.len() == answer.items.len() => *first,
        _ => ExitCode::from(EXIT_PARTIAL),
    })
}

/// Says what a change did.
fn tell(change: &PolicyChange, output: &Output) -> Outcome<()> {
    if change.is_dry_run {
        let verb = match change.action {
            PolicyAction::Create => "create",
            PolicyAction::Set => "change",
            PolicyAction::Apply => "apply",
            PolicyAction::Detach => "detach",
            PolicyAction::Remove => "remove",
        };
        output.message(&format!("Would {verb} {}.", change.reference));
    } else if matches!(change.action, PolicyAction::Remove | PolicyAction::Detach) {
        output.message("The snapshots that it took stay; rok-blk rm removes them.");
    }
    Ok(output.reference(change, &change.reference)?)
}

/// Where a policy is in the API.
///
/// # Errors
/// `NotFound` for what is no name: there can be no such policy, and it could mean another path.
fn path_of(name: &str) -> Outcome<String> {
    let no_policy = |_: Error| {
        Error::new(ErrorKind::NotFound, format!("There is no policy {name:?}"))
            .with_hint("rok-blk policy ls lists them")
    };
    parse_name(name).map_err(no_policy)?;
    Ok(format!("/v1/policies/{name}"))
}

fn every_text(policy: &Policy) -> String {
    let every = format_duration(policy.every_seconds);
    if policy.if_changed { format!("{every} if changed") } else { every }
}

fn keep_text(keep: &Retention) -> String {
    let numbers = [
        ("last", keep.last),
        ("hourly", keep.hourly),
        ("daily", keep.daily),
        ("weekly", keep.weekly),
        ("monthly", keep.monthly),
        ("yearly", keep.yearly),
    ];
    let named: Vec<String> =
        numbers.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    if named.is_empty() { "all".to_owned() } else { named.join(", ") }
}

fn volume_text(volume: &PolicyVolume) -> String {
    let next = volume.next_at.as_ref().map_or_else(|| "in the trash".to_owned(), |next| format!("next {next}"));
    let text = format!("{}: {} snapshots, last {}, {next}", volume.reference, volume.snapshots, volume.last_at);
    match &volume.failure {
        Some(failure) => format!("{text}, failed: {}", failure.message),
        None => text,
    }
}
