//! The shred key of an open pool and its two copies, which are overwritten in place.
//!
//! All domains of volumes are wrapped under the key that counts, the *current* one. Invariant: a copy that holds it is
//! overwritten only while the other one holds it too, or after `meta/` has stopped naming it.

use crate::crypto::{DomainWrapping, MasterKey, Random, ShredKey};
use crate::disk::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::FormatError;
use crate::format::shred_key::{COPY_OFFSETS, ShredKeyCopy};
use crate::planted::{Bug, is_planted};
use crate::units::BLOCK_SIZE;
use std::io;
use std::sync::Arc;
use uuid::Uuid;

/// The two copies, and what they should be.
pub(super) struct ShredKeys {
    device: Option<Arc<dyn Device>>,
    pool: Uuid,
    master: Arc<MasterKey>,
    copies: [Copy; 2],
    /// The key that counts; none as long as no volume has a key of its own.
    current: Option<NumberedKey>,
    /// A shredding found no space in `meta/`, and a crash may nevertheless bring what it stored: both keys stay.
    is_undecided: bool,
}

/// What a copy holds.
enum Copy {
    Zeros,
    Key(NumberedKey),
    /// A newer program wrote it, or that is damage.
    Newer(u32),
    /// Damage, the rest of a write that was cut off, or nobody knows.
    Other,
}

#[derive(Clone)]
pub(super) struct NumberedKey {
    pub(super) number: u32,
    key: Arc<ShredKey>,
    /// A copy that holds it.
    block: Arc<[u8]>,
}

impl ShredKeys {
    /// Reads both copies. Which of them counts is for [`Self::choose`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a newer format.
    pub(super) fn read(device: Option<Arc<dyn Device>>, pool: Uuid, master: Arc<MasterKey>) -> Result<Self> {
        let mut keys =
            Self { device, pool, master, copies: [Copy::Zeros, Copy::Zeros], current: None, is_undecided: false };
        keys.copies = keys.read_copies();
        keys.check_version()?;
        Ok(keys)
    }

    fn read_copies(&self) -> [Copy; 2] {
        let Some(device) = &self.device else { return [Copy::Zeros, Copy::Zeros] };
        COPY_OFFSETS.map(|offset_bytes| self.read_copy(&**device, offset_bytes))
    }

