//! The command line: arguments in, requests to the daemon's API, tables or JSON out.
//!
//! stdout is data, stderr is everything else. It holds no logic that the API lacks, except for what needs no daemon:
//! creating a pool, changing the keys of one that nobody serves, checking one, and starting the daemon itself.

mod activation;
mod annotation_command;
mod arguments;
mod attach_command;
mod bench;
mod check_command;
mod client;
mod clone_command;
mod credential;
mod diff_command;
mod duration;
mod export_command;
mod failure;
mod job_command;
mod key_command;
mod lock_command;
mod nbd_arguments;
mod notification;
mod output;
mod policy_command;
mod pool_command;
mod property;
mod quickstart_command;
mod remove_command;
mod scrub_command;
mod serve_command;
mod size;
mod snapshot_command;
mod snapshot_graph;
mod status_command;
mod table;
mod trash_command;
mod volume_command;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use arguments::{Arguments, Command, PoolCommand};
use client::Client;
use failure::Outcome;
use output::Output;

/// Reads the arguments, does what they say and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    abort_on_panic();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::report_arguments(&error),
    };
    let output = Output::new(&arguments.global);
    match run(arguments, &output) {
        Ok(code) => code,
        Err(failed) => failed.report(&output),
    }
}

fn run(arguments: Arguments, output: &Output) -> Outcome<ExitCode> {
    let global = arguments.global;
    let client = || Client::new(global.socket.as_deref());
    match arguments.command {
        Command::Serve(arguments) => return serve_command::run(&arguments, &global, output),
        Command::Quickstart(arguments) => return quickstart_command::run(&arguments, &global, output),
        Command::Bench(arguments) => return bench::run(&arguments, &global, output),
        Command::Scrub(arguments) => return scrub_command::run(&arguments, &client()?, output),
        Command::Check(arguments) => return check_command::run(&arguments, &global, output),
        Command::Remove(arguments) => return remove_command::remove(&arguments, global.yes, &client()?, output),
        Command::Trash { command } => return trash_command::run(&command, global.yes, &client()?, output),
        Command::Policy { command } => return policy_command::run(&command, &client()?, output),
        Command::Attach(arguments) => return attach_command::attach(&arguments, &client()?, output),
        Command::Detach(arguments) => return attach_command::detach(&arguments, &client()?, output),
        Command::Devices => attach_command::list(&client()?, output)?,
        Command::Job { command } => return job_command::run(&command, &client()?, output),
        Command::Pool { command: PoolCommand::Create(arguments) } => pool_command::create(&arguments, output)?,
        Command::Pool { command: PoolCommand::Show { directory: Some(directory) } } => {
            pool_command::show_offline(&directory, output)?;
        }
        Command::Pool { command: PoolCommand::Show { directory: None } } => pool_command::show(&client()?, output)?,
        Command::Pool { command: PoolCommand::Grow(arguments) } => {
            pool_command::grow(&arguments, &client()?, output)?;
        }
        Command::Pool { command: PoolCommand::AddDevice(arguments) } => {
            pool_command::add_device(&arguments, &client()?, output)?;
        }
        Command::Key { command } => key_command::run(&command, &global, output)?,
        Command::Create(arguments) => volume_command::create(&arguments, &client()?, output)?,
        Command::List => volume_command::list(&client()?, output)?,
        Command::Show { reference } if reference.selector().is_some() => {
            snapshot_command::show(&reference, &client()?, output)?;
        }
        Command::Show { reference } => volume_command::show(reference.volume_name(), &client()?, output)?,
        Command::Snapshot(arguments) => snapshot_command::take(&arguments, &client()?, output)?,
        Command::Log(arguments) => snapshot_command::log(&arguments, &client()?, output)?,
        Command::Diff(arguments) => diff_command::run(&arguments, &client()?, output)?,
        Command::Resolve(arguments) => return snapshot_command::resolve(&arguments, &client()?, output),
        Command::Tag(arguments) => annotation_command::tag(&arguments, &client()?, output)?,
        Command::Untag(arguments) => annotation_command::untag(&arguments, &client()?, output)?,
        Command::Set(arguments) if arguments.reference.selector().is_some() => {
            annotation_command::set(&arguments, &client()?, output)?;
        }
        Command::Unset(arguments) => annotation_command::unset(&arguments, &client()?, output)?,
        Command::Hold(arguments) => annotation_command::hold(&arguments, &client()?, output)?,
        Command::Release(arguments) => annotation_command::release(&arguments, &client()?, output)?,
        Command::Clone(arguments) => clone_command::clone(&arguments, &client()?, output)?,
        Command::Rollback(arguments) => clone_command::roll_back(&arguments, global.yes, &client()?, output)?,
        Command::Rename(arguments) => volume_command::rename(&arguments, &client()?, output)?,
        Command::Resize(arguments) => volume_command::resize(&arguments, global.yes, &client()?, output)?,
        Command::Set(arguments) => volume_command::set(&arguments, &client()?, output)?,
        Command::Export(arguments) => export_command::export(&arguments, &client()?, output)?,
        Command::Unexport(arguments) => export_command::unexport(&arguments, &client()?, output)?,
        Command::Exports => export_command::list(&client()?, output)?,
        Command::Status => status_command::status(&client()?, output)?,
        Command::Space => status_command::space(&client()?, output)?,
        Command::Completion { shell } => output.completion(shell, &mut Arguments::command())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A panic ends the process: a broken invariant in one thread must not leave the others serving.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // Nothing is left to tell if even this fails.
        let _is_told = std::io::stderr()
            .write_all(b"rok-blk stops here. Acknowledged writes are in the log; start it again to go on.\n")
            .is_ok();
        std::process::abort();
    }));
}
