//! The server's side: the handshake, the rules a request must keep, and the replies.

mod export;
mod handshake;
mod info_request;
mod option_replies;
mod read_reply;
mod transmission;

pub use export::{Export, ExportFeatures, Exports, FindError};
pub use handshake::{CloseReason, Handshake, Negotiated, Outcome, Progress};
pub use read_reply::{ReadReply, ReadReplyError};
pub use transmission::{Refusal, RequestRules, append_error, error_header, read_header};
