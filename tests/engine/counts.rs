//! What happened in the lives of a seed, and in all of them together.

macro_rules! counts {
    ($($name:ident)*) => {
        /// What really happened, so that a run that tests nothing is seen.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Counts {
            $(pub $name: u64,)*
        }

        impl Counts {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// What never happened.
            pub fn missing(&self) -> Vec<&'static str> {
                let all = [$((stringify!($name), self.$name),)*];
                all.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
            }
        }
    };
}

counts! {
    kills
    power_losses
    crashes_in_recovery
    crashes_in_checkpoint
    no_space
    injected_errors
    torn_writes
    dropped_writes
    operations
    reads_verified
    recovered_records
    lost_blocks
    checkpoints
    rot_detected
    stopped_by_rot
    meta_failures
    meta_full
    volumes_removed
    bad_blocks
    bad_block_reads
    reserves_used
    slow_waits
    faithless
    faithless_refused
    faithless_errors
    faithless_ordered
    growths
    grown
    shrunk
    own_keys
    opened_without_own_keys
    refused_without_own_keys
    own_key_blocks
    shredded
    moved_blocks
    discards
    partial_zeroes
    side_by_side
    restocked
    restock_failures
    blocks_walked
    snapshot_blocks_walked
    paused
    resumed
    set_to_error
    owners_left
    snapshots
    snapshots_removed
    snapshot_reads
    snapshots_verified
    clones
    copied_down
    rollbacks
    forecast_blocks
    diffs
    blocks_changed
    leaks_repaired
    key_changes
    key_changes_cut_off
    parts_stored
    parts_beside
    parts_rebased
    scrubs
    scrubs_resumed
    scrubbed_blocks
    scrub_finds
    key_pairs
}
