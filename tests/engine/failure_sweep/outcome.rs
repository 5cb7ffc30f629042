//! What an I/O that failed may lead to.

use crate::rig::stage::{Done, Refusal};
use crate::rig::tap::Kind;
use rok_blk::error::{ErrorKind, IoError};
use std::fmt;

/// Steps behind which no pool is open.
const BEFORE: [&str; 5] = ["make a pool", "make a superblock", "open", "die and open", "close"];
/// Steps that also write what no data depends on: the superblock, the shred key, headers of a device that is not listed yet, zeros in
/// space that was given back.
const BESIDE: [&str; 9] = [
    "create with a key",
    "open",
    "die and open",
    "shred",
    "change the key slots",
    "repair the superblock",
    "grow a device",
    "add a device",
    "restock",
];
/// Steps in which a checkpoint reads what it changes.
const STORING: [&str; 3] = ["checkpoint", "reclaim", "close"];

/// Steps that store only what nothing depends on.
const NOTING: [&str; 1] = ["scrub"];

/// What it came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The pool has failed.
    PoolFails(&'static str),
    /// What was asked for is an error, and the pool goes on.
    Refused(&'static str),
    /// Everything goes on.
    GoesOn(&'static str),
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoolFails(step) => write!(formatter, "the pool fails at \"{step}\""),
            Self::Refused(step) => write!(formatter, "\"{step}\" is refused"),
            Self::GoesOn(step) => write!(formatter, "\"{step}\" goes on"),
        }
    }
}

/// Whether the answer is the documented one.
///
/// # Errors
/// Why it is not.
pub fn judge(kind: Kind, step: &'static str, done: &Done, is_pool_failed: bool) -> Result<Outcome, String> {
    let outcome = match (is_pool_failed, done) {
        (true, _) => Outcome::PoolFails(step),
        (false, Err(_)) => Outcome::Refused(step),
        (false, Ok(())) => Outcome::GoesOn(step),
    };
    let is_error_right = match done {
        Ok(()) => true,
        Err(Refusal::Request(error)) => *error == if kind == Kind::CommitFull { IoError::NoSpace } else { IoError::Io },
        Err(Refusal::Control(error)) if kind == Kind::CommitFull => error.kind() == ErrorKind::NoSpace,
        // The other copy is damaged, and this one cannot be read.
        Err(Refusal::Control(error)) if kind == Kind::Read && step == "repair the superblock" => {
            error.kind() == ErrorKind::Integrity
        }
        Err(Refusal::Control(error)) => error.kind() == ErrorKind::Other && !error.message().is_empty(),
        Err(Refusal::Dead) => false,
    };
    if !is_error_right {
        return Err(format!("the error is {done:?}"));
    }
    let is_right = match (kind, &outcome) {
        (Kind::Write | Kind::Flush, Outcome::GoesOn(step)) => BESIDE.contains(step),
        (Kind::Write | Kind::Flush, Outcome::Refused(step)) => BESIDE.contains(step) || BEFORE.contains(step),
        (Kind::Commit, Outcome::Refused(step)) => BEFORE.contains(step) || NOTING.contains(step),
        (Kind::Commit, Outcome::GoesOn(_)) => false,
        (Kind::Read | Kind::Discard | Kind::Holes | Kind::CommitFull, Outcome::PoolFails(_)) => false,
        (Kind::MetaGet | Kind::MetaScan, Outcome::PoolFails(step)) => STORING.contains(step),
        _ => true,
    };
    if is_right { Ok(outcome) } else { Err(format!("{outcome}: {done:?}")) }
}
