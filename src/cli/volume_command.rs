//! The commands on volumes: `create ls show rename resize set`.

use std::io::{self, IsTerminal as _, Write as _};

use super::arguments::{Create, Rename, Resize, Set};
use super::client::Client;
use super::failure::{Failed, Outcome};
use super::output::Output;
use super::property::Property;
use super::table::Table;
use crate::daemon::request::{CreateVolume, RenameVolume, ResizeVolume};
use crate::daemon::resource::{Change, Volume, VolumeAnswer, VolumeList};
use crate::daemon::space_resource::{HeldSpace, VolumeSpace};
use crate::error::{Error, ErrorKind};

/// `create NAME --size SIZE`.
pub(super) fn create(arguments: &Create, client: &Client, output: &Output) -> Outcome<()> {
    let name = &arguments.volume.name;
    let request = CreateVolume {
        name: name.clone(),
        size_bytes: arguments.size,
        sector_size: arguments.sector_size,
        if_missing: arguments.if_missing,
        own_key: arguments.own_key,
        on_full: arguments.on_full,
    };
    let path = format!("/v1/volumes?dry_run={}", arguments.dry_run.is_dry_run);
    let change: Change = client.post(&path, &request, name)?;
    if let Some(present) = &change.before {
        let size = output.size(present.size_bytes);
        output.message(&format!("There is a volume {name} of {size} already; nothing was changed."));
    }
    finish(&change, &format!("create {name} of {}", output.size(arguments.size)), output)
}

