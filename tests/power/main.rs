//! Power cuts, made of a recording of the disks that held a pool under load (`tests/kernel/power.sh`).
//!
//! ```text
//! power_cuts RECORDING PROGRAM
//! ```
//! For points of the recording that a seed chooses, at its flushes and between them, both disks are built as a power cut at
//! that moment may leave them: what was flushed is there, and of what was not each write is there, or not, or in part. The
//! real program opens the pool on them, and what was promised to be there must be. Controls come last: recordings that a
//! disk which lies has left must be found out.
//!
//! Environment: `ROK_POWER_CUTS`, how many (16); `ROK_POWER_CONTROLS`, how many flushed writes are left out, one at a time
//! (2); `ROK_POWER_SEED`; `ROK_POWER_CUT`, only the cut at this position; `ROK_POWER_JOBS`, threads.

#![expect(clippy::print_stdout, reason = "a program that reports on its standard output")]

mod claims;
mod control;
mod cut;
mod disk_image;
mod recording;
mod recovery;

use std::env;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;

use claims::Claims;
use cut::{Cut, Replay};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use recording::Recording;
use recovery::Recovery;

/// What went wrong, for the person.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// Adds what was tried to an error.
pub(crate) trait Context<T> {
    fn context(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

/// What was done, and how it went.
#[derive(Default)]
pub(crate) struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub kept: usize,
    pub dropped: usize,
    pub torn: usize,
    pub files: usize,
    pub snapshots: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.kept += other.kept;
        self.dropped += other.dropped;
        self.torn += other.torn;
        self.files += other.files;
        self.snapshots += other.snapshots;
    }
}

/// One run: a recording, the program that recovers, and what was asked for.
pub(crate) struct Run {
    pub recording: Recording,
    pub claims: Claims,
    pub program: PathBuf,
    pub directory: PathBuf,
    pub seed: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [directory, program] = arguments.as_slice() else {
        println!("usage: power_cuts RECORDING PROGRAM");
        return ExitCode::from(2);
    };
    let tally = run(directory, program).unwrap_or_else(|problem| {
        println!("FAIL power cuts: {problem}");
        Tally { failed: 1, ..Tally::default() }
    });
    println!("{} passed, {} failed, 0 skipped", tally.passed, tally.failed);
    ExitCode::from(u8::from(tally.failed != 0 || tally.passed == 0))
}

fn run(directory: &Path, program: &Path) -> Result<Tally> {
    let seed = setting("ROK_POWER_SEED")?.unwrap_or_else(|| SmallRng::from_os_rng().random_range(1..1_000_000_000));
    println!("NOTE the seed is {seed} (ROK_POWER_SEED={seed})");
    let recording = Recording::read(directory)?;
    let claims = Claims::read(&recording)?;
    let program = program.canonicalize().context("the program")?;
    let run = Run { recording, claims, program, directory: directory.to_path_buf(), seed };
    let mut tally = Tally::default();
    run.compare_with_the_disks()?;
    tally.passed += 1;
    println!("PASS whole: replayed to its end, the recording of {} gives the disks", run.recording.describe());

    let cuts = run.cuts()?;
    let at_flush = cuts.iter().filter(|cut| cut.is_at_flush).count();
    let of_cuts = run.try_all(&cuts)?;
    println!(
        "NOTE {} cuts, {at_flush} at a flush and {} between; of what was not flushed {} writes were kept, {} dropped and {} \
         torn; {} files and {} snapshots that had to be there were read",
        cuts.len(),
        cuts.len() - at_flush,
        of_cuts.kept,
        of_cuts.dropped,
        of_cuts.torn,
        of_cuts.files,
        of_cuts.snapshots
    );
    tally.add(&of_cuts);
    if setting::<usize>("ROK_POWER_CUT")?.is_none() {
        tally.add(&control::run(&run, setting("ROK_POWER_CONTROLS")?.unwrap_or(2).max(1))?);
    }
    Ok(tally)
}

/// A number in the environment.
fn setting<T: FromStr>(name: &str) -> Result<Option<T>> {
    let Some(text) = env::var_os(name) else { return Ok(None) };
    let text = text.to_string_lossy();
    text.parse().map(Some).map_err(|_| format!("{name} is no number: {text}"))
}

impl Run {
    fn cuts(&self) -> Result<Vec<Cut>> {
        let range = self.claims.load_range();
        if let Some(position) = setting("ROK_POWER_CUT")? {
            return Ok(vec![Cut::at(&self.recording, position)]);
        }
        let mut random = SmallRng::seed_from_u64(self.seed);
        Ok(cut::choose(&self.recording, range, setting("ROK_POWER_CUTS")?.unwrap_or(16), &mut random))
    }

    /// The recording has everything, and this reads it right: replayed to its end it gives what the emulator's disks hold.
    fn compare_with_the_disks(&self) -> Result<()> {
        let place = tempfile::tempdir().context("a directory for the disks")?;
        let images = Replay::new(self, place.path())?.build_whole(self.recording.events.len())?;
        for (image, name) in [(&images.data, "vda"), (&images.meta, "vdb")] {
            let status = recovery::run("cmp", [image.as_os_str(), self.directory.join(name).as_os_str()])?;
            status.success()?;
        }
        Ok(())
    }

    /// Tries the cuts in threads, each its own part of the recording.
    fn try_all(&self, cuts: &[Cut]) -> Result<Tally> {
        let jobs = setting("ROK_POWER_JOBS")?.unwrap_or(2_usize).clamp(1, cuts.len().max(1));
        let mut tally = Tally::default();
        thread::scope(|scope| -> Result<()> {
            let parts = cuts.chunks(cuts.len().div_ceil(jobs).max(1));
            let threads: Vec<_> = parts.map(|part| scope.spawn(move || self.try_part(part))).collect();
            for thread in threads {
                let of_part = thread.join().map_err(|_| "a thread has panicked".to_owned())?;
                tally.add(&of_part?);
            }
            Ok(())
        })?;
        Ok(tally)
    }

    fn try_part(&self, cuts: &[Cut]) -> Result<Tally> {
        let place = tempfile::tempdir().context("a directory for the disks")?;
        let mut replay = Replay::new(self, place.path())?;
        let mut tally = Tally::default();
        for cut in cuts {
            let images = replay.build(*cut)?;
            tally.kept += images.kept;
            tally.dropped += images.dropped;
            tally.torn += images.torn;
            match Recovery::new(self, place.path()).verify(&images, &self.claims.at(cut.position)) {
                Ok(found) => {
                    tally.passed += 1;
                    tally.files += found.files;
                    tally.snapshots += found.snapshots;
                }
                Err(problem) => {
                    tally.failed += 1;
                    println!(
                        "FAIL cut at {} ({}; ROK_POWER_SEED={} ROK_POWER_CUT={}): {problem}",
                        cut.position, images.description, self.seed, cut.position
                    );
                }
            }
        }
        Ok(tally)
    }
}
