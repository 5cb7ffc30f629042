//! The mutants of `cargo mutants --list --json`, and what is wanted of each.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use crate::{Context as _, Result};

/// A place in a file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Position {
    pub line: usize,
    pub column: usize,
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Span {
    pub start: Position,
    pub end: Position,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Genre {
    /// A function returns something else at once.
    FnValue,
    /// Another operator between the same operands.
    BinaryOperator,
    /// No operator before the operand.
    UnaryOperator,
    /// An arm beside one that takes everything is gone.
    MatchArm,
    /// An arm's guard is a constant.
    MatchArmGuard,
    /// A field is what the base of the literal has.
    StructField,
}

#[derive(Debug, Deserialize)]
struct Function {
    return_type: String,
}

/// What the list says of one.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    file: String,
    genre: Genre,
    replacement: String,
    span: Span,
    function: Option<Function>,
}

/// What a file is for; how many mutants must be killed depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Group {
    /// What is acknowledged is stored: log, flushes, checkpoints and their changes of the catalog.
    Commit,
    /// What is stored is found again.
    Recovery,
    /// What is not needed is free again.
    Reclaim,
    /// Keys and ciphers.
    Crypto,
    /// Of it a sample is tried.
    Rest,
}

impl Group {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 5] = [Self::Commit, Self::Recovery, Self::Reclaim, Self::Crypto, Self::Rest];

    /// As the report names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Recovery => "recovery",
            Self::Reclaim => "reclaim",
            Self::Crypto => "crypto",
            Self::Rest => "rest",
        }
    }

    /// Percent of the viable ones that must be killed.
    pub(crate) const fn wanted(self) -> usize {
        match self {
            Self::Rest => 85,
            _ => 100,
        }
    }

    fn of(file: &str) -> Self {
        const COMMIT: [&str; 7] =
            ["log.rs", "log/", "flushing.rs", "checkpoint.rs", "checkpoint/leaves.rs", "catalog/store.rs", "turn.rs"];
        const RECOVERY: [&str; 4] = ["recovery.rs", "open.rs", "loading.rs", "superblock_copies.rs"];
        const RECLAIM: [&str; 5] = [
            "checkpoint/reclaim.rs",
            "checkpoint/copy_down.rs",
            "checkpoint/unreadable.rs",
            "leaf_work.rs",
            "space/released.rs",
        ];
        if file.starts_with("src/crypto/") {
            return Self::Crypto;
        }
        let Some(name) = file.strip_prefix("src/pool/") else { return Self::Rest };
        let is_among = |names: &[&str]| names.iter().any(|wanted| name.starts_with(wanted));
        if is_among(&COMMIT) {
            Self::Commit
        } else if is_among(&RECOVERY) {
            Self::Recovery
        } else if is_among(&RECLAIM) {
            Self::Reclaim
        } else {
            Self::Rest
        }
    }
}

/// A change of the program that a test should find.
#[derive(Debug)]
pub(crate) struct Mutant {
    /// Without line and column, and with a number where several have the same name: the same after other lines have changed.
    pub key: String,
    /// As `cargo mutants` names it, with line and column.
    pub name: String,
    /// From the root of the project.
    pub file: String,
    pub genre: Genre,
    /// Of the span.
    pub replacement: String,
    pub span: Span,
    /// Within a function; else in a constant.
    pub is_in_function: bool,
    /// The function says only which trait its result has.
    pub returns_some_type: bool,
    pub group: Group,
}

/// Reads the list.
///
/// # Errors
/// If it is not such a list.
pub(crate) fn read(path: &Path) -> Result<Vec<Mutant>> {
    let text = std::fs::read_to_string(path).context(path.display())?;
    let listed: Vec<Listed> = serde_json::from_str(&text).context(path.display())?;
    let mut counts: HashMap<String, usize> = HashMap::new();
    listed
        .into_iter()
        .map(|one| {
            // FILE:LINE:COLUMN: CHANGE
            let change = one.name.splitn(4, ':').nth(3).context(&one.name)?.trim();
            let base = format!("{}: {change}", one.file);
            let count = counts.entry(base.clone()).or_default();
            *count += 1;
            let key = if *count == 1 { base } else { format!("{base} #{count}") };
            Ok(Mutant {
                key,
                group: Group::of(&one.file),
                is_in_function: one.function.is_some(),
                returns_some_type: one.function.is_some_and(|function| function.return_type.contains("impl ")),
                name: one.name,
                file: one.file,
                genre: one.genre,
                replacement: one.replacement,
                span: one.span,
            })
        })
        .collect()
}
