//! The tests that may find a mutant, and how long each takes.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Context as _, Result};

/// How much of the simulation runs for a mutant, unless the environment says otherwise.
const SETTINGS: [(&str, &str); 3] = [("ROK_SEEDS", "40"), ("ROK_CRASH_STATES", "2000"), ("ROK_BIT_FLIPS", "1024")];
/// These look for bugs that are planted on purpose, at length.
const LEFT_OUT: [&str; 2] = ["each_planted", "bugs_that_concern"];
/// A test that takes longer where it is noted what it reaches is left out: it would be run for every mutant that nothing shorter finds.
const ALONE_SECONDS_MAX: u64 = 75;
/// What a mutant may take of memory before that counts as found, in bytes.
const MEMORY_MAX: u64 = 4 << 30;
/// A mutant that takes so many times as long as the program, and this more, never ends.
const SLOWER_MAX: u32 = 8;
const MORE_MAX: Duration = Duration::from_secs(8);
/// What the first tests of a mutant take together.
const SHORT: Duration = Duration::from_secs(20);
/// How much likelier a test finds a mutant than others, for each that it found in the same file.
const KILL_WEIGHT: f64 = 10.0;
/// Behind the name of a test that did not end with a mutant.
const ENDED: &str = " (ended)";
/// Tests that together take no longer than this run in one process; behind them [`BATCH_GROWTH`] times as long, and so on.
const FIRST_BATCH: Duration = Duration::from_millis(300);
const BATCH_GROWTH: u32 = 4;

/// One test of a program.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub program: PathBuf,
    pub name: String,
    pub took: Duration,
    /// A byte for each mutant; 1 where the test runs its line.
    seen: Vec<u8>,
}

impl Test {
    fn reaches(&self, number: usize) -> bool {
        self.seen.get(number) == Some(&1)
    }
}

/// How a mutant ended.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// This test failed.
    Killed(String),
    /// All tests that reach it passed; so many.
    Survived(usize),
    /// The compiler takes no such program.
    Refused,
    /// The short tests passed, and there are longer ones.
    Undecided,
}

/// Which tests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The likeliest that take no longer together than [`SHORT`].
    Short,
    /// The others.
    Long,
}

/// All tests.
pub(crate) struct Suite {
    tests: Vec<Test>,
    /// How many mutants of a file each test found.
    kills: Mutex<HashMap<(String, String), u32>>,
    directory: PathBuf,
}

