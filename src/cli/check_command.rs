//! The command `check`: of the daemon's pool through its API, or of a pool that nobody serves, in its directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::arguments::Global;
use super::client::Client;
use super::credential::CredentialArguments;
use super::failure::{Failed, Outcome};
use super::output::Output;
use super::serve_command::keep_secrets;
use super::table::Table;
use crate::daemon::check_resource::{CheckAnswer, CheckDifference, CheckRepair, MappedPlace};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::directory;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The directory of a pool that nobody serves; without it, the daemon checks the pool it serves
    #[arg(long = "pool", value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    credential: CredentialArguments,
    /// Free leaked blocks, which count as used although nothing maps them; only if nothing else is wrong
    #[arg(long)]
    repair: bool,
    /// With --repair, say what would be repaired, and change nothing
    #[arg(short = 'n', long, requires = "repair")]
    dry_run: bool,
}

/// `check`.
pub(super) fn run(arguments: &Check, global: &Global, output: &Output) -> Outcome<ExitCode> {
    let answer = match &arguments.directory {
        Some(directory) => {
            let about = |error| Failed::about(error, &directory.display().to_string());
            keep_secrets()?;
            offline(directory, arguments).map_err(about)?
        }
        None if arguments.credential.is_given() => {
            let error = Error::new(ErrorKind::Usage, "The daemon needs no key to check the pool that it serves");
            return Err(error.with_hint("Leave the key out, or name a pool that nobody serves with --pool DIR").into());
        }
        None if arguments.repair => {
            let path = format!("/v1/check/repair?dry_run={}", arguments.dry_run);
            Client::new(global.socket.as_deref())?.change(Method::POST, &path, "pool")?
        }
        None => Client::new(global.socket.as_deref())?.get("/v1/check", None)?,
    };
    print(&answer, output)?;
    Ok(if answer.is_clean { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Integrity.exit_code()) })
}

fn offline(directory: &Path, arguments: &Check) -> Result<CheckAnswer> {
    let credential = arguments.credential.read()?;
    let pool = directory::describe(directory)?.id;
    let busy = |error: Error| {
        if error.kind() != ErrorKind::Busy {
            return error;
        }
        Error::new(ErrorKind::Busy, format!("The pool in {} is in use: {}", directory.display(), error.message()))
            .with_hint("Leave out --pool, and the daemon that serves it checks it")
            .with_source(error)
    };
    if arguments.repair && !arguments.dry_run {
        let repair = directory::repair(directory, credential.as_ref()).map_err(busy)?;
        return Ok(CheckAnswer::repaired(pool, &repair, false));
    }
    let report = directory::check(directory, credential.as_ref()).map_err(busy)?;
    Ok(if arguments.repair { CheckAnswer::planned(pool, report) } else { CheckAnswer::new(pool, report) })
}

fn print(answer: &CheckAnswer, output: &Output) -> Outcome<()> {
    let mut table = Table::new(&["WHAT", "DEVICE", "BLOCKS", "MAPPED BY", "MEANING"], &[1]);
    for item in &answer.items {
        let blocks = item.blocks.map(|blocks| match blocks.count {
            1 => blocks.first.to_string(),
            count => format!("{}-{}", blocks.first, blocks.first + count - 1),
        });
        let device = item.blocks.map(|blocks| blocks.device.to_string());
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let cells = vec![item.code.clone(), or_dash(device), or_dash(blocks), mapped_by(item), item.message.clone()];
        table.row(&item.code, cells);
    }
    output.list(answer, &answer.items, &table)?;
    let looked = format!(
        "trees: {}, leaves: {}, blocks that they map: {}, records of the log: {}",
        answer.trees, answer.leaves, answer.mapped_blocks, answer.records
    );
    let listed = crate::units::to_u64(answer.items.len());
    output.message(&match answer.differences {
        0 => format!("No difference: {looked}."),
        found if found > listed => format!("{found} differences, of which {listed} are listed: {looked}."),
        found => format!("{found} differences: {looked}."),
    });
    if let Some(repair) = &answer.repair {
        output.message(&repair_sentence(answer, repair, output));
    }
    Ok(())
}

fn repair_sentence(answer: &CheckAnswer, repair: &CheckRepair, output: &Output) -> String {
    let size = output.size(repair.bytes);
    if repair.blocks == 0 && answer.differences > 0 && !answer.is_clean {
        let what = if answer.leaked_blocks > 0 { "The leaked blocks were not freed" } else { "Nothing was repaired" };
        return format!(
            "{what}: only leaked blocks can be repaired, and only where nothing else is wrong, since what a damaged map loses looks leaked too."
        );
    }
    match repair.free {
        _ if repair.blocks == 0 => "There is nothing to repair.".to_owned(),
        None => format!("Would free {} leaked blocks ({size}).", repair.blocks),
        Some(free) if free < repair.bytes => format!(
            "Freed {} leaked blocks ({size}): writes can have {} at once, the rest when the pool is opened next.",
            repair.blocks,
            output.size(free)
        ),
        Some(_) => format!("Freed {} leaked blocks ({size}).", repair.blocks),
    }
}

fn mapped_by(item: &CheckDifference) -> String {
    let name = |place: &MappedPlace| match &place.volume {
        Some(volume) => format!("{volume} block {}", place.block),
        None => format!("tree {} block {}", place.tree, place.block),
    };
    let names: Vec<String> = item.places.iter().map(name).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}
