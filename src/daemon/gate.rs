//! The gate to the pool of a daemon: whether it is open, and its keys are in memory, or locked.
//!
//! Requests hold the gate while they use the pool. To lock it is to wait for them, end the server with a checkpoint, and
//! drop all that belongs to the pool, which wipes its keys. To unlock it is to open it anew, as at the daemon's start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::control::Control;
use super::key_resource::KeyList;
use super::lock_resource::LockAnswer;
use super::pool_setup::PoolSetup;
use super::request::{KeyCredential, LockOptions};
use super::resource::{ApiVersion, Kind, PoolAnswer, Status, seconds_since_1970, time_text};
use crate::crypto::Suite;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::directory::{self, Credential};

/// How long a lock waits for requests that are under way: a check may take longer.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

enum State {
    Open(Box<Control>),
    Locked,
    /// Being locked or unlocked.
    Changing,
}

/// The pool of a daemon, open or locked.
pub struct Gate {
    state: RwLock<State>,
    /// Held while it is being locked or unlocked.
    changing: Mutex<()>,
    setup: Mutex<PoolSetup>,
    path: PathBuf,
    started_at: u64,
}

impl Gate {
    /// To the pool of `setup`, locked.
    pub(super) fn locked(setup: PoolSetup) -> Self {
        let (path, started_at) = (setup.pool.clone(), seconds_since_1970());
        Self { state: RwLock::new(State::Locked), changing: Mutex::new(()), setup: Mutex::new(setup), path, started_at }
    }

    /// Opens the pool and serves it, if it is locked.
    ///
    /// # Errors
    /// What [`PoolSetup::serve`] reports; `Busy` while it is being locked or unlocked. Then it is as it was.
    pub(super) fn open(&self, credential: Option<Credential>) -> Result<()> {
        let _changing = self.change()?;
        {
            let mut state = self.state.write();
            if !matches!(*state, State::Locked) {
                return Ok(());
            }
            *state = State::Changing;
        }
        let opened = self.setup.lock().serve(credential, self.started_at);
        let (state, result) = match opened {
            Ok(control) => (State::Open(Box::new(control)), Ok(())),
            Err(error) => (State::Locked, Err(error)),
        };
        *self.state.write() = state;
        result
    }

    /// Has `work` use the open pool.
    ///
    /// # Errors
    /// `Key` if the pool is locked, `Busy` while that changes, and those of `work`.
    pub fn with<T>(&self, work: impl FnOnce(&Control) -> Result<T>) -> Result<T> {
        match &*self.state.read() {
            State::Open(control) => work(control),
            State::Locked => Err(Error::new(ErrorKind::Key, format!("The pool in {} is locked", self.path.display()))
                .with_hint(
                    "Open it with rok-blk key unlock and --key-file FILE, --passphrase or --passphrase-file FILE",
                )),
            State::Changing => Err(changing()),
        }
    }

    /// Closes the pool and forgets its keys. One that is locked stays so.
    ///
    /// # Errors
    /// `Usage` if the pool is not encrypted; `Busy` while connections have a volume open, unless they are to be closed,
    /// or requests of this API are under way; what closing reports, after which it is locked all the same.
    pub fn lock(&self, options: LockOptions) -> Result<LockAnswer> {
        let _changing = self.change()?;
        let mut state = self.state.try_write_for(REQUEST_TIME_MAX).ok_or_else(|| {
            Error::new(ErrorKind::Busy, "The pool is not locked: requests of this API are under way")
                .with_hint("Wait until they are done, a check for example")
        })?;
        let State::Open(control) = &*state else { return Ok(LockAnswer::new(true, false, options.dry_run, 0)) };
        let connections = control.check_lock(options.force)?;
        let answer = LockAnswer::new(true, true, options.dry_run, connections);
        if options.dry_run {
            return Ok(answer);
        }
        let open = std::mem::replace(&mut *state, State::Changing);
        drop(state);
        let State::Open(control) = open else { unreachable!("it was open, and nobody else changes that") };
        self.setup.lock().keep_addresses(control.listeners());
        let closed = control.close();
        *self.state.write() = State::Locked;
        tracing::info!("the pool is locked");
        closed.map(|()| answer)
    }