impl Suite {
    /// Runs each test alone and without a mutant.
    ///
    /// # Errors
    /// If one fails.
    pub(crate) fn new(programs: &[PathBuf], copy: &Path, work: &Path, threads: usize) -> Result<Self> {
        let mut waiting = Vec::new();
        for program in programs {
            let output =
                Command::new(program).args(["--list", "--format=terse"]).output().context(program.display())?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let Some(name) = line.strip_suffix(": test") else { continue };
                if !LEFT_OUT.iter().any(|word| name.contains(word)) {
                    waiting.push((program.clone(), name.to_owned()));
                }
            }
        }
        let waiting = Mutex::new(waiting);
        let tests = Mutex::new(Vec::new());
        let failed = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for worker in 0..threads {
                let (waiting, tests, failed) = (&waiting, &tests, &failed);
                let file = work.join(format!("seen-{worker}"));
                scope.spawn(move || {
                    while let Some((program, name)) = pop(waiting) {
                        match alone(&program, &name, copy, &file) {
                            Ok(Some(test)) => push(tests, test),
                            // Ignored, or it does not run where it is.
                            Ok(None) => (),
                            Err(error) => push(failed, error),
                        }
                    }
                });
            }
        });
        if let Some(error) = pop(&failed) {
            return Err(error);
        }
        let tests = tests.into_inner().unwrap_or_default();
        Ok(Self { tests, kills: Mutex::new(HashMap::new()), directory: copy.to_owned() })
    }

    /// Notes that a test found a mutant of a file.
    pub(crate) fn count_kill(&self, file: &str, by: &str) {
        if let Ok(mut kills) = self.kills.lock() {
            let test = by.strip_suffix(ENDED).unwrap_or(by);
            *kills.entry((file.to_owned(), test.to_owned())).or_default() += 1;
        }
    }

    /// Tests, those first that find most mutants of a file in the time that they take.
    fn ordered(&self, file: &str, is_asked: impl Fn(&Test) -> bool) -> Result<Vec<&Test>> {
        let kills = self.kills.lock().map_err(|error| error.to_string())?;
        let cost = |test: &Test| {
            let found = kills.get(&(file.to_owned(), test.name.clone())).copied().unwrap_or_default();
            test.took.as_secs_f64() / (1.0 + KILL_WEIGHT * f64::from(found))
        };
        let mut tests: Vec<_> =
            self.tests.iter().filter(|test| is_asked(test)).map(|test| (cost(test), test)).collect();
        drop(kills);
        tests.sort_by(|one, other| one.0.total_cmp(&other.0));
        Ok(tests.into_iter().map(|(_, test)| test).collect())
    }

    /// How many, and how long they take one after the other.
    pub(crate) fn size(&self) -> (usize, Duration) {
        (self.tests.len(), self.tests.iter().map(|test| test.took).sum())
    }

    /// Runs what reaches the mutant with this number in this file until something fails.
    ///
    /// # Errors
    /// If a program does not start.
    pub(crate) fn judge(&self, number: usize, file: &str, part: Part) -> Result<Verdict> {
        let mut tests = self.ordered(file, |test| test.reaches(number))?;
        let count = tests.len();
        let mut time = Duration::ZERO;
        let short = tests.partition_point(|test| {
            time += test.took;
            time <= SHORT
        });
        match part {
            Part::Short => tests.truncate(short),
            Part::Long => _ = tests.drain(..short),
        }
        if let Some(by) = self.first_failure(tests, Some(number), file)? {
            return Ok(Verdict::Killed(by));
        }
        Ok(if part == Part::Short && short < count { Verdict::Undecided } else { Verdict::Survived(count) })
    }

    /// Runs all tests of programs that have a mutant of this file without being asked, until something fails.
    ///
    /// # Errors
    /// If a program does not start.
    pub(crate) fn judge_alone(&self, file: &str, programs: &[PathBuf]) -> Result<Verdict> {
        let tests = self.ordered(file, |test| programs.contains(&test.program))?;
        let by = self.first_failure(tests, None, file)?;
        Ok(by.map_or(Verdict::Survived(self.tests.len()), Verdict::Killed))
    }

    /// Runs tests in larger and larger batches; the name of one that fails.
    fn first_failure(&self, mut rest: Vec<&Test>, number: Option<usize>, file: &str) -> Result<Option<String>> {
        let mut limit = FIRST_BATCH;
        while let Some(first) = rest.first() {
            let program = first.program.clone();
            let mut time = Duration::ZERO;
            let (mut batch, mut others) = (Vec::new(), Vec::new());
            for test in rest {
                if test.program == program && (batch.is_empty() || time + test.took <= limit) {
                    time += test.took;
                    batch.push(test);
                } else {
                    others.push(test);
                }
            }
            if let Some(by) = self.run(&program, &batch, time, number)? {
                self.count_kill(file, &by);
                return Ok(Some(by));
            }
            rest = others;
            limit *= BATCH_GROWTH;
        }
        Ok(None)
    }

    /// The name of a test that fails.
    fn run(&self, program: &Path, batch: &[&Test], time: Duration, number: Option<usize>) -> Result<Option<String>> {
        let seconds = (time * SLOWER_MAX + MORE_MAX).as_secs();
        let output = command(program, &self.directory, seconds)
            .args(batch.iter().map(|test| test.name.as_str()))
            .env("ROK_MUTANT", number.map_or_else(|| "none".to_owned(), |number| number.to_string()))
            .output()
            .context(program.display())?;
        if output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let failed = text.lines().find_map(|line| {
            line.strip_prefix("test ")?.split(" ... FAILED").next().filter(|name| !name.contains(" ... "))
        });
        // Without a line of its own: it did not end, or took all tests with it.
        let last = text.lines().rev().find_map(|line| line.strip_prefix("test ")?.split(" ... ").next());
        let by = failed.or(last).unwrap_or_else(|| batch.first().map_or("", |test| &test.name));
        Ok(Some(format!("{by}{}", if is_ended(output.status) { ENDED } else { "" })))
    }
}

fn alone(program: &Path, name: &str, copy: &Path, file: &Path) -> Result<Option<Test>> {
    if file.exists() {
        fs::remove_file(file).context(file.display())?;
    }
    let started = Instant::now();
    let output = command(program, copy, ALONE_SECONDS_MAX)
        .arg(name)
        .env("ROK_MUTANT", "seen")
        .env("ROK_MUTANT_SEEN", file)
        .output()
        .context(program.display())?;
    let took = started.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    if is_ended(output.status) {
        println!("mutants: {name} takes long, and is left out");
        return Ok(None);
    }
    if !output.status.success() {
        return Err(format!("{name} fails without a mutant: {text}"));
    }
    if !text.contains("1 passed") {
        return Ok(None);
    }
    // A test that asks for none of them has no file.
    let seen = fs::read(file).unwrap_or_default();
    Ok(Some(Test { program: program.to_owned(), name: name.to_owned(), took, seen }))
}

/// Whether it had to be ended: `timeout` says 124 or 137 then.
fn is_ended(status: ExitStatus) -> bool {
    matches!(status.code(), Some(124 | 137)) || status.signal().is_some()
}

/// A program of tests, ended after so many seconds.
fn command(program: &Path, directory: &Path, seconds: u64) -> Command {
    let mut command = Command::new("prlimit");
    command
        .args([format!("--as={MEMORY_MAX}"), "--core=0".to_owned()])
        .args(["timeout", "--kill-after=2", &seconds.to_string()])
        .arg(program)
        .args(["--test-threads=1", "--exact"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    for (name, value) in SETTINGS {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command
}

/// Takes one of what is waiting.
pub(crate) fn pop<T>(waiting: &Mutex<Vec<T>>) -> Option<T> {
    waiting.lock().ok()?.pop()
}

/// Adds one.
pub(crate) fn push<T>(list: &Mutex<Vec<T>>, value: T) {
    if let Ok(mut list) = list.lock() {
        list.push(value);
    }
}
