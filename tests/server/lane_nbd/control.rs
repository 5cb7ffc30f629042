//! What the server is asked from outside of a connection: sizes, addresses, exports.

use super::*;

#[test]
fn resize_refuses_to_shrink_what_is_in_use_and_discards_the_end() {
    let (_world, running) = World::create(128 * MIB);
    let mut client = running.connect();
    client.write(8 * MIB, &[5; 8192]).expect("a write");
    let refused = running.server.resize("vol1", 8 * MIB + 4096).expect_err("it is in use");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    running.server.resize("vol1", 2 * VOLUME_BYTES).expect("growing is always possible");
    client.send(RequestKind::Disconnect, CommandFlags::NONE, (0, 0), &[]);
    assert!(client.is_closed());
    await_connections(&running, 0);
    running.server.resize("vol1", 8 * MIB + 4096).expect("it is not in use");
    running.server.resize("vol1", VOLUME_BYTES).expect("growing is always possible");
    let mut client = running.connect();
    let mut expected = vec![5; 4096];
    expected.resize(8192, 0);
    assert!(client.read(8 * MIB, 8192).expect("a read") == expected);
    running.end();
}

#[test]
fn addresses_in_use_are_named_and_stale_sockets_replaced() {
    let (world, running) = World::create(128 * MIB);
    let unix = ListenAddress::Unix(running.socket.clone());
    let busy = running.server.listen(&unix, ListenSettings::default()).expect_err("it is in use");
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert!(busy.message().contains(&unix.to_string()), "{busy}");
    let any = ListenAddress::Tcp("127.0.0.1:0".parse().expect("an address"));
    let tcp = running.server.listen(&any, ListenSettings::default()).expect("a free port");
    assert_ne!(tcp, any);
    assert_eq!(
        running.server.listen(&tcp, ListenSettings::default()).expect_err("it is in use").kind(),
        ErrorKind::Busy
    );
    let stale = world.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a socket"));
    running
        .server
        .listen(&ListenAddress::Unix(stale.clone()), ListenSettings::default())
        .expect("a stale socket is replaced");
    Client::connect(&stale, "", false).flush().expect("the default export");
    let file = world.directory.path().join("file");
    std::fs::write(&file, "precious").expect("a file");
    running
        .server
        .listen(&ListenAddress::Unix(file.clone()), ListenSettings::default())
        .expect_err("a file is no socket");
    assert_eq!(std::fs::read(&file).expect("it is there"), b"precious");
    running.end();
}

#[test]
fn hidden_volumes_are_not_served() {
    let (_world, running) = World::create(128 * MIB);
    running.server.volumes().create(&NewVolume::new(Uuid::new_v4(), "vol2", MIB)).expect("a volume");
    assert!(Client::try_connect(&running.socket, "", true).expect("an answer").is_none(), "two volumes: no default");
    running.server.set_exported("vol1", false).expect("it exists");
    assert!(Client::try_connect(&running.socket, "vol1", true).expect("an answer").is_none());
    assert_eq!(Client::connect(&running.socket, "", true).size_bytes, MIB);
    running.server.set_exported("vol1", true).expect("it exists");
    running.connect().flush().expect("it is back");
    running.end();
}

#[test]
fn shutdown_ends_clients_in_every_state() {
    let (world, running) = World::create(128 * MIB);
    let silent = UnixStream::connect(&running.socket).expect("the server accepts");
    let idle = running.connect();
    let mut half = running.connect();
    half.send(RequestKind::Write, CommandFlags::NONE, (0, 1 << 20), &[1; 1000]);
    let mut busy = running.connect();
    busy.write(8192, &pattern(9, 4096)).expect("a write");
    let mut deaf = running.connect();
    for _ in 0..64 {
        deaf.send(RequestKind::Read, CommandFlags::NONE, (0, 1 << 20), &[]);
    }
    // It fails if that takes too long.
    running.end();
    drop((silent, idle, half, busy, deaf));
    let again = world.open();
    let mut client = again.connect();
    assert!(client.read(8192, 4096).expect("a read") == pattern(9, 4096));
    again.end();
}

#[test]
fn reads_do_not_wait_behind_handshakes_that_wait_for_a_commit() {
    let (world, running) = World::create(128 * MIB);
    // One on each lane.
    let mut clients = [running.connect(), running.connect()];
    for client in &mut clients {
        client.write(0, &[1; 4096]).expect("a write");
    }
    world.store.set_closed(true);
    running.server.pool().want_checkpoint();
    world.store.await_commit();
    let mut handshakes = [(); 2].map(|()| {
        let mut stream = UnixStream::connect(&running.socket).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        stream.read_exact(&mut [0; 18]).expect("a greeting");
        stream
    });
    for stream in &mut handshakes {
        stream.write_all(&choice_of_vol1()).expect("the server reads");
    }
    for (client, offset) in clients.iter_mut().zip([64 * MIB, 128 * MIB]) {
        // Both lanes have taken turns behind the choices before they are asked for leaves that nobody has loaded.
        client.read(0, 4096).expect("a change");
        assert!(client.read(offset, 4096).expect("a leaf is loaded").iter().all(|byte| *byte == 0));
    }

    world.store.set_closed(false);
    for mut stream in handshakes {
        stream.read_exact(&mut [0; 20]).expect("the handshakes go on");
    }
    running.end();
}
