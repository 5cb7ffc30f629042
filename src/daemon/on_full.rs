//! What writes of a volume do that find no space in the pool, as the API says it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, ErrorKind, Result};
use crate::volume;

/// What writes of a volume do that find no space in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// They fail with "no space".
    #[default]
    Error,
    /// They wait, and go on by themselves when there is space.
    Pause,
}

impl OnFull {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Pause => "pause",
        }
    }

    /// What a word means.
    ///
    /// # Errors
    /// `Usage` for any other word.
    pub fn parse(text: &str) -> Result<Self> {
        [Self::Error, Self::Pause].into_iter().find(|on_full| on_full.as_str() == text).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("on-full cannot be {text:?}"))
                .with_hint("Use error (writes without space fail) or pause (they wait for it)")
        })
    }
}

impl From<volume::OnFull> for OnFull {
    fn from(on_full: volume::OnFull) -> Self {
        match on_full {
            volume::OnFull::Error => Self::Error,
            volume::OnFull::Pause => Self::Pause,
        }
    }
}

impl From<OnFull> for volume::OnFull {
    fn from(on_full: OnFull) -> Self {
        match on_full {
            OnFull::Error => Self::Error,
            OnFull::Pause => Self::Pause,
        }
    }
}
