//! Nothing of a volume is on the pool's disks in clear, and nothing of the key outside of the key file.
//!
//! What proves that the search works: without encryption it finds every canary on every path.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::nbd_client::NbdClient;
use crate::scan::Needles;
use crate::support::{Home, Serving, finish, skip};

const MIB: u64 = 1 << 20;
/// Names that mean nothing, so that they are nowhere by chance.
const VOLUME: &str = "volume-kvxqzwjy";
const OLD_VOLUME: &str = "oldname-qzjxvkwy";
/// The ways into the pool; each has a canary of its own.
const PATHS: [&str; 5] = ["large", "block", "sub-block", "sub-block over data", "log only"];
/// Of a canary.
const CANARY_BYTES: usize = 256;

/// Bytes that are nowhere by chance: the canary of a path.
fn canary(path: &str) -> Vec<u8> {
    let words = (0_u64..).flat_map(|counter| {
        let hash = blake3::derive_key("rok-blk tests canary", format!("{path} {counter}").as_bytes());
        hash.into_iter()
    });
    words.take(CANARY_BYTES).collect()
}

fn needles() -> Needles {
    let mut needles = Needles::default();
    for path in PATHS {
        needles.add_pieces(path, &canary(path));
    }
    needles.add("name", VOLUME.as_bytes());
    needles.add("old name", OLD_VOLUME.as_bytes());
    needles
}

/// A pool, its daemons and what they said.
struct Scene {
    home: Home,
    is_encrypted: bool,
    /// Names of the needles found in the pool's files, at any time.
    found: BTreeSet<String>,
    scanned_bytes: u64,
    said: Vec<String>,
}

impl Scene {
    fn new(is_encrypted: bool) -> Self {
        let home = Home::new();
        let (pool, key) = (home.text("pool"), home.text("pool.key"));
        let arguments = ["pool", "create", &pool, "--size", "64M"];
        let further: &[&str] =
            if is_encrypted { &["--key-file", &key, "--generate-key"] } else { &["--no-encryption"] };
        home.run(arguments.iter().chain(further)).success();
        Self { home, is_encrypted, found: BTreeSet::new(), scanned_bytes: 0, said: Vec::new() }
    }

    fn serve(&self) -> Serving {
        let (pool, key) = (self.home.text("pool"), self.home.text("pool.key"));
        let further: &[&str] = if self.is_encrypted { &["--key-file", &key] } else { &[] };
        let mut command = self.home.command(["serve", "--pool", &pool].iter().chain(further));
        command.env("ROK_LOG", "trace");
        Serving::start(command)
    }

    fn connect(&self, export: &str) -> NbdClient {
        NbdClient::connect(&self.home.path("run/rok-blk/nbd.sock"), export).expect("the server is ready")
    }

    fn scan(&mut self) {
        let (found, bytes) = needles().in_directory(&self.home.path("pool"));
        self.scanned_bytes += bytes;
        self.found.extend(found.into_iter().map(|(name, _)| name));
    }

    /// Writes on every path and looks at the pool after each of its states: killed, recovered, closed.
    fn play(&mut self) {
        let serving = self.serve();
        self.home.run(["create", OLD_VOLUME, "--size", "1G"]).success();
        self.home.run(["rename", OLD_VOLUME, VOLUME]).success();
        let mut client = self.connect(VOLUME);
        let large = canary("large").repeat(usize::try_from(MIB).expect("1 MiB") / CANARY_BYTES);
        client.write(0, &large);
        client.write(2 * MIB, &canary("block").repeat(4096 / CANARY_BYTES));
        client.write(3 * MIB + 512, &canary("sub-block"));
        client.write(4 * MIB, &[1; 4096]);
        client.write(4 * MIB + 1024, &canary("sub-block over data"));
        client.flush();
        client.disconnect();
        self.close(serving);
        self.scan();

        let serving = self.serve();
        let mut client = self.connect(VOLUME);
        client.write(5 * MIB, &canary("log only").repeat(4096 / CANARY_BYTES));
        serving.kill();
        self.scan();

        let serving = self.serve();
        let mut client = self.connect(VOLUME);
        assert_eq!(client.read(5 * MIB, 256), canary("log only"));
        assert_eq!(client.read(3 * MIB + 512, 256), canary("sub-block"));
        assert_eq!(client.read(4 * MIB + 1024, 256), canary("sub-block over data"));
        serving.kill();
        self.scan();

        let serving = self.serve();
        self.close(serving);
        self.scan();
    }

    fn close(&mut self, serving: Serving) {
        serving.signal(libc::SIGTERM);
        let (status, _, said) = serving.wait();
        assert!(status.success(), "{said:#?}");
        self.said.extend(said);
    }
}

