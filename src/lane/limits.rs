//! The bounds of a server.

use std::time::Duration;

/// Most connections that a server can be told to serve.
pub const CONNECTIONS_MAX: usize = 4096;
/// Requests of a connection that are not yet answered, at most and by default.
pub const REQUESTS_MAX: usize = 128;
/// Bytes of payload that the requests of a connection hold, by default.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// What a BLOCK_STATUS under way counts for among these: the longest reply to it, and what it is made of.
pub(super) const STATUS_BYTES: usize = 2 << 20;
/// Silence of a TCP client before it is asked whether it is there, and how often it is asked, so many times, before its
/// connection ends: a minute together.
pub(super) const TCP_SILENCE_MAX: Duration = Duration::from_secs(30);
pub(super) const TCP_PROBE_PERIOD: Duration = Duration::from_secs(10);
pub(super) const TCP_PROBE_COUNT: u32 = 3;
/// How long requests under way may take to end, and replies to be read, when the server ends.
pub const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(10);
/// Age at which changes are stored, although they are few.
pub const CHECKPOINT_PERIOD: Duration = Duration::from_secs(5);
/// Pause before a checkpoint that lacked space in `meta/` is tried again.
pub const CHECKPOINT_RETRY_PERIOD: Duration = Duration::from_secs(1);
/// How long nobody must have used the pool before it is cleaned at full speed.
pub const IDLE_PERIOD: Duration = Duration::from_millis(500);
/// Pause behind each MiB that is cleaned while the pool is in use.
pub(super) const CLEANING_PAUSE: Duration = Duration::from_millis(20);
/// Pause behind each 16 MiB of free space that is given back.
pub(super) const TRIM_PAUSE: Duration = Duration::from_millis(20);
/// How long free space that could not be made fit for use waits for the next try.
pub(super) const RESTOCK_RETRY_PERIOD: Duration = Duration::from_secs(5);
/// Pause before the reserve of `meta/` is tried to be taken back, while nothing else asks for a checkpoint.
pub(super) const RESERVE_RETRY_PERIOD: Duration = Duration::from_secs(5);
/// Messages that wait for a lane.
pub(super) const MESSAGES_MAX: usize = 1024;
/// Threads for what blocks.
pub(crate) const BLOCKING_THREADS: usize = 2;
/// Threads that do the transfers of all lanes where there is no io_uring: as many go on at once.
pub(super) const TRANSFER_THREADS: usize = 16;
/// Longest request of the kernel's NBD client, in bytes: its `max_hw_sectors`.
pub(super) const KERNEL_REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Control requests under way on a lane (shrinking of volumes).
pub(super) const CONTROLS_MAX: usize = 64;
/// Tags of the devices' queues that a lane serves: requests that it can have under way for them.
pub const DEVICE_TAGS_MAX: usize = 16_384;
/// Bytes that the writes of a device's queue have in the engine, and as many its reads: more of them wait, without any memory.
/// Above the longest request. Writes may wait for space, which leaves the memory of reads alone.
pub(super) const DEVICE_QUEUE_BYTES_MAX: usize = 8 << 20;
/// Lanes of a server.
const LANES_MAX: usize = 64;
/// Jobs that can wait: one for each request and connection.
pub(super) const JOBS_MAX: usize = CONNECTIONS_MAX * (REQUESTS_MAX + 1) + LANES_MAX * (CONTROLS_MAX + DEVICE_TAGS_MAX);
/// What a connection receives into while it waits.
pub(super) const IDLE_STREAM_BYTES: usize = 16 << 10;
/// What it receives into while a lot comes; holds about as much as 32 writes of 4 KiB, twice.
pub(super) const STREAM_BYTES: usize = 256 << 10;
/// Room in the stream behind a long write, in bytes: where another follows, no more than this of its payload is received there
/// and copied, and the rest is received where it belongs.
pub(super) const STREAM_BYTES_BETWEEN_PAYLOADS: usize = 4 << 10;
/// What an encrypted connection receives into: four of the longest records.
pub(super) const RECORDS_BYTES: usize = 64 << 10;
/// Payloads up to this size are copied out of the stream; longer ones are received where they belong.
pub(super) const COPIED_PAYLOAD_BYTES_MAX: usize = 32 << 10;
/// Free buffers that a lane keeps.
pub(super) const FREE_BUFFER_BYTES_MAX: usize = 64 << 20;
/// Entries of a lane's ring, and of its completion queue.
pub(super) const RING_SUBMISSION_ENTRIES: u32 = rok_ublk::parameters::QUEUE_DEPTH_MAX as u32;
pub(super) const RING_COMPLETION_ENTRIES: u32 = 8192;
/// How often deadlines are looked at while there are any.
pub(super) const TICK_PERIOD: Duration = Duration::from_millis(250);
