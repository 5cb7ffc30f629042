//! The master key that comes of what a user holds, and slots for it.

use super::key_file;
use super::superblock_file::SuperblockFile;
use crate::crypto::slot::{self, KeyError, KeySlot, SlotKind};
use crate::crypto::{MasterKey, Passphrase, PassphraseCosts, Suite, system_random};
use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::{KeySlotRecord, Superblock};
use crate::pool::Credential;
use std::path::Path;
use uuid::Uuid;
use zeroize::Zeroizing;

impl Credential {
    /// The word for the kind of slots that it opens.
    #[must_use]
    pub const fn method(&self) -> &'static str {
        slot_word(match self {
            Self::KeyFile(_) => SlotKind::KeyFile.code(),
            Self::Passphrase(_) => SlotKind::Passphrase.code(),
        })
    }

    /// The master key, wrapped for this credential with a new salt.
    pub(super) fn wrap(&self, master: &MasterKey, pool: &Uuid, index: u8) -> Result<KeySlotRecord> {
        let random = &mut system_random;
        let slot = match self {
            Self::KeyFile(path) => {
                let key = key_file::read(path)?;
                slot::wrap_with_key_file(master, &key, pool, index, random)
            }
            Self::Passphrase(passphrase) => {
                slot::wrap_with_passphrase(master, passphrase, PassphraseCosts::DEFAULT, pool, index, random)
                    .map_err(out_of_memory)?
            }
        };
        Ok(slot_record(index, slot))
    }

    /// The master key, from the first slot that this opens among those that `is_asked` names.
    pub(super) fn open_slot(
        &self,
        superblock: &Superblock,
        is_asked: impl Fn(u8) -> bool,
    ) -> Result<Option<MasterKey>> {
        let secret = self.read()?;
        for (index, slot) in slots(superblock).filter(|(index, _)| is_asked(*index)) {
            let opened = match &secret {
                Secret::KeyFile(key) => slot::unwrap_with_key_file(&slot, key, &superblock.pool, index),
                Secret::Passphrase(passphrase) => {
                    slot::unwrap_with_passphrase(&slot, passphrase, &superblock.pool, index)
                }
            };
            match opened {
                Ok(master) => return Ok(Some(master)),
                Err(error @ KeyError::Memory) => return Err(out_of_memory(error)),
                Err(error @ KeyError::Costs) => tracing::warn!(slot = index, %error, "a key slot was left out"),
                Err(KeyError::Wrong | KeyError::OtherKind | KeyError::ClearKey) => {}
            }
        }
        Ok(None)
    }

    fn read(&self) -> Result<Secret<'_>> {
        Ok(match self {
            Self::KeyFile(path) => Secret::KeyFile(key_file::read(path)?),
            Self::Passphrase(passphrase) => Secret::Passphrase(passphrase),
        })
    }
}

/// A credential that was read.
enum Secret<'a> {
    KeyFile(Zeroizing<[u8; key_file::KEY_FILE_BYTES]>),
    Passphrase(&'a Passphrase),
}

/// The master key of the pool in `directory`, verified to be the one that wrote `file`.
pub(super) fn unlock(directory: &Path, file: &SuperblockFile, credential: Option<&Credential>) -> Result<MasterKey> {
    let superblock = file.superblock();
    let at = directory.display();
    let master = match (superblock.suite, credential) {
        (Suite::XtsGmac, None) => {
            let message = format!("The pool at {at} is encrypted, and neither key file nor passphrase was given");
            return Err(Error::new(ErrorKind::Key, message).with_hint(super::KEY_HINT));
        }
        (Suite::XtsGmac, Some(credential)) => credential.open_slot(superblock, |_| true)?.ok_or_else(|| {
            let message = format!("{credential} does not open the pool at {at}");
            Error::new(ErrorKind::Key, message).with_hint(super::KEY_HINT)
        })?,
        // Else a pool that somebody put in the place of an encrypted one would take what is to be secret.
        (Suite::Plain, Some(credential)) => {
            let message = format!("The pool at {at} is not encrypted. {credential} is not its key");
            return Err(Error::new(ErrorKind::Key, message).with_hint("Leave the key out if that is what you expect"));
        }
        (Suite::Plain, None) => slots(superblock)
            .find_map(|(index, slot)| slot::unwrap_clear(&slot, Suite::Plain, &superblock.pool, index).ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::Integrity, format!("The superblock of the pool at {at} has no key that opens"))
                    .with_hint("Restore it from a backup")
            })?,
    };
    file.verify(&master)?;
    Ok(master)
}

/// The slot as the superblock stores it.
pub(super) fn slot_record(index: u8, slot: KeySlot) -> KeySlotRecord {
    let KeySlot { kind, salt, wrapped, parameters, .. } = slot;
    KeySlotRecord { index, kind: kind.code(), salt, wrapped, parameters }
}

/// The slots whose kind this version knows.
fn slots(superblock: &Superblock) -> impl Iterator<Item = (u8, KeySlot)> {
    superblock.slots.iter().filter_map(|record| {
        let kind = SlotKind::from_code(record.kind)?;
        let KeySlotRecord { index, salt, wrapped, parameters, .. } = *record;
        Some((index, KeySlot { kind, label: String::new(), salt, parameters, wrapped }))
    })
}

/// The word for a kind of slot.
pub(super) const fn slot_word(kind: u8) -> &'static str {
    match kind {
        1 => "key-file",
        2 => "clear",
        3 => "passphrase",
        4 => "systemd-credential",
        _ => "unknown",
    }
}

fn out_of_memory(error: KeyError) -> Error {
    Error::new(ErrorKind::Other, "There is not enough memory to try the passphrase")
        .with_hint("Free some; rok-blk key ls tells how much each slot needs")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::slot_word;

    #[test]
    fn each_kind_of_slot_has_its_word() {
        let words = ["unknown", "key-file", "clear", "passphrase", "systemd-credential", "unknown"];
        assert_eq!([0, 1, 2, 3, 4, 5].map(slot_word), words);
    }
}
