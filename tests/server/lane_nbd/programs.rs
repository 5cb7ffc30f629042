//! Real clients against the lanes.

use super::*;

/// Runs a program of the system; `None` with a printed reason if it is missing.
fn run_program(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            assert!(std::env::var_os("ROK_REQUIRE_ALL").is_none_or(|value| value != "1"), "{program} is missing");
            println!("SKIP: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn check_program(program: &str, arguments: &[&str]) -> Option<String> {
    let output = run_program(program, arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn real_clients_are_served() {
    let (world, running) = World::create(512 * MIB);
    let uri = format!("nbd+unix:///vol1?socket={}", running.socket.display());
    if let Some(text) = check_program("nbdinfo", &[&uri]) {
        assert!(text.contains("can_multi_conn: true"), "{text}");
        assert!(text.contains("block_size_preferred: 4096"), "{text}");
    }
    let image = world.directory.path().join("image");
    let copy = world.directory.path().join("copy");
    let mut content = pattern(11, 64 << 20);
    content[10 << 20..40 << 20].fill(0);
    content.resize(256 << 20, 0);
    std::fs::write(&image, &content).expect("space for an image");
    let (image, copy) = (image.to_string_lossy().into_owned(), copy.to_string_lossy().into_owned());
    if check_program("nbdcopy", &[&image, &uri]).is_some() {
        check_program("nbdcopy", &[&uri, &copy]);
        assert!(std::fs::read(&copy).expect("the copy") == content, "nbdcopy in and out");
    }
    if let Some(text) = check_program("qemu-img", &["info", &uri]) {
        assert!(text.contains("256 MiB"), "{text}");
    }
    let script =
        ["-f", "raw", "-c", "write -P 7 1M 3M", "-c", "write -z 2M 64k", "-c", "discard 3M 512k", "-c", "flush"];
    let checks = ["-c", "read -P 7 1M 1M", "-c", "read -P 0 2M 64k", "-c", "read -P 7 2112k 960k", &uri];
    if let Some(text) = check_program("qemu-io", &[&script[..], &checks[..]].concat()) {
        assert!(!text.contains("failed"), "{text}");
    }
    let fio_uri = format!("--uri={uri}");
    let job = ["--name=verify", "--ioengine=nbd", &fio_uri, "--rw=randwrite", "--bsrange=4k-64k", "--size=64M"];
    let options = ["--iodepth=32", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=256"];
    // What it verified it would else note in a file of the working directory.
    check_program("fio", &[&job[..], &options[..], &["--verify_state_save=0"]].concat());
    running.end();
}
