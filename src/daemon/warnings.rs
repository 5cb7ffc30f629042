//! What of a pool needs somebody's attention, in sentences that say what to do.

use super::on_full_resource::PausedVolume;
use super::resource::{PoolState, Space, SpaceLevel};

/// Those of `status`, the gravest first.
pub(super) fn warnings(pool: &PoolState, space: &Space, paused: &[PausedVolume]) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(failure) = &pool.failure {
        warnings
            .push(format!("The pool takes no writes any more: {failure}. Restart the daemon when that is repaired."));
    }
    warnings.extend(paused.iter().map(PausedVolume::warning));
    if pool.damaged_blocks > 0 {
        warnings.push(format!(
            "Reads found a damaged block, times: {}. The log names the blocks; they read as errors.",
            pool.damaged_blocks
        ));
    }
    if pool.is_meta_reserve_gone {
        warnings.push(
            "The file system of the metadata is full: writes that need space fail or wait. Free some, and its reserve comes back."
                .to_owned(),
        );
    }
    if pool.cleaning.is_taking_failing {
        warnings.push(
            "Free space that was given back cannot be taken again: the file system of a data file is full. Free some; it is \
             tried again by itself."
                .to_owned(),
        );
    }
    let used_percent = u128::from(space.used_bytes) * 100 / u128::from(space.capacity_bytes.max(1));
    let level = match space.level {
        SpaceLevel::Enough => return warnings,
        SpaceLevel::Low => "low",
        SpaceLevel::Critical => "critical",
    };
    warnings.push(format!(
        "The pool is {used_percent} % full, which is {level}; writes fail, or wait, when it has no space left. Make it larger with \
         rok-blk pool grow or add-device, or discard or remove what is not needed."
    ));
    warnings
}
