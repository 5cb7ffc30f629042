//! Properties of volumes that `set` changes, each written as KEY=VALUE.

use crate::daemon::on_full_resource::OnFull;
use crate::daemon::request::SetVolume;
use crate::error::{Error, ErrorKind, Result};

/// A property with its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Property {
    OnFull(OnFull),
}

impl Property {
    /// Reads KEY=VALUE.
    ///
    /// # Errors
    /// `Usage` for anything else, an unknown key, or a value that the property cannot have.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let usage = |message: String| {
            Error::new(ErrorKind::Usage, message).with_hint("Properties are: on-full=error, on-full=pause")
        };
        let (key, value) = text.split_once('=').ok_or_else(|| usage(format!("{text:?} is no KEY=VALUE")))?;
        match key {
            "on-full" => OnFull::parse(value).map(Self::OnFull),
            _ => Err(usage(format!("A volume has no property {key:?}"))),
        }
    }

    /// What asks the daemon for all of them.
    ///
    /// # Errors
    /// `Usage` if a property is named twice.
    pub(super) fn request(properties: &[Self]) -> Result<SetVolume> {
        let mut request = SetVolume::default();
        for property in properties {
            let Self::OnFull(on_full) = property;
            if request.on_full.replace(*on_full).is_some() {
                return Err(Error::new(ErrorKind::Usage, "on-full is named twice").with_hint("Name each property once"));
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_full_is_read_and_anything_else_refused_with_what_there_is() {
        assert_eq!(Property::parse("on-full=pause").expect("known"), Property::OnFull(OnFull::Pause));
        assert_eq!(Property::parse("on-full=error").expect("known"), Property::OnFull(OnFull::Error));
        for text in ["on-full", "on-full=", "on-full=Pause", "on_full=pause", "=pause", "label=x", ""] {
            let error = Property::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.hint().is_some_and(|hint| hint.contains("pause")), "{error}");
        }
    }

    #[test]
    fn a_property_is_named_once() {
        let pause = Property::OnFull(OnFull::Pause);

        assert_eq!(Property::request(&[pause]).expect("once").on_full, Some(OnFull::Pause));
        assert_eq!(Property::request(&[pause, pause]).expect_err("twice").kind(), ErrorKind::Usage);
    }
}
