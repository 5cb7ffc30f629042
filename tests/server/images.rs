//! Disk images and verified load, brought by the clients that people have, to the real program.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use serde_json::Value;

use crate::clients::{self, are_there, copy, sha256, unix_uri};
use crate::quickstart::one_at_a_time;
use crate::support::{Home, Serving, finish, skip, tcp_address};

const MIB: u64 = 1 << 20;
/// Holds two images and what is not free before the next checkpoint.
const POOL_SIZE: &str = "256M";
const IMAGE_MIB: u64 = 48;
/// Of an image, what random bytes take; the rest is the project's own source, and free space.
const RANDOM_MIB: u64 = 16;

/// A pool of `POOL_SIZE` with the volume `vol1` of `IMAGE_MIB`, served.
fn serve_volume() -> (Home, Serving) {
    let home = Home::new();
    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
    let serving = home.serve(&[]);
    home.run(["create", "vol1", "--size", &format!("{IMAGE_MIB}M")]).success();
    (home, serving)
}

/// Makes an ext4 file system with the project's source and a file that depends on `seed`.
fn make_image(image: &Path, seed: u64) {
    let tree = image.with_extension("tree");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    fs::create_dir(&tree).expect("a directory");
    clients::run("cp", ["-r".as_ref(), source.as_os_str(), tree.as_os_str()]);
    let mut random = vec![0; usize::try_from(RANDOM_MIB * MIB).expect("it fits in memory")];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut random);
    fs::write(tree.join("random"), random).expect("a file");
    let size = format!("{IMAGE_MIB}M");
    let fixed = ["-q", "-t", "ext4", "-d"].map(AsRef::as_ref);
    let changing = [tree.as_os_str(), image.as_os_str(), size.as_ref()];
    clients::run("mke2fs", fixed.into_iter().chain(changing));
}

#[test]
fn clients_are_offered_all_that_the_volume_can_do() {
    if !are_there(&["qemu-img", "nbdinfo"]) {
        return;
    }
    let (home, serving) = serve_volume();
    let uri = format!("nbd://{}/vol1", tcp_address(&home));

    let info = clients::run("qemu-img", ["info", "--output=json", &uri]);
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["virtual-size"], IMAGE_MIB * MIB, "{info}");
    assert_eq!(info["format"], "raw", "{info}");

    let info = clients::run("nbdinfo", ["--json", &uri]);
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
    assert_eq!(info["structured"], true, "{info}");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], IMAGE_MIB * MIB, "{export}");
    assert_eq!(export["is_read_only"], false, "{export}");
    for offer in ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_multi_conn", "can_df"] {
        assert_eq!(export[offer], true, "{offer} of {export}");
    }
    serving.stop();
}

#[test]
fn an_image_comes_out_as_it_went_in() {
    if !are_there(&["nbdcopy", "mke2fs"]) {
        return;
    }
    let (home, serving) = serve_volume();
    let (first, second, copied) = (home.path("first"), home.path("second"), home.path("copied"));
    make_image(&first, 1);
    make_image(&second, 2);
    let unix = unix_uri(&home, "vol1");
    let tcp = format!("nbd://{}/vol1", tcp_address(&home));

    copy(&first, &unix);
    copy(&tcp, &copied);
    assert_eq!(sha256(&copied), sha256(&first));

    // Over the first one: what is zero in the second must become zero.
    copy(&second, &tcp);
    copy(&unix, &copied);
    assert_eq!(sha256(&copied), sha256(&second));
    serving.stop();

    let serving = home.serve(&[]);
    copy(&unix, &copied);
    assert_eq!(sha256(&copied), sha256(&second), "after a restart");
    serving.stop();
}

