//! What the driver takes: commands and attributes of the generic netlink family "nbd" (`linux/nbd-netlink.h`).

use std::os::fd::{AsRawFd, BorrowedFd};

use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder, NoUserHeader};
use neli::types::{Buffer, GenlBuffer};
use neli::{Size, ToBytes};

/// Name of the family.
pub(super) const FAMILY: &str = "nbd";
/// Version of the family.
const VERSION: u8 = 1;

/// A message of the family, in both directions.
pub(super) type Message = Genlmsghdr<u8, u16>;

/// What is asked of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Command {
    Connect = 1,
    Disconnect = 2,
    Reconfigure = 3,
}

/// `NBD_ATTR_*`.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
}

/// `NBD_SOCK_ITEM`, within the attribute of sockets.
const SOCKET_ITEM: u16 = 1;
/// `NBD_SOCK_FD`, within such an item.
const SOCKET_DESCRIPTOR: u16 = 1;

/// The attributes of a command, in the order in which they are added.
#[derive(Default)]
pub(super) struct Attributes(Vec<Nlattr<u16, Buffer>>);

impl Attributes {
    /// Of the device with a number.
    pub(super) fn of(number: u32) -> Self {
        Self::default().with(attribute::INDEX, number)
    }

    /// Its size in bytes.
    pub(super) fn size(self, size_bytes: u64) -> Self {
        self.with(attribute::SIZE_BYTES, size_bytes)
    }

    /// Size of its sectors in bytes.
    pub(super) fn sector_size(self, sector_size: u32) -> Self {
        self.with(attribute::BLOCK_SIZE_BYTES, u64::from(sector_size))
    }

    /// How long a request may take before it is sent again, and how long requests wait while there is no connection, in
    /// seconds.
    pub(super) fn time_max(self, request_s: u64, no_connection_s: u64) -> Self {
        self.with(attribute::TIMEOUT, request_s).with(attribute::DEAD_CONN_TIMEOUT, no_connection_s)
    }

    /// What the server can do, as a handshake tells it.
    pub(super) fn server_flags(self, flags: u16) -> Self {
        self.with(attribute::SERVER_FLAGS, u64::from(flags))
    }

    /// By what its owner knows it again.
    pub(super) fn backend(self, backend: &str) -> Self {
        self.with(attribute::BACKEND_IDENTIFIER, backend)
    }

    /// A connection, which the driver takes a reference of.
    pub(super) fn socket(mut self, socket: BorrowedFd<'_>) -> Self {
        let number = u32::try_from(socket.as_raw_fd()).expect("a descriptor is not negative");
        let item = nested(SOCKET_ITEM, &attribute(SOCKET_DESCRIPTOR, number));
        self.0.push(nested(attribute::SOCKETS, &item));
        self
    }

    fn with<P: Size + ToBytes>(mut self, kind: u16, payload: P) -> Self {
        self.0.push(attribute(kind, payload));
        self
    }

    /// The message that asks for a command.
    pub(super) fn message(self, command: Command) -> Message {
        let attributes: GenlBuffer<u16, Buffer> = self.0.into_iter().collect();
        let builder = GenlmsghdrBuilder::<u8, u16, NoUserHeader>::default();
        builder.cmd(command as u8).version(VERSION).attrs(attributes).build().expect("all its parts are given")
    }
}

fn attribute<P: Size + ToBytes>(kind: u16, payload: P) -> Nlattr<u16, Buffer> {
    let kind = AttrTypeBuilder::default().nla_type(kind).build().expect("its number is given");
    NlattrBuilder::default().nla_type(kind).nla_payload(payload).build().expect("type and payload are given")
}

fn nested(kind: u16, inner: &Nlattr<u16, Buffer>) -> Nlattr<u16, Buffer> {
    attribute(kind, Buffer::new()).nest(inner).expect("memory is written to")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::os::fd::AsFd as _;

    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        let mut buffer = Cursor::new(Vec::new());
        message.to_bytes(&mut buffer).expect("memory is written to");
        buffer.into_inner()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn messages_have_the_bytes_that_the_driver_reads() {
        let message = Attributes::of(7).message(Command::Disconnect);
        assert_eq!(bytes(&message), [2, 1, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0]);

        let message = Attributes::of(0x0102).size(0x0a_0000).sector_size(4096).message(Command::Reconfigure);
        let expected: &[&[u8]] = &[
            &[3, 1, 0, 0],
            &[8, 0, 1, 0, 2, 1, 0, 0],
            &[12, 0, 2, 0, 0, 0, 10, 0, 0, 0, 0, 0],
            &[12, 0, 3, 0, 0, 16, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&message), expected.concat());

        let message =
            Attributes::default().time_max(10, 256).server_flags(0x6d).backend("ab:c").message(Command::Connect);
        let expected: &[&[u8]] = &[
            &[1, 1, 0, 0],
            &[12, 0, 4, 0, 10, 0, 0, 0, 0, 0, 0, 0],
            &[12, 0, 8, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            &[12, 0, 5, 0, 0x6d, 0, 0, 0, 0, 0, 0, 0],
            // With the end of the string, and padded.
            &[9, 0, 10, 0, b'a', b'b', b':', b'c', 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&message), expected.concat());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn socket_lies_in_an_item_of_the_sockets() {
        let file = std::fs::File::open("/dev/null").expect("it is everywhere");
        let number = u8::try_from(file.as_raw_fd()).expect("a test has few files open");
        let message = Attributes::default().socket(file.as_fd()).message(Command::Connect);
        // The highest bit of the type says that attributes are in it.
        let expected: &[&[u8]] = &[&[1, 1, 0, 0], &[16, 0, 7, 0x80], &[12, 0, 1, 0x80], &[8, 0, 1, 0, number, 0, 0, 0]];
        assert_eq!(bytes(&message), expected.concat());
    }
}
