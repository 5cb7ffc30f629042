//! What is measured: kind, size and depth of the requests.

/// Whether requests read or write, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialWrite,
}

impl Access {
    pub(super) const fn is_write(self) -> bool {
        matches!(self, Self::RandomWrite | Self::SequentialWrite)
    }

    pub(super) const fn is_random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite)
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::RandomRead => "random-read",
            Self::RandomWrite => "random-write",
            Self::SequentialRead => "sequential-read",
            Self::SequentialWrite => "sequential-write",
        }
    }
}

/// One line of the report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) access: Access,
    /// Bytes of each request.
    pub(super) size_bytes: usize,
    /// Requests under way at once.
    pub(super) depth: usize,
    /// The ratio engine/raw that is promised with encryption on a fresh pool, where one is.
    pub(super) target: Option<f64>,
}

const SMALL_BYTES: usize = 4 << 10;
const LARGE_BYTES: usize = 1 << 20;

const fn case(access: Access, depth: usize, target: Option<f64>) -> Case {
    let size_bytes = if access.is_random() { SMALL_BYTES } else { LARGE_BYTES };
    Case { access, size_bytes, depth, target }
}

/// Reads first: they find the volume as it was filled. Each write begins with an empty one.
pub(super) const CASES: [Case; 12] = [
    case(Access::RandomRead, 1, None),
    case(Access::RandomRead, 32, Some(0.9)),
    case(Access::RandomRead, 128, None),
    case(Access::SequentialRead, 1, Some(0.8)),
    case(Access::SequentialRead, 32, Some(0.8)),
    case(Access::SequentialRead, 128, Some(0.8)),
    case(Access::RandomWrite, 1, Some(0.9)),
    case(Access::RandomWrite, 32, Some(2.0)),
    case(Access::RandomWrite, 128, None),
    case(Access::SequentialWrite, 1, Some(0.8)),
    case(Access::SequentialWrite, 32, Some(0.8)),
    case(Access::SequentialWrite, 128, Some(0.8)),
];

impl Case {
    /// What people and scripts call it.
    pub(super) fn name(&self) -> String {
        let size = if self.size_bytes == SMALL_BYTES { "4k" } else { "1m" };
        format!("{}-{size}-qd{}", self.access.word(), self.depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_access_is_measured_at_each_depth_under_its_own_name() {
        let names: BTreeSet<String> = CASES.iter().map(Case::name).collect();

        assert_eq!(names.len(), CASES.len());
        for word in ["random-read-4k", "random-write-4k", "sequential-read-1m", "sequential-write-1m"] {
            assert!([1, 32, 128].iter().all(|depth| names.contains(&format!("{word}-qd{depth}"))), "{word}");
        }
    }

    #[test]
    fn reads_come_before_the_writes_that_spoil_the_layout() {
        assert!(CASES.is_sorted_by_key(|case| case.access.is_write()));
    }
}
