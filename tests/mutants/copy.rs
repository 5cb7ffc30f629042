//! A copy of the project with its mutants, and the compiler's view of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::list::Mutant;
use crate::plant::{self, Planted};
use crate::source::Source;
use crate::{Context as _, Result};

/// The compiler looks for some errors only where there are none of others.
const ATTEMPTS_MAX: usize = 40;
/// Says which mutant is chosen.
const SWITCH: &str = include_str!("switch.rs");
/// Names the modules.
const ROOT: &str = "src/lib.rs";
/// Lets the compiler take what is not stable, in the copy alone.
const WRAPPER: &str = "rustc-with-features";
/// With RocksDB, since the folder of a pool is there only with it.
const BUILD: [&str; 5] = ["test", "--no-run", "--locked", "--features", "planted-bugs"];
/// The tests of the library, and those that take longer to compile.
const LIBRARY: &str = "--lib";
const SIMULATION: &str = "--test=engine";

/// The programs with all mutants that can be chosen in them.
pub(crate) struct Built {
    /// Of the tests.
    pub programs: Vec<PathBuf>,
    /// Numbers of those that the compiler refuses.
    pub unviable: BTreeSet<usize>,
    /// Numbers of those that could not be planted.
    pub apart: BTreeSet<usize>,
}

#[derive(Deserialize)]
struct Line {
    reason: String,
    executable: Option<PathBuf>,
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Message {
    level: String,
    message: String,
    spans: Vec<MessageSpan>,
    rendered: Option<String>,
}

#[derive(Deserialize)]
struct MessageSpan {
    file_name: String,
    byte_start: usize,
    is_primary: bool,
}

/// A copy of the project, whose sources are replaced.
pub(crate) struct Copy<'a> {
    directory: &'a Path,
    mutants: &'a [Mutant],
    sources: BTreeMap<&'a str, Source>,
}

impl<'a> Copy<'a> {
    /// Copies what is in `project`, and reads the files that have mutants. What is there already keeps its time, so that it need
    /// not be compiled again.
    ///
    /// # Errors
    /// If one cannot be read or written.
    pub(crate) fn new(project: &Path, directory: &'a Path, mutants: &'a [Mutant]) -> Result<Self> {
        let mut sources = BTreeMap::new();
        for mutant in mutants {
            let file = mutant.file.as_str();
            if !sources.contains_key(file) {
                let text = fs::read_to_string(project.join(file)).context(file)?;
                sources.insert(file, Source::new(text).context(file)?);
            }
        }
        let copy = Self { directory, mutants, sources };
        copy.mirror(project, Path::new(""))?;
        let modules = fs::read_to_string(project.join(ROOT)).context(ROOT)?;
        // In a constant function the question has one answer for the compiler and another for the program.
        let modules = format!("#![feature(const_eval_select, core_intrinsics)]\n{modules}pub mod mutant;\n");
        copy.write(Path::new(ROOT), modules.as_bytes())?;
        copy.write(Path::new("src/mutant.rs"), SWITCH.as_bytes())?;
        copy.write(Path::new(WRAPPER), b"#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec \"$@\"\n")?;
        fs::set_permissions(directory.join(WRAPPER), fs::Permissions::from_mode(0o755)).context(WRAPPER)?;
        Ok(copy)
    }

    /// Copies a folder, without the files that are written with mutants.
    fn mirror(&self, project: &Path, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(project.join(folder)).context(folder.display())? {
            let entry = entry.context(folder.display())?;
            let path = folder.join(entry.file_name());
            if entry.file_type().context(path.display())?.is_dir() {
                self.mirror(project, &path)?;
            } else if path != Path::new(ROOT) && !self.sources.keys().any(|file| path == Path::new(file)) {
                self.write(&path, &fs::read(entry.path()).context(path.display())?)?;
            }
        }
        Ok(())
    }

