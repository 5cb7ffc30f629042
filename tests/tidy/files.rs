//! What holds for each file on its own: length, first line, blanks, paths of machines, unsafe code, printing.

use crate::tokens::{Token, paths_of, tokens_of};
use crate::tree::{SourceFile, Violation};

/// Past this, look for the second noun. Test code does not count.
const LINES_MAX: usize = 500;
/// A `mod.rs` is a front page.
const FRONT_PAGE_LINES_MAX: usize = 150;

/// Files with `unsafe`, and why it has to be there. Everywhere else it is refused.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("examples/lane_device.rs", "counts what its allocator is asked for"),
    ("fuzz/src/memory.rs", "counts what its allocator is asked for"),
    ("src/cli/bench/raw_side.rs", "entries of the ring point to buffers that they must not outlive"),
    ("src/cli/bench/ring_turn.rs", "entries of the ring point to a buffer that they must not outlive"),
    ("src/crypto/xts.rs", "AES-XTS is only in the C interface of AWS-LC"),
    ("src/daemon/host.rs", "limits and identity of the process are system calls"),
    ("src/disk/buffer.rs", "buffers that the kernel reads and writes, aligned by hand"),
    ("src/disk/file.rs", "free space of the file system is a system call"),
    ("src/disk/file/holes.rs", "punching and finding holes are system calls"),
    ("src/disk/file/lock.rs", "locks of an open file are a system call"),
    ("src/disk/file/tests.rs", "finding holes in a file is a system call"),
    ("src/disk/threads.rs", "threads read and write memory that a lane has lent to them"),
    ("src/disk/transfers.rs", "what transfers under way use is freed by hand, or never"),
    ("src/disk/uring.rs", "entries of the ring point to buffers that they must not outlive"),
    ("src/lane/alarm.rs", "an eventfd is made by a system call"),
    ("src/lane/driver/readiness.rs", "receives and sends into memory that the lane's calls name are system calls"),
    ("src/lane/driver/uring.rs", "entries of the ring point to buffers that they must not outlive"),
    ("src/lane/thread.rs", "accepted sockets come from the kernel as numbers"),
    ("src/pool/directory/key_file.rs", "who runs the process is a system call"),
    ("tests/mutants/switch.rs", "what runs at the end of a process is set by a C function"),
    ("tests/server/activation.rs", "descriptors are passed between fork and exec"),
    ("tests/server/host.rs", "a limit is set between fork and exec"),
    ("tests/server/refusal.rs", "a filter of system calls is installed between fork and exec"),
    ("tests/server/support.rs", "signals are sent by a system call"),
    ("ublk/src/command.rs", "commands are put on a ring and must outlive their completion"),
    ("ublk/src/device.rs", "writing back what is cached of a block device is a system call"),
    ("ublk/src/mapping.rs", "the driver's descriptors are memory that the kernel writes"),
    ("ublk/src/queue.rs", "the driver's descriptors are memory that the kernel writes"),
    ("ublk/src/ring.rs", "entries of the ring name memory that their caller keeps"),
    ("ublk/src/stand_in.rs", "commands of a stand-in are put on a ring"),
    ("ublk/examples/null_shared_ring.rs", "puts commands on the ring that it shares with the device"),
];

/// Suffixes of files whose blanks are checked; a Makefile and git's own files need tabs.
const TEXT_EXTENSIONS: &[&str] = &["rs", "toml", "md", "sh", "py", "fio", "json", "yml", "service", "rules"];

const PRINTING_MACROS: &[&str] = &["print", "println", "eprint", "eprintln", "dbg"];

/// Folders of one machine only. Put together here, so that this file does not hold what it looks for.
const MACHINE_FOLDERS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// A file that has grown a second noun, or a front page that has become a book.
pub(crate) fn length_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let is_test_code = file.is_test_code() && !file.path.starts_with("tests/");
        let count = if is_test_code { 0 } else { line_count_without_tests(&file.text) };
        let is_front_page = file.path.ends_with("/mod.rs");
        let count_max = if is_front_page { FRONT_PAGE_LINES_MAX } else { LINES_MAX };
        if count > count_max {
            let message = format!(
                "has {count} lines without tests, and at most {count_max} are allowed: look for the second noun"
            );
            violations.push(Violation::new(file, 0, message));
        }
    }
    violations
}

