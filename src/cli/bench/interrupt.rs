//! Ctrl-C: the bench ends at once, whatever it is doing, and what was written is removed.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::place;
use crate::cli::failure::EXIT_INTERRUPTED;
use crate::daemon::host;
use crate::error::{Error, ErrorKind, Result};

/// Waits for SIGINT and SIGTERM as long as the process lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt {
    /// Held by who ends the bench: the signal, or the bench itself.
    ending: Arc<Mutex<()>>,
}

impl Interrupt {
    /// From now on a signal removes `directory` and ends the process; a second one does not wait for the removal.
    ///
    /// # Errors
    /// If the signals cannot be received.
    pub(super) fn install(directory: PathBuf) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Other, "Waiting for signals is not possible here").with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let context = runtime.enter();
        let mut signals =
            Signals { interrupt: signal(SignalKind::interrupt()).map_err(failed)?, terminate: terminate(failed)? };
        drop(context);
        let interrupt = Self::default();
        let ending = Arc::clone(&interrupt.ending);
        let wait = move || {
            signals.wait(&runtime);
            let end = move || {
                let _until_the_process_is_gone = ending.lock();
                place::remove(&directory);
                host::exit_now(EXIT_INTERRUPTED);
            };
            // If there is no thread for it, the next bench removes what is left.
            let _thread = std::thread::Builder::new().name("removal".to_owned()).spawn(end);
            signals.wait(&runtime);
            host::exit_now(EXIT_INTERRUPTED);
        };
        let _thread = std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
        Ok(interrupt)
    }

    /// The bench has ended by itself. If a signal was first, this never returns: the process is about to end.
    pub(super) fn end(&self) -> MutexGuard<'_, ()> {
        self.ending.lock()
    }
}

fn terminate(failed: impl Fn(std::io::Error) -> Error) -> Result<Signal> {
    signal(SignalKind::terminate()).map_err(failed)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn wait(&mut self, runtime: &Runtime) {
        runtime.block_on(async {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
        });
    }
}
