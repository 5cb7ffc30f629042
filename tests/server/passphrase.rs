//! Passphrases: where they come from, what they open, and who gets to see them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use crate::scan::Needles;
use crate::support::{Home, OTHER_PASSPHRASE, PASSPHRASE, POOL_SIZE, Serving, WAIT_MAX, finish, skip};

/// A pipe that holds `text`, to be somebody's standard input.
fn input(text: &str) -> std::io::PipeReader {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(text.as_bytes()).expect("a pipe holds this much");
    reader
}

/// `inner`, started by another program.
fn wrapped(program: &str, arguments: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    copy_environment(inner, &mut command);
    command
}

fn copy_environment(source: &Command, target: &mut Command) {
    for (name, value) in source.get_envs() {
        match value {
            Some(value) => target.env(name, value),
            None => target.env_remove(name),
        };
    }
}

#[test]
fn a_passphrase_opens_the_pool_that_was_created_with_it() {
    let (home, file) = Home::with_passphrase();
    assert!(home.run(["pool", "show", &home.text("pool")]).success().contains("0: passphrase"));

    let serving = home.serve_with(&["--passphrase-file", &file]);
    home.run(["create", "vol1", "--size", "1G"]).success();
    serving.stop();

    let wrong = home.passphrase_file("wrong", OTHER_PASSPHRASE);
    let message = home.serve_fails(&["--passphrase-file", &wrong]).failure(10);
    assert!(message.contains("The passphrase does not open"), "{message}");
    let message = home.serve_fails(&[]).failure(10);
    assert!(message.contains("--passphrase"), "{message}");
    home.create_pool("other");
    home.serve_fails(&["--key-file", &home.text("other.key")]).failure(10);
    let _serving = home.serve_with(&["--passphrase-file", &file]);
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\n");
}

#[test]
fn a_passphrase_comes_from_standard_input() {
    let home = Home::new();
    let pool = home.text("pool");
    let mut create = home.command(["pool", "create", &pool, "--size", POOL_SIZE, "--passphrase-file", "-"]);
    create.stdin(input(PASSPHRASE));
    finish(create).success();

    for (text, code) in [(OTHER_PASSPHRASE, 10), ("short", 10), ("", 10)] {
        let mut command = home.command(["serve", "--pool", &pool, "--passphrase-file", "-"]);
        command.stdin(input(text));
        finish(command).failure(code);
    }
    let mut command = home.command(["serve", "--pool", &pool, "--passphrase-file", "-"]);
    // Only the first line counts.
    command.stdin(input(&format!("{PASSPHRASE}\nmore")));
    Serving::start(command).stop();
}

#[test]
fn a_passphrase_is_in_neither_arguments_environment_nor_memory_of_the_process() {
    let (home, file) = Home::with_passphrase();
    let mut command = home.command(["serve", "--pool", &home.text("pool"), "--passphrase-file", &file]);
    // Else nobody but root could look.
    command.env("ROK_ALLOW_CORE", "1").env("ROK_LOG", "trace");
    let serving = Serving::start(command);
    let process = format!("/proc/{}", serving.process_id());
    let mut needles = Needles::default();
    needles.add("passphrase", PASSPHRASE.as_bytes());
    needles.add("option", b"--passphrase-file");
    needles.add("variable", b"XDG_RUNTIME_DIR=");

    let arguments = needles.in_bytes(&fs::read(format!("{process}/cmdline")).expect("readable"));
    let environment = needles.in_bytes(&fs::read(format!("{process}/environ")).expect("readable"));

    // What is there is found, so what is not found is not there.
    assert_eq!(arguments.into_iter().collect::<Vec<_>>(), ["option"]);
    assert_eq!(environment.into_iter().collect::<Vec<_>>(), ["variable"]);
    match memory_of(&process) {
        Ok(memory) => {
            let found: Vec<_> = memory.iter().flat_map(|region| needles.in_bytes(region)).collect();
            assert!(found.iter().any(|name| name == "option"), "the arguments are in its memory: {found:?}");
            assert!(!found.iter().any(|name| name == "passphrase"), "it was not wiped");
        }
        Err(error) => skip(&format!("this system keeps the memory of processes from their user: {error}")),
    }
    serving.signal(libc::SIGTERM);
    let (_, _, said) = serving.wait();
    assert!(!needles.in_bytes(said.join("\n").as_bytes()).contains("passphrase"), "{said:#?}");
}

