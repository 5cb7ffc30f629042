//! Disks of the kernel's NBD client across the life of a daemon, as `daemon/restoration.rs` has them of ublk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attached::NbdAttached;
use super::disk::{Holder, block_path};
use super::driver::{Driver, DriverError};
use super::failure::failure;
use super::table::{NbdAttachments, end_unserved};
use crate::daemon::attachment_resource::AttachmentState;
use crate::daemon::attachment_store::{AttachmentFile, Remembered};
use crate::daemon::attachments::Waiting;
use crate::daemon::device_users::Care;
use crate::daemon::restoration::{open_remembered, tell_of_left, told};
use crate::error::{Error, ErrorKind, Result};

/// How long a start waits for the kernel to have closed the connections of the daemon before, all disks together.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(10);

impl NbdAttachments {
    /// Brings back what is remembered. What cannot be brought back waits, with the reason.
    pub(in crate::daemon) fn restore(&self) {
        let remembered = AttachmentFile::NBD.read_or_set_aside(&self.pool);
        // All of them at first, so that none is forgotten while another one is stored.
        self.table.lock().waiting = Waiting::all_at_start(&remembered);
        let end = Instant::now() + RECOVERY_TIME_MAX;
        if !remembered.is_empty() {
            self.short_memory.prepare();
        }
        for (number, remembered) in remembered {
            if let Err(error) = self.bring_back(number, remembered, end) {
                let device = block_path(number);
                tracing::error!(
                    device = %device.display(),
                    "a disk was not brought back: {}. rok-blk attach tries again, rok-blk detach {} gives it up",
                    told(&error),
                    device.display()
                );
            }
        }
    }

    /// Brings back one that waits; `None` if it is nothing to be brought back any more, and is forgotten.
    ///
    /// # Errors
    /// Why it waits still.
    pub(in crate::daemon) fn bring_back(
        &self,
        number: u32,
        remembered: Remembered,
        end: Instant,
    ) -> Result<Option<Arc<NbdAttached>>> {
        match self.take_over_or_make(number, remembered, end) {
            Ok(Some(attached)) => Ok(Some(self.insert(attached))),
            Ok(None) => {
                self.table.lock().waiting.remove(&number);
                self.store(None)?;
                Ok(None)
            }
            Err(error) => {
                self.table.lock().waiting.insert(number, Waiting { remembered, problem: told(&error) });
                Err(error)
            }
        }
    }

    fn take_over_or_make(&self, number: u32, remembered: Remembered, end: Instant) -> Result<Option<Arc<NbdAttached>>> {
        let device = block_path(number);
        let volume = match open_remembered(&self.server, &remembered) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                end_unserved(number, &remembered, Care::None)?;
                tracing::error!(
                    device = %device.display(),
                    "the volume of a disk is not there any more: the disk was taken away, its users get errors"
                );
                return Ok(None);
            }
            opened => opened?,
        };
        match Driver::open() {
            Err(DriverError::Missing) if remembered.is_once => return Ok(None),
            opened => opened.map_err(failure)?,
        };
        match Holder::of(number, &remembered.backend()) {
            Holder::Ours => {
                let attached = NbdAttached::take_over(&self.server, number, remembered, volume, end)?;
                tracing::info!(device = %device.display(), "a disk was taken over from an earlier daemon");
                Ok(Some(attached))
            }
            Holder::Nobody | Holder::Other if remembered.is_once => {
                tracing::info!(device = %device.display(), "a disk that was attached for once is not made anew");
                Ok(None)
            }
            Holder::Other => {
                let message = format!("{} belongs to another program now", device.display());
                Err(Error::new(ErrorKind::Exists, message).with_hint(
                    "Give the number up with rok-blk detach and attach under another one, or end that program",
                ))
            }
            Holder::Nobody => {
                let made = NbdAttached::make(&self.server, number, remembered, volume);
                let attached = made.map_err(|(error, _)| error)?;
                attached.find_partitions();
                Ok(Some(attached))
            }
        }
    }

    /// Ends what nobody uses, and leaves what is in use to the next daemon. Attaches nothing any more. All is remembered but
    /// what was attached for once and has ended.
    pub(in crate::daemon) fn leave(&self) {
        let before = self.remembered();
        let (mut kept, mut left) = (before.clone(), Vec::new());
        for attached in self.close_table() {
            let has_ended = self.end_or_release(&attached);
            if !has_ended {
                left.push(attached.path().display().to_string());
            }
            if has_ended && attached.remembered.is_once {
                kept.remove(&attached.number);
            }
        }
        if kept != before
            && let Err(error) = self.store_all(&kept)
        {
            tracing::warn!(%error, "what the next start attaches is not up to date");
        }
        tell_of_left(&left);
    }

    /// Whether a disk was ended; else the next daemon takes it over.
    fn end_or_release(&self, attached: &NbdAttached) -> bool {
        let Err(error) = self.take_away(attached, Care::Full) else { return true };
        tracing::debug!(%error, device = attached.number, "a disk stays for the next daemon");
        let has_gone =
            matches!(attached.state(), AttachmentState::Gone | AttachmentState::Dead | AttachmentState::Taken);
        if let Err(error) = attached.release() {
            tracing::warn!(%error, device = attached.number, "requests of a disk are under way still");
        }
        has_gone
    }
}