#[test]
fn without_encryption_the_search_finds_everything() {
    let mut scene = Scene::new(false);

    scene.play();

    let all: BTreeSet<String> = PATHS.into_iter().chain(["name", "old name"]).map(str::to_owned).collect();
    assert_eq!(scene.found, all);
}

#[test]
fn nothing_of_a_volume_is_in_the_pool_in_clear() {
    let mut scene = Scene::new(true);

    scene.play();

    println!("{} bytes searched", scene.scanned_bytes);
    assert_eq!(scene.found, BTreeSet::new());
    assert!(scene.scanned_bytes > 4 * 64 * MIB, "four times the whole pool: {}", scene.scanned_bytes);
}

#[test]
fn nothing_of_the_key_or_the_data_is_in_the_pool_or_the_log() {
    let mut scene = Scene::new(true);
    scene.play();
    let key = fs::read(scene.home.path("pool.key")).expect("the key");
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut secrets = needles_of_key(&key);
    for path in PATHS {
        secrets.add_pieces(path, &canary(path));
        let canary_hex: String = canary(path).iter().map(|byte| format!("{byte:02x}")).collect();
        secrets.add_pieces(path, canary_hex.as_bytes());
    }

    let log = scene.said.join("\n");
    assert!(log.contains("checkpoint begins"), "the log tells details: {log}");
    assert_eq!(secrets.in_bytes(log.as_bytes()), BTreeSet::new());
    assert_eq!(secrets.in_bytes(log.to_lowercase().as_bytes()), BTreeSet::new());
    assert_eq!(secrets.in_directory(&scene.home.path("pool")).0, BTreeSet::new());
    // The search itself finds the key where it is.
    assert!(!secrets.in_bytes(&key).is_empty() && !secrets.in_bytes(hex.as_bytes()).is_empty());
}

fn needles_of_key(key: &[u8]) -> Needles {
    let mut needles = Needles::default();
    needles.add_pieces("key", key);
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    needles.add_pieces("key in hex", hex.as_bytes());
    needles
}

#[test]
fn a_serving_process_that_aborts_leaves_no_core() {
    let home = Home::with_pool();
    let serving = home.serve(&[]);

    serving.signal(libc::SIGABRT);
    let (status, _, said) = serving.wait();

    assert_eq!(status.signal(), Some(libc::SIGABRT), "{said:#?}");
    assert!(!status.core_dumped(), "{status}");
}

/// A user without rights, where this is run by root, who may read every process.
const NOBODY: &str = "65534";

#[test]
fn not_even_its_own_user_can_read_a_serving_process_unless_it_is_allowed() {
    let has_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !has_root {
        skip("needs root to serve as another user than this one");
        return;
    }
    let home = Home::new();
    let binary = home.path("rok-blk");
    fs::copy(env!("CARGO_BIN_EXE_rok-blk"), &binary).expect("a copy that nobody may run");
    finish(chown(&home)).success();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let create = ["pool", "create", &pool, "--size", "64M", "--key-file", &key, "--generate-key"];
    finish(as_nobody(&home, &binary, &create)).success();
    let secret = fs::read(home.path("pool.key")).expect("the key");

    for (allow, is_readable) in [("0", false), ("1", true)] {
        let mut command = as_nobody(&home, &binary, &["serve", "--pool", &pool, "--key-file", &key]);
        command.env("ROK_ALLOW_CORE", allow);
        let serving = Serving::start(command);
        let memory = format!("/proc/{}/mem", serving.process_id());
        let result = finish(as_nobody(&home, Path::new("dd"), &[&format!("if={memory}"), "of=/dev/null", "count=0"]));
        assert_eq!(result.code == Some(0), is_readable, "{result:?}");
        if Command::new("gcore").output().is_ok() {
            let core = home.text(&format!("core-{allow}"));
            let process = serving.process_id().to_string();
            let result = finish(as_nobody(&home, Path::new("gcore"), &["-o", &core, &process]));
            let path = PathBuf::from(format!("{core}.{process}"));
            assert_eq!(path.exists(), is_readable, "{result:?}");
            if is_readable {
                let found = needles_of_key(&secret).in_bytes(&fs::read(&path).expect("the core"));
                assert_eq!(found, BTreeSet::new(), "the key file's content is wiped once the master key is open");
            }
        } else {
            println!("gcore is not installed: only /proc was tried");
        }
        serving.stop();
    }
}

fn chown(home: &Home) -> Command {
    let mut command = Command::new("chown");
    command.args(["-R", &format!("{NOBODY}:{NOBODY}"), &home.text("")]);
    command
}

/// A command of the user without rights, with `home`'s directories.
fn as_nobody(home: &Home, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"])
        .arg(program)
        .args(arguments)
        .env_remove("ROK_SOCKET")
        .env("HOME", home.path(""))
        .env("XDG_DATA_HOME", home.path("data"))
        .env("XDG_RUNTIME_DIR", home.path("run"))
        .current_dir(home.path(""));
    command
}
