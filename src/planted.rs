//! Bugs planted on purpose, to prove that the simulation finds such bugs.
//!
//! Without the feature `planted-bugs`, which no shipped binary has, [`is_planted`] is the constant `false`.

/// A bug that a test can plant. Each names the rule that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A flush is acknowledged without one of the device.
    SkipFlush,
    /// A write is acknowledged when its batch is submitted.
    AcknowledgeBeforeWrite,
    /// A replaced block is free at once, not after the next checkpoint.
    ReuseBeforeCheckpoint,
    /// One lane's chain start is taken after the cut.
    CutDiffersBetweenLanes,
    /// Recovery takes a record for what it says it is.
    StaleRecordAccepted,
    /// A leaf that became empty is not stored.
    EmptyLeafNotPut,
    /// A read does not verify its blocks.
    IgnoreMac,
    /// A checkpoint stores changes whose data was not flushed.
    SkipCheckpointFlush,
    /// Recovery does not verify the blocks above the marks.
    RecoveryTrustsData,
    /// A discard is not logged.
    DiscardNotLogged,
    /// Zeroes leave the parts of blocks at their ends.
    ZeroesLeaveEnds,
    /// A flush joins one that has started.
    FlushJoinsStarted,
    /// A load that a checkpoint overtook is cached.
    OvertakenLoadCached,
    /// A flush leaves out all written devices but the first.
    FlushOneDevice,
    /// A volume that is open when it gets another size has the old one.
    SizeNotTold,
    /// New blocks are used before the superblock lists them.
    UseBeforeListed,
    /// A block that a checkpoint replaces stays marked as used.
    ReplacedStaysUsed,
    /// An opening without the shred key drops what it cannot verify.
    UnverifiedDropped,
    /// An opening without the shred key takes what it cannot verify for whole.
    UnverifiedTaken,
    /// A volume with a key of its own is written with the pool's key behind a recovery.
    OwnKeyLostInRecovery,
    /// A shredding does not flush what overwrites the old shred key.
    ShredNotFlushed,
    /// A shredding does not wait until the removal of the volume's key is durable.
    ShredNotSynced,
    /// A write of a part of a block reads the rest before it has the lock.
    MergeTrustsEarlyLook,
    /// The cleaner moves what the map said before it had the lock.
    MoveTrustsEarlyLook,
    /// A walk over the map looks at what is stored only.
    WalkWithoutChanges,
    /// A walk over a snapshot or a clone asks only behind its look at the store whether that had everything.
    WalkAsksTooLate,
    /// What the stored map leaves free is given back, although the log has blocks there.
    TrimTrustsStoredMap,
    /// A write that waits for space does not see what came between its look and its wait.
    PauseMissesSpace,
    /// A write that waits for space keeps its range locked.
    PausedWriteKeepsItsRange,
    /// What an idle lane gives back is no news for writes that wait for space.
    GivenBackUntold,
    /// A checkpoint frees what a head replaces, although a snapshot maps it.
    SnapshotBlocksFreed,
    /// A merge frees what snapshots before it map.
    MergeFreesOlder,
    /// A checkpoint takes what a merge has left behind its cursor for the snapshot's still.
    MergeCursorIgnored,
    /// Leaves of the parents are taken for copied down before all of them are.
    CopyEndsEarly,
    /// Versions that an opening finds are taken for stored before its checkpoint is done.
    FoundVersionsSettled,
    /// A leaf that a nearer one hides keeps that one from being read.
    HiddenLeafNeeded,
    /// A diff leaves out what only the parent of a clone has.
    DiffWithoutParents,
    /// A change of the superblock leaves one copy as it was.
    OldSlotsStay,
    /// A change of the superblock takes what it reads for durable.
    SuperblockTrustsItsRead,
    /// A repair of leaked space clears what is used around the leaked blocks too.
    RepairTakesAllUsed,
    /// A part is read without the leaf that it builds on.
    PartWithoutBase,
    /// A merge deletes a leaf, and the part that builds on it stays as it was.
    MergeDropsBase,
    /// A scrub goes on behind the leaf where it was.
    ScrubResumesTooFar,
    /// A scrub leaves out what only older epochs of a leaf map.
    ScrubSkipsShared,
    /// A scrub takes what does not match for damaged, although nobody has it any more.
    ScrubTrustsFirstLook,
    /// A scrub never takes back what an earlier one has found.
    ScrubKeepsOldFindings,
    /// Of the sequences that are given out at once the last one is given out again.
    SequencesOverlap,
    /// A session has the salt that another one may have.
    SaltNotDrawn,
}

impl Bug {
    /// Those that a random life finds: all but the last one, for which a pool must be copied.
    pub const ALL: [Self; 47] = [
        Self::SkipFlush,
        Self::AcknowledgeBeforeWrite,
        Self::ReuseBeforeCheckpoint,
        Self::CutDiffersBetweenLanes,
        Self::StaleRecordAccepted,
        Self::EmptyLeafNotPut,
        Self::IgnoreMac,
        Self::SkipCheckpointFlush,
        Self::RecoveryTrustsData,
        Self::DiscardNotLogged,
        Self::ZeroesLeaveEnds,
        Self::FlushJoinsStarted,
        Self::OvertakenLoadCached,
        Self::FlushOneDevice,
        Self::SizeNotTold,
        Self::UseBeforeListed,
        Self::ReplacedStaysUsed,
        Self::UnverifiedDropped,
        Self::UnverifiedTaken,
        Self::OwnKeyLostInRecovery,
        Self::ShredNotFlushed,
        Self::ShredNotSynced,
        Self::MergeTrustsEarlyLook,
        Self::MoveTrustsEarlyLook,
        Self::TrimTrustsStoredMap,
        Self::WalkWithoutChanges,
        Self::WalkAsksTooLate,
        Self::PauseMissesSpace,
        Self::PausedWriteKeepsItsRange,
        Self::GivenBackUntold,
        Self::SnapshotBlocksFreed,
        Self::MergeFreesOlder,
        Self::MergeCursorIgnored,
        Self::CopyEndsEarly,
        Self::FoundVersionsSettled,
        Self::HiddenLeafNeeded,
        Self::DiffWithoutParents,
        Self::RepairTakesAllUsed,
        Self::OldSlotsStay,
        Self::SuperblockTrustsItsRead,
        Self::PartWithoutBase,
        Self::MergeDropsBase,
        Self::ScrubResumesTooFar,
        Self::ScrubSkipsShared,
        Self::ScrubTrustsFirstLook,
        Self::ScrubKeepsOldFindings,
        Self::SequencesOverlap,
    ];
}

#[cfg(feature = "planted-bugs")]
mod active {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug for this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        ACTIVE.set(bug);
    }

    /// Whether the bug is planted on this thread.
    #[must_use]
    pub fn is_planted(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use active::{is_planted, plant};

/// Whether the bug is planted: never, in a build without the feature.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}
