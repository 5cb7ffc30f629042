//! The data of the options INFO and GO: a name, and the kinds of information the client wants.

use crate::wire::fields::Fields;
use crate::wire::option::InfoKind;

/// Parsed data of INFO or GO. Kinds of information that are not known are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a str,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
    pub(super) wants_block_sizes: bool,
}

impl<'a> InfoRequest<'a> {
    /// The request in `data`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence for the client.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, &'static str> {
        const TOO_SHORT: &str = "The option ends before its fields do";
        let mut fields = Fields::new(data);
        let name_size = usize::try_from(fields.u32().ok_or(TOO_SHORT)?).map_err(|_| TOO_SHORT)?;
        // Tested before the name is, so that a name length beyond the option is told from a bad name (CVE-2022-26496).
        if name_size > fields.rest().len() {
            return Err("The name is longer than the option");
        }
        let name = fields.string(name_size).ok_or("The name is not UTF-8 without NUL of at most 4096 bytes")?;
        let kind_count = fields.u16().ok_or(TOO_SHORT)?;
        if fields.rest().len() != usize::from(kind_count) * 2 {
            return Err("The option's length does not match its number of information requests");
        }

        let mut request = Self { name, wants_name: false, wants_description: false, wants_block_sizes: false };
        while let Some(number) = fields.u16() {
            match InfoKind::from_number(number) {
                InfoKind::Name => request.wants_name = true,
                InfoKind::Description => request.wants_description = true,
                InfoKind::BlockSize => request.wants_block_sizes = true,
                InfoKind::Export | InfoKind::Unknown(_) => {}
            }
        }
        Ok(request)
    }
}
