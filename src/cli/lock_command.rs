//! The commands `key lock` and `key unlock`: of the pool that the daemon serves.

use clap::Args;

use super::arguments::DryRun;
use super::client::Client;
use super::credential::CredentialArguments;
use super::failure::Outcome;
use super::output::Output;
use super::serve_command::keep_secrets;
use crate::daemon::lock_resource::LockAnswer;
use crate::daemon::request::{KeyCredential, UnlockPool};

/// What messages and errors call what these commands change.
const SUBJECT: &str = "pool";

#[derive(Debug, Args)]
pub(super) struct Lock {
    /// Close the connections that have a volume open; what they wrote and were told is done is kept
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("present").required(true).args(["key_file", "passphrase", "passphrase_file"]))]
pub(super) struct Unlock {
    #[command(flatten)]
    credential: CredentialArguments,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `key lock`.
pub(super) fn lock(arguments: &Lock, client: &Client, output: &Output) -> Outcome<()> {
    let path = format!("/v1/pool/lock?force={}&dry_run={}", arguments.force, arguments.dry_run.is_dry_run);
    let answer: LockAnswer = client.post(&path, &(), SUBJECT)?;
    if answer.is_dry_run && answer.has_changed {
        output.message(&format!("Would lock the pool and close {} connections.", answer.connections));
    }
    Ok(output.reference(&answer, &answer.reference)?)
}

/// `key unlock`.
pub(super) fn unlock(arguments: &Unlock, client: &Client, output: &Output) -> Outcome<()> {
    keep_secrets()?;
    let credential = arguments.credential.read()?.expect("the arguments require one");
    let request = UnlockPool { credential: KeyCredential::new(&credential)? };
    let path = format!("/v1/pool/unlock?dry_run={}", arguments.dry_run.is_dry_run);
    let answer: LockAnswer = client.post(&path, &request, SUBJECT)?;
    if answer.is_dry_run && answer.has_changed {
        output.message("Would unlock the pool: the key opens it.");
    }
    Ok(output.reference(&answer, &answer.reference)?)
}
