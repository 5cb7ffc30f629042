//! The export that stores nothing.

use crate::clients::{are_there, command, run, unix_socket};
use crate::nbd_client::NbdClient;
use crate::support::{Home, finish};
use rok_nbd::RequestKind;

const NAME: &str = "rok:null";

fn uri(home: &Home) -> String {
    format!("nbd+unix:///{NAME}?socket={}", unix_socket(home).display())
}

#[test]
fn null_export_answers_everything_and_keeps_nothing() {
    let home = Home::with_pool();
    let serving = home.serve(&["--nbd-null", "1T", "--nbd-max-connections-per-export", "2"]);
    home.run(["create", "vol1", "--size", "64M"]).success();
    let mut volume = NbdClient::connect(&unix_socket(&home), "vol1").expect("it is offered beside the null export");
    volume.write(0, &[7; 65_536]);
    let mut client = NbdClient::connect(&unix_socket(&home), NAME).expect("it was asked for");

    client.write(4096, &[9; 65_536]);
    client.flush();
    // The buffers of the lane have held the volume's data, and what was written here.
    assert_eq!(client.read(0, 131_072), vec![0; 131_072]);
    assert_eq!(volume.read(0, 65_536), vec![7; 65_536]);
    for kind in [RequestKind::Trim, RequestKind::WriteZeroes, RequestKind::Cache] {
        client.call(kind, (0, 1 << 20), &[]).expect("the connection lives").expect("it can");
    }
    let past_the_end = client.call(RequestKind::Write, (1 << 40, 4096), &[9; 4096]).expect("the connection lives");
    past_the_end.expect_err("it has an end");
    let second = NbdClient::connect(&unix_socket(&home), NAME).expect("two may have it open");
    assert!(NbdClient::connect(&unix_socket(&home), NAME).is_err(), "not three");
    second.disconnect();
    client.disconnect();
    volume.disconnect();
    serving.stop();
    home.check();
}

#[test]
fn null_export_is_there_for_the_programs_of_others_and_only_when_asked_for() {
    if !are_there(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let home = Home::with_pool();
    let serving = home.serve(&[]);
    let mut info = command("nbdinfo");
    info.args(["--size", &uri(&home)]);
    finish(info).failure(1);
    serving.stop();

    let serving = home.serve(&["--nbd-null", "1G"]);
    let listed = run("nbdinfo", ["--list", "--json", &format!("nbd+unix:///?socket={}", unix_socket(&home).display())]);
    assert!(listed.contains(NAME), "{listed}");
    assert_eq!(run("nbdinfo", ["--size", &uri(&home)]).trim(), (1_u64 << 30).to_string());
    // It has no metadata context to ask for, so that all of it is read.
    run("nbdcopy", [&uri(&home), "null:"]);
    serving.stop();
}
