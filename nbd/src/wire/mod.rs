//! What both sides share: the numbers, the flag words and the fixed layouts. All integers are big-endian.

pub(crate) mod block_sizes;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod flags;
pub mod magic;
pub(crate) mod option;
pub(crate) mod reply;
pub(crate) mod request;