    /// Opens a locked pool. One that is open stays so, whatever the credential.
    ///
    /// # Errors
    /// `Key` for a credential that opens no slot; what opening and listening report. Then it is locked still.
    pub fn unlock(&self, credential: &KeyCredential, is_dry_run: bool) -> Result<LockAnswer> {
        let credential = credential.credential()?;
        if self.with(|_| Ok(())).is_ok() {
            return Ok(LockAnswer::new(false, false, is_dry_run, 0));
        }
        if is_dry_run {
            directory::check_credential(&self.path, &credential)?;
        } else {
            self.open(Some(credential))?;
            tracing::info!("the pool is unlocked");
        }
        Ok(LockAnswer::new(false, true, is_dry_run, 0))
    }

    /// Ends the server of an open pool, for good. Waits for a change that is under way.
    ///
    /// # Errors
    /// What the engine reports about closing.
    pub(super) fn close(&self) -> Result<()> {
        let _changing = self.changing.lock();
        match &*self.state.read() {
            State::Open(control) => {
                control.stop_jobs();
                control.server().prepare_shutdown();
                control.leave_devices();
                control.server().shutdown()
            }
            State::Locked | State::Changing => Ok(()),
        }
    }

    /// Ends requests that only wait. Those to come answer at once.
    pub(super) fn end_waits(&self) {
        if let State::Open(control) = &*self.state.read() {
            control.end_waits();
        }
    }

    /// What the pool is made of.
    ///
    /// # Errors
    /// What reading its superblock reports.
    pub fn pool(&self) -> Result<PoolAnswer> {
        Ok(PoolAnswer::new(&self.path, directory::describe(&self.path)?))
    }

    /// The key slots in use.
    ///
    /// # Errors
    /// What reading the pool's superblock reports.
    pub fn keys(&self) -> Result<KeyList> {
        Ok(KeyList::new(directory::describe(&self.path)?.key_slots))
    }

    /// How daemon and pool do.
    #[must_use]
    pub fn status(&self) -> Status {
        if let State::Open(control) = &*self.state.read() {
            return control.status();
        }
        Status {
            api: ApiVersion::V1,
            kind: Kind::Status,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: time_text(self.started_at),
            path: self.path.display().to_string(),
            is_locked: true,
            pool: None,
            space: None,
            volumes: 0,
            connections: 0,
            listeners: Vec::new(),
            paused: Vec::new(),
            freeable: Vec::new(),
            warnings: vec!["The pool is locked: rok-blk key unlock opens it.".to_owned()],
        }
    }

    fn change(&self) -> Result<parking_lot::MutexGuard<'_, ()>> {
        self.changing.try_lock().ok_or_else(changing)
    }
}

impl Control {
    /// Whether the pool could be locked; how many connections that would close.
    fn check_lock(&self, is_forced: bool) -> Result<u64> {
        if self.server().pool().keys().suite() == Suite::Plain {
            return Err(Error::new(ErrorKind::Usage, "The pool is not encrypted: there is no key to forget")
                .with_hint("Stop the daemon to close it"));
        }
        let devices = self.device_paths();
        if !devices.is_empty() && !is_forced {
            let message = format!("The pool is not locked: volumes are attached as {}", devices.join(", "));
            return Err(Error::new(ErrorKind::Busy, message)
                .with_hint("Detach them first (rok-blk detach), or take them away under their users with --force"));
        }
        let exports = self.server().exports();
        let in_use: Vec<&str> =
            exports.iter().filter(|export| export.connections > 0).map(|export| export.name.as_str()).collect();
        if !in_use.is_empty() && !is_forced {
            let message = format!("The pool is not locked: connections have {} open", in_use.join(", "));
            return Err(Error::new(ErrorKind::Busy, message)
                .with_hint("Disconnect its clients first, or close their connections with --force"));
        }
        Ok(exports.iter().map(|export| u64::from(export.connections)).sum())
    }

    /// Ends the server and drops everything of the pool, its keys first of all.
    fn close(self: Box<Self>) -> Result<()> {
        let pool = Arc::downgrade(self.server().pool());
        self.stop_jobs();
        self.take_devices_away();
        let ended = self.server().shutdown();
        drop(self);
        if pool.strong_count() > 0 {
            let reason = ended.err().map_or_else(String::new, |error| format!(" ({})", error.message()));
            let message = format!("The pool is closed, but a part of it is in use still, with its keys{reason}");
            return Err(Error::new(ErrorKind::Other, message).with_hint("Stop the daemon, which forgets them"));
        }
        if let Err(error) = ended {
            tracing::warn!(%error, "the pool was locked without a last checkpoint: its log is read when it is unlocked");
        }
        Ok(())
    }
}

fn changing() -> Error {
    Error::new(ErrorKind::Busy, "The pool is being locked or unlocked").with_hint("Try again")
}
