//! Sockets that systemd passes: it listens before the daemon starts and while it restarts.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::support::{Home, Serving, WAIT_MAX, finish, open_export};

/// The first descriptor that is passed.
const FIRST_FD: i32 = 3;

/// The program serving `pool`, started as systemd starts it: the sockets are descriptors 3 and following, and the
/// environment says for which process they are.
fn command(home: &Home, sockets: &[OwnedFd]) -> Command {
    let mut command = Command::new("sh");
    let script = "export LISTEN_PID=$$; exec \"$@\"";
    let program = home.command(["serve", "--pool", &home.text("pool"), "--key-file", &home.text("pool.key")]);
    command.args(["-c", script, "sh"]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("LISTEN_FDS", sockets.len().to_string());
    let sources: Vec<i32> = sockets.iter().map(OwnedFd::as_raw_fd).collect();
    let past_all = FIRST_FD + i32::try_from(sources.len()).expect("few");
    // SAFETY: between fork and exec the closure makes system calls only. Whatever the descriptors 3 and following are in the
    // child, the sockets are above them first, so none is overwritten before it was copied.
    unsafe {
        command.pre_exec(move || {
            let mut above = [0; 8];
            for (place, source) in above.iter_mut().zip(&sources) {
                *place = check(libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, past_all))?;
            }
            for (target, place) in (FIRST_FD..past_all).zip(above) {
                check(libc::dup2(place, target))?;
            }
            Ok(())
        });
    }
    command
}

fn check(result: i32) -> std::io::Result<i32> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

fn tcp_socket() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    // As systemd does with NonBlocking=yes.
    listener.set_nonblocking(true).expect("it can be");
    let address = listener.local_addr().expect("it is bound");
    (listener.into(), address)
}

#[test]
fn passed_sockets_are_served_and_wait_while_the_daemon_restarts() {
    let home = Home::with_pool();
    let path = home.path("passed.sock");
    let unix = UnixListener::bind(&path).expect("a short path");
    let (tcp, address) = tcp_socket();
    let sockets = [tcp, unix.into()];
    let serving = Serving::start(command(&home, &sockets));
    home.run(["create", "vol1", "--size", "1G"]).success();
    let uris = home.run(["exports", "--json"]).success();
    assert!(uris.contains(path.to_str().expect("UTF-8")) && uris.contains(&address.to_string()), "{uris}");
    assert_eq!(open_export(address, "vol1").1, 1 << 30);
    let mut info = Command::new("nbdinfo");
    info.args(["--size", &format!("nbd+unix:///vol1?socket={}", path.display())]);
    assert_eq!(finish(info).success().trim(), "1073741824");
    serving.stop();

    assert!(path.exists(), "the socket is its maker's");
    let early = TcpStream::connect(address).expect("whoever comes between two daemons waits");
    let _serving = Serving::start(command(&home, &sockets));

    early.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    let mut greeting = [0; 8];
    std::io::Read::read_exact(&mut &early, &mut greeting).expect("it is served");
    assert_eq!(&greeting, b"NBDMAGIC");
}

#[test]
fn unlocking_serves_passed_sockets_again() {
    let home = Home::with_pool();
    let (tcp, address) = tcp_socket();
    let sockets = [tcp];
    let _serving = Serving::start(command(&home, &sockets));
    home.run(["create", "vol1", "--size", "1G"]).success();
    home.run(["key", "lock"]).success();
    home.run(["key", "unlock", "--key-file", &home.text("pool.key")]).success();

    assert_eq!(open_export(address, "vol1").1, 1 << 30);
}

#[test]
fn what_is_no_listening_socket_is_refused_by_name() {
    let home = Home::with_pool();
    let file = fs::File::open(home.path("pool.key")).expect("the key is there");

    let said = finish(command(&home, &[file.into()])).failure(2);

    assert!(said.contains("Socket 1") && said.contains("ListenStream="), "{said}");
}