/// Test code stands at the end, from `#[cfg(test)]` at the start of a line.
fn line_count_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_test_module = |index: usize| {
        lines[index] == "#[cfg(test)]"
            && lines.get(index + 1).is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'))
    };
    (0..lines.len()).find(|&index| is_test_module(index)).unwrap_or(lines.len())
}

/// A Rust file that does not begin with what it is for.
pub(crate) fn first_line_violations(files: &[SourceFile]) -> Vec<Violation> {
    let says_what_for = |file: &SourceFile| {
        let purpose = file.text.lines().next().and_then(|line| line.strip_prefix("//! "));
        purpose.is_some_and(|purpose| purpose.split_whitespace().count() >= 2)
    };
    files
        .iter()
        .filter(|file| file.is_rust() && !says_what_for(file))
        .map(|file| Violation::new(file, 1, "does not begin with `//! ` and a sentence on what it is for"))
        .collect()
}

/// Tabs, blanks at the end of a line, and files that do not end with a line's end.
pub(crate) fn blank_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| TEXT_EXTENSIONS.iter().any(|extension| file.has_extension(extension))) {
        for (index, line) in file.text.lines().enumerate() {
            if line.contains('\t') {
                violations.push(Violation::new(file, index + 1, "has a tab"));
            }
            if line.ends_with([' ', '\t', '\r']) {
                violations.push(Violation::new(file, index + 1, "has blanks at the end"));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            violations.push(Violation::new(file, file.text.lines().count(), "does not end with a line's end"));
        }
    }
    violations
}

/// A path that exists on the machine of whoever wrote it.
pub(crate) fn machine_path_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            let found = MACHINE_FOLDERS
                .iter()
                .find(|folder| line.match_indices(*folder).any(|(at, _)| is_path_start(line, at)));
            violations.extend(
                found.map(|folder| {
                    Violation::new(file, index + 1, format!("names `{folder}`, which is not everywhere"))
                }),
            );
        }
    }
    violations
}

/// Whether a path begins at `at`, rather than going on there (`$ROOT/...`, `a/b/...`).
fn is_path_start(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    before.is_none_or(|sign| !(sign.is_alphanumeric() || "_-./}$)*\\~".contains(sign)))
}

/// `unsafe` outside of the files that name their reason, and reasons that nothing needs any more.
pub(crate) fn unsafe_violations(files: &[SourceFile], allowed: &[(&str, &str)]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let first_line = tokens_of(file).iter().find(|token| token.text == "unsafe").map(|token| token.line);
        let is_allowed = allowed.iter().any(|(path, reason)| *path == file.path && !reason.is_empty());
        match (first_line, is_allowed) {
            (Some(line), false) => {
                violations.push(Violation::new(
                    file,
                    line,
                    "has `unsafe`, and the list of UNSAFE_FILES gives no reason",
                ));
            }
            (None, true) => violations.push(Violation::new(file, 0, "has no `unsafe`: take it off UNSAFE_FILES")),
            (Some(_), true) | (None, false) => {}
        }
    }
    let gone = allowed.iter().filter(|(path, _)| !files.iter().any(|file| file.path == *path));
    violations.extend(gone.map(|(path, _)| Violation::of_path(path, "is gone: take it off UNSAFE_FILES")));
    violations
}

