//! A policy that changes between the look at it and the start of service.

use super::status::snapshot;
use super::*;

/// A client that has chosen a diff context of "vol1", and is to choose the export.
struct Chooser {
    stream: UnixStream,
    handshake: Handshake,
    output: Vec<u8>,
}

impl Chooser {
    fn begin(running: &Running) -> Self {
        let stream = UnixStream::connect(&running.socket).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        let mut chooser = Self { stream, handshake: Handshake::new(), output: Vec::new() };
        loop {
            match chooser.next().expect("the server answers") {
                Outcome::Ready => chooser.handshake.request_structured_replies(&mut chooser.output),
                Outcome::StructuredReplies => {
                    let names = ["rok:diff:vol1@1"];
                    chooser.handshake.set_contexts("vol1", &names, &mut chooser.output).expect("fit names");
                }
                Outcome::Contexts(chosen) => {
                    assert_eq!(chosen.len(), 1);
                    return chooser;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn choose(&mut self) {
        self.handshake.go("vol1", &mut self.output).expect("a fit name");
        self.stream.write_all(&std::mem::take(&mut self.output)).expect("the server reads");
    }

    /// What the server answers; `None` if it closes.
    fn next(&mut self) -> Option<Outcome> {
        self.stream.write_all(&std::mem::take(&mut self.output)).expect("the server reads");
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte).map_err(|error| error.kind()) {
                Ok(0) | Err(io::ErrorKind::ConnectionReset) => return None,
                Ok(_) => {}
                // A read with a time-out is not begun anew by the kernel; what interrupts it is no answer of the server.
                Err(io::ErrorKind::Interrupted) => continue,
                Err(kind) => panic!("{kind}"),
            }
            match self.handshake.advance(&byte, &mut self.output).outcome {
                Outcome::NeedMore => {}
                outcome => return Some(outcome),
            }
        }
    }
}

/// Whether a client is served for which `policy` is set, and all connections are ended, once the server has looked at the
/// policy before: it opens the snapshot of the context next, and the removal of another one is in the way of that.
fn is_served_behind(policy: ExportPolicy) -> bool {
    let (world, running) = World::create(128 * MIB);
    let (server, volumes) = (&running.server, running.server.volumes());
    let ((volume, _), second) = (snapshot(&running), snapshot(&running));
    let mut chooser = Chooser::begin(&running);
    world.store.set_closed(true);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| volumes.remove_snapshots(&[second]));
        world.store.await_commit();
        chooser.choose();
        let begun = Instant::now();
        while server.exports()[0].connections == 0 {
            assert!(begun.elapsed() < PATIENCE, "it does not come to the volume");
            std::thread::yield_now();
        }
        server.set_export_policy(volume, policy);
        server.disconnect("vol1").expect("it is there");
        world.store.set_closed(false);
        removal.join().expect("it ends").expect("nobody has it open");
    });
    let is_served = match chooser.next() {
        Some(Outcome::Transmission(_)) => true,
        None => false,
        other => panic!("{other:?}"),
    };
    drop(chooser);
    running.end();
    is_served
}

/// Who hides a volume and ends its connections may attach it elsewhere next: two writers would spoil it.
#[test]
fn a_client_that_chooses_an_export_while_it_is_hidden_is_not_served() {
    assert!(!is_served_behind(ExportPolicy { is_exported: Some(false), ..ExportPolicy::default() }));
}

#[test]
fn a_client_that_chooses_an_export_to_write_while_it_becomes_read_only_is_not_served() {
    assert!(!is_served_behind(ExportPolicy { is_read_only: true, ..ExportPolicy::default() }));
}

#[test]
fn a_client_that_chooses_an_export_while_nothing_changes_for_it_is_served() {
    assert!(is_served_behind(ExportPolicy { connections_max: Some(7), ..ExportPolicy::default() }));
}
