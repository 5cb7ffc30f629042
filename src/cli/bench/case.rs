//! What is measured: the requests of each case, what they are compared with, and what is promised.

use super::snapshot_case::{self, SnapshotCase};
use crate::cli::bench::arguments::BenchGroup;

/// Whether requests read or write, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialWrite,
    /// Random places, 70 % reads and 30 % writes.
    Mixed,
}

impl Access {
    /// Whether the requests do nothing but write.
    pub(super) const fn is_write(self) -> bool {
        matches!(self, Self::RandomWrite | Self::SequentialWrite)
    }

    pub(super) const fn is_read(self) -> bool {
        matches!(self, Self::RandomRead | Self::SequentialRead)
    }

    pub(super) const fn is_random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite | Self::Mixed)
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::RandomRead => "random-read",
            Self::RandomWrite => "random-write",
            Self::SequentialRead => "sequential-read",
            Self::SequentialWrite => "sequential-write",
            Self::Mixed => "random-mixed",
        }
    }
}

/// What the figure of a case is, from two measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    /// Requests a second of the second to those of the first.
    Throughput,
    /// Processor time of a request in the second less that in the first, in microseconds.
    ProcessorTime,
    /// Seconds that the second took.
    Seconds,
    /// The latency that all but one request in a thousand stay below, of the second to that of the first.
    Tail,
    /// The same of the second less that of the first, in milliseconds.
    TailDifference,
    /// What all but one snapshot in a hundred stay below, in milliseconds.
    TakeMilliseconds,
    /// The time of the usual snapshot of the second to that of the first.
    TakeRatio,
    /// Seconds until all clones are made.
    SecondsToClone,
    /// Seconds until it is known what a removal would free.
    SecondsToForecast,
    /// Bytes for each clone.
    BytesEach,
    /// Blocks that become free in a second.
    BlocksPerSecond,
    /// The longest that a request took, in milliseconds.
    LongestMilliseconds,
}

impl Metric {
    /// Whether 1 means that there is no difference.
    pub(super) const fn is_ratio(self) -> bool {
        matches!(self, Self::Throughput | Self::Tail | Self::TakeRatio)
    }
}

/// What is promised for the figure, with encryption.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub(super) fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
        }
    }

    pub(super) const fn bound(self) -> f64 {
        match self {
            Self::AtLeast(bound) | Self::AtMost(bound) => bound,
        }
    }
}

/// One line of the report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    /// Never [`BenchGroup::Targets`], which is made of cases of the others.
    pub(super) group: BenchGroup,
    pub(super) access: Access,
    /// Bytes of each request.
    pub(super) size_bytes: usize,
    /// Requests under way at once, on each lane.
    pub(super) depth: usize,
    /// Writes after which a flush is requested, in the place of a write.
    pub(super) flush_every: Option<u64>,
    pub(super) target: Option<Target>,
    /// What a case of the group of snapshots measures.
    pub(super) snapshot: Option<SnapshotCase>,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The depths at which each size is measured.
const DEPTHS: [usize; 4] = [1, 8, 32, 128];

impl Case {
    pub(super) const fn new(group: BenchGroup, access: Access, size_bytes: usize, depth: usize) -> Self {
        Self { group, access, size_bytes, depth, flush_every: None, target: None, snapshot: None }
    }

    const fn at_least(mut self, bound: f64) -> Self {
        self.target = Some(Target::AtLeast(bound));
        self
    }

    const fn at_most(mut self, bound: f64) -> Self {
        self.target = Some(Target::AtMost(bound));
        self
    }

    const fn flushed_every(mut self, count: u64) -> Self {
        self.flush_every = Some(count);
        self
    }

    /// What people and scripts call it.
    pub(super) fn name(&self) -> String {
        if let Some(snapshot) = self.snapshot {
            return format!("snapshots-{}", snapshot.name());
        }
        let group = match self.group {
            BenchGroup::Fresh | BenchGroup::Targets | BenchGroup::Snapshots => "",
            BenchGroup::Aged => "aged-",
            BenchGroup::Cleaned => "cleaned-",
            BenchGroup::AllLanes => "all-lanes-",
            BenchGroup::Encryption => "encryption-",
            BenchGroup::ColdLeaves => "cold-leaves-",
            BenchGroup::Tail => "tail-",
            BenchGroup::Recovery => "recovery-",
            BenchGroup::Memory => "memory-",
            BenchGroup::MemoryLanes => "memory-lanes-",
        };
        let size = if self.size_bytes < MIB {
            format!("{}k", self.size_bytes / KIB)
        } else {
            format!("{}m", self.size_bytes / MIB)
        };
        let flush = self.flush_every.map(|count| format!("-flush{count}")).unwrap_or_default();
        format!("{group}{}-{size}-qd{}{flush}", self.access.word(), self.depth)
    }

    /// What the first of two measurements is of, and the second.
    pub(super) const fn contestants(&self) -> (&'static str, &'static str) {
        if let Some(snapshot) = self.snapshot {
            return snapshot.contestants();
        }
        match self.group {
            BenchGroup::Encryption => ("plain", "encrypted"),
            BenchGroup::Tail => ("quiet", "busy"),
            BenchGroup::Recovery => ("closed", "full log"),
            BenchGroup::Memory => ("load only", "engine"),
            BenchGroup::MemoryLanes => ("one lane", "two lanes"),
            _ => ("raw", "engine"),
        }
    }

    pub(super) const fn metric(&self) -> Metric {
        if let Some(snapshot) = self.snapshot {
            return snapshot.metric();
        }
        match self.group {
            BenchGroup::Memory => Metric::ProcessorTime,
            BenchGroup::Tail => Metric::Tail,
            BenchGroup::Recovery => Metric::Seconds,
            _ => Metric::Throughput,
        }
    }

