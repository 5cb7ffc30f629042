//! The cases of the group `snapshots`: what is measured of snapshots, clones and reclaim, and what is promised.

use super::case::{Access, Case, Metric, Target};
use crate::cli::bench::arguments::BenchGroup;

/// A volume of which snapshots are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) size_bytes: u64,
    /// Blocks that are mapped.
    pub(super) block_count: u64,
    /// Whether these are at equal distances over the whole volume, or all at its start.
    pub(super) is_scattered: bool,
}

/// Whose reads are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// A volume with a thousand snapshots.
    ManySnapshots,
    /// A clone of a clone, 64 deep.
    Clones,
}

/// What a case of the group measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotCase {
    /// How long a snapshot takes while others write.
    Take(Mapping),
    /// How long these writes take.
    Writes(Mapping),
    /// Snapshots of the largest volume against those of the smallest.
    BySize,
    Reads {
        depth: Depth,
        is_cold: bool,
    },
    /// A thousand clones at once.
    CloneTime,
    /// What they take in `meta/`.
    CloneBytes,
    /// How fast blocks become free of which only a snapshot was left.
    ReclaimRate,
    /// The longest that a write took beside that.
    ReclaimHold,
    /// What removing a snapshot of ten million blocks would free, all of which the head has replaced.
    Forecast,
    /// Opening a pool with ten thousand snapshots.
    Open,
}

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const KIB: usize = 1 << 10;
/// With more mapped blocks than this the pool is in memory, of which it takes only what is written.
pub(super) const FILE_BLOCKS_MAX: u64 = 1_000_000;
/// Blocks of the snapshot whose removal is forecast.
pub(super) const FORECAST_BLOCKS: u64 = 10_000_000;
/// Clones that are made at once.
pub(super) const CLONE_COUNT: u16 = 1000;
/// Snapshots of the pool that is opened.
pub(super) const OPEN_SNAPSHOTS: u64 = 10_000;

impl Mapping {
    /// The distance of two neighbours, in blocks.
    pub(super) const fn stride(self) -> u64 {
        if self.is_scattered { self.size_bytes / 4096 / self.block_count } else { 1 }
    }

    /// Of its volume.
    pub(super) fn volume_name(self) -> String {
        format!("volume-{}", self.name())
    }

    fn name(self) -> String {
        let size = if self.size_bytes < TIB {
            format!("{}g", self.size_bytes / GIB)
        } else {
            format!("{}t", self.size_bytes / TIB)
        };
        let blocks = match self.block_count {
            1000 => "thousand".to_owned(),
            FILE_BLOCKS_MAX => "million".to_owned(),
            count => format!("{}-million", count / 1_000_000),
        };
        format!("{size}-{blocks}-{}", if self.is_scattered { "scattered" } else { "dense" })
    }
}

impl SnapshotCase {
    /// What people and scripts call it, behind the name of the group.
    pub(super) fn name(self) -> String {
        match self {
            Self::Take(mapping) => format!("take-{}", mapping.name()),
            Self::Writes(mapping) => format!("writes-{}", mapping.name()),
            Self::BySize => "take-by-size".to_owned(),
            Self::Reads { depth, is_cold } => {
                let depth = if depth == Depth::Clones { "clone-64-deep" } else { "1000-snapshots" };
                format!("reads-{depth}-{}", if is_cold { "cold" } else { "warm" })
            }
            Self::CloneTime => "clone-1000-time".to_owned(),
            Self::CloneBytes => "clone-1000-metadata".to_owned(),
            Self::ReclaimRate => "reclaim-rate".to_owned(),
            Self::ReclaimHold => "reclaim-hold".to_owned(),
            Self::Forecast => "forecast-10-million".to_owned(),
            Self::Open => "open-10000".to_owned(),
        }
    }

