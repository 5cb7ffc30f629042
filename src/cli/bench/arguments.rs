//! The arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::size::parse_size;
use crate::error::{Error, ErrorKind};

#[derive(Debug, Args)]
pub(in crate::cli) struct Bench {
    /// Where pools and raw files are made, and removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(in crate::cli) directory: PathBuf,
    /// Size of a fresh pool and of the raw file; the volume has a quarter of it. The aged pool has half of it
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_bench_size)]
    pub(in crate::cli) pool_size: u64,
    /// What is mapped when leaves are not cached; the target is for 16GiB, which takes twice as much space
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_mapped_size)]
    pub(in crate::cli) mapped_size: u64,
    /// How long each measurement takes at most
    #[arg(long, default_value = "0.5", value_parser = parse_seconds)]
    pub(in crate::cli) seconds: f64,
    /// Rounds of one, the other, the one again for each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(in crate::cli) rounds: u32,
    /// Measure only the cases of this group; without any, of all
    #[arg(long = "group", value_name = "GROUP")]
    pub(in crate::cli) groups: Vec<BenchGroup>,
    /// Measure only the cases with this in their name, like random-write or qd32
    #[arg(long = "case", value_name = "TEXT")]
    pub(in crate::cli) cases: Vec<String>,
    /// Measure pools that are not encrypted
    #[arg(long)]
    pub(in crate::cli) no_encryption: bool,
    /// Draw the ratios into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) plot: Option<PathBuf>,
    /// Make exactly so many requests of one case of the group memory, with the engine alone, and print nothing: for tools
    /// that count
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(in crate::cli) requests: Option<u64>,
    /// With --requests: have a ring do the I/O, on a file in this directory, which should be in memory
    #[arg(long, value_name = "DIR", requires = "requests")]
    pub(in crate::cli) ring_on: Option<PathBuf>,
}

/// Cases of the bench that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) enum BenchGroup {
    /// All cases with a promised figure, each with its target beside it
    Targets,
    /// One lane beside a raw file, on a volume that was written in order
    Fresh,
    /// The same on a pool that is 80 % full, after random overwrites of three times its free space
    Aged,
    /// Writes to the aged pool, each time after idle cleaning has nothing more to do
    Cleaned,
    /// All lanes beside as many raw threads
    AllLanes,
    /// An encrypted pool beside one that is not
    Encryption,
    /// A map that is larger than its cache
    ColdLeaves,
    /// Latency on the aged pool with checkpoints and cleaning back to back, beside that without
    Tail,
    /// Opening a pool that was killed with a full log, beside one that was closed
    Recovery,
    /// Processor time of a request on a device in memory
    Memory,
    /// Two lanes beside one on a device in memory
    MemoryLanes,
    /// Snapshots under load, reads behind many of them, clones, reclaim, and opening a pool with ten thousand
    Snapshots,
}

/// With less, the requests under way would overlap.
const BENCH_POOL_BYTES_MIN: u64 = 1 << 30;

fn parse_bench_size(text: &str) -> Result<u64, Error> {
    let size_bytes = parse_size(text)?;
    if size_bytes < BENCH_POOL_BYTES_MIN || !size_bytes.is_multiple_of(1 << 20) {
        let message = format!("A pool of {size_bytes} bytes is not for a bench");
        return Err(Error::new(ErrorKind::Usage, message).with_hint("Use whole MiB, at least 1GiB"));
    }
    Ok(size_bytes)
}

/// With less, all leaves would fit into the smallest cache.
const MAPPED_BYTES_MIN: u64 = 256 << 20;

fn parse_mapped_size(text: &str) -> Result<u64, Error> {
    let size_bytes = parse_size(text)?;
    if size_bytes < MAPPED_BYTES_MIN || !size_bytes.is_multiple_of(4 << 20) {
        let message = format!("{size_bytes} bytes are not enough to be mapped, or no whole multiple of 4 MiB");
        return Err(Error::new(ErrorKind::Usage, message).with_hint("Use at least 256MiB"));
    }
    Ok(size_bytes)
}

fn parse_seconds(text: &str) -> Result<f64, Error> {
    let seconds: Option<f64> = text.parse().ok();
    seconds.filter(|seconds| (0.01..=60.0).contains(seconds)).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{text:?} is not from 0.01 to 60 seconds"))
            .with_hint("Use one second, or a few for steadier figures")
    })
}