/// Printing outside of the command line: a daemon logs, a library returns.
pub(crate) fn print_violations(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let is_command_line = |file: &SourceFile| file.path == "src/cli.rs" || file.path.starts_with("src/cli/");
    for file in files.iter().filter(|file| file.is_rust() && file.is_shipped() && !is_command_line(file)) {
        let tokens: Vec<Token> = tokens_of(file).into_iter().filter(|token| !token.is_test).collect();
        for path in paths_of(&tokens).iter().filter(|path| path.is_macro) {
            let name = path.segments.last().filter(|name| PRINTING_MACROS.contains(&name.as_str()));
            violations.extend(name.map(|name| {
                Violation::new(
                    file,
                    path.line,
                    format!("`{name}!` is for the command line: log with tracing, or return it"),
                )
            }));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_lines, assert_none, read_tree};

    fn sample(text: &str) -> [SourceFile; 1] {
        [SourceFile::sample("src/map/leaf.rs", text)]
    }

    #[test]
    fn files_have_one_noun() {
        assert_none(&length_violations(&read_tree()));
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        let code = "fn f() {}\n";
        let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", code.repeat(LINES_MAX), code.repeat(9));
        assert_none(&length_violations(&sample(&with_tests)));
        assert_lines(&length_violations(&sample(&code.repeat(LINES_MAX + 1))), &[0]);
        let front_page = SourceFile::sample("src/map/mod.rs", &code.repeat(FRONT_PAGE_LINES_MAX + 1));
        assert_lines(&length_violations(&[front_page]), &[0]);
        let early_test_item = format!("#[cfg(test)]\nmod tests;\n{}", code.repeat(LINES_MAX));
        assert_lines(&length_violations(&sample(&early_test_item)), &[0]);
    }

    #[test]
    fn files_begin_with_what_they_are_for() {
        assert_none(&first_line_violations(&read_tree()));
    }

    #[test]
    fn files_that_begin_otherwise_are_found() {
        assert_lines(&first_line_violations(&sample("use a::b;\n//! Leaves of the map.\n")), &[1]);
        assert_lines(&first_line_violations(&sample("//! x\n")), &[1]);
        assert_lines(&first_line_violations(&sample("")), &[1]);
        assert_none(&first_line_violations(&sample("//! Leaves of the map.\n")));
    }

    #[test]
    fn files_have_no_stray_blanks() {
        assert_none(&blank_violations(&read_tree()));
    }

    #[test]
    fn stray_blanks_are_found() {
        assert_lines(&blank_violations(&sample("a\n\tb\nc \nd\r\ne")), &[2, 3, 5]);
        assert_lines(&blank_violations(&sample("a\nb\r \n")), &[2]);
    }

    #[test]
    fn no_file_names_a_folder_of_one_machine() {
        assert_none(&machine_path_violations(&read_tree()));
    }

    #[test]
    fn folders_of_one_machine_are_found_and_parts_of_other_paths_are_not() {
        for folder in MACHINE_FOLDERS {
            let text = format!("// see {folder}x\n\"{folder}x\"\n{folder}x\n$IMAGE{folder}x\n/mnt{folder}x\n");
            assert_lines(&machine_path_violations(&sample(&text)), &[1, 2, 3]);
        }
    }

    #[test]
    fn unsafe_code_is_where_it_has_a_reason() {
        assert_none(&unsafe_violations(&read_tree(), UNSAFE_FILES));
    }

    #[test]
    fn unsafe_code_without_reason_and_reasons_without_unsafe_code_are_found() {
        let files = sample("// unsafe in words\nfn f() { unsafe { g() } }\n");
        assert_lines(&unsafe_violations(&files, &[]), &[2]);
        assert_lines(&unsafe_violations(&files, &[("src/map/leaf.rs", "")]), &[2]);
        assert_none(&unsafe_violations(&files, &[("src/map/leaf.rs", "why")]));
        assert_lines(&unsafe_violations(&sample("fn f() {}"), &[("src/map/leaf.rs", "why")]), &[0]);
        assert_lines(&unsafe_violations(&[], &[("src/map/leaf.rs", "why")]), &[0]);
    }

    #[test]
    fn only_the_command_line_prints() {
        assert_none(&print_violations(&read_tree()));
    }

    #[test]
    fn printing_elsewhere_is_found() {
        let text =
            "fn f() {\n println!(\"x\");\n std::eprintln!();\n}\n#[cfg(test)]\nmod tests { fn g() { dbg!(1); } }\n";
        assert_lines(&print_violations(&sample(text)), &[2, 3]);
        assert_lines(&print_violations(&[SourceFile::sample("nbd/src/uri.rs", text)]), &[2, 3]);
        assert_none(&print_violations(&[SourceFile::sample("src/cli/table.rs", text)]));
        assert_none(&print_violations(&[SourceFile::sample("src/map/leaf_tests.rs", text)]));
    }
}
