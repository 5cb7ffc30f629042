//! How commands fail: a sentence (or one JSON object) on stderr, and the exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::output::Output;
use crate::daemon::failure_resource::Failure;
use crate::error::{Error, ErrorKind};

/// Some of a command's targets failed, others did not.
pub(super) const EXIT_PARTIAL: u8 = 3;
/// A signal ended the command.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// What a command comes to.
pub(super) type Outcome<T> = Result<T, Failed>;

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Failed {
    /// It could not do what it was asked for.
    Error { error: Error, reference: Option<String> },
    /// stdout does not take its output.
    Output(io::Error),
}

impl Failed {
    /// A failure about the thing that commands call `reference`.
    pub(super) fn about(error: Error, reference: &str) -> Self {
        Self::Error { error, reference: Some(reference.to_owned()) }
    }

    /// Tells it on stderr and gives the exit code.
    pub(super) fn report(&self, output: &Output) -> ExitCode {
        match self {
            Self::Error { error, reference } => {
                report_error(error, reference.clone(), output.is_json());
                ExitCode::from(error.kind().exit_code())
            }
            // Whoever reads has seen enough: `rok-blk ls | head -1`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Output(error) => {
                let error = Error::new(ErrorKind::Other, format!("Writing the output failed: {error}"));
                report_error(&error, None, output.is_json());
                ExitCode::from(error.kind().exit_code())
            }
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Error { error, reference: None }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The exit code of a command for several things, from those of the failures: theirs if nothing was done and they agree.
pub(super) fn exit_code(failures: &[ExitCode], is_nothing_done: bool) -> ExitCode {
    match failures {
        [] => ExitCode::SUCCESS,
        [first, rest @ ..] if is_nothing_done && rest.iter().all(|code| code == first) => *first,
        _ if is_nothing_done => ExitCode::from(ErrorKind::Other.exit_code()),
        _ => ExitCode::from(EXIT_PARTIAL),
    }
}

/// Tells an error on stderr.
pub(super) fn report_error(error: &Error, reference: Option<String>, is_json: bool) {
    let text = if is_json {
        serde_json::to_string(&Failure::new(error, reference)).expect("a failure is plain data")
    } else {
        format!("rok-blk: {error}")
    };
    tell(&text);
}

/// Tells a line on stderr. If that is closed, nobody wants to know.
pub(super) fn tell(line: &str) {
    let _is_told = writeln!(io::stderr(), "{line}").is_ok();
}

/// Tells what clap says: help and version go to stdout and are no failure.
pub(super) fn report_arguments(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args().any(|argument| argument == "--json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let sentence = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default().trim().to_owned();
        let error = Error::new(ErrorKind::Usage, sentence).with_hint("See rok-blk --help");
        report_error(&error, None, true);
    } else {
        let _is_told = error.print().is_ok();
    }
    if error.use_stderr() { ExitCode::from(ErrorKind::Usage.exit_code()) } else { ExitCode::SUCCESS }
}
