//! Who may open an export, how often, and what becomes of clients that stall.

use super::*;
use rok_blk::lane::{AllowRule, Expose};

impl Running {
    fn set_policy(&self, policy: ExportPolicy) {
        let id = self.server.volumes().find("vol1").expect("it is there").id;
        self.server.set_export_policy(id, policy);
    }

    fn try_connect(&self) -> Option<Client> {
        Client::try_connect(&self.socket, "vol1", true).expect("the server answers")
    }

    /// The names that a client is shown.
    fn listed(&self, socket: &Path) -> Vec<String> {
        let mut stream = UnixStream::connect(socket).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        let (mut handshake, mut output, mut byte) = (Handshake::new(), Vec::new(), [0]);
        loop {
            stream.write_all(&output).expect("the server reads");
            output.clear();
            stream.read_exact(&mut byte).expect("the server answers");
            match handshake.advance(&byte, &mut output).outcome {
                Outcome::NeedMore => {}
                Outcome::Ready => handshake.list(&mut output),
                Outcome::Listed(names) => return names,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn rules(texts: &[&str]) -> Vec<AllowRule> {
    texts.iter().map(|text| text.parse().expect("a rule")).collect()
}

/// The user that runs this test, as the kernel tells the server.
fn own_user() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    tempfile::tempdir().expect("a directory").path().metadata().expect("it is there").uid()
}

#[test]
fn read_only_export_is_read_and_nothing_else() {
    let (_world, running) = World::create(128 * MIB);
    running.connect().write(0, &[7; 4096]).expect("a write");
    running.set_policy(ExportPolicy { is_read_only: true, ..ExportPolicy::default() });
    let mut client = running.connect();
    assert_eq!(client.read(0, 4096), Ok(vec![7; 4096]));
    client.flush().expect("a flush");
    assert_eq!(client.write(0, &[1; 4096]), Err(WireError::NotPermitted));
    for kind in [RequestKind::Trim, RequestKind::WriteZeroes] {
        assert_eq!(client.call(kind, CommandFlags::NONE, (0, 4096), &[]), Err(WireError::NotPermitted));
    }
    assert_eq!(client.read(0, 4096), Ok(vec![7; 4096]), "in step, and unchanged");
    running.end();
}

#[test]
fn export_with_rules_is_there_for_whom_they_let_in() {
    let (_world, running) = World::create(128 * MIB);
    let allow = |texts: &[&str]| ExportPolicy { allow: rules(texts), ..ExportPolicy::default() };
    let own = format!("uid:{}", own_user());
    running.set_policy(allow(&["uid:4000000000", &own]));
    assert!(running.try_connect().is_some());
    assert_eq!(running.listed(&running.socket), ["vol1"]);
    for others in [&["uid:4000000000"][..], &["10.0.0.0/8"], &["subject:hv1"], &[&own, "subject:hv1"]] {
        running.set_policy(allow(others));
        assert!(running.try_connect().is_none(), "{others:?}");
        assert_eq!(running.listed(&running.socket), [""; 0], "{others:?}");
    }
    running.end();
}

#[test]
fn tcp_clients_are_let_in_by_their_network() {
    let (_world, running) = World::create(128 * MIB);
    let any = ListenAddress::Tcp("127.0.0.1:0".parse().expect("an address"));
    let ListenAddress::Tcp(address) = running.server.listen(&any, ListenSettings::default()).expect("a free port")
    else {
        panic!("a TCP address");
    };
    // An export that is refused is answered with an error and its sentence.
    let refusal = |texts: &[&str]| {
        running.set_policy(ExportPolicy { allow: rules(texts), ..ExportPolicy::default() });
        let mut stream = std::net::TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        stream.write_all(&choice_of_vol1()).expect("the server reads");
        let mut answer = [0; 38];
        stream.read_exact(&mut answer).expect("the server answers");
        u32::from_be_bytes(answer[30..34].try_into().expect("4 bytes"))
    };
    const INFO: u32 = 3;
    const POLICY: u32 = 0x8000_0002;
    assert_eq!(refusal(&["127.0.0.0/8"]), INFO);
    assert_eq!(refusal(&["10.0.0.0/8"]), POLICY);
    assert_eq!(refusal(&["uid:0"]), POLICY);
    running.end();
}

#[test]
fn listener_of_listed_exports_offers_what_was_exported_only() {
    let (world, running) = World::create(128 * MIB);
    running.server.volumes().create(&NewVolume::new(Uuid::new_v4(), "vol2", VOLUME_BYTES)).expect("a volume");
    let socket = world.directory.path().join("listed.sock");
    let settings = ListenSettings { expose: Expose::Listed, ..ListenSettings::default() };
    running.server.listen(&ListenAddress::Unix(socket.clone()), settings).expect("the socket is free");
    assert_eq!(running.listed(&socket), [""; 0]);
    assert!(Client::try_connect(&socket, "vol1", true).expect("an answer").is_none());
    running.server.set_exported("vol1", true).expect("it is there");
    assert_eq!(running.listed(&socket), ["vol1"]);
    assert!(Client::try_connect(&socket, "vol1", true).expect("an answer").is_some());
    assert_eq!(running.listed(&running.socket), ["vol1", "vol2"], "the other listener offers all");
    running.end();
}

#[test]
fn export_takes_as_many_connections_as_it_may_and_more_when_they_end() {
    let (_world, running) = World::create(128 * MIB);
    running.set_policy(ExportPolicy { connections_max: Some(2), ..ExportPolicy::default() });
    let (first, mut second) = (running.connect(), running.connect());
    assert!(running.try_connect().is_none());
    second.flush().expect("those that are there go on");
    drop(first);
    // The server notices at some time.
    let begun = Instant::now();
    while running.try_connect().is_none() {
        assert!(begun.elapsed() < PATIENCE, "the place stays taken");
    }
    running.end();
}

#[test]
fn disconnecting_a_volume_ends_its_connections_and_keeps_what_was_acknowledged() {
    let (_world, running) = World::create(128 * MIB);
    running.server.volumes().create(&NewVolume::new(Uuid::new_v4(), "vol2", VOLUME_BYTES)).expect("a volume");
    let mut other = Client::connect(&running.socket, "vol2", true);
    let mut clients: Vec<Client> = (0..4).map(|_| running.connect()).collect();
    clients[0].write(0, &[7; 4096]).expect("a write");
    running.server.disconnect("vol1").expect("it is there");
    assert!(clients.iter_mut().all(Client::is_closed));
    other.flush().expect("it has another volume open");
    assert_eq!(running.connect().read(0, 4096), Ok(vec![7; 4096]));
    assert_eq!(running.server.disconnect("nope").expect_err("there is none").kind(), ErrorKind::NotFound);
    running.end();
}

/// How long what is meant to end may take to: ticks are a quarter of a second apart.
const SECOND: Duration = Duration::from_secs(1);

fn bounded(limits: NbdLimits) -> (World, Running) {
    World::create_with(128 * MIB, limits)
}

#[test]
fn client_that_stalls_in_a_message_is_closed_and_an_idle_one_stays() {
    let (_world, running) = bounded(NbdLimits { stall_time_max: SECOND, ..NbdLimits::default() });
    let mut idle = running.connect();
    let mut cut_requests: Vec<Client> = (0..3).map(|_| running.connect()).collect();
    let (form, flags, kind) = (RequestForm::Compact, CommandFlags::NONE, RequestKind::Write);
    let small = Request { form, flags, kind, cookie: 1, offset: 0, length: 4096 }.encode();
    let large = Request { form, flags, kind, cookie: 1, offset: 0, length: 1 << 20 }.encode();
    cut_requests[0].stream.write_all(&small[..27]).expect("the server reads");
    cut_requests[1].stream.write_all(&[&small[..], &[7; 100]].concat()).expect("the server reads");
    cut_requests[2].stream.write_all(&[&large[..], &[7; 100_000]].concat()).expect("the server reads");
    assert!(cut_requests.iter_mut().all(Client::is_closed));
    idle.flush().expect("it owes nothing");
    running.end();
}

#[test]
fn client_that_takes_no_replies_is_closed() {
    let (_world, running) = bounded(NbdLimits { stall_time_max: SECOND, ..NbdLimits::default() });
    let mut client = running.connect();
    for _ in 0..64 {
        client.send(RequestKind::Read, CommandFlags::NONE, (0, 1 << 20), &[]);
    }
    let begun = Instant::now();
    while running.server.exports()[0].connections > 0 {
        assert!(begun.elapsed() < PATIENCE, "it is not closed");
        std::thread::yield_now();
    }
    assert!(client.is_closed());
    running.end();
}

#[test]
fn idle_client_is_closed_where_that_is_asked_for_and_a_busy_one_stays() {
    let (_world, running) = bounded(NbdLimits { idle_time_max: Some(SECOND), ..NbdLimits::default() });
    let (mut idle, mut busy) = (running.connect(), running.connect());
    let begun = Instant::now();
    while begun.elapsed() < 2 * SECOND {
        busy.flush().expect("it is not idle");
    }
    assert!(idle.is_closed());
    busy.flush().expect("it was busy until now");
    running.end();
}

#[test]
fn requests_beyond_the_bounds_wait_or_are_refused_and_all_are_answered() {
    let limits = NbdLimits {
        requests_max: 1,
        payload_bytes_max: 64 << 10,
        request_bytes_max: 128 << 10,
        ..NbdLimits::default()
    };
    let (_world, running) = bounded(limits);
    let mut client = running.connect();
    for index in 0..64 {
        client.send(RequestKind::Write, CommandFlags::NONE, (index << 17, 128 << 10), &vec![7; 128 << 10]);
    }
    let cookies: Vec<u64> =
        (0..64).map(|_| client.receive()).map(|(cookie, answer)| answer.map(|_| cookie).expect("a write")).collect();
    assert_eq!(cookies, (1..=64).collect::<Vec<u64>>(), "one at a time");
    assert_eq!(client.read(0, (128 << 10) + 1), Err(WireError::Invalid));
    running.end();
}

#[test]
fn connections_beyond_the_bound_are_closed_at_once() {
    let (_world, running) = bounded(NbdLimits { connections_max: 2, ..NbdLimits::default() });
    let (mut first, _second) = (running.connect(), running.connect());
    let mut third = UnixStream::connect(&running.socket).expect("the kernel accepts");
    third.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    assert_eq!(third.read(&mut [0; 100]).expect("it is closed"), 0);
    first.flush().expect("those that are there go on");
    running.end();
}
