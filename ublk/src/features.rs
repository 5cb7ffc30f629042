//! What the loaded driver can do, as the driver says itself. Versions of kernels are never compared.

use std::fmt;

use libublk_rs_sys as sys;

use crate::parameters::QUEUE_COUNT_MAX;

/// The driver's feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(u64);

/// Bit and name of the features, in the order of their bits.
const NAMES: [(u32, &str); 20] = [
    (sys::UBLK_F_SUPPORT_ZERO_COPY, "zero-copy"),
    (sys::UBLK_F_URING_CMD_COMP_IN_TASK, "complete-in-task"),
    (sys::UBLK_F_NEED_GET_DATA, "need-get-data"),
    (sys::UBLK_F_USER_RECOVERY, "recovery"),
    (sys::UBLK_F_USER_RECOVERY_REISSUE, "recovery-reissue"),
    (sys::UBLK_F_UNPRIVILEGED_DEV, "unprivileged"),
    (sys::UBLK_F_CMD_IOCTL_ENCODE, "ioctl-encoding"),
    (sys::UBLK_F_USER_COPY, "user-copy"),
    (sys::UBLK_F_ZONED, "zoned"),
    (sys::UBLK_F_USER_RECOVERY_FAIL_IO, "recovery-fail-io"),
    (sys::UBLK_F_UPDATE_SIZE, "update-size"),
    (sys::UBLK_F_AUTO_BUF_REG, "auto-buffer"),
    (sys::UBLK_F_QUIESCE, "quiesce"),
    (sys::UBLK_F_PER_IO_DAEMON, "per-io-daemon"),
    (sys::UBLK_F_BUF_REG_OFF_DAEMON, "buffer-off-daemon"),
    (sys::UBLK_F_BATCH_IO, "batch"),
    (sys::UBLK_F_INTEGRITY, "integrity"),
    (sys::UBLK_F_SAFE_STOP_DEV, "safe-stop"),
    (sys::UBLK_F_NO_AUTO_PART_SCAN, "no-partition-scan"),
    (sys::UBLK_F_SHMEM_ZC, "shared-memory"),
];

impl Features {
    /// Features from the driver's 64 bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The driver's 64 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// True when commands are numbered as this crate numbers them (Linux 6.4); without it no device can be made.
    #[must_use]
    pub fn has_ioctl_encoding(self) -> bool {
        self.has(sys::UBLK_F_CMD_IOCTL_ENCODE)
    }

    /// True when a server copies the data of requests itself (Linux 6.5); without it no device can be made.
    #[must_use]
    pub fn has_user_copy(self) -> bool {
        self.has(sys::UBLK_F_USER_COPY)
    }

    /// True when a device can outlive its server (Linux 6.1).
    #[must_use]
    pub fn has_recovery(self) -> bool {
        self.has(sys::UBLK_F_USER_RECOVERY)
    }

    /// Flags of a device that outlives its server, with its requests in flight sent again to the next one, and that can be
    /// quiesced where the driver knows how; 0 if the driver cannot do the first two. Without the second flag they would fail,
    /// which is no survival. Drivers of Linux 6.16 to 6.19 lose a device that was quiesced for the second time.
    #[must_use]
    pub(crate) fn survival_flags(self) -> u64 {
        let flags = u64::from(sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE);
        let quiesce = if self.keeps_commands() { 0 } else { u64::from(sys::UBLK_F_QUIESCE) };
        if self.0 & flags == flags { self.0 & (flags | quiesce) } else { 0 }
    }

    /// True when new requests of a device can be held back while its server answers what it has (Linux 6.16).
    #[must_use]
    pub fn has_quiesce(self) -> bool {
        self.has(sys::UBLK_F_QUIESCE)
    }

    /// True when a running device can change its size (Linux 6.16).
    #[must_use]
    pub fn has_size_update(self) -> bool {
        self.has(sys::UBLK_F_UPDATE_SIZE)
    }

    /// True when a stop can be refused while the device is open (Linux 7.0).
    #[must_use]
    pub fn has_safe_stop(self) -> bool {
        self.has(sys::UBLK_F_SAFE_STOP_DEV)
    }

    /// True when a recovery that broke off must be made whole before the next one (see `stand_in`): drivers that let each
    /// request have a server of its own have no such need.
    #[must_use]
    pub(crate) fn needs_stand_in(self) -> bool {
        !self.has(sys::UBLK_F_PER_IO_DAEMON)
    }

    /// How many queues a device that outlives its server may have. One, where the driver (Linux 6.16 to 6.19) never lets a command go
    /// that was fetched in a recovery which broke off before all queues had a server: the device would be busy for ever. A
    /// queue's commands reach the driver at once, so one that has only one queue has a server or has none.
    #[must_use]
    pub(crate) fn surviving_queues_max(self) -> u16 {
        if self.keeps_commands() { 1 } else { QUEUE_COUNT_MAX }
    }

    /// Linux 6.16 to 6.19.
    fn keeps_commands(self) -> bool {
        self.has(sys::UBLK_F_PER_IO_DAEMON) && !self.has(sys::UBLK_F_BATCH_IO)
    }

    fn has(self, feature: u32) -> bool {
        self.0 & u64::from(feature) != 0
    }
}

impl fmt::Display for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)?;
        for (_, name) in NAMES.iter().filter(|(feature, _)| self.has(*feature)) {
            write!(formatter, " {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_of_linux_6_12_is_read() {
        // Measured with GET_FEATURES on a 6.12 kernel.
        let features = Features::from_bits(0x1fe);
        assert!(features.has_ioctl_encoding() && features.has_user_copy() && features.has_recovery());
        assert!(!features.has_size_update() && !features.has_safe_stop());
        assert!(features.to_string().starts_with("0x1fe complete-in-task need-get-data recovery "));
    }

    #[test]
    fn device_survives_only_with_its_requests_in_flight() {
        assert_eq!(Features::from_bits(0x1fe).survival_flags(), 0x18);
        assert_eq!(Features::from_bits(0x8).survival_flags(), 0);
        assert_eq!(Features::from_bits(0x0f_ffff).survival_flags(), 0x1018, "and can be quiesced");
        assert_eq!(Features::from_bits(0x7fff).survival_flags(), 0x18, "but not by drivers that lose it then");
        assert_eq!(Features::from_bits(0x1000).survival_flags(), 0);
        assert!(Features::from_bits(0x1fe).needs_stand_in() && !Features::from_bits(0x3fff).needs_stand_in());
    }

    #[test]
    fn drivers_that_keep_commands_of_a_broken_recovery_get_one_queue() {
        // Measured with GET_FEATURES on 6.12, 6.18 and 7.2.
        let counts = [0x1fe, 0x7fff, 0x0f_ffff].map(|bits| Features::from_bits(bits).surviving_queues_max());
        assert_eq!(counts, [QUEUE_COUNT_MAX, 1, QUEUE_COUNT_MAX]);
    }

    #[test]
    fn names_are_in_the_order_of_their_bits() {
        for (index, (feature, name)) in NAMES.iter().enumerate() {
            assert_eq!(*feature, 1 << index, "{name}");
        }
    }
}