    /// Fails if a newer program wrote the file. One copy with a flipped bit in its version must not hide the other, and the
    /// superblock of such a program's pool was refused before.
    fn check_version(&self) -> Result<()> {
        let has_key = self.copies.iter().any(|copy| matches!(copy, Copy::Key(_)));
        let newer =
            self.copies.iter().find_map(|copy| if let Copy::Newer(version) = copy { Some(version) } else { None });
        let (Some(version), Some(device), false) = (newer, &self.device, has_key) else { return Ok(()) };
        let message = format!("{} has format version {version}, which is newer than this program", device.name());
        Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("Open the pool with the newer rok-blk; nothing was changed"))
    }

    fn read_copy(&self, device: &dyn Device, offset_bytes: u64) -> Copy {
        let mut block = vec![0; BLOCK_SIZE];
        if let Err(error) = device.read_at(offset_bytes, &mut block) {
            tracing::warn!(file = device.name(), %error, "a copy of the shred key cannot be read");
            return Copy::Other;
        }
        if block.iter().all(|byte| *byte == 0) {
            return Copy::Zeros;
        }
        match ShredKeyCopy::decode(&block) {
            Ok(copy) if copy.pool == self.pool => {
                let key = ShredKey::unwrap(&self.master, (&self.pool, copy.number), &copy.wrapped);
                let numbered = |key| NumberedKey { number: copy.number, key: Arc::new(key), block: block.into() };
                key.map_or(Copy::Other, |key| Copy::Key(numbered(key)))
            }
            Err(FormatError::NewerVersion(version)) => Copy::Newer(version),
            Ok(_) | Err(_) => Copy::Other,
        }
    }

    /// Whether there is a file for it. If not, volumes with a key of their own stay closed, and nothing is written.
    pub(super) const fn is_there(&self) -> bool {
        self.device.is_some()
    }

    /// What wraps the keys of volumes that name this shred key.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if no copy holds it.
    pub(super) fn wrapping_of(&self, number: u32) -> Result<DomainWrapping> {
        let found = self.find(number).ok_or_else(|| {
            let name = self.device.as_ref().map_or("shred-key", |device| device.name());
            let message =
                format!("{name} does not hold shred key {number}, and volumes with a key of their own need it");
            Error::new(ErrorKind::Integrity, message).with_hint(
                "Put the file back from a backup taken after the last rm --shred; if there is none, rok-blk serve \
                     --without-own-keys serves all other volumes. Nothing was changed",
            )
        })?;
        Ok(self.wrapping(found))
    }

    fn find(&self, number: u32) -> Option<&NumberedKey> {
        self.copies.iter().find_map(|copy| match copy {
            Copy::Key(key) if key.number == number => Some(key),
            _ => None,
        })
    }

    fn wrapping(&self, key: &NumberedKey) -> DomainWrapping {
        DomainWrapping::of_volumes(&self.master, &key.key)
    }

    /// Takes the key that the domains of volumes name as the one that counts; it was found before.
    pub(super) fn choose(&mut self, number: Option<u32>) {
        self.current = number.and_then(|number| self.find(number)).cloned();
    }

    /// Makes both copies hold the current key, or zeros if there is none: then nothing that was wrapped under an older
    /// one can be unwrapped any more.
    ///
    /// # Errors
    /// The device's failure.
    pub(super) fn settle(&mut self) -> Result<()> {
        for index in 0..self.copies.len() {
            if !self.is_settled(&self.copies[index]) {
                self.write(index, self.current.clone(), is_planted(Bug::ShredNotFlushed))?;
            }
        }
        Ok(())
    }

    /// Reads both copies again, and writes those anew that do not hold what they should; how many that were.
    ///
    /// # Errors
    /// The device's failure.
    pub(super) fn scrub(&mut self) -> Result<usize> {
        let Some(device) = self.device.clone().filter(|_| !self.is_undecided) else { return Ok(0) };
        self.copies = self.read_copies();
        let damaged_count = self.copies.iter().filter(|copy| !self.is_settled(copy)).count();
        self.settle()?;
        if damaged_count > 0 {
            tracing::warn!(file = device.name(), damaged_count, "copies of the shred key were written anew");
        }
        Ok(damaged_count)
    }

    /// Whether a copy is as [`Self::settle`] leaves it.
    fn is_settled(&self, copy: &Copy) -> bool {
        match (copy, &self.current) {
            (Copy::Zeros, None) => true,
            (Copy::Key(key), Some(current)) => key.number == current.number,
            _ => false,
        }
    }

    /// The current key, made if there is none: what wraps the key of a new volume.
    ///
    /// # Errors
    /// The device's failure.
    pub(super) fn ensure(&mut self, random: Random<'_>) -> Result<(u32, DomainWrapping)> {
        self.check()?;
        self.settle()?;
        if self.current.is_none() {
            let first = self.generate(1, random);
            for index in 0..self.copies.len() {
                self.write(index, Some(first.clone()), false)?;
            }
            self.current = Some(first);
        }
        let current = self.current.as_ref().expect("made just now");
        Ok((current.number, self.wrapping(current)))
    }

    /// A new key, which is in the first copy; the current one stays in the second. `meta/` is to name it next, and then
    /// [`Self::replace`] is to be called; if `meta/` does not, [`Self::settle`].
    ///
    /// # Errors
    /// The device's failure. The current key still counts.
    ///
    /// # Panics
    /// If there is no current key: a volume is shredded only if it has a key.
    pub(super) fn begin_next(&mut self, random: Random<'_>) -> Result<(NumberedKey, DomainWrapping)> {
        self.check()?;
        self.settle()?;
        let current = self.current.as_ref().expect("a volume has a key of its own").number;
        let next = self.generate(current + 1, random);
        self.write(0, Some(next.clone()), false)?;
        let wrapping = self.wrapping(&next);
        Ok((next, wrapping))
    }

    /// `meta/` names `next` only: destroys the key before it.
    ///
    /// # Errors
    /// The device's failure; then [`Self::settle`] is to be tried again.
    pub(super) fn replace(&mut self, next: NumberedKey) -> Result<()> {
        self.current = Some(next);
        self.settle()
    }

    /// `meta/` had no space for what names the next key, as far as is known: both copies stay until the next opening, which
    /// sees what is stored.
    pub(super) fn leave_undecided(&mut self) {
        self.is_undecided = true;
    }

    fn check(&self) -> Result<()> {
        if self.is_undecided {
            return Err(Error::new(ErrorKind::NoSpace, "The metadata store had no space for an earlier shredding")
                .with_hint("Free some in its file system, then restart the daemon, which ends or undoes that one"));
        }
        if self.is_there() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Key,
            "The pool was opened without its file shred-key: no key of a volume can be changed",
        )
        .with_hint("Start the daemon again with the file, and without --without-own-keys"))
    }

    fn generate(&self, number: u32, random: Random<'_>) -> NumberedKey {
        let key = ShredKey::generate(random);
        let wrapped = key.wrap(&self.master, (&self.pool, number), random);
        let block = ShredKeyCopy { pool: self.pool, number, wrapped }.encode();
        NumberedKey { number, key: Arc::new(key), block: block.into() }
    }

    /// Writes a copy, durably but for the planted bug.
    fn write(&mut self, index: usize, key: Option<NumberedKey>, is_flush_left_out: bool) -> Result<()> {
        let device = self.device.as_ref().expect("without a file there is nothing to write");
        let zeros = vec![0; BLOCK_SIZE];
        let block = key.as_ref().map_or(zeros.as_slice(), |key| &key.block);
        self.copies[index] = Copy::Other;
        let write = || -> io::Result<()> {
            device.write_at(COPY_OFFSETS[index], block)?;
            if is_flush_left_out { Ok(()) } else { device.flush() }
        };
        write().map_err(|error| {
            Error::new(ErrorKind::Other, format!("Writing {} failed: {error}", device.name())).with_source(error)
        })?;
        self.copies[index] = key.map_or(Copy::Zeros, Copy::Key);
        Ok(())
    }
}
