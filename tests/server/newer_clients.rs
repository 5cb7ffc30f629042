//! All programs that NBD users have, of this distribution and of a newer one whose clients speak extended headers, each
//! without and with TLS.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::clients::{self, are_there, sha256, unix_uri};
use crate::support::{Home, finish, finish_within, skip, tcp_address};
use crate::tls;

/// Making the tree of newer clients downloads it.
const TREE_TIME_MAX: Duration = Duration::from_secs(600);
/// What the script says if it lacks something.
const EXIT_SKIPPED: i32 = 77;
const VOLUME_BYTES: usize = 64 << 20;
/// Data at the front; the rest of the volume is a hole.
const DATA_BYTES: usize = 24 << 20;

/// Where programs come from.
enum Programs {
    /// This machine.
    Installed,
    /// The tree that the script at the front has made.
    Tree { script: String, directory: String },
}

/// How they reach the volume `vol1`.
struct Access {
    /// For programs of libnbd, and fio.
    uri: String,
    /// For those of qemu: an object if there is TLS, and the image's options.
    object: Option<String>,
    options: String,
}

impl Programs {
    /// The newer ones; `None` if they cannot be had.
    #[track_caller]
    fn newer() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/newer-clients.sh");
        let script = script.to_str().expect("UTF-8").to_owned();
        let made = finish_within(Command::new(&script), TREE_TIME_MAX);
        if made.code == Some(EXIT_SKIPPED) {
            skip(made.stderr.trim().trim_start_matches("SKIP "));
            return None;
        }
        let directory = made.success().lines().last().expect("the directory is printed").to_owned();
        Some(Self::Tree { script, directory })
    }

    /// Runs one of them; it must succeed. Its stdout.
    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.run_with(None, program, arguments)
    }

    /// Runs a command of theirs as a user without privileges, who has this home directory.
    #[track_caller]
    fn run_as_user(&self, user_home: &Path, command: &[&str]) -> String {
        let no_user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let is_root = matches!(self, Self::Tree { .. }) || fs::metadata(user_home).is_ok_and(|home| home.uid() == 0);
        let become_user: &[&str] = if is_root { &no_user } else { &["--no-new-privs"] };
        self.run_with(Some(user_home), "setpriv", &[become_user, command].concat())
    }

    #[track_caller]
    fn run_with(&self, user_home: Option<&Path>, program: &str, arguments: &[&str]) -> String {
        let mut command = match self {
            Self::Installed => clients::command(program),
            Self::Tree { script, directory } => {
                let mut command = Command::new(script);
                command.args([directory.as_str(), program]);
                command
            }
        };
        command.args(arguments).envs(user_home.map(|home| ("HOME", home)));
        finish(command).success()
    }

    /// Runs one of qemu's with an image that is the volume, behind `before` and in front of `after`.
    #[track_caller]
    fn run_qemu(&self, access: &Access, program: &str, before: &[&str], after: &[&str]) -> String {
        let object = access.object.iter().flat_map(|object| ["--object", object.as_str()]);
        let (command, before) = before.split_at(usize::from(program == "qemu-img"));
        let image = ["--image-opts", access.options.as_str()];
        let arguments = command.iter().copied().chain(object).chain(before.iter().copied());
        self.run(program, &arguments.chain(image).chain(after.iter().copied()).collect::<Vec<_>>())
    }
}

/// Writes the volume and reads it with each program; what each shows must be what was written.
fn exercise(home: &Home, programs: &Programs, access: &Access) {
    let is_newer = matches!(programs, Programs::Tree { .. });
    let uri = access.uri.as_str();
    let info: Value = serde_json::from_str(&programs.run("nbdinfo", &["--json", uri])).expect("JSON");
    assert_eq!(info["exports"][0]["export-size"], VOLUME_BYTES, "{info}");
    assert_eq!(info["TLS"], access.object.is_some(), "{info}");
    assert_eq!(info["extended"] == true, is_newer, "{info}");

    // With a hole behind it, as programs that copy should see it.
    let (source, target) = (home.text("source"), home.text("target"));
    programs.run("nbdcopy", &[&source, uri]);
    programs.run("nbdcopy", &[uri, &target]);
    assert_eq!(sha256(&home.path("target")), sha256(&home.path("source")), "nbdcopy");
    check_map(&programs.run("nbdinfo", &["--map", "--json", uri]), "offset", |entry| entry["type"] == 0);
    check_map(&programs.run_qemu(access, "qemu-img", &["map", "--output=json"], &[]), "start", |entry| {
        entry["data"] == true
    });
    if is_newer {
        let dump = programs.run("nbddump", &["--length=16", "--no-color", uri]);
        let begin: Vec<String> = content()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(dump.contains(&begin[..8].join(" ")), "{dump}");
    }

    let info = programs.run_qemu(access, "qemu-img", &["info", "--output=json"], &[]);
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["virtual-size"], VOLUME_BYTES, "{info}");
    let qcow2 = home.text("image.qcow2");
    programs.run_qemu(access, "qemu-img", &["convert", "-O", "qcow2"], &[&qcow2]);
    let file = format!("driver=qcow2,file.driver=file,file.filename={qcow2}");
    programs.run_qemu(access, "qemu-img", &["compare"], &[&file]);
    let checked = "driver=raw,file.driver=file,file.filename=".to_owned() + &source;
    programs.run_qemu(access, "qemu-img", &["compare"], &[&checked]);
    // It takes no object, so it knows no TLS.
    if access.object.is_none() {
        let bench = programs.run_qemu(access, "qemu-img", &["bench", "-c", "512", "-d", "16", "-s", "4k"], &[]);
        assert!(bench.contains("Run completed"), "{bench}");
    }
    let script = ["-c", "write -P 7 1M 3M", "-c", "discard 2M 1M", "-c", "flush", "-c", "read -P 7 1M 1M"];
    let script = [&script[..], &["-c", "read -P 0 2M 1M", "-c", "write -z 3M 1M", "-c", "read -P 0 3M 1M"]].concat();
    let printed = programs.run_qemu(access, "qemu-io", &script, &[]);
    assert!(!printed.contains("failed") && printed.matches("read ").count() == 3, "{printed}");
    run_fio(home, programs, uri, access.object.is_some());
}

