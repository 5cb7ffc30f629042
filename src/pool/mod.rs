//! The pool: devices, free space, the lanes' logs, checkpoints and recovery.
//!
//! [`Pool`] is what the lanes share. Its locks are short and never held across an await. Blocks become free only
//! in a [`Checkpoint`]; a failed device write or flush stops the pool ([`Pool::fail`]).

mod catalog;
mod check;
mod checkpoint;
mod cleaner;
mod cleaning;
mod credential;
mod devices;
#[cfg(feature = "rocksdb")]
pub mod directory;
mod exits;
#[cfg(all(test, feature = "rocksdb"))]
mod figures_tests;
mod flushing;
mod forecast;
mod growth;
mod instant;
mod leaf_work;
mod limits;
mod loading;
mod log;
mod open;
mod own_key;
mod owners;
mod part_counts;
mod reclaim_status;
mod recovery;
mod scrub;
mod shared;
mod shares;
mod shred_key;
mod space;
mod space_news;
mod status;
mod superblock_copies;
#[cfg(test)]
mod tests;
mod trim;
mod turn;
mod used;
mod waiting;
mod watermark;

pub use catalog::{Catalog, CatalogStore, Change, Follower, NewClone, NewSnapshot, PointId, Sharer, SnapshotId};
pub use check::{CheckReport, Difference, DifferenceKind, LeakRepair, Place, check};
pub use checkpoint::{Checkpoint, Progress};
pub use cleaner::{Cleaner, CleanerStep};
pub use cleaning::{AddressGroup, CleaningStatus, LiveBlocks, Pass, Tried, Urgency, WRITE_AMPLIFICATION_MAX};
pub use credential::Credential;
pub use devices::PoolDevice;
pub use exits::Exits;
pub use flushing::FlushStart;
pub use forecast::{Effort, Removals};
pub use growth::NewBlocks;
pub use limits::Limits;
pub use log::{BatchWrite, DoneBatch, FLIGHT_MAX, Log, Placement, Refusal};
pub use open::{HOME_RESERVE_BLOCKS, Parts, Unverified, create, open, open_with};
pub use part_counts::PartCounts;
pub use recovery::RecoveryReport;
pub use scrub::{Scrub, ScrubBlock, ScrubPart, ScrubStep, ScrubWish, Suspect};
pub(crate) use shared::StoredState;
pub use shared::{LaneShared, Pool, Signals};
pub use shares::{HeadShares, SpaceShares};
pub use space::{FreeShape, Space, Stretch};
pub use status::PoolStatus;
pub use superblock_copies::SuperblockCopies;
pub use trim::TrimProgress;
pub use turn::Turn;
pub use watermark::{SpaceLevel, Watermarks};
