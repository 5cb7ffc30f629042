//! What the API answers about a request that failed, and of parts of one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, ErrorKind};

/// A failure.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// The failure.
    pub error: FailureDetail,
}

/// What failed and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailureDetail {
    /// The kind of the failure, a stable word.
    pub code: String,
    /// The exit code of the command line for it.
    pub exit: u8,
    /// What failed, as a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What it was about.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
}

impl Failure {
    /// From an error about `reference`.
    #[must_use]
    pub fn new(error: &Error, reference: Option<String>) -> Self {
        let detail = FailureDetail {
            code: error.kind().code().to_owned(),
            exit: error.kind().exit_code(),
            message: error.message().to_owned(),
            hint: error.hint().map(str::to_owned),
            reference,
        };
        Self { error: detail }
    }

    /// The error again, on the client's side.
    #[must_use]
    pub fn into_error(self) -> Error {
        let error = Error::new(ErrorKind::from_code(&self.error.code), self.error.message);
        match self.error.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_as_the_error_it_was() {
        let error = Error::new(ErrorKind::Busy, "vol1 is open").with_hint("Close it");

        let back = Failure::new(&error, Some("vol1".to_owned())).into_error();

        assert_eq!(back.kind(), ErrorKind::Busy);
        assert_eq!(back.message(), "vol1 is open");
        assert_eq!(back.hint(), Some("Close it"));
    }
}
