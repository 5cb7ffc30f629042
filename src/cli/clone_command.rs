//! The commands that start from a snapshot: `clone rollback`.

use clap::Args;

use super::annotation_command::parse_snapshot;
use super::arguments::{DryRun, parse_name};
use super::client::Client;
use super::duration::parse_duration;
use super::failure::{Failed, Outcome};
use super::output::Output;
use super::table::Table;
use super::volume_command::confirm;
use crate::daemon::host::user_at_host;
use crate::daemon::name_template::NameTemplate;
use crate::daemon::resource::ChangeList;
use crate::daemon::snapshot_request::{CloneSnapshot, RollBack};
use crate::daemon::snapshot_resource::RollbackAnswer;
use crate::daemon::version_rule::parse_label;
use crate::error::{Error, ErrorKind};
use crate::volume::{Reference, Selector};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how_many").required(true).args(["new", "count"]))]
pub(super) struct CloneArguments {
    /// The snapshot that they start as, like vol1@7
    #[arg(value_name = "REF", value_parser = parse_snapshot)]
    source: Reference,
    /// The new volume
    #[arg(value_name = "NEW", value_parser = parse_name)]
    new: Option<String>,
    /// Make so many, all or none
    #[arg(long, requires = "template")]
    count: Option<u32>,
    /// Their names, with a place for their numbers from 0, like ci-{:03}
    #[arg(long = "name", value_name = "TEMPLATE", id = "template", requires = "count", value_parser = parse_template)]
    template: Option<String>,
    /// A note on each; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Put them into the trash by themselves after this time, like 12h or 30d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expire: Option<u64>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArguments {
    /// The volume
    #[arg(value_name = "VOLUME", value_parser = parse_name)]
    volume: String,
    /// Which of its snapshots: a number, a tag, a time, latest, -1, or the same behind VOLUME@
    #[arg(long, value_name = "REF", allow_hyphen_values = true)]
    to: String,
    /// Give up what was written since, instead of keeping it as a snapshot
    #[arg(long)]
    no_safety: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `clone REF NEW` and `clone REF --count N --name TEMPLATE`.
pub(super) fn clone(arguments: &CloneArguments, client: &Client, output: &Output) -> Outcome<()> {
    let source = arguments.source.to_string();
    let name = arguments.new.clone().or_else(|| arguments.template.clone()).unwrap_or_default();
    let request = CloneSnapshot {
        name,
        count: arguments.count,
        labels: arguments.labels.iter().cloned().collect(),
        expires_in_seconds: arguments.expire,
    };
    let is_dry_run = arguments.dry_run.is_dry_run;
    let answer: ChangeList =
        client.post(&format!("/v1/snapshots/{source}/clone?dry_run={is_dry_run}"), &request, &source)?;
    let mut table = Table::new(&[], &[]);
    for change in &answer.items {
        table.row(&change.reference, vec![change.reference.clone()]);
    }
    if is_dry_run {
        let count = answer.items.len();
        output.message(&format!("Would make volumes that start as {source}: {count}."));
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

/// `rollback VOLUME --to REF`.
pub(super) fn roll_back(
    arguments: &RollbackArguments,
    is_confirmed: bool,
    client: &Client,
    output: &Output,
) -> Outcome<()> {
    let name = &arguments.volume;
    let is_dry_run = arguments.dry_run.is_dry_run;
    let selector = selector_of(name, &arguments.to)?;
    if arguments.no_safety && !is_dry_run && !is_confirmed {
        confirm(&format!("what was written to {name} since its last snapshot would be lost"), name)?;
    }
    let request = RollBack { to: selector.to_string(), no_safety: arguments.no_safety, creator: Some(user_at_host()) };
    let path = format!("/v1/volumes/{name}/rollback?dry_run={is_dry_run}");
    let answer: RollbackAnswer = client.post(&path, &request, name)?;
    let kept = match &answer.kept {
        Some(kept) => format!("what was there before is kept as {kept}"),
        None => "what was written since its last snapshot is lost".to_owned(),
    };
    let verb = if answer.is_dry_run { "would start" } else { "starts" };
    output.message(&format!("{name} {verb} as {} again; {kept}.", answer.to));
    Ok(output.reference(&answer, &answer.reference)?)
}

/// What stands behind the `@`, or the whole reference if it is of the same volume.
fn selector_of(volume: &str, to: &str) -> Result<Selector, Failed> {
    let Some((other, selector)) = to.split_once('@') else { return Ok(to.parse()?) };
    if other != volume {
        let message = format!("{volume} cannot be rolled back to a snapshot of {other:?}");
        let error = Error::new(ErrorKind::Usage, message).with_hint("rok-blk clone makes a volume of any snapshot");
        return Err(Failed::about(error, volume));
    }
    Ok(selector.parse()?)
}

fn parse_template(text: &str) -> Result<String, Error> {
    NameTemplate::parse(text).map(|_| text.to_owned())
}
