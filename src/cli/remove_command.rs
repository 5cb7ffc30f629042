//! The command that removes volumes and snapshots: `rm`.

use std::process::ExitCode;

use hyper::Method;
use serde::Serialize;

use super::arguments::Remove;
use super::client::Client;
use super::failure::{Failed, Outcome, exit_code};
use super::output::Output;
use super::table::Table;
use super::volume_command::confirm;
use crate::daemon::request::ForecastRemoval;
use crate::daemon::resource::{ApiVersion, Change, Kind};
use crate::daemon::snapshot_resource::SnapshotChange;
use crate::daemon::space_resource::RemovalForecast;
use crate::volume::Reference;

/// What was done to one of them.
#[derive(Serialize)]
#[serde(untagged)]
enum Removed {
    Volume(Box<Change>),
    Snapshot(Box<SnapshotChange>),
}

/// What one command removed.
#[derive(Serialize)]
struct RemovedList {
    api: ApiVersion,
    kind: Kind,
    items: Vec<Removed>,
    /// In a plan, bytes that would be free without all of them; null while the space of earlier removals is being reclaimed.
    freed: Option<u64>,
}

impl Removed {
    fn reference(&self) -> &str {
        match self {
            Self::Volume(change) => &change.reference,
            Self::Snapshot(change) => &change.reference,
        }
    }

    fn job(&self) -> Option<&str> {
        match self {
            Self::Volume(change) => change.job.as_deref(),
            Self::Snapshot(change) => change.job.as_deref(),
        }
    }

    fn delete_at(&self) -> Option<&str> {
        match self {
            Self::Volume(change) => change.delete_at.as_deref(),
            Self::Snapshot(change) => change.after.as_ref()?.delete_at.as_deref(),
        }
    }
}

/// `rm REF…`: all are tried; some failures among successes have an exit code of their own.
pub(super) fn remove(arguments: &Remove, is_confirmed: bool, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let Remove { names, shred: is_shredded, now, dry_run, .. } = arguments;
    if *is_shredded && !dry_run.is_dry_run && !is_confirmed {
        let listed = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        confirm(&format!("the key of {listed} would be destroyed, and nobody could read the data again"), &listed)?;
    }
    let mut items: Vec<Removed> = Vec::new();
    let mut failures: Vec<Failed> = Vec::new();
    for name in names {
        match remove_one(name, arguments, client) {
            Ok(removed) => items.push(removed),
            Err(failed) => failures.push(failed),
        }
    }
    let mut table = Table::new(&[], &[]);
    for removed in &items {
        table.row(removed.reference(), vec![removed.reference().to_owned()]);
        tell(removed, arguments, output);
    }
    let codes: Vec<ExitCode> = failures.iter().map(|failed| failed.report(output)).collect();
    let freed = if dry_run.is_dry_run && !items.is_empty() { forecast(&items, client)? } else { None };
    if dry_run.is_dry_run && !items.is_empty() {
        output.message(&freed_sentence(freed, *now || *is_shredded, output));
    }
    let answer = RemovedList { api: ApiVersion::V1, kind: Kind::ChangeList, items, freed };
    output.list(&answer, &answer.items, &table)?;
    Ok(exit_code(&codes, answer.items.is_empty()))
}

fn remove_one(name: &Reference, arguments: &Remove, client: &Client) -> Outcome<Removed> {
    let Remove { now, shred, dry_run, .. } = arguments;
    let reference = name.to_string();
    let options = format!("now={now}&shred={shred}&dry_run={}", dry_run.is_dry_run);
    if name.selector().is_some() {
        let path = format!("/v1/snapshots/{reference}?{options}");
        return client.change(Method::DELETE, &path, &reference).map(|change| Removed::Snapshot(Box::new(change)));
    }
    client
        .change(Method::DELETE, &format!("/v1/volumes/{reference}?{options}"), &reference)
        .map(|change| Removed::Volume(Box::new(change)))
}

/// What removing all of them together would free.
fn forecast(items: &[Removed], client: &Client) -> Outcome<Option<u64>> {
    let refs: Vec<String> = items.iter().map(|removed| removed.reference().to_owned()).collect();
    let about = refs.join(" ");
    let answer: RemovalForecast = client.post("/v1/forecast", &ForecastRemoval { refs }, &about)?;
    Ok(answer.freed)
}

/// What a plan says of the space.
pub(super) fn freed_sentence(freed: Option<u64>, is_for_good: bool, output: &Output) -> String {
    match freed {
        Some(bytes) if is_for_good => format!("That would free {}.", output.size(bytes)),
        Some(bytes) => format!("That would free {} when they leave the trash.", output.size(bytes)),
        None => {
            "What that would free is not known while space of earlier removals is being reclaimed: see rok-blk job ls."
                .to_owned()
        }
    }
}

fn tell(removed: &Removed, arguments: &Remove, output: &Output) {
    let reference = removed.reference();
    if arguments.dry_run.is_dry_run {
        let verb = if arguments.shred { "shred" } else { "remove" };
        return output.message(&format!("Would {verb} {reference}."));
    }
    if let Some(job) = removed.job() {
        output.message(&format!("The space of {reference} comes back in the background: job {job}."));
    }
    if let Some(delete_at) = removed.delete_at() {
        output
            .message(&format!("{reference} is in the trash until {delete_at}; rok-blk trash restore brings it back."));
    }
}