    /// Writes a file, if it is not like that already.
    fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        let path = self.directory.join(path);
        if fs::read(&path).is_ok_and(|old| old == content) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(&path)).context(path.display())?;
        fs::write(&path, content).context(path.display())
    }

    /// A hash of a file's content.
    pub(crate) fn hash_of(&self, file: &str) -> &str {
        &self.sources[file].hash
    }

    /// Plants the mutants, and compiles until nothing is refused.
    ///
    /// # Errors
    /// If the compiler refuses what has nothing to do with a mutant.
    pub(crate) fn build(&self) -> Result<Built> {
        let known = self.known_refusals();
        let all = || 0..self.mutants.len();
        let unviable = all().filter(|number| known.contains(&self.refusal(*number))).collect();
        let apart = all().filter(|number| known.contains(&self.refusal_where_planted(*number))).collect();
        let mut built = Built { programs: Vec::new(), unviable, apart };
        for attempt in 1..=ATTEMPTS_MAX {
            let planted = self.plant(&mut built)?;
            let (programs, errors) = self.compile(&[LIBRARY, SIMULATION])?;
            println!(
                "mutants: attempt {attempt}: {} refused before, {} apart, {} errors",
                built.unviable.len(),
                built.apart.len(),
                errors.len()
            );
            if errors.is_empty() {
                let apart = built.apart.iter().map(|number| self.refusal_where_planted(*number));
                let refusals: Vec<String> =
                    built.unviable.iter().map(|number| self.refusal(*number)).chain(apart).collect();
                fs::write(self.refusals_path(), refusals.join("\n")).context("what was refused")?;
                return Ok(Built { programs, ..built });
            }
            let settled = errors.iter().filter(|error| settle(error, &planted, &mut built)).count();
            if settled == 0 {
                let error = &errors[0];
                return Err(format!("not a mutant's: {}", error.rendered.as_deref().unwrap_or(&error.message)));
            }
        }
        Err(format!("still refused after {ATTEMPTS_MAX} attempts"))
    }

    /// What the compiler refused last time, for this content of the files.
    fn known_refusals(&self) -> HashSet<String> {
        let text = fs::read_to_string(self.refusals_path()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn refusals_path(&self) -> PathBuf {
        self.directory.with_extension("refused")
    }

    fn refusal(&self, number: usize) -> String {
        let mutant = &self.mutants[number];
        format!("{}\t{}", self.sources[mutant.file.as_str()].hash, mutant.key)
    }

    /// Of one that is refused with its choice around it, and may be taken without.
    fn refusal_where_planted(&self, number: usize) -> String {
        format!("planted\t{}", self.refusal(number))
    }

    fn plant(&self, built: &mut Built) -> Result<BTreeMap<&'a str, Planted>> {
        let mut planted = BTreeMap::new();
        for (&file, source) in &self.sources {
            let is_left = |number: &usize| !built.unviable.contains(number) && !built.apart.contains(number);
            let chosen: Vec<(usize, &Mutant)> = self
                .mutants
                .iter()
                .enumerate()
                .filter(|(number, mutant)| mutant.file == file && is_left(number))
                .collect();
            let result = plant::plant(source, &chosen).context(file)?;
            built.apart.extend(&result.apart);
            self.write(Path::new(file), result.text.as_bytes())?;
            planted.insert(file, result);
        }
        Ok(planted)
    }

    /// Compiles the library's tests with one mutant and nothing else; `None` if the compiler refuses it. Replaces that program.
    ///
    /// # Errors
    /// If the list is of another state of the file.
    pub(crate) fn build_alone(&self, mutant: &Mutant) -> Result<Option<Vec<PathBuf>>> {
        for (&file, source) in &self.sources {
            let text = if mutant.file == file {
                let (start, end) = (source.byte_of(mutant.span.start)?, source.byte_of(mutant.span.end)?);
                format!("{}{}{}", &source.text[..start], mutant.replacement, &source.text[end..])
            } else {
                source.text.clone()
            };
            self.write(Path::new(file), text.as_bytes())?;
        }
        let (programs, errors) = self.compile(&[LIBRARY])?;
        Ok(errors.is_empty().then_some(programs))
    }

    /// Compiles the simulation behind [`Self::build_alone`], with the same mutant. Replaces that program.
    ///
    /// # Errors
    /// If the compiler refuses it.
    pub(crate) fn build_simulation(&self) -> Result<Vec<PathBuf>> {
        let (programs, errors) = self.compile(&[SIMULATION])?;
        if errors.is_empty() {
            Ok(programs)
        } else {
            Err("the simulation is refused, and the library is not".to_owned())
        }
    }

    fn compile(&self, targets: &[&str]) -> Result<(Vec<PathBuf>, Vec<Message>)> {
        let output = Command::new("cargo")
            .args(BUILD)
            .args(targets)
            .arg("--message-format=json")
            .current_dir(self.directory)
            // Of these crates alone, so that what they depend on need not be compiled again.
            .env("RUSTC_WORKSPACE_WRAPPER", self.directory.join(WRAPPER))
            .stderr(Stdio::piped())
            .output()
            .context("cargo")?;
        let mut programs = Vec::new();
        let mut errors = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with('{')) {
            let line: Line = serde_json::from_str(line).context("what cargo says")?;
            if line.reason == "compiler-artifact" {
                programs.extend(line.executable);
            }
            errors.extend(line.message.filter(|message| message.level == "error" && !message.spans.is_empty()));
        }
        if errors.is_empty() && !output.status.success() {
            return Err(format!("cargo: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok((programs, errors))
    }
}

/// What the compiler says of a match that has lost an arm, at the value that it looks at.
const ARM_MISSING: &str = "non-exhaustive patterns";

/// Takes back what the compiler refuses. Whether something could be.
fn settle(error: &Message, planted: &BTreeMap<&str, Planted>, built: &mut Built) -> bool {
    let mut is_settled = false;
    for span in error.spans.iter().filter(|span| span.is_primary) {
        let Some(file) = planted.get(span.file_name.as_str()) else { continue };
        let place = if error.message.starts_with(ARM_MISSING) {
            // The arms come behind it. If it was not the first one, it is the next after that is taken back.
            file.places.iter().filter(|place| place.range.start > span.byte_start).min_by_key(|place| place.range.start)
        } else {
            file.places.iter().rfind(|place| place.range.contains(&span.byte_start))
        };
        let Some(place) = place else { continue };
        for &number in &place.mutants {
            if place.is_own {
                built.unviable.insert(number);
            } else {
                built.apart.insert(number);
            }
            is_settled = true;
        }
    }
    is_settled
}
