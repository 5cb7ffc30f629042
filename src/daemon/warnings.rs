//! What of a pool needs somebody's attention, in sentences that say what to do.

use super::on_full_resource::PausedVolume;
use super::resource::{PoolState, Space, SpaceLevel};
use super::space_resource::HeldSpace;

/// Damaged ranges that have a warning of their own.
const DAMAGES_MAX: usize = 10;

/// Those of `status`, the gravest first.
pub(super) fn warnings(
    pool: &PoolState,
    space: &Space,
    paused: &[PausedVolume],
    freeable: &[HeldSpace],
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(failure) = &pool.failure {
        warnings
            .push(format!("The pool takes no writes any more: {failure}. Restart the daemon when that is repaired."));
    }
    warnings.extend(paused.iter().map(PausedVolume::warning));
    if pool.damaged_blocks > 0 {
        warnings.push(format!(
            "{}. The log names them; they read as errors until they are written anew. rok-blk scrub finds all that is damaged.",
            pool.damage_text()
        ));
    }
    let damages = &pool.scrub.damages;
    warnings.extend(damages.iter().take(DAMAGES_MAX).map(|range| format!("{}.", range.message)));
    if damages.len() > DAMAGES_MAX {
        let more = damages.len() - DAMAGES_MAX;
        warnings.push(format!("{more} more damaged ranges are in pool.scrub.damages of rok-blk status --json."));
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
    if !freeable.is_empty() {
        let of_snapshot = |held: &HeldSpace| format!("{} would free {} bytes", held.reference, held.unique);
        let list = freeable.iter().map(of_snapshot).collect::<Vec<_>>().join(", ");
        warnings.push(format!(
            "Snapshots that hold most, each alone: {list}. rok-blk rm --now removes what is not needed, past the trash."
        ));
    }
    if space.trash_bytes > 0 {
        warnings.push(format!(
            "What is in the trash has {} bytes, some of which others may share: rok-blk trash empty --dry-run tells what it \
             would free.",
            space.trash_bytes
        ));
    }
    warnings
}
