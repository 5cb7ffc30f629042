//! The engine's side: one lane, on whose own thread the requests are made, as a frontend on that lane would.

use std::rc::Rc;
use std::sync::Arc;

use async_executor::LocalExecutor;

use super::background::{LaneJobs, Waker};
use super::load::{Action, Side};
use super::ring_turn::Turn;
use crate::disk::IoBuffer;
use crate::error::{Error, ErrorKind, IoError, Result};
use crate::lane::{Jobs, work_in_background};
use crate::pool::{AddressGroup, Pool};
use crate::units::{LaneIndex, to_u64, to_usize};
use crate::volume::{Completion, Engine, EngineParts, OpenVolume, RangeLocks, RemoveMode, Volumes};

/// The volume that all lanes of a pool work on.
pub(super) const VOLUME_NAME: &str = "bench";

/// What a lane is made of, to be sent to its thread.
#[derive(Clone)]
pub(super) struct LaneParts {
    pub(super) pool: Arc<Pool>,
    pub(super) volumes: Arc<Volumes>,
    pub(super) locks: Arc<RangeLocks>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) waker: Arc<Waker>,
    pub(super) lane: LaneIndex,
}

/// A lane with one open volume.
pub(super) struct EngineSide<T: Turn> {
    engine: Rc<Engine<T::Queue>>,
    /// The engine's tasks are its, and end with it.
    _executor: Rc<LocalExecutor<'static>>,
    turn: T,
    volumes: Arc<Volumes>,
    volume: OpenVolume,
    done: Vec<(Completion, std::result::Result<(), IoError>)>,
    /// The engine has more to do, once the lane has submitted what there is.
    is_yielding: bool,
}

impl<T: Turn> EngineSide<T> {
    /// Makes the lane on this thread.
    ///
    /// # Errors
    /// If the volume cannot be opened.
    pub(super) fn open(parts: LaneParts, disk: T::Queue, turn: T) -> Result<Self> {
        if parts.pool.cleaner_lane() == Some(parts.lane) {
            work_in_background();
        }
        let volume = parts.volumes.open(VOLUME_NAME)?;
        let executor = Rc::new(LocalExecutor::new());
        let engine = Engine::new(EngineParts {
            pool: parts.pool,
            locks: parts.locks,
            lane: parts.lane,
            disk,
            blocking: Rc::new(LaneJobs { jobs: parts.jobs, waker: parts.waker }),
            executor: Rc::clone(&executor),
        });
        let volumes = parts.volumes;
        Ok(Self { engine, _executor: executor, turn, volumes, volume, done: Vec::new(), is_yielding: false })
    }
}

impl<T: Turn> Side for EngineSide<T> {
    fn request(&mut self, action: Action, slot: usize, offset_bytes: u64, buffer: &IoBuffer) {
        let completion = Completion { owner: 0, cookie: to_u64(slot) };
        let volume = self.volume.volume();
        match action {
            Action::Read => self.engine.read(volume, offset_bytes, buffer.clone(), completion),
            Action::Write => self.engine.write(volume, offset_bytes, buffer.clone(), false, completion),
            Action::Flush => self.engine.flush(completion),
        }
    }

    fn wait(&mut self, done: &mut Vec<usize>) -> Result<()> {
        self.wait_for_some()?;
        for (completion, result) in self.done.drain(..) {
            result.map_err(failure)?;
            done.push(to_usize(completion.cookie));
        }
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        let volume = self.volume.volume();
        let range = (0, volume.size_bytes());
        self.engine.remove(volume, range, RemoveMode::Discard, false, Completion { owner: 0, cookie: 0 });
        self.wait(&mut Vec::new())
    }

    fn open_volume(&mut self, name: &str) -> Result<()> {
        self.volume = self.volumes.open(name)?;
        Ok(())
    }

    fn move_group(&mut self, group: AddressGroup) -> Result<bool> {
        self.engine.clean(&self.volumes, group, Completion { owner: 0, cookie: 0 });
        self.wait_for_some()?;
        match self.done.drain(..).try_for_each(|(_, result)| result) {
            Err(IoError::NoSpace) => Ok(false),
            result => result.map(|()| true).map_err(failure),
        }
    }
}

fn failure(error: IoError) -> Error {
    Error::new(ErrorKind::Other, format!("A request to the engine failed: {error}")).with_hint("Run it again with -v")
}

impl<T: Turn> EngineSide<T> {
    /// Runs the lane until some requests are done.
    fn wait_for_some(&mut self) -> Result<()> {
        loop {
            // As a lane: what was handed in goes to the device before the engine goes on.
            if self.is_yielding {
                self.turn.end(&self.engine, false)?;
            }
            self.is_yielding = self.engine.turn();
            self.engine.drain_done(&mut self.done);
            if !self.done.is_empty() {
                return Ok(());
            }
            if !self.is_yielding {
                self.turn.end(&self.engine, true)?;
            }
        }
    }
}

impl<T: Turn> Drop for EngineSide<T> {
    fn drop(&mut self) {
        // What the kernel reads or writes must not be freed. After an error requests may be under way.
        while !self.engine.is_idle() {
            let is_yielding = self.engine.turn();
            self.engine.drain_done(&mut self.done);
            self.done.clear();
            if !self.engine.is_idle() && self.turn.end(&self.engine, !is_yielding).is_err() {
                return;
            }
        }
    }
}
