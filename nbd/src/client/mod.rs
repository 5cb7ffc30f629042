//! The client's side: the handshake, and the replies to requests. Requests are encoded by [`crate::Request::encode`].

mod export_info;
mod handshake;
mod read_content;
mod reply;

pub use export_info::ExportInfo;
pub use handshake::{BadName, Handshake, HandshakeError, Outcome, Progress};
pub use read_content::{ReadContent, ReadContentError};
pub use reply::{ChunkHeader, ChunkPayloadError, ErrorChunk, Extent, Reply, ReplyError, SimpleReply};
