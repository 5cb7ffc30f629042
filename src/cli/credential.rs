//! How commands take keys: a key file by its path, a passphrase from the terminal, a file or standard input. Never from
//! an argument or the environment, where other processes can read it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::failure::EXIT_INTERRUPTED;
use crate::crypto::Passphrase;
use crate::daemon::host;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::directory::{Credential, passphrase, read_passphrase, read_passphrase_file};

/// Stands for standard input.
const STANDARD_INPUT: &str = "-";

/// What opens the pool.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct CredentialArguments {
    /// Open the pool with this key file
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
    /// Ask on the terminal for the passphrase that opens the pool
    #[arg(long)]
    passphrase: bool,
    /// Open the pool with the passphrase in the first line of FILE; - is standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl CredentialArguments {
    /// The credential, if one is named. Asks for it where it has to.
    ///
    /// # Errors
    /// `Usage` if there is no terminal to ask on, `Key` for what is no passphrase.
    pub(super) fn read(&self) -> Result<Option<Credential>> {
        self.get(|| ask("Passphrase: "))
    }

    /// Whether one is named.
    pub(super) const fn is_given(&self) -> bool {
        self.key_file.is_some() || self.passphrase || self.passphrase_file.is_some()
    }

    /// The credential for something new: asks twice, since a slip would lock its user out.
    ///
    /// # Errors
    /// As [`Self::read`], and `Usage` if the answers differ.
    pub(super) fn read_new(&self) -> Result<Option<Credential>> {
        self.get(ask_twice)
    }

    fn get(&self, ask: impl FnOnce() -> Result<Passphrase>) -> Result<Option<Credential>> {
        if self.passphrase {
            return Ok(Some(Credential::Passphrase(ask()?)));
        }
        if let Some(path) = &self.passphrase_file {
            return Ok(Some(Credential::Passphrase(read_file(path)?)));
        }
        Ok(self.key_file.clone().map(Credential::KeyFile))
    }
}

/// What is to open the pool from now on.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("new").required(true)
    .args(["new_key_file", "new_passphrase", "new_passphrase_file"]))]
pub(super) struct NewCredentialArguments {
    /// This key file is to open the pool; the daemon of a served pool reads it itself
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// Write a new random key to the new key file first
    #[arg(long, requires = "new_key_file")]
    generate_key: bool,
    /// Ask on the terminal for the passphrase that is to open the pool
    #[arg(long)]
    new_passphrase: bool,
    /// The passphrase in the first line of FILE is to open the pool; - is standard input
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

impl NewCredentialArguments {
    pub(super) fn key_file(&self) -> Option<&Path> {
        self.new_key_file.as_deref()
    }

    pub(super) const fn is_generated(&self) -> bool {
        self.generate_key
    }

    /// The credential. Asks for it where it has to.
    ///
    /// # Errors
    /// As [`CredentialArguments::read_new`].
    pub(super) fn read(&self) -> Result<Option<Credential>> {
        let passphrase = match &self.new_passphrase_file {
            Some(path) => Some(read_file(path)?),
            None if self.new_passphrase => Some(ask_twice()?),
            None => None,
        };
        Ok(passphrase.map(Credential::Passphrase).or_else(|| self.new_key_file.clone().map(Credential::KeyFile)))
    }
}

/// Standard input has one first line.
///
/// # Errors
/// `Usage` if both passphrases are to come from there.
pub(super) fn refuse_shared_input(present: &CredentialArguments, new: &NewCredentialArguments) -> Result<()> {
    let is_input = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| path.as_os_str() == STANDARD_INPUT);
    if is_input(&present.passphrase_file) && is_input(&new.new_passphrase_file) {
        return Err(Error::new(ErrorKind::Usage, "Standard input cannot give both passphrases")
            .with_hint("Give one of them in a file, or on the terminal"));
    }
    Ok(())
}

fn ask(prompt: &str) -> Result<Passphrase> {
    passphrase(ask_for_text(prompt)?)
}

fn ask_twice() -> Result<Passphrase> {
    let first = ask("New passphrase: ")?;
    if *ask_for_text("The same again: ")? == first.expose() {
        return Ok(first);
    }
    Err(Error::new(ErrorKind::Usage, "Nothing was changed: the two passphrases differ"))
}

fn ask_for_text(prompt: &str) -> Result<Zeroizing<String>> {
    // At Ctrl-C rpassword raises SIGINT before it has the terminal show again what is typed.
    match host::without_interrupts(|| rpassword::prompt_password(prompt)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => host::exit_now(EXIT_INTERRUPTED),
        Err(error) => Err(Error::new(ErrorKind::Usage, "The passphrase cannot be asked for: there is no terminal")
            .with_hint("Give it with --passphrase-file FILE, or with - for FILE on standard input")
            .with_source(error)),
    }
}

fn read_file(path: &Path) -> Result<Passphrase> {
    if path.as_os_str() != STANDARD_INPUT {
        return read_passphrase_file(path);
    }
    // Not through the standard library's buffer, which nobody wipes.
    let name = "Standard input";
    let input = io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|error| Error::new(ErrorKind::Key, format!("{name} cannot be read: {error}")))?;
    read_passphrase(&mut File::from(input), name)
}
