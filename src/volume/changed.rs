//! Where a volume differs from a snapshot: what a client asks that copies only what is new.
//!
//! The comparison is that of [`mod@super::diff`], some leaves at a time on a blocking thread.

use super::diff::{DiffKind, DiffSide, diff};
use super::mapped::MapRuns;
use crate::disk::Disk;
use crate::error::{ErrorKind, IoError};
use crate::volume::Volume;
use crate::volume::engine::{Engine, finish};
use crate::volume::request::{Completion, Done};
use crate::volume::write::check_range;
use futures_channel::oneshot;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Leaves that one step compares: others wait for its thread.
const LEAVES_PER_STEP: usize = 32;
/// Leaves that are compared before a list ends.
const LEAVES_MAX: usize = 1024;
/// Runs of a list, at most.
const RUNS_MAX: usize = 4096;

/// A run of bytes that are equal, or differ in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// Its length in bytes, never 0.
    pub size_bytes: u64,
    /// How they differ; `None` if not.
    pub kind: Option<DiffKind>,
}

/// Where a comparison puts what it found: runs from the start of its range on, without a gap. They cover at least a part
/// of the range.
pub type ChangedRuns = Rc<RefCell<Vec<ChangedRun>>>;

/// What is to be told of a range.
#[derive(Clone, Default)]
pub struct StatusWanted {
    /// Where to put what is mapped, if that is wanted.
    pub mapped: Option<MapRuns>,
    /// With what to compare, and where to put what that finds.
    pub changed: Vec<(Arc<Volume>, ChangedRuns)>,
}

impl<D: Disk + 'static> Engine<D> {
    /// Tells of a range, which must not be empty, what is wanted. Each list may end before the range does; then the caller
    /// asks for the rest, if it wants that.
    pub fn list_status(
        self: &Rc<Self>,
        volume: &Arc<Volume>,
        (offset_bytes, len_bytes): (u64, u64),
        wanted: StatusWanted,
        completion: Completion,
    ) {
        self.pool.count_request(self.lane);
        let done = Done::Frontend(completion);
        let is_legal =
            if len_bytes == 0 { Err(IoError::Invalid) } else { check_range(volume, offset_bytes, len_bytes) };
        if let Err(error) = is_legal {
            return finish(&mut self.state.borrow_mut(), done, Err(error));
        }
        let (engine, volume) = (Rc::clone(self), Arc::clone(volume));
        self.spawn(done, async move {
            let range = offset_bytes..offset_bytes + len_bytes;
            if let Some(mapped) = wanted.mapped {
                mapped.replace(engine.walk(&volume, range.clone()).await?);
            }
            for (base, runs) in wanted.changed {
                runs.replace(engine.compare(&base, &volume, range.clone()).await?);
            }
            Ok(())
        });
    }

    async fn compare(&self, base: &Volume, volume: &Volume, range: Range<u64>) -> Result<Vec<ChangedRun>, IoError> {
        let sides = (DiffSide::from(base), DiffSide::from(volume));
        let mut found = Runs { next: range.start, runs: Vec::new() };
        let mut leaf_count = 0;
        while found.next < range.end && leaf_count < LEAVES_MAX && found.runs.len() < RUNS_MAX {
            let (sender, receiver) = oneshot::channel();
            let (pool, rest) = (Arc::clone(&self.pool), found.next..range.end);
            self.blocking.run(Box::new(move || {
                // The task may be gone; then nobody wants the step.
                drop(sender.send(diff(&pool, sides, rest, LEAVES_PER_STEP)));
            }));
            let step = receiver.await.map_err(|_| IoError::ShuttingDown)?.map_err(|error| {
                // A side may be removed meanwhile: no failure of ours.
                if error.kind() != ErrorKind::NotFound {
                    tracing::error!(%error, "comparing leaves failed");
                }
                IoError::Io
            })?;
            leaf_count += step.leaf_count;
            for run in &step.runs {
                found.push(run.offset_bytes, None);
                found.push(run.offset_bytes + run.size_bytes, Some(run.kind));
            }
            found.push(step.end_bytes, None);
        }
        found.runs.truncate(RUNS_MAX);
        Ok(found.runs)
    }
}

/// Runs under construction, one behind the other.
struct Runs {
    next: u64,
    runs: Vec<ChangedRun>,
}

impl Runs {
    fn push(&mut self, end: u64, kind: Option<DiffKind>) {
        let size_bytes = end - self.next;
        if size_bytes == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if last.kind == kind => last.size_bytes += size_bytes,
            _ => self.runs.push(ChangedRun { size_bytes, kind }),
        }
        self.next = end;
    }
}
