//! The commands that say something of a snapshot: `tag untag hold release unset`, and `set` of labels.

use clap::Args;

use super::arguments::{DryRun, Set};
use super::client::Client;
use super::failure::Outcome;
use super::output::Output;
use super::snapshot_command::parse_time_text;
use crate::daemon::snapshot_request::{AddHold, AddTag, ChangeLabels, RemoveHold, RemoveTag};
use crate::daemon::snapshot_resource::SnapshotChange;
use crate::daemon::version_rule::{check_label_key, parse_label};
use crate::error::{Error, ErrorKind};
use crate::volume::Reference;
use serde::Serialize;

/// One snapshot.
#[derive(Clone, Debug, Args)]
pub(super) struct SnapshotName {
    /// The snapshot, like vol1@7, vol1@latest or vol1@before-upgrade
    #[arg(value_name = "REF", value_parser = parse_snapshot)]
    reference: Reference,
}

#[derive(Debug, Args)]
pub(super) struct Tag {
    #[command(flatten)]
    snapshot: SnapshotName,
    /// Its further name: letters, digits, ., - and _, neither a number nor a time
    tag: String,
    /// Take the tag from another snapshot of the volume if that has it
    #[arg(long = "move")]
    is_moved: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Untag {
    #[command(flatten)]
    snapshot: SnapshotName,
    /// The tag
    tag: String,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Unset {
    #[command(flatten)]
    snapshot: SnapshotName,
    /// The labels
    #[arg(value_name = "KEY", required = true, value_parser = parse_label_key)]
    keys: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct AddHoldTo {
    #[command(flatten)]
    snapshot: SnapshotName,
    /// Why, on one line; release takes the same
    reason: String,
    /// Until when; for ever if it is left out
    #[arg(long, value_name = "TIME", value_parser = parse_time_text)]
    until: Option<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Release {
    #[command(flatten)]
    snapshot: SnapshotName,
    /// The reason of the hold
    reason: String,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `tag REF TAG`.
pub(super) fn tag(arguments: &Tag, client: &Client, output: &Output) -> Outcome<()> {
    let request = AddTag { tag: arguments.tag.clone(), is_moved: arguments.is_moved };
    let plan = format!("give {} the tag {}", arguments.snapshot.reference, arguments.tag);
    send(&arguments.snapshot, "tag", &request, (arguments.dry_run, &plan), client, output)
}

/// `untag REF TAG`.
pub(super) fn untag(arguments: &Untag, client: &Client, output: &Output) -> Outcome<()> {
    let request = RemoveTag { tag: arguments.tag.clone() };
    let plan = format!("take the tag {} from {}", arguments.tag, arguments.snapshot.reference);
    send(&arguments.snapshot, "untag", &request, (arguments.dry_run, &plan), client, output)
}

/// `set REF KEY=VALUE…` of a snapshot.
pub(super) fn set(arguments: &Set, client: &Client, output: &Output) -> Outcome<()> {
    let labels: Result<_, Error> = arguments.values.iter().map(|value| parse_label(value)).collect();
    let request = ChangeLabels { set: labels?, unset: Vec::new() };
    let snapshot = SnapshotName { reference: arguments.reference.clone() };
    let plan = format!("change labels of {}", snapshot.reference);
    send(&snapshot, "labels", &request, (arguments.dry_run, &plan), client, output)
}

/// `unset REF KEY…`.
pub(super) fn unset(arguments: &Unset, client: &Client, output: &Output) -> Outcome<()> {
    let request = ChangeLabels { unset: arguments.keys.clone(), ..ChangeLabels::default() };
    let plan = format!("remove labels of {}", arguments.snapshot.reference);
    send(&arguments.snapshot, "labels", &request, (arguments.dry_run, &plan), client, output)
}

/// `hold REF REASON`.
pub(super) fn hold(arguments: &AddHoldTo, client: &Client, output: &Output) -> Outcome<()> {
    let request = AddHold { reason: arguments.reason.clone(), until: arguments.until.clone() };
    let plan = format!("hold {}", arguments.snapshot.reference);
    send(&arguments.snapshot, "hold", &request, (arguments.dry_run, &plan), client, output)
}

/// `release REF REASON`.
pub(super) fn release(arguments: &Release, client: &Client, output: &Output) -> Outcome<()> {
    let request = RemoveHold { reason: arguments.reason.clone() };
    let plan = format!("release {}", arguments.snapshot.reference);
    send(&arguments.snapshot, "release", &request, (arguments.dry_run, &plan), client, output)
}

fn send(
    snapshot: &SnapshotName,
    verb: &str,
    request: &impl Serialize,
    (dry_run, plan): (DryRun, &str),
    client: &Client,
    output: &Output,
) -> Outcome<()> {
    let reference = snapshot.reference.to_string();
    let path = format!("/v1/snapshots/{reference}/{verb}?dry_run={}", dry_run.is_dry_run);
    let change: SnapshotChange = client.post(&path, request, &reference)?;
    if change.is_dry_run && change.has_changed {
        output.message(&format!("Would {plan}."));
    }
    Ok(output.reference(&change, &change.reference)?)
}

/// A reference that names a snapshot, not a volume.
pub(super) fn parse_snapshot(text: &str) -> Result<Reference, Error> {
    let reference: Reference = text.parse()?;
    if reference.selector().is_none() {
        return Err(Error::new(ErrorKind::Usage, format!("{text} is a volume, and a snapshot of it is needed"))
            .with_hint(format!("Name one like {text}@latest; rok-blk log {text} lists them")));
    }
    Ok(reference)
}

fn parse_label_key(text: &str) -> Result<String, Error> {
    check_label_key(text).map(|()| text.to_owned())
}