fn run_fio(home: &Home, programs: &Programs, uri: &str, is_tls: bool) {
    let fixed = ["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=16M"];
    let given = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--output-format=json"];
    let report = if is_tls {
        // Its engine takes no directory of certificates in an address. libnbd finds the user's, unless that is root.
        let (uri, _) = uri.split_once('?').expect("the directory is named");
        let user = user_with_certificates(&home.path("hv1"));
        let uri = format!("--uri={uri}");
        let arguments = [&["fio"][..], &fixed, &given, &[&uri]].concat();
        programs.run_as_user(user.path(), &arguments)
    } else {
        programs.run("fio", &[&fixed[..], &given, &[&format!("--uri={uri}")]].concat())
    };
    // Above the document fio may print remarks of its engine.
    let report: Value = serde_json::from_str(&report[report.find('{').expect("JSON")..]).expect("JSON");
    assert_eq!(report["jobs"][0]["error"], 0, "{report}");
    assert_eq!(report["jobs"][0]["read"]["io_bytes"], 16 << 20, "all is verified: {report}");
}

/// A home directory that anybody may read, with the certificates of a client where libnbd looks for a user's.
fn user_with_certificates(certificates: &Path) -> TempDir {
    let user = TempDir::new().expect("the temporary folder is writable");
    let place = user.path().join(".pki/libnbd");
    fs::create_dir_all(&place).expect("space");
    for entry in fs::read_dir(certificates).expect("they were made") {
        let copy = place.join(entry.as_ref().expect("readable").file_name());
        fs::copy(entry.expect("readable").path(), &copy).expect("space");
        fs::set_permissions(copy, Permissions::from_mode(0o644)).expect("it is ours");
    }
    fs::set_permissions(user.path(), Permissions::from_mode(0o755)).expect("it is ours");
    user
}

/// The map must be data at the front and nothing behind it.
#[track_caller]
fn check_map(printed: &str, start: &str, is_data: impl Fn(&Value) -> bool) {
    let map: Value = serde_json::from_str(printed).expect("JSON");
    let entries = map.as_array().expect("a list").iter();
    let seen: Vec<(u64, u64, bool)> = entries
        .map(|entry| {
            let number = |key: &str| entry[key].as_u64().unwrap_or_else(|| panic!("{key} of {entry}"));
            (number(start), number("length"), is_data(entry))
        })
        .collect();
    let (data, rest) = (DATA_BYTES as u64, (VOLUME_BYTES - DATA_BYTES) as u64);
    assert_eq!(seen, [(0, data, true), (data, rest, false)], "{printed}");
}

/// What the volume holds: no byte of it is zero, so that no program takes a part for a hole.
fn content() -> Vec<u8> {
    (0..DATA_BYTES).map(|index| u8::try_from(index * 31 % 251 + 1).expect("at most 251")).collect()
}

fn exercise_plain(programs: &Programs) {
    let home = Home::new();
    home.create_pool_of("pool", "256M");
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", "64M"]).success();
    write_source(&home);
    let path = clients::unix_socket(&home);
    let options = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=vol1",
        path.display()
    );
    exercise(&home, programs, &Access { uri: unix_uri(&home, "vol1"), object: None, options });
    serving.stop();
    home.check();
}

fn exercise_tls(programs: &Programs) {
    let (home, serving) = tls::served(&["--tls", "require"]);
    write_source(&home);
    let port = tcp_address(&home).port();
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", home.text("hv1"));
    let options = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,file.server.port={port},\
         file.export=vol1,file.tls-creds=tls0"
    );
    exercise(&home, programs, &Access { uri: tls::tls_uri(&home, "hv1"), object: Some(object), options });
    serving.stop();
    home.check();
}

fn write_source(home: &Home) {
    fs::write(home.path("source"), content()).expect("space");
    let file = fs::File::options().write(true).open(home.path("source")).expect("it is there");
    file.set_len(VOLUME_BYTES as u64).expect("a hole at the end");
}

const PROGRAMS: [&str; 6] = ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio", "openssl"];

#[test]
fn the_distributions_clients_work() {
    if are_there(&PROGRAMS) {
        exercise_plain(&Programs::Installed);
    }
}

#[test]
fn the_distributions_clients_work_over_tls() {
    if are_there(&PROGRAMS) {
        exercise_tls(&Programs::Installed);
    }
}

#[test]
fn newer_clients_work() {
    if let Some(programs) = Programs::newer() {
        exercise_plain(&programs);
    }
}

#[test]
fn newer_clients_work_over_tls() {
    if are_there(&["openssl"])
        && let Some(programs) = Programs::newer()
    {
        exercise_tls(&programs);
    }
}
