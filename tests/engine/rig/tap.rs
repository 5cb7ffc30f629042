//! What sees every I/O of a rig before it begins: it counts, lets one fail, lets the machine die, and notes where to crash.

use parking_lot::Mutex;
use std::backtrace::Backtrace;
use std::io;

/// What an I/O is, as far as failures differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A read of a device.
    Read,
    /// A write of a device.
    Write,
    /// A flush of a device.
    Flush,
    /// A range of a device is given back.
    Discard,
    /// A device is asked for its holes.
    Holes,
    /// A commit of the metadata store that ends with an I/O error.
    Commit,
    /// A commit of the metadata store that finds no space.
    CommitFull,
    /// A read of one key of the metadata store, or of the first one behind a place.
    MetaGet,
    /// A read of several keys of the metadata store.
    MetaScan,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::Holes,
        Self::Commit,
        Self::CommitFull,
        Self::MetaGet,
        Self::MetaScan,
    ];

    /// Whether it changes what a crash finds.
    pub const fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Flush | Self::Discard | Self::Commit)
    }

    const fn place(self) -> usize {
        self as usize
    }
}

/// What becomes of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done.
    Done,
    /// It fails as such an I/O fails.
    Fails,
    /// It is not done: the machine has died.
    Dead,
}

/// What fails, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The n-th I/O of the kind from now on, from 1.
    Fail(Kind, u64),
    /// The n-th change of the disks from now on and all I/O behind it.
    DieAt(u64),
}

/// Is told of each change of the disks before it is made.
pub type Watcher = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    counts: [u64; Kind::ALL.len()],
    changes: u64,
    is_dead: bool,
    failed: u64,
    wants_places: bool,
    /// Who made the I/O that failed first.
    place: Option<String>,
}

/// See the module.
#[derive(Default)]
pub struct Tap {
    state: Mutex<State>,
    watcher: Mutex<Option<Watcher>>,
}

impl Tap {
    /// Plans a failure; counts begin anew.
    pub fn plan(&self, plan: Option<Plan>) {
        let state = &mut *self.state.lock();
        *state = State { plan, wants_places: state.wants_places, ..State::default() };
    }

    /// Remembers who makes the I/O that fails.
    pub fn want_places(&self) {
        self.state.lock().wants_places = true;
    }

    pub fn watch(&self, watcher: Option<Watcher>) {
        *self.watcher.lock() = watcher;
    }

    /// How many I/Os failed or were not done because of the plan.
    pub fn failed_count(&self) -> u64 {
        self.state.lock().failed
    }

    /// The stack of who made the I/O that failed first.
    pub fn take_place(&self) -> Option<String> {
        self.state.lock().place.take()
    }

    /// An I/O is about to begin.
    pub fn begin(&self, kind: Kind) -> Fate {
        if kind.is_change() {
            self.tell_watcher();
        }
        let state = &mut *self.state.lock();
        if state.is_dead {
            return Fate::Dead;
        }
        let count = &mut state.counts[kind.place()];
        *count += 1;
        let count = *count;
        state.changes += u64::from(kind.is_change());
        let fate = match state.plan {
            Some(Plan::Fail(failing, nth)) if failing == kind && count == nth => Fate::Fails,
            Some(Plan::DieAt(nth)) if kind.is_change() && state.changes == nth => Fate::Dead,
            _ => return Fate::Done,
        };
        state.is_dead = fate == Fate::Dead;
        state.failed += 1;
        if state.wants_places && state.failed == 1 {
            state.place = Some(Backtrace::force_capture().to_string());
        }
        fate
    }

    /// A change that was begun before is about to be made.
    pub fn tell_watcher(&self) {
        if let Some(watcher) = &mut *self.watcher.lock() {
            watcher();
        }
    }
}

pub fn died() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the machine has died")
}
