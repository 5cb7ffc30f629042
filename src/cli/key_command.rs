//! The commands on key slots, `key add ls rm rotate`: of the daemon's pool through its API, or of a pool that nobody
//! serves, in its directory.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::arguments::{DryRun, Global};
use super::client::Client;
use super::credential::{CredentialArguments, NewCredentialArguments, refuse_shared_input};
use super::failure::{Failed, Outcome};
use super::lock_command::{self, Lock, Unlock};
use super::output::Output;
use super::pool_command::check_key_file;
use super::serve_command::keep_secrets;
use super::table::Table;
use crate::daemon::key_resource::{KeyAction, KeyChangeAnswer, KeyList, KeySlot};
use crate::daemon::request::{KeyCredential, NewKey, RemoveKey};
use crate::error::{Error, ErrorKind};
use crate::pool::directory::{self, Credential, KeyChange, KeySlots};

/// The slots that a pool can have.
const SLOTS: std::ops::RangeInclusive<i64> = 0..=7;

/// What to do with key slots.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Let one more key file or passphrase open the pool
    Add(AddKey),
    /// List the key slots (no key is needed)
    #[command(name = "ls")]
    List(Place),
    /// Let the key of a slot open the pool no more; takes the key of another slot, and never the last one
    #[command(name = "rm")]
    Remove(RemoveSlot),
    /// Give a slot a new key; the old one opens the pool no more. Data is not encrypted anew
    Rotate(RotateKey),
    /// Close the pool that the daemon serves and forget its keys; the daemon goes on
    Lock(Lock),
    /// Open the locked pool of the daemon, and serve it as before
    Unlock(Unlock),
}

/// Which pool.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The directory of a pool that nobody serves; without it, the daemon does this to the pool it serves
    #[arg(long = "pool", value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("present").required(true).args(["key_file", "passphrase", "passphrase_file"]))]
pub(super) struct AddKey {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    credential: CredentialArguments,
    #[command(flatten)]
    new: NewCredentialArguments,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct RotateKey {
    /// The slot, as key ls numbers it; any slot's key may open the pool for it
    #[arg(value_parser = clap::value_parser!(u8).range(SLOTS))]
    slot: u8,
    #[command(flatten)]
    key: AddKey,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("present").required(true).args(["key_file", "passphrase", "passphrase_file"]))]
