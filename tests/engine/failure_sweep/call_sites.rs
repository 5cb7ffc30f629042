//! Where the engine asks for I/O: as its source says, and as the stack of an I/O that failed tells.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// Folders of the engine that ask for I/O.
const FOLDERS: [&str; 3] = ["src/map", "src/pool", "src/volume"];
/// What asks a file system, not a disk, and cannot be run here: the tests of `tests/server` make it fail.
const OUTSIDE: &str = "src/pool/directory";
/// In front of the call of a planted bug.
const PLANTED: &str = "let _is_done = self.device_of(stretch)";
/// Calls by which I/O is asked for.
const CALLS: [&str; 13] = [
    ".read_at(",
    ".write_at(",
    "device.flush()",
    ".discard(",
    ".holes()",
    "disk.submit(",
    "store.commit(",
    ".get(Table",
    ".seek(Table",
    ".seek_first(Table",
    ".walk(Table",
    ".scan(Table",
    ".scan(table",
];

/// A line of the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallSite {
    file: String,
    line: usize,
}

impl fmt::Display for CallSite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.line)
    }
}

impl CallSite {
    /// The innermost frame of a stack that is of the engine.
    pub fn of_stack(stack: &str) -> Option<Self> {
        let places = stack.lines().filter_map(|line| line.trim().strip_prefix("at "));
        places.filter_map(Self::parse).find(|site| FOLDERS.iter().any(|folder| site.file.starts_with(folder)))
    }

    /// A place as a stack writes it: path, line, column.
    fn parse(place: &str) -> Option<Self> {
        let mut parts = place.rsplitn(3, ':');
        let (_column, line, path) = (parts.next()?, parts.next()?, parts.next()?);
        let file = path.rfind("/src/").map_or(path, |start| &path[start + 1..]);
        Some(Self { file: file.to_owned(), line: line.parse().ok()? })
    }
}

/// All of them, but for tests and what is outside of the simulation.
pub fn all() -> BTreeSet<CallSite> {
    let mut sites = BTreeSet::new();
    for folder in FOLDERS {
        look_into(Path::new(env!("CARGO_MANIFEST_DIR")), folder, &mut sites);
    }
    sites
}

fn look_into(root: &Path, folder: &str, sites: &mut BTreeSet<CallSite>) {
    for entry in std::fs::read_dir(root.join(folder)).expect("the source is there") {
        let entry = entry.expect("it can be listed");
        let name = entry.file_name().into_string().expect("names are text");
        let path = format!("{folder}/{name}");
        if path.starts_with(OUTSIDE) || name.contains("tests") {
            continue;
        }
        if entry.file_type().expect("it has a type").is_dir() {
            look_into(root, &path, sites);
        } else {
            let text = std::fs::read_to_string(entry.path()).expect("source is text");
            sites.extend(calls_of(&text).map(|line| CallSite { file: path.clone(), line }));
        }
    }
}

/// Lines with calls, up to the tests at the end of a file.
fn calls_of(text: &str) -> impl Iterator<Item = usize> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_code = |line: &str| !line.trim_start().starts_with("//") && !line.contains(PLANTED);
    let lines = (1..).zip(code.lines()).filter(move |(_, line)| is_code(line));
    lines.filter(|(_, line)| CALLS.iter().any(|call| line.contains(call))).map(|(number, _)| number)
}

#[test]
fn call_site_is_the_innermost_frame_of_the_engine() {
    let stack = "   0: tap\n             at ./tests/engine/rig/tap.rs:1:2\n   1: get\n             at ./src/meta/reserved.rs:7:9\n   \
                 2: look\n             at /somewhere/src/map/stored.rs:85:32\n   3: run\n             at ./src/pool/open.rs:1:1\n";
    let found = CallSite::of_stack(stack).expect("there is one");
    assert_eq!(found.to_string(), "src/map/stored.rs:85");
}