/// `ls`.
pub(super) fn list(client: &Client, output: &Output) -> Outcome<()> {
    let answer: VolumeList = client.get("/v1/volumes", None)?;
    let mut table =
        Table::new(&["NAME", "SIZE", "ALLOCATED", "SECTOR", "CONNECTIONS", "EXPORTED", "CREATED"], &[1, 2, 3, 4]);
    for volume in &answer.items {
        let cells = vec![
            volume.name.clone(),
            output.size(volume.size_bytes),
            output.size(volume.allocated_bytes),
            volume.sector_size.to_string(),
            volume.connections.to_string(),
            yes_or_no(volume.is_exported),
            volume.created_at.clone(),
        ];
        table.row(&volume.reference, cells);
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

/// `show NAME`.
pub(super) fn show(name: &str, client: &Client, output: &Output) -> Outcome<()> {
    let answer: VolumeAnswer = client.get(&format!("{}?space=true", volume_path(name)), Some(name))?;
    let Volume { reference, uuid, name, size_bytes, sector_size, allocated_bytes, has_own_key, .. } = &answer.volume;
    let mut fields = vec![
        ("name", name.clone()),
        ("uuid", uuid.to_string()),
        ("size", output.size(*size_bytes)),
        ("allocated", output.size(*allocated_bytes)),
        ("sector size", sector_size.to_string()),
        ("connections", answer.volume.connections.to_string()),
        ("exported", yes_or_no(answer.volume.is_exported)),
        ("own key", yes_or_no(*has_own_key)),
        ("on full", on_full(&answer.volume)),
        ("created", answer.volume.created_at.clone()),
    ];
    fields.extend(answer.space.iter().flat_map(|space| space_fields(space, output)));
    Ok(output.one(&answer, &Table::of_fields(reference, fields))?)
}

/// Where the space of a volume is.
fn space_fields(space: &VolumeSpace, output: &Output) -> Vec<(&'static str, String)> {
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "not known now".to_owned(), |bytes| output.size(bytes));
    let mut shared = output.size(space.shared);
    if !space.shared_with.is_empty() {
        shared = format!("{shared}, on what {} build on", space.shared_with.join(", "));
    }
    let mut versions = known(space.versions);
    if !space.held_by.is_empty() {
        let of_snapshot = |held: &HeldSpace| format!("{} {}", held.reference, output.size(held.unique));
        let list = space.held_by.iter().map(of_snapshot).collect::<Vec<_>>().join(", ");
        versions = format!("{versions}; each alone: {list}");
    }
    vec![
        ("unique", output.size(space.unique)),
        ("shared", shared),
        ("held by snapshots", versions),
        ("its removal frees", known(space.freed)),
    ]
}

/// `rename OLD NEW`.
pub(super) fn rename(arguments: &Rename, client: &Client, output: &Output) -> Outcome<()> {
    let request = RenameVolume { name: arguments.to.clone() };
    let path = format!("{}/rename?dry_run={}", volume_path(&arguments.from), arguments.dry_run.is_dry_run);
    let change: Change = client.post(&path, &request, &arguments.from)?;
    finish(&change, &format!("rename {} to {}", arguments.from, arguments.to), output)
}

/// `resize NAME SIZE`.
pub(super) fn resize(arguments: &Resize, is_confirmed: bool, client: &Client, output: &Output) -> Outcome<()> {
    let name = &arguments.volume.name;
    let is_dry_run = arguments.dry_run.is_dry_run;
    if arguments.shrink && !is_dry_run && !is_confirmed {
        confirm(&format!("data of {name} behind {} would be lost", output.size(arguments.size)), name)?;
    }
    let request = ResizeVolume { size_bytes: arguments.size, shrink: arguments.shrink };
    let path = format!("{}/resize?dry_run={is_dry_run}", volume_path(name));
    let change: Change = client.post(&path, &request, name)?;
    let before = change.before.as_ref().map_or(0, |volume| volume.size_bytes);
    let plan = format!("resize {name} from {} to {}", output.size(before), output.size(arguments.size));
    finish(&change, &plan, output)
}

/// `set NAME KEY=VALUE…` of a volume.
pub(super) fn set(arguments: &Set, client: &Client, output: &Output) -> Outcome<()> {
    let name = arguments.reference.volume_name();
    let properties: Result<Vec<Property>, Error> =
        arguments.values.iter().map(|value| Property::parse(value)).collect();
    let request =
        properties.and_then(|properties| Property::request(&properties)).map_err(|error| Failed::about(error, name))?;
    let path = format!("{}?dry_run={}", volume_path(name), arguments.dry_run.is_dry_run);
    let change: Change = client.patch(&path, &request, name)?;
    let on_full = change.after.as_ref().map(|volume| volume.on_full).unwrap_or_default();
    finish(&change, &format!("set on-full of {name} to {}", on_full.as_str()), output)
}

/// Prints what was changed; for a dry run, tells what would be.
pub(super) fn finish(change: &Change, plan: &str, output: &Output) -> Outcome<()> {
    if change.is_dry_run && change.has_changed {
        output.message(&format!("Would {plan}."));
    }
    Ok(output.reference(change, &change.reference)?)
}

/// The path of a volume. Names hold no character that a path must escape.
fn volume_path(name: &str) -> String {
    format!("/v1/volumes/{name}")
}

/// Asks on the terminal; without one, only `--yes` will do.
pub(super) fn confirm(sentence: &str, name: &str) -> Outcome<()> {
    let refused = |message: &str| {
        let error = Error::new(ErrorKind::Usage, message.to_owned()).with_hint("Add --yes to do it without a question");
        Failed::about(error, name)
    };
    if !io::stdin().is_terminal() {
        return Err(refused(&format!("Nothing was changed: {sentence}")));
    }
    let _is_told = write!(io::stderr(), "This cannot be undone: {sentence}. Go on? [y/N] ").is_ok();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(refused("Nothing was changed")) }
}

fn on_full(volume: &Volume) -> String {
    match (volume.on_full, &volume.paused_since) {
        (on_full, None) => on_full.as_str().to_owned(),
        (on_full, Some(since)) => {
            format!("{}: {} writes wait for space since {since}", on_full.as_str(), volume.paused_writes)
        }
    }
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
