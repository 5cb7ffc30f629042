//! What is known of each mutant: `docs/mutants.tsv`, and the reasons of those that no test can find.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::list::Group;
use crate::{Context as _, Result};

const HEADER: &str = "group\tmutant\toutcome\tfile\tby";

/// How a mutant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A test failed.
    Killed,
    /// No test did.
    Survived,
    /// No test did, and the reason is known why none can.
    Equivalent,
    /// The compiler takes no such program.
    Refused,
    /// Not tried yet.
    Waiting,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Killed, Self::Survived, Self::Equivalent, Self::Refused, Self::Waiting];

    /// As the record has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Survived => "survived",
            Self::Equivalent => "equivalent",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub group: Group,
    pub outcome: Outcome,
    /// Hash of the source file: what was found in another state of it is tried again.
    pub file: String,
    /// The test that failed, or why none does.
    pub by: String,
}

/// Rows by the key of their mutants.
pub(crate) type Record = BTreeMap<String, Row>;

/// Reads the record; without a file it is empty.
///
/// # Errors
/// If a line is none of a record.
pub(crate) fn read(path: &Path) -> Result<Record> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(Record::new()) };
    let mut record = Record::new();
    for line in text.lines().skip(1) {
        let [group, key, outcome, file, by] =
            line.split('\t').collect::<Vec<_>>().try_into().map_err(|_| format!("{}: {line}", path.display()))?;
        let group = Group::ALL.into_iter().find(|one| one.name() == group).context(line)?;
        let outcome = Outcome::ALL.into_iter().find(|one| one.name() == outcome).context(line)?;
        record.insert(key.to_owned(), Row { group, outcome, file: file.to_owned(), by: by.to_owned() });
    }
    Ok(record)
}

/// Writes the record, by groups and within them by file.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(path: &Path, record: &Record) -> Result<()> {
    let mut rows: Vec<_> = record.iter().collect();
    rows.sort_by_key(|(_, row)| row.group);
    let mut text = format!("{HEADER}\n");
    for (key, row) in rows {
        text.push_str(&format!("{}\t{key}\t{}\t{}\t{}\n", row.group.name(), row.outcome.name(), row.file, row.by));
    }
    fs::write(path, text).context(path.display())
}

/// Reads the reasons: a mutant's key and why no test can find it, in each line.
///
/// # Errors
/// If a line has no reason.
pub(crate) fn reasons(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).context(path.display())?;
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (key, reason) = line.split_once('\t').context(line)?;
            Ok((key.to_owned(), reason.to_owned()))
        })
        .collect()
}

/// Prints how each group ended. Returns how many reached what is wanted of them, and how many did not.
pub(crate) fn summary(record: &Record) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    for group in Group::ALL {
        let count = |outcome| record.values().filter(|row| row.group == group && row.outcome == outcome).count();
        let [killed, survived, equivalent, refused, waiting] = Outcome::ALL.map(count);
        let viable = killed + survived + waiting;
        println!(
            "mutants: {:<8} {viable:>4} to be found: {killed} killed, {survived} survived, {waiting} not tried; \
             {equivalent} change nothing that can be seen, {refused} are no programs; {} % killed, {} % wanted",
            group.name(),
            killed * 100 / viable.max(1),
            group.wanted()
        );
        if viable > 0 && killed * 100 >= group.wanted() * viable {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    (passed, failed)
}
