//! How long a client may take to choose an export.

use super::*;

#[test]
fn a_client_that_never_chooses_is_closed_in_time() {
    let (_world, running) = World::create(128 * MIB);
    let begun = Instant::now();
    let mut stream = UnixStream::connect(&running.socket).expect("the server accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.read_to_end(&mut Vec::new()).expect("the server closes");
    let (elapsed, bound) = (begun.elapsed(), NbdLimits::default().handshake_time_max);
    assert!(elapsed >= bound, "{elapsed:?}");
    running.end();
}

/// How often a client asks that never chooses: often enough that a deadline which started anew with each option would
/// never come, and fewer times in all than the options that it may send.
const ASK_PERIOD: Duration = Duration::from_secs(1);
/// Before it has sent as many options as it may, which would close it too.
const ASKED_TIME_MAX: Duration = Duration::from_secs(40);

/// Asks for the list of exports again and again until the server closes; how many bytes it sent.
fn ask_until_closed(stream: &mut UnixStream) -> usize {
    let list = [&b"IHAVEOPT"[..], &3_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    let (begun, mut byte_count) = (Instant::now(), 0);
    stream.set_read_timeout(Some(ASK_PERIOD)).expect("a live socket");
    while begun.elapsed() < ASKED_TIME_MAX {
        match stream.read(&mut [0; 1024]).map_err(|error| error.kind()) {
            Ok(0) | Err(io::ErrorKind::ConnectionReset) => return byte_count,
            Ok(count) => byte_count += count,
            Err(io::ErrorKind::WouldBlock) => match stream.write_all(&list).map_err(|error| error.kind()) {
                // If it was closed in between, the next read tells.
                Ok(()) | Err(io::ErrorKind::BrokenPipe) => {}
                Err(kind) => panic!("{kind}"),
            },
            // The kernel resumes no wait that has a time limit.
            Err(io::ErrorKind::Interrupted) => {}
            Err(kind) => panic!("{kind}"),
        }
    }
    panic!("it is not closed");
}

#[test]
fn a_client_that_asks_on_and_on_is_closed_in_time_and_one_that_chose_stays() {
    let (_world, running) = World::create(128 * MIB);
    let mut idle = running.connect();
    let begun = Instant::now();
    let mut asking = UnixStream::connect(&running.socket).expect("the server accepts");
    asking.write_all(&3_u32.to_be_bytes()).expect("the server reads");

    let byte_count = ask_until_closed(&mut asking);

    let (elapsed, bound) = (begun.elapsed(), NbdLimits::default().handshake_time_max);
    assert!(elapsed >= bound, "{elapsed:?}");
    // Far more than the greeting and one answer, which have 18 and 44 bytes.
    assert!(byte_count > 200, "it was answered until then: {byte_count} bytes");
    idle.flush().expect("requests have no such deadline");
    running.end();
}