#[test]
fn a_qcow2_image_is_converted_into_a_volume_and_back() {
    if !are_there(&["qemu-img", "mke2fs"]) {
        return;
    }
    let (home, serving) = serve_volume();
    let (raw, qcow2, back) = (home.text("raw"), home.text("image.qcow2"), home.text("back"));
    make_image(&home.path("raw"), 3);
    clients::run("qemu-img", ["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    let uri = unix_uri(&home, "vol1");

    clients::run("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", &qcow2, &uri]);

    clients::run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", &qcow2, &uri]);
    clients::run("qemu-img", ["convert", "-f", "raw", "-O", "raw", &uri, &back]);
    assert_eq!(sha256(&home.path("back")), sha256(&home.path("raw")));
    serving.stop();
}

#[test]
fn fio_reads_back_what_it_wrote() {
    if !are_there(&["fio"]) {
        return;
    }
    if !clients::run("fio", ["--enghelp"]).lines().any(|line| line.trim() == "nbd") {
        return skip("this fio has no nbd engine");
    }
    let (home, serving) = serve_volume();
    let uri = format!("--uri={}", unix_uri(&home, "vol1"));
    let size = format!("--size={IMAGE_MIB}M");
    // On stdout the engine writes too.
    let output = format!("--output={}", home.text("report"));
    // The last one's requests are smaller than a block, or begin within one.
    let loads = [
        ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        ["--rw=write", "--bs=1m", "--iodepth=4"],
        ["--rw=randwrite", "--bsrange=512-128k", "--iodepth=16"],
    ];
    for load in loads {
        let fixed = ["--name=verify", "--ioengine=nbd", "--verify=crc32c", "--verify_fatal=1", "--output-format=json"];
        let given = [uri.as_str(), size.as_str(), output.as_str(), "--randseed=7919", "--verify_state_save=0"];
        clients::run("fio", fixed.into_iter().chain(given).chain(load));
        let report = fs::read_to_string(home.path("report")).expect("a report");
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{load:?}: {job}");
        assert_eq!(job["write"]["io_bytes"], IMAGE_MIB * MIB, "{load:?}: {job}");
        assert_eq!(job["read"]["io_bytes"], IMAGE_MIB * MIB, "{load:?}: all is verified: {job}");
    }
    serving.stop();
}

#[test]
fn the_first_journey_works_as_it_is_printed() {
    const NBD_PORT: u16 = 10809;
    if !are_there(&["qemu-img", "nbdcopy", "mke2fs"]) {
        return;
    }
    let _alone = one_at_a_time();
    // Whoever has it, if not this test: it is taken.
    let taken = TcpListener::bind(("127.0.0.1", NBD_PORT));
    let home = Home::new();
    make_image(&home.path("disk.img"), 4);

    let first = Serving::start(home.command(["quickstart", "--pool-size", POOL_SIZE]));
    assert!(first.said.iter().any(|line| line.starts_with("Port 10809 is taken")), "{:#?}", first.said);
    let commands: Vec<&str> = first.said.iter().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(commands.len(), 3, "{:#?}", first.said);
    let shown: Vec<String> = commands.iter().map(|command| run_as_printed(&home, command)).collect();
    assert!(shown[0].contains("10 GiB"), "{}", shown[0]);
    assert!(shown[2].contains("vol1") || shown[2].contains("pool"), "{}", shown[2]);
    let tcp_command = commands[0].to_owned();
    let [tcp, unix] = stop_and_take_uris(first);
    assert!(tcp_command.contains(&tcp), "{tcp} in {tcp_command}");
    drop(taken);

    let second = Serving::start(home.command(["quickstart"]));
    let count = format!("count={IMAGE_MIB}");
    let (from, to) = (format!("if={unix}"), format!("of={}", home.text("copied")));
    clients::run("qemu-img", ["dd", "-f", "raw", "-O", "raw", "bs=1M", &count, &from, &to]);
    assert_eq!(sha256(&home.path("copied")), sha256(&home.path("disk.img")));
    let [_, unix_again] = stop_and_take_uris(second);
    assert_eq!(unix_again, unix, "the socket stays where it was");
}

/// Runs a printed command in a shell, in the directory with `disk.img`. What it shows.
#[track_caller]
fn run_as_printed(home: &Home, command: &str) -> String {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(home.path("."))
        .env_remove("ROK_SOCKET")
        .env("HOME", home.path("."))
        .env("XDG_DATA_HOME", home.path("data"))
        .env("XDG_RUNTIME_DIR", home.path("run"));
    finish(shell).success()
}

/// Ends the program as Ctrl-C does. The URI over TCP and the one over the unix socket that it printed.
#[track_caller]
fn stop_and_take_uris(serving: Serving) -> [String; 2] {
    serving.signal(libc::SIGINT);
    let (status, printed, said) = serving.wait();
    assert_eq!(status.code(), Some(0), "{said:#?}");
    ["nbd://", "nbd+unix://"].map(|beginning| {
        let uri = printed.lines().find(|line| line.starts_with(beginning));
        uri.unwrap_or_else(|| panic!("{beginning} in {printed}")).to_owned()
    })
}
