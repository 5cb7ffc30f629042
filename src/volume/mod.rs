//! Volumes and the paths of their requests: read, write, discard, flush.
//!
//! An [`Engine`] serves the requests of one lane for any volume, from start to end, without a hop to another
//! thread. It has no thread of its own: whoever runs it feeds it requests and device completions and calls
//! [`Engine::turn`].

mod changed;
mod clean;
mod diff;
mod engine;
mod flush;
mod freeze;
mod gate;
mod mapped;
mod open_reference;
mod opened;
mod partial;
mod pause;
mod range_lock;
mod read;
pub mod reference;
mod registry;
mod remove;
mod request;
mod scrub;
mod selection;
mod shortage;
mod unused;
mod valid_time;
mod versions;
mod write;

pub use crate::format::catalog::OnFull;
pub use changed::{ChangedRun, ChangedRuns, StatusWanted};
pub use diff::{DiffKind, DiffRun, DiffSide, DiffStep, diff};
pub use engine::{Blocking, Engine, EngineParts};
pub use freeze::Frozen;
pub use mapped::{MapRun, MapRuns};
pub use opened::{OpenVolume, Volume};
pub use pause::Pause;
pub use range_lock::{BlockRange, RangeLocks};
pub use reference::{Reference, Selector};
pub use registry::{NewVolume, VolumeInfo, Volumes};
pub use request::{Completion, RemoveMode};
pub use scrub::ScrubResult;
pub use selection::{Candidate, find_selected, select, timestamp_of};
pub use valid_time::{parse_time, time_text};
