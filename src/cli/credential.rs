//! How commands take keys: a key file by its path, a passphrase from the terminal, a file or standard input. Never from
//! an argument or the environment, where other processes can read it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use crate::crypto::Passphrase;
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
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|error| {
        Error::new(ErrorKind::Usage, "The passphrase cannot be asked for: there is no terminal")
            .with_hint("Give it with --passphrase-file FILE, or with - for FILE on standard input")
            .with_source(error)
    })
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