pub(super) struct RemoveSlot {
    /// The slot, as key ls numbers it
    #[arg(value_parser = clap::value_parser!(u8).range(SLOTS))]
    slot: u8,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    credential: CredentialArguments,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `key add|ls|rm|rotate`.
pub(super) fn run(command: &KeyCommand, global: &Global, output: &Output) -> Outcome<()> {
    match command {
        KeyCommand::List(place) => list(place, global, output),
        KeyCommand::Add(arguments) => wrap(None, arguments, global, output),
        KeyCommand::Rotate(arguments) => wrap(Some(arguments.slot), &arguments.key, global, output),
        KeyCommand::Remove(arguments) => remove(arguments, global, output),
        KeyCommand::Lock(arguments) => lock_command::lock(arguments, &Client::new(global.socket.as_deref())?, output),
        KeyCommand::Unlock(arguments) => {
            lock_command::unlock(arguments, &Client::new(global.socket.as_deref())?, output)
        }
    }
}

fn list(place: &Place, global: &Global, output: &Output) -> Outcome<()> {
    let answer: KeyList = match &place.directory {
        Some(directory) => KeyList::new(directory::describe(directory)?.key_slots),
        None => Client::new(global.socket.as_deref())?.get("/v1/keys", None)?,
    };
    let mut table = Table::new(&["SLOT", "OPENED BY", "COSTS OF A GUESS"], &[0]);
    for slot in &answer.items {
        table.row(&slot.slot.to_string(), vec![slot.slot.to_string(), slot.method.clone(), costs(slot, output)]);
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

/// A new wrapping in `slot`, or in a free one.
fn wrap(slot: Option<u8>, arguments: &AddKey, global: &Global, output: &Output) -> Outcome<()> {
    let is_dry_run = arguments.dry_run.is_dry_run;
    refuse_shared_input(&arguments.credential, &arguments.new)?;
    check_key_file(arguments.new.key_file(), arguments.new.is_generated())?;
    keep_secrets()?;
    let credential = required(arguments.credential.read()?);
    let new = required(arguments.new.read()?);
    if let Some(path) = arguments.new.key_file().filter(|_| arguments.new.is_generated() && !is_dry_run) {
        directory::generate_key_file(path)?;
        output.message(&format!("The new key is in {}. Copy it to a safe place elsewhere.", path.display()));
    }
    let change = match slot {
        Some(index) => KeyChange::Rotate { index, new },
        None => KeyChange::Add { new },
    };
    let answer = apply(&arguments.place, &credential, &change, is_dry_run, global)?;
    tell(&answer, output);
    Ok(output.reference(&answer, &answer.reference)?)
}

fn remove(arguments: &RemoveSlot, global: &Global, output: &Output) -> Outcome<()> {
    keep_secrets()?;
    let credential = required(arguments.credential.read()?);
    let change = KeyChange::Remove { index: arguments.slot };
    let answer = apply(&arguments.place, &credential, &change, arguments.dry_run.is_dry_run, global)?;
    tell(&answer, output);
    Ok(output.reference(&answer, &answer.reference)?)
}

/// Changes the slots where the arguments say: in a directory, or through the daemon.
fn apply(
    place: &Place,
    credential: &Credential,
    change: &KeyChange,
    is_dry_run: bool,
    global: &Global,
) -> Outcome<KeyChangeAnswer> {
    if let Some(directory) = &place.directory {
        let changed = KeySlots::lock(directory)
            .and_then(|mut slots| slots.change(credential, change, is_dry_run))
            .map_err(|error| Failed::about(tell_served(error, directory), &directory.display().to_string()))?;
        return Ok(KeyChangeAnswer::new(change, is_dry_run, &changed));
    }
    let client = Client::new(global.socket.as_deref())?;
    let present = KeyCredential::new(credential)?;
    match change {
        KeyChange::Add { new } => {
            let request = NewKey { credential: present, new: KeyCredential::new(new)? };
            client.post(&format!("/v1/keys?dry_run={is_dry_run}"), &request, "keys")
        }
        KeyChange::Rotate { index, new } => {
            let request = NewKey { credential: present, new: KeyCredential::new(new)? };
            client.post(&format!("/v1/keys/{index}/rotate?dry_run={is_dry_run}"), &request, &index.to_string())
        }
        KeyChange::Remove { index } => {
            let request = RemoveKey { credential: present };
            client.post(&format!("/v1/keys/{index}/remove?dry_run={is_dry_run}"), &request, &index.to_string())
        }
    }
}

/// A pool in use is changed through its daemon.
fn tell_served(error: Error, directory: &Path) -> Error {
    if error.kind() != ErrorKind::Busy {
        return error;
    }
    Error::new(ErrorKind::Busy, format!("The pool in {} is in use: {}", directory.display(), error.message()))
        .with_hint("Leave out --pool, and the daemon that serves it changes its keys")
        .with_source(error)
}

/// Says what a change means that its result does not show.
fn tell(answer: &KeyChangeAnswer, output: &Output) {
    let slot = &answer.reference;
    let method = answer.after.as_ref().map_or("", |slot| slot.method.as_str());
    if answer.is_dry_run {
        return output.message(&match answer.action {
            KeyAction::Add => format!("Would let a new {method} open the pool, in slot {slot}."),
            KeyAction::Rotate => format!("Would give slot {slot} a new {method}."),
            KeyAction::Remove => format!("Would remove slot {slot}."),
        });
    }
    if answer.action != KeyAction::Add {
        output.message(&format!(
            "The old key of slot {slot} does not open the pool any more. Data was not encrypted anew: the old key \
             together with an older copy of the file superblock still opens it."
        ));
    }
}

fn costs(slot: &KeySlot, output: &Output) -> String {
    slot.costs.as_ref().map_or_else(
        || "-".to_owned(),
        |costs| {
            format!("{}, {} passes, parallelism {}", output.size(costs.memory_bytes), costs.passes, costs.parallelism)
        },
    )
}

fn required(credential: Option<Credential>) -> Credential {
    credential.expect("the arguments require one")
}
