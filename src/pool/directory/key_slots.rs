//! The key slots of a pool: listing and changing them.
//!
//! A change wraps the master key anew; the master key itself, and so all data, stays as it is. Invariants: whoever
//! changes slots holds the pool's devices, so that nobody else does; what stays always opens the pool, since a removal
//! takes a credential of a slot that stays; a change that returned success left no slot of before in either copy.

use super::superblock_file::SuperblockFile;
use super::{Credential, credential};
use crate::crypto::slot::SlotKind;
use crate::crypto::{MasterKey, PassphraseCosts, Suite};
use crate::disk::FileDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::{KEY_SLOTS_MAX, KeySlotRecord, Superblock};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A key slot, as far as no key is needed to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySlotDescription {
    /// Its position, which is its name.
    pub index: u8,
    /// What opens it: `key-file`, `passphrase`, `clear`, or a word for what this version cannot open.
    pub method: &'static str,
    /// What a guess at its passphrase costs, if it has one and these are within their limits.
    pub costs: Option<PassphraseCosts>,
}

/// What to change.
#[derive(Clone, Debug)]
pub enum KeyChange {
    /// Wraps the master key for one more credential, in the first slot that is free.
    Add {
        /// Whom the new slot is for.
        new: Credential,
    },
    /// Wraps the master key anew in a slot in use; its old wrapping is gone.
    Rotate {
        /// The slot.
        index: u8,
        /// Whom it is for from then on.
        new: Credential,
    },
    /// Frees a slot.
    Remove {
        /// The slot.
        index: u8,
    },
}

/// A slot around a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedKeySlot {
    /// Before; `None` for a slot that was free.
    pub before: Option<KeySlotDescription>,
    /// Afterwards; `None` for one that is free now. In the plan of a change its costs are those of new slots.
    pub after: Option<KeySlotDescription>,
}

/// The slots of a pool whose devices this process holds.
pub struct KeySlots {
    directory: PathBuf,
    /// Whoever changes the superblock of an open pool holds it.
    exclusive: Arc<Mutex<()>>,
    /// Locked as long as this lives.
    _devices: Vec<Arc<FileDevice>>,
}

impl KeySlots {
    /// Takes the pool in `directory`, which nobody serves.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Busy` if another process has it, `Integrity` if its superblock is damaged or a
    /// device is missing.
    pub fn lock(directory: &Path) -> Result<Self> {
        let (_, devices) = super::lock(directory)?;
        Ok(Self::of(directory, devices, Arc::default()))
    }

    /// Of a pool that is open.
    pub(super) fn of(directory: &Path, devices: Vec<Arc<FileDevice>>, exclusive: Arc<Mutex<()>>) -> Self {
        Self { directory: directory.to_path_buf(), exclusive, _devices: devices }
    }

