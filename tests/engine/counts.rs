//! What happened in the lives of a seed, and in all of them together.

/// What really happened, so that a run that tests nothing is seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub kills: u64,
    pub power_losses: u64,
    pub crashes_in_recovery: u64,
    pub crashes_in_checkpoint: u64,
    pub no_space: u64,
    pub injected_errors: u64,
    pub torn_writes: u64,
    pub dropped_writes: u64,
    pub operations: u64,
    pub reads_verified: u64,
    pub recovered_records: u64,
    pub lost_blocks: u64,
    pub checkpoints: u64,
    pub rot_detected: u64,
    pub meta_failures: u64,
    pub meta_full: u64,
    pub volumes_removed: u64,
    pub bad_blocks: u64,
    pub bad_block_reads: u64,
    pub reserves_used: u64,
    pub growths: u64,
    pub own_keys: u64,
    pub own_key_blocks: u64,
    pub shredded: u64,
    pub moved_blocks: u64,
    pub discards: u64,
    pub restocked: u64,
    pub restock_failures: u64,
    pub blocks_walked: u64,
    /// Writes that waited for space, and those of them that were written then.
    pub paused: u64,
    pub resumed: u64,
    /// Times that volumes were told to fail writes, and that who waited left.
    pub set_to_error: u64,
    pub owners_left: u64,
    pub snapshots: u64,
    pub snapshots_removed: u64,
    pub snapshot_reads: u64,
    pub snapshots_verified: u64,
    pub clones: u64,
    pub rollbacks: u64,
    pub forecast_blocks: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        let Self {
            kills,
            power_losses,
            crashes_in_recovery,
            crashes_in_checkpoint,
            no_space,
            injected_errors,
            torn_writes,
            dropped_writes,
            operations,
            reads_verified,
            recovered_records,
            lost_blocks,
            checkpoints,
            rot_detected,
            meta_failures,
            meta_full,
            volumes_removed,
            bad_blocks,
            bad_block_reads,
            reserves_used,
            growths,
            own_keys,
            own_key_blocks,
            shredded,
            moved_blocks,
            discards,
            restocked,
            restock_failures,
            blocks_walked,
            paused,
            resumed,
            set_to_error,
            owners_left,
            snapshots,
            snapshots_removed,
            snapshot_reads,
            snapshots_verified,
            clones,
            rollbacks,
            forecast_blocks,
        } = other;
        self.kills += kills;
        self.power_losses += power_losses;
        self.crashes_in_recovery += crashes_in_recovery;
        self.crashes_in_checkpoint += crashes_in_checkpoint;
        self.no_space += no_space;
        self.injected_errors += injected_errors;
        self.torn_writes += torn_writes;
        self.dropped_writes += dropped_writes;
        self.operations += operations;
        self.reads_verified += reads_verified;
        self.recovered_records += recovered_records;
        self.lost_blocks += lost_blocks;
        self.checkpoints += checkpoints;
        self.rot_detected += rot_detected;
        self.meta_failures += meta_failures;
        self.meta_full += meta_full;
        self.volumes_removed += volumes_removed;
        self.bad_blocks += bad_blocks;
        self.bad_block_reads += bad_block_reads;
        self.reserves_used += reserves_used;
        self.growths += growths;
        self.own_keys += own_keys;
        self.own_key_blocks += own_key_blocks;
        self.shredded += shredded;
        self.moved_blocks += moved_blocks;
        self.discards += discards;
        self.restocked += restocked;
        self.restock_failures += restock_failures;
        self.blocks_walked += blocks_walked;
        self.paused += paused;
        self.resumed += resumed;
        self.set_to_error += set_to_error;
        self.owners_left += owners_left;
        self.snapshots += snapshots;
        self.snapshots_removed += snapshots_removed;
        self.snapshot_reads += snapshot_reads;
        self.snapshots_verified += snapshots_verified;
        self.clones += clones;
        self.rollbacks += rollbacks;
        self.forecast_blocks += forecast_blocks;
    }
}