/// What the process can write to: heap, stacks, data.
fn memory_of(process: &str) -> std::io::Result<Vec<Vec<u8>>> {
    let memory = File::open(format!("{process}/mem"))?;
    let mut regions = Vec::new();
    for line in fs::read_to_string(format!("{process}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').expect("a range and the rest");
        if !rest.starts_with("rw-p") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("two addresses");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        let mut bytes = vec![0; usize::try_from(end - start).expect("64-bit")];
        memory.read_exact_at(&mut bytes, start)?;
        regions.push(bytes);
    }
    Ok(regions)
}

#[test]
fn a_passphrase_file_that_others_can_read_is_refused() {
    let (home, file) = Home::with_passphrase();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");

    let message = home.serve_fails(&["--passphrase-file", &file]).failure(10);

    assert!(message.contains(&format!("chmod 600 {file}")), "{message}");
}

#[test]
fn without_a_terminal_there_is_nobody_to_ask() {
    let (home, _) = Home::with_passphrase();
    let inner = home.command(["serve", "--pool", &home.text("pool"), "--passphrase"]);

    // In a session of its own, which has no terminal even where this test has one.
    let message = finish(wrapped("setsid", &["--wait"], &inner)).failure(2);

    assert!(message.contains("--passphrase-file"), "{message}");
}

#[test]
fn one_way_to_open_a_pool_is_enough() {
    let (home, file) = Home::with_passphrase();
    let (pool, key) = (home.text("pool"), home.text("key"));

    for two in [["--passphrase", "--key-file", &key], ["--passphrase", "--passphrase-file", &file]] {
        home.serve_fails(&two).failure(2);
        home.run(["pool", "create", &home.text("new"), "--size", POOL_SIZE].iter().chain(&two)).failure(2);
    }
    home.run(["pool", "create", &home.text("new"), "--size", POOL_SIZE, "--passphrase-file", &file, "--no-encryption"])
        .failure(2);
    // A passphrase behind the option is no argument of it.
    home.run(["serve", "--pool", &pool, "--passphrase", PASSPHRASE]).failure(2);
}

/// A command on a terminal of its own, and what appears there; behind it, how it left the terminal.
struct Terminal {
    child: std::process::Child,
    device: String,
    seen: String,
    output: Receiver<Vec<u8>>,
}

impl Terminal {
    fn start(inner: &Command) -> Self {
        let words: Vec<_> = [inner.get_program()].into_iter().chain(inner.get_args()).collect();
        let quoted: Vec<String> =
            words.iter().map(|word| format!("'{}'", word.to_str().expect("UTF-8, without quotes"))).collect();
        let mut command = Command::new("script");
        let line = format!("tty; {}; code=$?; stty -a; exit $code", quoted.join(" "));
        command.args(["-qec", &line, "/dev/null"]);
        copy_environment(inner, &mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script is there");
        let mut stdout = child.stdout.take().expect("a pipe");
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut terminal = Self { child, device: String::new(), seen: String::new(), output };
        terminal.wait_for("\n");
        terminal.device = terminal.seen.lines().next().expect("a line").trim().to_owned();
        terminal
    }

    fn wait_for(&mut self, words: &str) {
        let deadline = Instant::now() + WAIT_MAX;
        while !self.seen.contains(words) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else {
                panic!("{words:?} never appeared, but {:?}", self.seen);
            };
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Answers a prompt, as soon as the terminal does not show what is typed any more.
    fn answer(&mut self, prompt: &str, line: &str) {
        self.wait_for(prompt);
        let deadline = Instant::now() + WAIT_MAX;
        while !self.is_silent() {
            assert!(Instant::now() < deadline, "the terminal shows what is typed");
        }
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "{line}").expect("it reads");
    }

    fn is_silent(&self) -> bool {
        let output = Command::new("stty").args(["-F", &self.device, "-a"]).output().expect("stty is there");
        String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == "-echo")
    }

    /// Its exit code and all that appeared.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + WAIT_MAX;
        while let Ok(bytes) = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        assert!(Instant::now() < deadline, "it did not end: {:?}", self.seen);
        (self.child.wait().expect("it can be waited for").code(), self.seen)
    }
}

#[test]
fn a_passphrase_is_asked_for_twice_and_never_shown() {
    let home = Home::new();
    let pool = home.text("pool");
    let create = home.command(["pool", "create", &pool, "--size", POOL_SIZE, "--passphrase"]);

    let mut terminal = Terminal::start(&create);
    terminal.answer("New passphrase: ", PASSPHRASE);
    terminal.answer("The same again: ", OTHER_PASSPHRASE);
    let (code, seen) = terminal.end();
    assert_eq!(code, Some(2), "{seen}");
    assert!(seen.contains("differ") && !Path::new(&pool).exists(), "{seen}");

    let mut terminal = Terminal::start(&create);
    terminal.answer("New passphrase: ", PASSPHRASE);
    terminal.answer("The same again: ", PASSPHRASE);
    let (code, seen) = terminal.end();
    assert_eq!(code, Some(0), "{seen}");
    assert!(!seen.contains(PASSPHRASE), "{seen}");

    let mut terminal = Terminal::start(&home.command(["serve", "--pool", &pool, "--passphrase"]));
    terminal.answer("Passphrase: ", OTHER_PASSPHRASE);
    let (code, seen) = terminal.end();
    assert_eq!(code, Some(10), "{seen}");
    assert!(!seen.contains(OTHER_PASSPHRASE), "{seen}");
    let file = home.passphrase_file("passphrase", PASSPHRASE);
    home.serve_with(&["--passphrase-file", &file]).stop();
}

#[test]
fn an_interrupted_prompt_leaves_the_terminal_as_it_was() {
    const CTRL_C: &str = "\u{3}";
    let home = Home::new();
    let create = home.command(["pool", "create", &home.text("pool"), "--size", POOL_SIZE, "--passphrase"]);

    let mut terminal = Terminal::start(&create);
    terminal.answer("New passphrase: ", CTRL_C);
    let (code, seen) = terminal.end();

    assert_eq!(code, Some(130), "{seen}");
    let settings: Vec<&str> = seen.split_whitespace().collect();
    for setting in ["echo", "icanon", "isig"] {
        assert!(settings.contains(&setting), "{setting}: {seen}");
    }
    assert!(!home.path("pool").exists());
}