    /// Changes a slot, or with `is_dry_run` only says what would change. `credential` opens a slot; for a removal it
    /// must be one that stays.
    ///
    /// # Errors
    /// `Usage` for a pool without encryption, `NotFound` for a slot that is not in use, `NoSpace` if none is free,
    /// `Permission` for the removal of the last one, `Key` if `credential` opens no slot or the new one cannot be read,
    /// `Integrity` for a superblock that was not written with the master key, else the system's: then the slots of
    /// before or those afterwards hold.
    pub fn change(&mut self, credential: &Credential, change: &KeyChange, is_dry_run: bool) -> Result<ChangedKeySlot> {
        let _exclusive = self.exclusive.lock();
        let file = SuperblockFile::read(&self.directory)?;
        let superblock = file.superblock();
        if superblock.suite == Suite::Plain {
            let message = format!("The pool at {} is not encrypted: it has no key to change", self.directory.display());
            return Err(Error::new(ErrorKind::Usage, message).with_hint("Create an encrypted pool with --key-file"));
        }
        let index = check(superblock, change)?;
        let is_staying = |other: u8| !matches!(change, KeyChange::Remove { .. }) || other != index;
        let Some(master) = credential.open_slot(superblock, is_staying)? else {
            return Err(self.refuse(credential, change));
        };
        file.verify(&master)?;
        let before = superblock.slots.iter().find(|slot| slot.index == index).map(describe);
        let new = match change {
            KeyChange::Add { new } | KeyChange::Rotate { new, .. } => new,
            KeyChange::Remove { .. } => {
                let slots = superblock.slots.iter().filter(|slot| slot.index != index).cloned().collect();
                if !is_dry_run {
                    replace_slots(&file, slots, &master)?;
                }
                return Ok(ChangedKeySlot { before, after: None });
            }
        };
        if is_dry_run {
            return Ok(ChangedKeySlot { before, after: Some(planned(index, new)) });
        }
        let record = new.wrap(&master, &superblock.pool, index)?;
        let after = Some(describe(&record));
        let others = superblock.slots.iter().filter(|slot| slot.index != index).cloned();
        let mut slots: Vec<KeySlotRecord> = others.chain([record]).collect();
        slots.sort_by_key(|slot| slot.index);
        replace_slots(&file, slots, &master)?;
        Ok(ChangedKeySlot { before, after })
    }

    fn refuse(&self, credential: &Credential, change: &KeyChange) -> Error {
        let at = self.directory.display();
        if let KeyChange::Remove { index } = change {
            let message = format!("{credential} opens no slot of the pool at {at} but perhaps slot {index} itself");
            return Error::new(ErrorKind::Key, message)
                .with_hint("To remove a slot, give the key of one that stays: it proves that the pool still opens");
        }
        Error::new(ErrorKind::Key, format!("{credential} does not open the pool at {at}")).with_hint(super::KEY_HINT)
    }
}

fn replace_slots(file: &SuperblockFile, slots: Vec<KeySlotRecord>, master: &MasterKey) -> Result<()> {
    file.replace(&Superblock { slots, ..file.superblock().clone() }, master)
        .map_err(|error| error.with_hint("Look with rok-blk key ls which slots hold now, and repeat the change"))
}

/// What a slot is.
pub(super) fn describe(record: &KeySlotRecord) -> KeySlotDescription {
    let is_passphrase = record.kind == SlotKind::Passphrase.code();
    KeySlotDescription {
        index: record.index,
        method: credential::slot_word(record.kind),
        costs: PassphraseCosts::from_parameters(&record.parameters).filter(|_| is_passphrase),
    }
}

/// What a slot will be.
fn planned(index: u8, new: &Credential) -> KeySlotDescription {
    let costs = matches!(new, Credential::Passphrase(_)).then_some(PassphraseCosts::DEFAULT);
    KeySlotDescription { index, method: new.method(), costs }
}

/// The slot that the change is about, if it is possible; this much needs no key.
fn check(superblock: &Superblock, change: &KeyChange) -> Result<u8> {
    let is_used = |index: u8| superblock.slots.iter().any(|slot| slot.index == index);
    let (&KeyChange::Rotate { index, .. } | &KeyChange::Remove { index }) = change else {
        return (0..).take(KEY_SLOTS_MAX).find(|index| !is_used(*index)).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, format!("All {KEY_SLOTS_MAX} key slots are in use"))
                .with_hint("Remove one with rok-blk key rm SLOT, or give one a new key with rok-blk key rotate SLOT")
        });
    };
    if !is_used(index) {
        return Err(Error::new(ErrorKind::NotFound, format!("Key slot {index} is not in use"))
            .with_hint("List the slots with rok-blk key ls"));
    }
    if matches!(change, KeyChange::Remove { .. }) && superblock.slots.len() == 1 {
        let message = format!("Key slot {index} is the last one: without it nothing opens the pool any more");
        return Err(Error::new(ErrorKind::Permission, message).with_hint(
            "Add another one first with rok-blk key add, or give this one a new key with rok-blk key rotate",
        ));
    }
    Ok(index)
}
