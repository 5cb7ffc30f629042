//! The files of the project, and what is said about them.

use std::fmt;
use std::fs;
use std::path::Path;

/// No directory of the project is nested deeper; ends a loop of links.
const DEPTH_MAX: usize = 12;

/// A text file of the project.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// From the project's root, with `/`.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

impl SourceFile {
    /// A file that is not on disk, for samples.
    pub(crate) fn sample(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// Whether it is Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.has_extension("rs")
    }

    /// Whether the name ends in `.extension`.
    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// Whether all of it is test code, by where it is.
    pub(crate) fn is_test_code(&self) -> bool {
        let stem = Path::new(&self.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        self.path.split('/').any(|part| part == "tests") || stem == "tests" || stem.ends_with("_tests")
    }

    /// Whether it becomes part of the binary: the library, the binary or a leaf crate, without their tests.
    pub(crate) fn is_shipped(&self) -> bool {
        let is_source = ["src/", "nbd/src/", "ublk/src/"].iter().any(|root| self.path.starts_with(root));
        is_source && !self.is_test_code()
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The file.
    pub(crate) path: String,
    /// Line, from 1; 0 if it is about the file as a whole.
    pub(crate) line: usize,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

impl Violation {
    /// About a line of a file.
    pub(crate) fn new(file: &SourceFile, line: usize, message: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line, message: message.into() }
    }

    /// About a file, which may be missing.
    pub(crate) fn of_path(path: &str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: 0, message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Every text file of the project, sorted by path.
///
/// Left out are what git keeps, files that are no text, the target directory, and directories that a tool marked as
/// its cache (cargo does so with each target directory, whatever its name).
///
/// # Panics
/// If a directory or file cannot be read.
pub(crate) fn read_tree() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    read_directory(root, "", 0, &mut files);
    files.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "{} is not the project's root", root.display());
    files
}

fn read_directory(directory: &Path, prefix: &str, depth: usize, files: &mut Vec<SourceFile>) {
    assert!(depth <= DEPTH_MAX, "{} is nested too deeply", directory.display());
    if prefix == "target/" || directory.join("CACHEDIR.TAG").exists() {
        return;
    }
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().unwrap_or_else(|error| panic!("{path}: {error}"));
        if kind.is_dir() && name != ".git" {
            read_directory(&entry.path(), &format!("{path}/"), depth + 1, files);
        } else if kind.is_file() && name != ".git" {
            let bytes = fs::read(entry.path()).unwrap_or_else(|error| panic!("{path}: {error}"));
            files.extend(String::from_utf8(bytes).ok().map(|text| SourceFile { path, text }));
        }
    }
}

/// Fails with one violation a line.
///
/// # Panics
/// If there is a violation.
#[track_caller]
pub(crate) fn assert_none(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{} violations:\n{}", lines.len(), lines.join("\n"));
}

/// Fails unless the sample breaks the rule at exactly these lines.
///
/// # Panics
/// If the lines differ.
#[track_caller]
pub(crate) fn assert_lines(violations: &[Violation], lines: &[usize]) {
    let found: Vec<usize> = violations.iter().map(|violation| violation.line).collect();
    assert_eq!(found, lines, "{violations:#?}");
}
