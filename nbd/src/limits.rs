//! The bounds on everything a peer may send, in one place.
//!
//! A peer that stays inside them is served; one that exceeds them gets the protocol's error where the stream stays in
//! step, and a closed connection where it does not.

/// The longest export name or description in bytes (specification, "Values": a string is at most 4096 bytes).
pub const NAME_SIZE_MAX: usize = 4096;

/// The longest option data that is kept in memory, in bytes. INFO and GO need 6 bytes, a name, and 2 bytes per kind of
/// information; there are fewer than ten kinds.
pub const OPTION_DATA_SIZE_MAX: u32 = 16 * 1024;

/// The longest option data that is read and dropped to keep the connection, in bytes. Beyond it the connection
/// closes, since a peer could otherwise make the server read 4 GiB for each of its options (CVE-2017-15119).
pub const OPTION_SKIP_SIZE_MAX: u32 = 1024 * 1024;

/// The longest option with queries for metadata contexts that is kept in memory, in bytes: a name, and a few of the longest
/// queries.
pub const META_OPTION_DATA_SIZE_MAX: u32 = 64 * 1024;

/// How many metadata contexts a client may ask for at once, and so have at most.
pub const META_QUERY_COUNT_MAX: u32 = 64;

/// The most runs that one chunk of block status tells (the specification allows 2^20): 1 MiB of them with extended headers.
pub const STATUS_EXTENT_COUNT_MAX: usize = 65_536;

/// The longest payload of a BLOCK_STATUS, in bytes: a length, and the id of each context.
pub const STATUS_PAYLOAD_SIZE_MAX: u64 = 8 + 4 * (META_QUERY_COUNT_MAX as u64);

/// How many options a client may send before it must have chosen an export.
pub const OPTION_COUNT_MAX: u32 = 32;

/// How many more options a client may send for each export in the longest LIST it received: tools ask INFO for each.
pub const OPTION_COUNT_PER_EXPORT: u32 = 32;

/// While this many bytes of output or more wait to be sent, the handshake answers no further option: a client that
/// writes without reading cannot make the server's buffer grow.
pub const OUTPUT_SIZE_PAUSE: usize = 64 * 1024;

/// The longest message in an error reply that this crate writes, in bytes (the specification allows 4096).
pub const MESSAGE_SIZE_MAX: usize = 256;

/// How many bytes of a client's export name are repeated in an error message.
pub const QUOTED_NAME_SIZE_MAX: usize = 80;

/// The payload of a READ or WRITE that a server accepts unless the export says otherwise, in bytes. It exceeds the
/// usually advertised 32 MiB because clients that do not negotiate block sizes are known to send requests of 48 MiB.
pub const PAYLOAD_SIZE_DEFAULT: u32 = 64 * 1024 * 1024;

/// The longest payload of a refused WRITE that is read and dropped to keep the connection, in bytes; also the most
/// that an export can accept.
pub const DRAIN_SIZE_MAX: u32 = 128 * 1024 * 1024;

/// The longest option reply data that the client keeps in memory, in bytes: a SERVER reply with a name and its details.
pub const OPTION_REPLY_DATA_SIZE_MAX: u32 = 16 * 1024;

/// How many exports a client takes from one LIST.
pub const LISTED_EXPORT_COUNT_MAX: usize = 65_536;

/// How many metadata contexts a client takes for one LIST or SET of them.
pub const LISTED_CONTEXT_COUNT_MAX: usize = 4096;

/// How many INFO replies a client takes for one INFO or GO.
pub const INFO_REPLY_COUNT_MAX: u32 = 64;

/// How many content chunks a client takes for one READ.
pub const READ_CHUNK_COUNT_MAX: usize = 65_536;
