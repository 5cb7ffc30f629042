//! Changes the program in small ways, one at a time, and finds out whether a test fails (`tests/mutants.sh`).
//!
//! ```text
//! mutants LIST PROJECT COPY RECORD REASONS
//! ```
//! LIST is what `cargo mutants --list --json` says of the files in PROJECT, COPY where they are copied to and compiled, RECORD `docs/mutants.tsv`, REASONS the
//! mutants that change nothing which could be seen, each with the reason. The mutants are those of `cargo mutants`; but they
//! are compiled once, all of them, and chosen when the tests run, so that a mutant costs seconds and not two compilations.
//! Only tests that run the changed line are run, the shortest first.
//!
//! Environment: `ROK_MUTANT_MINUTES`, after which none is begun (60); `ROK_MUTANT_GROUPS`, which (all); `ROK_MUTANT_JOBS`, how
//! many at a time (2); those of the simulation say how long it runs for each.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports on its standard output")]

mod copy;
mod list;
mod plant;
mod record;
mod source;
mod suite;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use copy::{Built, Copy};
use list::{Group, Mutant};
use record::{Outcome, Record, Row};
use suite::{Part, Suite, Verdict};

/// How many are tried of the files of which a sample is enough.
const SAMPLE: usize = 500;
/// What chooses the sample.
const SAMPLE_SEED: &str = "rok-blk mutants 1";

/// What went wrong, for the person.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// Adds what was tried to an error, or says it where there is nothing.
pub(crate) trait Context<T> {
    fn context(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl Display) -> Result<T> {
        self.ok_or_else(|| format!("{what}: not understood"))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [list, project, copy, record, reasons] = &arguments[..] else {
        eprintln!("usage: mutants LIST PROJECT COPY RECORD REASONS");
        return ExitCode::from(2);
    };
    match run(list, (project, copy), (record, reasons)) {
        Ok((passed, failed)) => {
            println!("{passed} passed, {failed} failed, 0 skipped");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("mutants: {error}");
            println!("0 passed, 1 failed, 0 skipped");
            ExitCode::FAILURE
        }
    }
}

fn setting<T: FromStr>(name: &str, otherwise: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is no number: {text}")),
        Err(_) => Ok(otherwise),
    }
}

fn run(
    list: &Path,
    (project, copy): (&Path, &Path),
    (record_path, reasons_path): (&Path, &Path),
) -> Result<(usize, usize)> {
    let until = Instant::now() + Duration::from_secs(60 * setting::<u64>("ROK_MUTANT_MINUTES", 60)?);
    let jobs = setting("ROK_MUTANT_JOBS", 2)?;
    let groups = env::var("ROK_MUTANT_GROUPS").unwrap_or_else(|_| Group::ALL.map(Group::name).join(" "));
    let mutants = list::read(list)?;
    // The compiler and the tests run in it.
    std::fs::create_dir_all(copy).context(copy.display())?;
    let copy = &copy.canonicalize().context(copy.display())?;
    let project = Copy::new(project, copy, &mutants)?;
    let built = project.build()?;
    let old = record::read(record_path)?;
    let reasons = record::reasons(reasons_path)?;
    let (mut record, mut waiting, mut alone) = (Record::new(), Vec::new(), Vec::new());
    for number in chosen(&mutants, &built) {
        let mutant = &mutants[number];
        let file = project.hash_of(&mutant.file);
        let known = old.get(&mutant.key).filter(|row| row.file == file);
        let blank = Row { group: mutant.group, outcome: Outcome::Waiting, file: file.to_owned(), by: String::new() };
        let mut row = known.cloned().unwrap_or(blank);
        if row.outcome == Outcome::Equivalent && !reasons.contains_key(&mutant.key) {
            row.outcome = Outcome::Survived;
        }
        if !matches!(row.outcome, Outcome::Killed | Outcome::Refused | Outcome::Equivalent)
            && groups.split_whitespace().any(|name| name == mutant.group.name())
        {
            let list = if built.apart.contains(&number) { &mut alone } else { &mut waiting };
            // What has survived may have its test by now, but it is the last to be tried again.
            list.push((row.outcome == Outcome::Survived, number));
        }
        record.insert(mutant.key.clone(), row);
    }
    let book = Book { mutants: &mutants, path: record_path, rows: Mutex::new(record) };
    alone.sort_unstable();
    if !(waiting.is_empty() && alone.is_empty()) {
        let suite = Suite::new(&built.programs, copy, copy.parent().unwrap_or(copy), jobs)?;
        for (mutant, row) in mutants.iter().filter_map(|mutant| Some((mutant, old.get(&mutant.key)?))) {
            if row.outcome == Outcome::Killed {
                suite.count_kill(&mutant.file, &row.by);
            }
        }
        let (tests, time) = suite.size();
        println!(
            "mutants: {tests} tests, {} s one after the other; {} mutants to try, and {} that are compiled alone",
            time.as_secs(),
            waiting.len(),
            alone.len()
        );
        try_all(waiting, &suite, &book, &reasons, (jobs, until))?;
        // The last, since they replace the programs.
        for (_, number) in alone {
            if Instant::now() < until {
                let mutant = &mutants[number];
                let verdict = match project.build_alone(mutant)? {
                    None => Verdict::Refused,
                    Some(programs) => match suite.judge_alone(&mutant.file, &programs)? {
                        killed @ Verdict::Killed(_) => killed,
                        _ => suite.judge_alone(&mutant.file, &project.build_simulation()?)?,
                    },
                };
                book.enter(number, verdict)?;
            }
        }
    }
    let mut record = book.close();
    let wrong = excuse(&mut record, reasons, reasons_path);
    record::write(record_path, &record)?;
    for (key, row) in record.iter().filter(|(_, row)| row.outcome == Outcome::Survived) {
        println!("mutants: survived: {}: {key} ({})", row.group.name(), row.by);
    }
    let (passed, failed) = record::summary(&record);
    Ok((passed, failed + wrong))
}

