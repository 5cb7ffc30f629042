//! A connection as the kernel's client has it: no handshake, and nothing but its own end ends it.

use super::{MIB, PATIENCE, VOLUME_BYTES, World};
use rok_blk::error::ErrorKind;
use rok_blk::lane::{DeviceAccess, DeviceVolume, KernelClient, KernelClientEnd, NbdLimits, Server};
use rok_nbd::{CommandFlags, Request, RequestForm, RequestKind, TransmissionFlags};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const BLOCK: usize = 4096;

/// The kernel's end.
struct Kernel(UnixStream);

impl Kernel {
    fn of(server: &Server, volume: &DeviceVolume) -> (Self, KernelClient) {
        let (own, theirs) = UnixStream::pair().expect("two descriptors");
        theirs.set_read_timeout(Some(PATIENCE)).expect("a time");
        let client = server.serve_kernel_client(own.into(), volume).expect("a lane");
        (Self(theirs), client)
    }

    fn send(&mut self, kind: RequestKind, cookie: u64, (offset, length): (u64, u64), payload: &[u8]) {
        let flags = if kind == RequestKind::Write { CommandFlags::FUA } else { CommandFlags::NONE };
        let request = Request { form: RequestForm::Compact, flags, kind, cookie, offset, length };
        self.0.write_all(&[&request.encode(), payload].concat()).expect("it is read");
    }

    /// Error and cookie of the next reply, which is a simple one.
    fn reply(&mut self) -> (u32, u64) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..4], [0x67, 0x44, 0x66, 0x98]);
        let (error, cookie) = reply[4..].split_at(4);
        (u32::from_be_bytes(error.try_into().expect("four")), u64::from_be_bytes(cookie.try_into().expect("eight")))
    }

    fn write(&mut self, offset: u64, value: u8) -> u32 {
        self.send(RequestKind::Write, offset, (offset, 4096), &[value; BLOCK]);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, offset);
        error
    }

    fn read(&mut self, offset: u64) -> Vec<u8> {
        self.send(RequestKind::Read, 7, (offset, 4096), &[]);
        assert_eq!(self.reply(), (0, 7));
        let mut content = vec![0; BLOCK];
        self.0.read_exact(&mut content).expect("the content");
        content
    }

    /// Waits for the end of the stream, and returns what came before it.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("its end");
        rest
    }
}

#[test]
fn requests_begin_at_once_and_neither_policy_nor_silence_ends_them() {
    // Clients may have one connection, and be silent for a second.
    let nbd = NbdLimits { connections_max: 1, idle_time_max: Some(Duration::from_secs(1)), ..NbdLimits::default() };
    let (_world, running) = World::create_with(128 * MIB, nbd);
    let server = &running.server;
    let volume = server.open_for_device("vol1", DeviceAccess::Exclusive).expect("nobody writes it");
    let flags = volume.transmission_flags();
    let wanted = TransmissionFlags::HAS_FLAGS
        .with(TransmissionFlags::SEND_FLUSH)
        .with(TransmissionFlags::SEND_FUA)
        .with(TransmissionFlags::SEND_TRIM)
        .with(TransmissionFlags::SEND_WRITE_ZEROES);
    assert_eq!(flags, wanted);
    let (mut kernel, client) = Kernel::of(server, &volume);
    assert_eq!(kernel.write(8192, 5), 0);
    assert_eq!(kernel.read(8192), [5; BLOCK]);

    server.set_exported("vol1", false).expect("it is there");
    server.disconnect("vol1").expect("no client has it");
    // Twice the silence: nothing tells that it does not end.
    std::thread::sleep(Duration::from_secs(2));
    kernel.send(RequestKind::Trim, 1, (0, 4096), &[]);
    assert_eq!(kernel.reply(), (0, 1));
    kernel.send(RequestKind::Flush, 2, (0, 0), &[]);
    assert_eq!(kernel.reply(), (0, 2));
    assert_eq!(kernel.read(8192), [5; BLOCK]);

    // Past the end, until the volume has grown.
    assert_ne!(kernel.write(VOLUME_BYTES, 9), 0);
    server.resize("vol1", VOLUME_BYTES + 4096).expect("it grows while it is used");
    assert_eq!(kernel.write(VOLUME_BYTES, 9), 0);
    assert_eq!(kernel.read(VOLUME_BYTES), [9; BLOCK]);

    kernel.send(RequestKind::Disconnect, 0, (0, 0), &[]);
    assert_eq!(client.wait_ended(), KernelClientEnd::Disconnected);
    drop(volume);
    running.server.shutdown().expect("it ends");
}

#[test]
fn connection_that_is_lost_is_told_and_the_next_one_goes_on() {
    let (_world, running) = World::create(128 * MIB);
    let server = &running.server;
    let volume = server.open_for_device("vol1", DeviceAccess::Exclusive).expect("nobody writes it");
    let (mut kernel, client) = Kernel::of(server, &volume);
    assert_eq!(kernel.write(0, 1), 0);
    drop(kernel);
    assert_eq!(client.wait_ended(), KernelClientEnd::Lost);
    // Its place among the writers is the device's, not the connection's.
    let refusal = server.open_for_device("vol1", DeviceAccess::Shared).err().expect("the device wants it for itself");
    assert_eq!(refusal.kind(), ErrorKind::Busy);
    let (mut kernel, client) = Kernel::of(server, &volume);
    assert_eq!(kernel.read(0), [1; BLOCK]);
    server.leave_kernel_client(client.id()).expect("a lane");
    assert_eq!(kernel.write(0, 2), 0);

    // Another's is not meant.
    let (mut other, other_client) = Kernel::of(server, &volume);
    server.release_kernel_client(client.id()).expect("a lane");
    assert_eq!(client.wait_ended(), KernelClientEnd::Lost);
    assert!(kernel.rest().is_empty());
    assert_eq!(other.read(0), [2; BLOCK]);

    // The server's end closes it without another answer.
    server.shutdown().expect("it ends");
    assert_eq!(other_client.wait_ended(), KernelClientEnd::Lost);
    assert!(other.rest().is_empty());
}

#[test]
fn snapshot_and_volume_that_are_only_read_take_no_writes() {
    let (_world, running) = World::create(128 * MIB);
    let server = &running.server;
    let volume = server.open_for_device("vol1", DeviceAccess::ReadOnly).expect("it only reads");
    assert!(volume.transmission_flags().contains(TransmissionFlags::READ_ONLY));
    assert!(!volume.transmission_flags().contains(TransmissionFlags::SEND_TRIM));
    let (mut kernel, client) = Kernel::of(server, &volume);
    // EPERM.
    assert_eq!(kernel.write(0, 1), 1);
    assert_eq!(kernel.read(0), [0; BLOCK]);
    drop(kernel);
    assert_eq!(client.wait_ended(), KernelClientEnd::Lost);
    server.shutdown().expect("it ends");
}
