//! Requests of a lane that neither a connection nor a device made, and who waits for their answers.

use super::limits::CONTROLS_MAX;
use crate::error::IoError;
use crate::units::{to_u64, to_usize};
use crate::volume::Completion;
use slab::Slab;
use std::sync::mpsc;

/// Their owner.
const OWNER: u32 = u32::MAX;

/// Where an answer goes.
pub(super) type Answer = mpsc::Sender<Result<(), IoError>>;

/// Those that have no answer yet.
#[derive(Default)]
pub(super) struct Controls(Slab<Answer>);

impl Controls {
    /// The name of a new request; `None`, and it is refused, if there are too many or the lane `is_closing`.
    pub(super) fn begin(&mut self, done: Answer, is_closing: bool) -> Option<Completion> {
        if is_closing || self.0.len() >= CONTROLS_MAX {
            answer(&done, Err(IoError::ShuttingDown));
            return None;
        }
        Some(Completion { owner: OWNER, cookie: to_u64(self.0.insert(done)) })
    }

    /// Hands the engine's answer on, if it is to one of these requests.
    pub(super) fn answered(&mut self, completion: Completion, result: Result<(), IoError>) -> bool {
        let is_ours = completion.owner == OWNER;
        if is_ours {
            answer(&self.0.remove(to_usize(completion.cookie)), result);
        }
        is_ours
    }

    /// Gives all of them up: who waits sees that there will be no answer.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn answer(done: &Answer, result: Result<(), IoError>) {
    if done.send(result).is_err() {
        tracing::debug!("nobody waits for the answer to a control request");
    }
}