    pub(super) const fn contestants(self) -> (&'static str, &'static str) {
        match self {
            Self::Take(_) | Self::Writes(_) => ("alone", "snapshots"),
            Self::BySize => ("smallest", "largest"),
            Self::Reads { depth: Depth::ManySnapshots, .. } => ("none", "1000"),
            Self::Reads { depth: Depth::Clones, .. } => ("volume", "clone"),
            Self::CloneTime | Self::CloneBytes => ("one", "1000"),
            Self::ReclaimRate | Self::ReclaimHold => ("alone", "reclaim"),
            Self::Forecast => ("thousand", "10-million"),
            Self::Open => ("none", "10000"),
        }
    }

    pub(super) const fn metric(self) -> Metric {
        match self {
            Self::Take(_) => Metric::TakeMilliseconds,
            Self::Writes(_) => Metric::TailDifference,
            Self::BySize => Metric::TakeRatio,
            Self::Reads { .. } => Metric::Throughput,
            Self::CloneTime => Metric::SecondsToClone,
            Self::CloneBytes => Metric::BytesEach,
            Self::ReclaimRate => Metric::BlocksPerSecond,
            Self::ReclaimHold => Metric::LongestMilliseconds,
            Self::Forecast => Metric::SecondsToForecast,
            Self::Open => Metric::Seconds,
        }
    }

    const fn target(self) -> Target {
        match self {
            Self::Take(_) => Target::AtMost(20.0),
            Self::Writes(_) => Target::AtMost(25.0),
            // What does not depend on the size: the rest is noise.
            Self::BySize => Target::AtMost(1.5),
            Self::Reads { is_cold: false, .. } => Target::AtLeast(0.95),
            Self::Reads { is_cold: true, .. } => Target::AtLeast(0.5),
            Self::CloneTime => Target::AtMost(5.0),
            Self::CloneBytes => Target::AtMost(1024.0),
            Self::ReclaimRate => Target::AtLeast(1e6),
            Self::ReclaimHold | Self::Forecast => Target::AtMost(5.0),
            Self::Open => Target::AtMost(3.0),
        }
    }

    /// Whether it takes minutes and much memory, so that only its name chooses it.
    pub(super) const fn is_long(self) -> bool {
        match self {
            Self::Take(mapping) | Self::Writes(mapping) => {
                mapping.is_scattered && mapping.block_count > FILE_BLOCKS_MAX
            }
            _ => false,
        }
    }

    /// As a case.
    fn case(self) -> Case {
        let (access, depth) = match self {
            Self::Reads { .. } => (Access::RandomRead, 32),
            Self::ReclaimHold | Self::ReclaimRate => (Access::RandomWrite, 1),
            _ => (Access::RandomWrite, 32),
        };
        let case = Case::new(BenchGroup::Snapshots, access, 4 * KIB, depth);
        Case { snapshot: Some(self), target: Some(self.target()), ..case }
    }
}

/// The cases, in the order in which they are reported.
pub(super) fn all() -> Vec<Case> {
    let mut mappings = Vec::new();
    for (size_bytes, block_count) in
        [(GIB, 1000), (TIB, 1000), (64 * TIB, 1000), (TIB, 1_000_000), (64 * TIB, 1_000_000), (64 * TIB, 10_000_000)]
    {
        mappings.extend([false, true].map(|is_scattered| Mapping { size_bytes, block_count, is_scattered }));
    }
    let reads = [Depth::ManySnapshots, Depth::Clones]
        .into_iter()
        .flat_map(|depth| [false, true].map(|is_cold| SnapshotCase::Reads { depth, is_cold }));
    let takes = mappings.iter().map(|mapping| SnapshotCase::Take(*mapping));
    let writes = mappings.iter().map(|mapping| SnapshotCase::Writes(*mapping));
    let others = [
        SnapshotCase::CloneTime,
        SnapshotCase::CloneBytes,
        SnapshotCase::ReclaimRate,
        SnapshotCase::ReclaimHold,
        SnapshotCase::Forecast,
        SnapshotCase::Open,
    ];
    takes.chain([SnapshotCase::BySize]).chain(writes).chain(reads).chain(others).map(SnapshotCase::case).collect()
}
