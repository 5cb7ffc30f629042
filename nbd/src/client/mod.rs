//! The client's side: the handshake, and the replies to requests. Requests are encoded by [`crate::Request::encode`].

mod export_info;
mod handshake;
mod handshake_error;
mod read_content;
mod reply;

pub use export_info::ExportInfo;
pub use handshake::{BadName, Handshake, Outcome, Progress};
pub use handshake_error::HandshakeError;
pub use read_content::{ReadContent, ReadContentError};
pub use reply::{ChunkHeader, ChunkPayloadError, ErrorChunk, Extent, Reply, ReplyError, SimpleReply, StatusChunk};
