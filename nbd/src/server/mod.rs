//! The server's side: the handshake, the rules a request must keep, and the replies.

mod close_reason;
mod export;
mod handshake;
mod handshake_bounds;
mod info_request;
mod meta_context;
mod option_replies;
mod read_reply;
mod transmission;

pub use close_reason::CloseReason;
pub use export::{Export, ExportFeatures, Exports, FindError};
pub use handshake::{Handshake, Negotiated, Outcome, Progress};
pub use handshake_bounds::{HandshakeBounds, TlsOffer};
pub use meta_context::SelectedContext;
pub use read_reply::{ReadReply, ReadReplyError};
pub use transmission::{Refusal, RequestRules, StatusRequest};
