//! What a server tells of an export.

use crate::wire::block_sizes::BlockSizes;
use crate::wire::fields::{Fields, string};
use crate::wire::flags::TransmissionFlags;
use crate::wire::option::InfoKind;

/// An export, as a server described it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// What can be done with it.
    pub flags: TransmissionFlags,
    /// The canonical name, if the server told one.
    pub name: Option<String>,
    /// The text for people, if the server told one.
    pub description: Option<String>,
    /// The block sizes, if the server told them.
    pub block_sizes: Option<BlockSizes>,
}

impl ExportInfo {
    /// Takes in the data of one INFO reply; which kind it was, or `None` if the data break a rule. Unknown kinds
    /// change nothing.
    pub(super) fn take_in(&mut self, data: &[u8]) -> Option<InfoKind> {
        let mut fields = Fields::new(data);
        let kind = InfoKind::from_number(fields.u16()?);
        match kind {
            InfoKind::Export => {
                self.size_bytes = fields.u64()?;
                self.flags = TransmissionFlags(fields.u16()?);
                fields.rest().is_empty().then_some(kind)
            }
            InfoKind::Name => {
                self.name = Some(string(fields.rest())?.to_owned());
                Some(kind)
            }
            InfoKind::Description => {
                self.description = Some(string(fields.rest())?.to_owned());
                Some(kind)
            }
            InfoKind::BlockSize => {
                self.block_sizes = Some(BlockSizes::new(fields.u32()?, fields.u32()?, fields.u32()?).ok()?);
                fields.rest().is_empty().then_some(kind)
            }
            InfoKind::Unknown(_) => Some(kind),
        }
    }
}
