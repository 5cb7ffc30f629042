//! A reader of big-endian fields over a slice. It never panics: a field that is not there is `None`. Beside it what
//! gathers a message that comes in pieces.

/// The part of a message that was not read yet.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    /// A string as the protocol means it: UTF-8 without NUL, within [`NAME_SIZE_MAX`](crate::limits::NAME_SIZE_MAX).
    pub(crate) fn string(&mut self, len: usize) -> Option<&'a str> {
        string(self.bytes(len)?)
    }

    /// Everything that was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }
}

/// `bytes` as a string of the protocol, or `None` if they break one of its rules.
pub(crate) fn string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > crate::limits::NAME_SIZE_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// The start of `text` that fits `size_max` bytes, cut between characters.
pub(crate) fn truncated(text: &str, size_max: usize) -> &str {
    &text[..text.floor_char_boundary(size_max)]
}

/// Moves bytes from the start of `rest` behind `message` until that has `wanted_size` bytes; whether it has.
///
/// `message` must not be longer already.
pub(crate) fn gather(message: &mut Vec<u8>, wanted_size: usize, rest: &mut &[u8]) -> bool {
    let count = rest.len().min(wanted_size - message.len());
    let (taken, remainder) = rest.split_at(count);
    message.extend_from_slice(taken);
    *rest = remainder;
    message.len() == wanted_size
}