/// Tries them, several at a time: all with the likeliest tests, then with the others what is left and has no reason to survive. Each
/// has with it whether it survived before: those come last.
fn try_all(
    mut waiting: Vec<(bool, usize)>,
    suite: &Suite,
    book: &Book<'_>,
    reasons: &BTreeMap<String, String>,
    (jobs, until): (usize, Instant),
) -> Result<()> {
    for part in [Part::Short, Part::Long] {
        // The first is the last one taken.
        waiting.sort_unstable();
        waiting.reverse();
        let (queue, left, failed) = (Mutex::new(waiting), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while Instant::now() < until
                        && let Some((survived, number)) = suite::pop(&queue)
                    {
                        match suite.judge(number, &book.mutants[number].file, part) {
                            Ok(Verdict::Undecided) => suite::push(&left, (survived, number)),
                            Ok(verdict) => {
                                book.enter(number, verdict).unwrap_or_else(|error| suite::push(&failed, error))
                            }
                            Err(error) => suite::push(&failed, error),
                        }
                    }
                });
            }
        });
        if let Some(error) = suite::pop(&failed) {
            return Err(error);
        }
        waiting = left.into_inner().unwrap_or_default();
        waiting.retain(|(_, number)| !reasons.contains_key(&book.mutants[*number].key));
        println!("mutants: {} need longer tests", waiting.len());
    }
    Ok(())
}

/// The record while it is written.
struct Book<'a> {
    mutants: &'a [Mutant],
    path: &'a Path,
    rows: Mutex<Record>,
}

impl Book<'_> {
    /// Tells of a verdict and writes the record, so that nothing is lost where the run is ended.
    fn enter(&self, number: usize, verdict: Verdict) -> Result<()> {
        let mutant = &self.mutants[number];
        let (outcome, by) = match verdict {
            Verdict::Killed(by) => (Outcome::Killed, by),
            Verdict::Survived(count) => (Outcome::Survived, format!("none of {count}")),
            Verdict::Refused => (Outcome::Refused, String::new()),
            Verdict::Undecided => return Ok(()),
        };
        println!("mutants: {}: {} {by}", outcome.name(), mutant.name);
        let mut rows = self.rows.lock().map_err(|error| error.to_string())?;
        let row = rows.get_mut(&mutant.key).context("the record")?;
        (row.outcome, row.by) = (outcome, by);
        record::write(self.path, &rows)
    }

    fn close(self) -> Record {
        self.rows.into_inner().unwrap_or_default()
    }
}

/// Marks those of which it is known why no test finds them. How many reasons are none.
fn excuse(record: &mut Record, reasons: BTreeMap<String, String>, path: &Path) -> usize {
    let mut wrong = 0;
    for (key, reason) in reasons {
        match record.get_mut(&key) {
            Some(row) if row.outcome != Outcome::Killed => (row.outcome, row.by) = (Outcome::Equivalent, reason),
            known => {
                wrong += 1;
                let why = if known.is_some() { "a test finds it" } else { "it is not among those that are tried" };
                println!("FAIL {}: {key}: {why}", path.display());
            }
        }
    }
    wrong
}

/// All of the files in which each counts, and a sample of the others, but for what the compiler refuses.
fn chosen(mutants: &[Mutant], built: &Built) -> Vec<usize> {
    let viable = (0..mutants.len()).filter(|number| !built.unviable.contains(number));
    let (mut rest, mut chosen): (Vec<usize>, Vec<usize>) =
        viable.partition(|&number| mutants[number].group == Group::Rest);
    // By a hash, so that it stays the same where others come and go.
    rest.sort_by_cached_key(|&number| {
        *blake3::Hasher::new()
            .update(SAMPLE_SEED.as_bytes())
            .update(mutants[number].key.as_bytes())
            .finalize()
            .as_bytes()
    });
    chosen.sort_by_key(|&number| mutants[number].group);
    chosen.extend(rest.into_iter().take(SAMPLE));
    chosen
}
