//! The commands on the trash: `trash ls restore empty`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use super::arguments::{DryRun, parse_name};
use super::client::Client;
use super::duration::parse_duration;
use super::failure::{EXIT_PARTIAL, Outcome, report_error};
use super::output::Output;
use super::remove_command::freed_sentence;
use super::table::Table;
use super::volume_command::confirm;
use crate::daemon::failure_resource::Failure;
use crate::daemon::request::RestoreFromTrash;
use crate::daemon::trash_resource::{EmptyAnswer, RestoreAnswer, TrashList, TrashedThing};
use crate::error::ErrorKind;

/// What to do with the trash.
#[derive(Debug, Subcommand)]
pub(super) enum TrashCommand {
    /// List what was removed and can come back
    #[command(name = "ls")]
    List,
    /// Take something out of the trash
    Restore(Restore),
    /// Remove for good what is in the trash
    Empty(Empty),
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// What it was called, or its id
    #[arg(value_name = "REF")]
    reference: String,
    /// A new name for a volume
    #[arg(long = "as", value_name = "NAME", value_parser = parse_name)]
    name: Option<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Empty {
    /// Only what has been there for this time, like 7d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older_than: Option<u64>,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `trash ls|restore|empty`.
pub(super) fn run(command: &TrashCommand, is_confirmed: bool, client: &Client, output: &Output) -> Outcome<ExitCode> {
    match command {
        TrashCommand::List => list(client, output)?,
        TrashCommand::Restore(arguments) => restore(arguments, client, output)?,
        TrashCommand::Empty(arguments) => return empty(arguments, is_confirmed, client, output),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(client: &Client, output: &Output) -> Outcome<()> {
    let answer: TrashList = client.get("/v1/trash", None)?;
    let mut table =
        Table::new(&["REF", "WHAT", "SIZE", "ALLOCATED", "SNAPSHOTS", "REMOVED", "GONE AT", "UUID"], &[2, 3, 4]);
    for item in &answer.items {
        let cells = vec![
            item.reference.clone(),
            match item.thing {
                TrashedThing::Volume => "volume".to_owned(),
                TrashedThing::Snapshot => "snapshot".to_owned(),
            },
            output.size(item.size_bytes),
            output.size(item.allocated_bytes),
            item.snapshots.to_string(),
            item.trashed_at.clone(),
            item.delete_at.clone(),
            item.uuid.to_string(),
        ];
        table.row(&item.reference, cells);
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

fn restore(arguments: &Restore, client: &Client, output: &Output) -> Outcome<()> {
    let request = RestoreFromTrash { reference: arguments.reference.clone(), name: arguments.name.clone() };
    let path = format!("/v1/trash/restore?dry_run={}", arguments.dry_run.is_dry_run);
    let answer: RestoreAnswer = client.post(&path, &request, &arguments.reference)?;
    if answer.is_dry_run {
        output.message(&format!("Would restore {}.", answer.reference));
    }
    Ok(output.reference(&answer, &answer.reference)?)
}

/// All are tried; some failures among successes have an exit code of their own.
fn empty(arguments: &Empty, is_confirmed: bool, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let is_dry_run = arguments.dry_run.is_dry_run;
    if !is_dry_run && !is_confirmed {
        confirm("what is in the trash would be gone for good", "trash")?;
    }
    let older_than = arguments.older_than.unwrap_or_default();
    let path = format!("/v1/trash?dry_run={is_dry_run}&older_than_seconds={older_than}");
    let answer: EmptyAnswer = client.change(Method::DELETE, &path, "trash")?;
    let mut table = Table::new(&[], &[]);
    let mut failed_count = 0;
    for emptied in &answer.items {
        let reference = &emptied.item.reference;
        match &emptied.error {
            Some(error) => {
                failed_count += 1;
                let error = Failure { error: error.clone() }.into_error();
                report_error(&error, Some(reference.clone()), output.is_json());
            }
            None => table.row(reference, vec![reference.clone()]),
        }
    }
    if answer.is_dry_run {
        output.message(&freed_sentence(answer.freed, true, output));
    }
    if let Some(job) = &answer.job {
        output.message(&format!("The space comes back in the background: job {job}."));
    }
    output.list(&answer, &answer.items, &table)?;
    Ok(match failed_count {
        0 => ExitCode::SUCCESS,
        all if all == answer.items.len() => ExitCode::from(ErrorKind::Busy.exit_code()),
        _ => ExitCode::from(EXIT_PARTIAL),
    })
}
