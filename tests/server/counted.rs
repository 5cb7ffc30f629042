//! What a request costs, counted rather than timed: instructions, allocations and system calls on a device in memory.
//!
//! The program makes a number of requests, then a larger one under the same tool: the difference is what the further
//! requests cost, and the same in each run. `tests/counted.txt` has the figures. A smaller one is never an error. Not
//! counted are the instructions of the cipher and of copying: both libraries choose them by the processor, and their
//! number says little about time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use crate::support::{Finished, Home, finish, skip};

/// Where the figures are.
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/counted.txt");
/// Set to 1, it writes the figures that are found, as the new ones.
const UPDATE: &str = "ROK_UPDATE_COUNTS";
/// How much larger than its figure one may be, in hundredths; that many of one request are allowed in any case.
const MARGIN_PERCENT: f64 = 5.0;
const MARGIN_LEAST: f64 = 0.05;
/// A shorter and a longer run. The difference is large beside what differs from run to run, a few futex calls.
const REQUESTS: [u32; 2] = [1000, 3000];
/// Functions whose instructions are not counted, by how their names begin.
const UNCOUNTED: [&str; 6] = ["aws_lc_", "_aesni_", "__memcpy", "__memmove", "__memset", "gcm_"];
const ALLOCATING: [&str; 4] = ["malloc", "calloc", "realloc", "posix_memalign"];

/// Figures by their names.
type Figures = BTreeMap<String, f64>;

#[test]
fn requests_take_no_more_instructions_and_allocations_than_before() {
    let home = Home::new();
    let profile = home.path("profile");
    let out = format!("--callgrind-out-file={}", profile.display());
    if let Some(reason) = missing("valgrind") {
        return skip(&reason);
    }
    let mut found = Figures::new();
    for case in ["random-read-4k-qd32", "random-write-4k-qd32", "random-write-4k-qd1-flush1"] {
        let counts = REQUESTS.map(|requests| {
            let mut command = Command::new("valgrind");
            // Without its own threads' turns the order of two threads could differ from run to run.
            command.args(["--tool=callgrind", "--fair-sched=no", &out]).arg(env!("CARGO_BIN_EXE_rok-blk"));
            run(command.args(arguments(case, requests)));
            Profile::read(&profile)
        });
        let name = |what| format!("{what} {case}");
        found.insert(name("instructions"), per_request(&counts, Profile::instructions));
        found.insert(name("allocations"), per_request(&counts, Profile::allocations));
    }
    compare(&found);
}

#[test]
fn requests_take_no_more_system_calls_than_before() {
    let home = Home::new();
    let summary = home.path("summary");
    if let Some(reason) = missing("strace") {
        return skip(&reason);
    }
    let mut found = Figures::new();
    for case in ["random-read-4k-qd1", "random-read-4k-qd32", "random-write-4k-qd1", "random-write-4k-qd1-flush1"] {
        let counts = REQUESTS.map(|requests| {
            let mut command = Command::new("strace");
            command.args(["-f", "-c", "-o"]).arg(&summary).arg(env!("CARGO_BIN_EXE_rok-blk"));
            run(command.args(arguments(case, requests)).args(["--ring-on", "/dev/shm"]));
            fs::read_to_string(&summary).expect("strace has written it")
        });
        found.insert(format!("system-calls {case}"), per_request(&counts, |summary| system_calls(summary)));
    }
    compare(&found);
}

/// Why a tool cannot be used here.
fn missing(tool: &str) -> Option<String> {
    let mut command = Command::new(tool);
    command.arg("true");
    match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("{tool} cannot run a program here: {}", String::from_utf8_lossy(&output.stderr))),
        Err(_) => Some(format!("{tool} is missing; deploy/install-deps.sh test installs it")),
    }
}

fn arguments(case: &str, requests: u32) -> [String; 5] {
    let case = format!("memory-{case}");
    ["bench".to_owned(), "--requests".to_owned(), requests.to_string(), "--case".to_owned(), case]
}

fn run(command: &mut Command) {
    let command = std::mem::replace(command, Command::new("true"));
    let Finished { code, stderr, .. } = finish(command);
    assert_eq!(code, Some(0), "{stderr}");
}

