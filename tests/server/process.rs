//! The life of a serving process: after a crash, at a signal, and what it leaves behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::support::{Home, Serving, WAIT_MAX};

#[test]
fn a_stale_socket_is_replaced() {
    let home = Home::with_pool();
    home.serve(&[]).kill();
    assert!(home.socket().exists(), "a killed daemon leaves its socket");
    home.run(["ls"]).failure(11);

    let _serving = home.serve(&[]);

    home.run(["ls"]).success();
}

#[test]
fn each_signal_closes_cleanly_and_the_next_start_goes_on() {
    let home = Home::with_pool();
    for (name, signal) in [("vol15", libc::SIGTERM), ("vol2", libc::SIGINT), ("vol1", libc::SIGHUP)] {
        let serving = home.serve(&[]);
        home.run(["create", name, "--size", "1G"]).success();
        serving.signal(signal);

        let (status, _, said) = serving.wait();

        assert_eq!(status.code(), Some(0), "{said:#?}");
        assert_eq!(said.last().map(String::as_str), Some("The pool is closed."));
        assert!(!home.socket().exists() && !home.path("run/rok-blk/nbd.sock").exists(), "no socket is left");
    }
    let _serving = home.serve(&[]);
    assert_eq!(home.run(["ls", "-q"]).success(), "vol1\nvol15\nvol2\n");
}

#[test]
fn a_second_signal_stops_at_once() {
    let home = Home::with_pool();
    let mut serving = home.serve(&[]);
    // A request whose body does not come keeps the first signal's clean end waiting. The daemon's `100 Continue`
    // says that it has begun with the request.
    let mut stream = UnixStream::connect(home.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    stream
        .write_all(
            b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\
              Expect: 100-continue\r\n\r\n",
        )
        .expect("the daemon reads");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("the daemon answers");
    assert_eq!(&answer, b"HTTP/1.1 100");

    serving.signal(libc::SIGTERM);
    serving.wait_for("SIGTERM");
    serving.signal(libc::SIGINT);
    let (status, _, said) = serving.wait();

    assert_eq!(status.code(), Some(130), "{said:#?}");
    assert!(said.last().is_some_and(|line| line.starts_with("Stopped at once")), "{said:#?}");
    home.serve(&[]).stop();
}

#[test]
fn a_serving_process_leaves_no_core_unless_it_is_allowed() {
    let home = Home::with_pool();
    let core_limit = |process: &str| {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit").to_owned();
        line.split_whitespace().skip(4).take(2).map(str::to_owned).collect::<Vec<_>>()
    };

    let serving = home.serve(&[]);
    assert_eq!(core_limit(&serving.process_id().to_string()), ["0", "0"]);
    serving.stop();

    let (pool, key) = (home.text("pool"), home.text("pool.key"));
    let mut command = home.command(["serve", "--pool", &pool, "--key-file", &key]);
    command.env("ROK_ALLOW_CORE", "1");
    let serving = Serving::start(command);
    assert_eq!(core_limit(&serving.process_id().to_string()), core_limit("self"), "as it was started");
}
