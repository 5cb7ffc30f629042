//! Ctrl-C: the measurement ends early, and what was written is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::failure::EXIT_INTERRUPTED;
use crate::daemon::host;
use crate::error::{Error, ErrorKind, Result};

/// Whether the user wants the bench to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Waits for SIGINT and SIGTERM from now on. A second signal ends the process at once and leaves the files.
    ///
    /// # Errors
    /// If the signals cannot be received.
    pub(super) fn install() -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Other, "Waiting for signals is not possible here").with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let context = runtime.enter();
        let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
        drop(context);
        let interrupt = Self::default();
        let raised = interrupt.clone();
        let wait = move || {
            runtime.block_on(async {
                for is_first in [true, false] {
                    tokio::select! {
                        _ = interrupted.recv() => {}
                        _ = terminated.recv() => {}
                    }
                    if is_first {
                        raised.0.store(true, Ordering::Relaxed);
                    } else {
                        host::exit_now(EXIT_INTERRUPTED);
                    }
                }
            });
        };
        // It waits as long as the process lives.
        let _thread = std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
        Ok(interrupt)
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