fn per_request<T>(counts: &[T; 2], count: impl Fn(&T) -> u64) -> f64 {
    let [short, long] = counts.each_ref().map(|counts| u32::try_from(count(counts)).expect("below 2^32"));
    (f64::from(long) - f64::from(short)) / f64::from(REQUESTS[1] - REQUESTS[0])
}

/// All calls of a summary of strace: the fourth column of its last line.
fn system_calls(summary: &str) -> u64 {
    let total = summary.lines().find(|line| line.ends_with(" total")).expect("a line with the sums");
    let columns: Vec<&str> = total.split_whitespace().collect();
    columns[3].parse().unwrap_or_else(|_| panic!("no number of calls: {total}"))
}

/// What callgrind found, by function: instructions of its own, and calls of it.
#[derive(Default)]
struct Profile {
    functions: BTreeMap<String, (u64, u64)>,
}

impl Profile {
    /// Reads callgrind's file (its manual, "Callgrind Format Specification"): `fn=(1) name` begins the lines of a
    /// function, and the name is left out from the second time on; a line `calls=` says how often it calls the function
    /// that `cfn=` named before, and the line behind it what that cost there; other lines are its own costs.
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("callgrind has written it");
        let mut profile = Self::default();
        let mut names = BTreeMap::new();
        let (mut current, mut called) = (String::new(), String::new());
        let mut is_of_callee = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                current = name_of(name, &mut names);
            } else if let Some(name) = line.strip_prefix("cfn=") {
                called = name_of(name, &mut names);
            } else if let Some(call) = line.strip_prefix("calls=") {
                let count = call.split(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a number");
                profile.functions.entry(called.clone()).or_default().1 += count;
                is_of_callee = true;
            } else if line.starts_with(|sign: char| sign.is_ascii_digit() || "+-*".contains(sign)) {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or(0);
                if !std::mem::take(&mut is_of_callee) {
                    profile.functions.entry(current.clone()).or_default().0 += cost;
                }
            }
        }
        profile
    }

    fn instructions(&self) -> u64 {
        let is_counted = |name: &str| !UNCOUNTED.iter().any(|beginning| name.starts_with(beginning));
        self.functions.iter().filter(|(name, _)| is_counted(name)).map(|(_, (own, _))| own).sum()
    }

    fn allocations(&self) -> u64 {
        ALLOCATING.iter().filter_map(|name| self.functions.get(*name)).map(|(_, calls)| calls).sum()
    }
}

/// `(7) name` says that 7 stands for it from now on; a recursion is numbered behind a quote.
fn name_of(text: &str, names: &mut BTreeMap<String, String>) -> String {
    let (number, name) = text.split_once(' ').unwrap_or((text, ""));
    if !name.is_empty() {
        let name = name.split('\'').next().unwrap_or(name);
        names.insert(number.to_owned(), name.to_owned());
    }
    names.get(number).cloned().unwrap_or_default()
}

/// Held while the file is changed.
static FILE: Mutex<()> = Mutex::new(());

fn compare(found: &Figures) {
    let _one_at_a_time = FILE.lock();
    let text = fs::read_to_string(FIGURES).expect("the file is part of the project");
    if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
        fs::write(FIGURES, updated(&text, found)).expect("it can be written");
        return;
    }
    let expected = parse(&text);
    let mut excess = String::new();
    for (name, value) in found {
        let figure = *expected.get(name).unwrap_or_else(|| panic!("{FIGURES} has no figure for {name}: {value:.2}"));
        let bound = (figure * (1.0 + MARGIN_PERCENT / 100.0)).max(figure + MARGIN_LEAST);
        if *value > bound {
            writeln!(excess, "{name}: {value:.2} a request, and {bound:.2} are allowed").expect("a string takes all");
        }
    }
    assert!(
        excess.is_empty(),
        "\n{excess}If it is worth that, say so in the commit and run: {UPDATE}=1 cargo test --test server counted"
    );
}

fn parse(text: &str) -> Figures {
    let figure = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(figure).collect()
}

/// The file with these figures in the place of those of the same names.
fn updated(text: &str, found: &Figures) -> String {
    let mut figures = parse(text);
    figures.extend(found.iter().map(|(name, value)| (name.clone(), *value)));
    let comments: String = text.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    figures.iter().fold(comments, |text, (name, value)| format!("{text}{name} {value:.2}\n"))
}