    pub(super) fn is_of(&self, group: BenchGroup) -> bool {
        self.group == group || (group == BenchGroup::Targets && self.target.is_some())
    }
}

/// All cases, in the order in which they are reported.
pub(super) fn all() -> Vec<Case> {
    [fresh(), others(), snapshot_case::all()].concat()
}

fn fresh() -> Vec<Case> {
    use Access::{Mixed, RandomRead, RandomWrite, SequentialRead, SequentialWrite};
    let mut cases = Vec::new();
    for (random, sequential) in [(RandomRead, SequentialRead), (RandomWrite, SequentialWrite)] {
        for (access, size_bytes) in [(random, 4 * KIB), (random, 16 * KIB), (random, 64 * KIB), (sequential, MIB)] {
            cases.extend(DEPTHS.map(|depth| {
                let case = Case::new(BenchGroup::Fresh, access, size_bytes, depth);
                match (access, size_bytes / KIB, depth) {
                    (RandomRead, 4, 1) | (SequentialRead, _, 8) => case.at_least(0.95),
                    (RandomRead, 4, 32) => case.at_least(0.97),
                    (RandomWrite, 4, 1) => case.at_least(1.0),
                    (RandomWrite, 4, 32) => case.at_least(4.0),
                    (RandomWrite, 4, 128) => case.at_least(5.0),
                    (SequentialWrite, _, 8) => case.at_least(0.9),
                    _ => case,
                }
            }));
        }
    }
    cases.push(Case::new(BenchGroup::Fresh, Mixed, 16 * KIB, 16).at_least(1.2));
    cases.push(Case::new(BenchGroup::Fresh, RandomWrite, 4 * KIB, 32).flushed_every(32).at_least(1.5));
    cases
}

fn others() -> Vec<Case> {
    use Access::{RandomRead, RandomWrite, SequentialRead, SequentialWrite};
    use BenchGroup::{Aged, AllLanes, Cleaned, ColdLeaves, Encryption, Memory, MemoryLanes, Recovery, Tail};
    vec![
        Case::new(Aged, RandomWrite, 4 * KIB, 1),
        Case::new(Aged, RandomWrite, 4 * KIB, 8),
        Case::new(Aged, RandomWrite, 4 * KIB, 32).at_least(1.0),
        Case::new(Aged, RandomWrite, 4 * KIB, 128).at_least(1.0),
        Case::new(Aged, RandomWrite, 16 * KIB, 32),
        Case::new(Aged, RandomWrite, 64 * KIB, 32),
        Case::new(Aged, SequentialWrite, MIB, 8),
        Case::new(Aged, RandomRead, 4 * KIB, 32),
        Case::new(Aged, RandomRead, 64 * KIB, 32),
        Case::new(Aged, SequentialRead, MIB, 8),
        Case::new(Cleaned, RandomWrite, 4 * KIB, 32).at_least(2.5),
        Case::new(Cleaned, RandomWrite, 4 * KIB, 128).at_least(2.5),
        Case::new(AllLanes, RandomRead, 4 * KIB, 32),
        Case::new(AllLanes, RandomRead, 4 * KIB, 128),
        Case::new(AllLanes, RandomWrite, 4 * KIB, 32),
        Case::new(AllLanes, RandomWrite, 4 * KIB, 128),
        Case::new(Encryption, RandomRead, 4 * KIB, 32).at_least(0.9),
        Case::new(Encryption, SequentialRead, MIB, 8).at_least(0.9),
        Case::new(Encryption, RandomWrite, 4 * KIB, 32).at_least(0.9),
        Case::new(Encryption, SequentialWrite, MIB, 8).at_least(0.9),
        Case::new(ColdLeaves, RandomRead, 4 * KIB, 1),
        Case::new(ColdLeaves, RandomRead, 4 * KIB, 32).at_least(0.4),
        Case::new(Tail, RandomWrite, 4 * KIB, 1).at_most(5.0),
        Case::new(Recovery, RandomWrite, 4 * KIB, 32).at_most(2.0),
        Case::new(Memory, RandomRead, 4 * KIB, 1),
        Case::new(Memory, RandomRead, 4 * KIB, 32).at_most(2.5),
        Case::new(Memory, RandomWrite, 4 * KIB, 1),
        Case::new(Memory, RandomWrite, 4 * KIB, 32).at_most(2.0),
        Case::new(Memory, RandomWrite, 4 * KIB, 1).flushed_every(1),
        Case::new(MemoryLanes, RandomRead, 4 * KIB, 32).at_least(1.8),
        Case::new(MemoryLanes, RandomWrite, 4 * KIB, 32).at_least(1.8),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_size_is_measured_at_each_depth_and_each_case_has_a_name_of_its_own() {
        let names: BTreeSet<String> = all().iter().map(Case::name).collect();

        assert_eq!(names.len(), all().len());
        for kind in ["random-read-4k", "random-write-16k", "random-read-64k", "sequential-write-1m"] {
            assert!([1, 8, 32, 128].iter().all(|depth| names.contains(&format!("{kind}-qd{depth}"))), "{kind}");
        }
    }

    #[test]
    fn every_group_has_cases() {
        let groups = all().into_iter().map(|case| format!("{:?}", case.group)).collect::<BTreeSet<_>>();
        assert_eq!(groups.len(), 11, "{groups:?}");
        assert!(all().iter().any(|case| case.is_of(BenchGroup::Targets)));
    }

    #[test]
    fn a_bound_is_met_on_its_own_side_and_by_itself() {
        assert!(Target::AtLeast(1.0).is_met(1.0) && !Target::AtLeast(1.0).is_met(0.99));
        assert!(Target::AtMost(2.0).is_met(2.0) && !Target::AtMost(2.0).is_met(2.01));
    }
}
