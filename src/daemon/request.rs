//! What the API takes. A field it does not know is an error: a misspelled option must not be ignored.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{IntoParams, ToSchema};
use zeroize::Zeroizing;

use super::on_full::OnFull;
use super::volume_rule::SECTOR_SIZE_DEFAULT;
use crate::crypto::Passphrase;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Credential;

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Creates a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Bytes that users see: a multiple of 4096, at most 2^50.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// 512 (the default) or 4096.
    #[serde(default = "default_sector_size")]
    pub sector_size: u32,
    /// A volume of this name is a success that changes nothing.
    #[serde(default)]
    pub if_missing: bool,
    /// Encrypt it with a key of its own, which a removal can destroy.
    #[serde(default)]
    pub own_key: bool,
    /// What its writes do that find no space in the pool: `error` (the default) or `pause`.
    #[serde(default)]
    pub on_full: OnFull,
}

/// Gives a volume a new name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameVolume {
    /// The new name.
    pub name: String,
}

/// Gives a volume a new size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size in bytes.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// It may be below the present one; what lies behind it is lost.
    #[serde(default)]
    pub shrink: bool,
}

/// Gives properties of a volume new values. Those that are not named stay.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetVolume {
    /// What its writes do that find no space in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
}

/// How a volume is exported. What is absent stays as it was.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportVolume {
    /// Clients cannot change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// How many connections may have it open; 0 is the server's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Only encrypted connections may open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_tls: Option<bool>,
    /// Who may open it: networks (`10.0.0.0/8`), `uid:N`, `gid:N`, `subject:NAME`. Everybody if there is no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
}

/// What opens a key slot: one of the two.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyCredential {
    /// Absolute path of a key file, which the daemon reads: its content is not in the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_file: Option<String>,
    /// A passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    passphrase: Option<PassphraseText>,
}

/// A passphrase as a string of JSON. Its `Debug` shows nothing of it.
#[derive(Clone, Debug)]
struct PassphraseText(Passphrase);

impl Serialize for PassphraseText {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for PassphraseText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Passphrase::new(text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl KeyCredential {
    /// For a request with this credential.
    ///
    /// # Errors
    /// If the key file's path cannot be made absolute; `Usage` if it is no UTF-8.
    pub fn new(credential: &Credential) -> Result<Self> {
        Ok(match credential {
            Credential::KeyFile(path) => {
                let path = std::path::absolute(path).map_err(|error| Error::from_io("Resolving", path, error))?;
                let path = path.into_os_string().into_string().map_err(|path| {
                    Error::new(ErrorKind::Usage, format!("The path {} is no UTF-8", path.display()))
                        .with_hint("Move the key file to another path")
                })?;
                Self { key_file: Some(path), passphrase: None }
            }
            Credential::Passphrase(passphrase) => {
                Self { key_file: None, passphrase: Some(PassphraseText(passphrase.clone())) }
            }
        })
    }

    /// The credential that the request names.
    ///
    /// # Errors
    /// `Usage` if it is not exactly one, or the path is not absolute.
    pub fn credential(&self) -> Result<Credential> {
        match (&self.key_file, &self.passphrase) {
            (Some(path), None) if path.starts_with('/') => Ok(Credential::KeyFile(path.into())),
            (Some(path), None) => Err(Error::new(ErrorKind::Usage, format!("The path {path:?} is not absolute"))
                .with_hint("The daemon's working directory is not the client's")),
            (None, Some(passphrase)) => Ok(Credential::Passphrase(passphrase.0.clone())),
            (Some(_), Some(_)) | (None, None) => {
                Err(Error::new(ErrorKind::Usage, "A credential is either a key_file or a passphrase"))
            }
        }
    }
}

/// Wraps the master key for a new key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Opens a slot of the pool now.
    pub credential: KeyCredential,
    /// Opens the slot afterwards.
    pub new: KeyCredential,
}

/// Removes a key slot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveKey {
    /// Opens a slot that stays.
    pub credential: KeyCredential,
}

/// Options of every request that changes something.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ChangeOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
}

/// Options of a removal.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Remove for good, past the trash.
    #[serde(default)]
    #[param(required = false)]
    pub now: bool,
    /// Remove for good and destroy the volume's own key: what is left of its data anywhere in the pool cannot be decrypted.
    #[serde(default)]
    #[param(required = false)]
    pub shred: bool,
}

/// Opens a locked pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnlockPool {
    /// Opens a slot of the pool.
    pub credential: KeyCredential,
}

/// Options of hiding an export.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UnexportOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// End the connections that have the volume open.
    #[serde(default)]
    #[param(required = false)]
    pub force: bool,
}

/// Options of a lock.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LockOptions {
    /// Say what would change, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Close the connections that have a volume open.
    #[serde(default)]
    #[param(required = false)]
    pub force: bool,
}

const fn default_sector_size() -> u32 {
    SECTOR_SIZE_DEFAULT
}

/// Takes something out of the trash.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreFromTrash {
    /// What commands called it, or its id.
    #[serde(rename = "ref")]
    pub reference: String,
    /// A new name for a volume, if its own was given to another meanwhile.
    #[serde(default)]
    pub name: Option<String>,
}

/// What is to be removed together.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForecastRemoval {
    /// References of volumes, which go with their snapshots, and of snapshots.
    pub refs: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> serde_json::Result<KeyCredential> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_credential_survives_its_json_and_its_debug_shows_no_passphrase() {
        let passphrase = Passphrase::new("correct \"horse\"".to_owned().into()).expect("long enough");
        let sent = KeyCredential::new(&Credential::Passphrase(passphrase)).expect("nothing to resolve");
        let json = serde_json::to_string(&sent).expect("plain data");

        let received = parse(&json).expect("our own");

        assert_eq!(json, r#"{"passphrase":"correct \"horse\""}"#);
        let Ok(Credential::Passphrase(passphrase)) = received.credential() else { panic!("{received:?}") };
        assert_eq!(passphrase.expose(), "correct \"horse\"");
        let request = NewKey { credential: received.clone(), new: received };
        assert!(!format!("{request:?}").contains("horse"));
        let path = KeyCredential::new(&Credential::KeyFile("key".into())).expect("there is a working directory");
        let Ok(Credential::KeyFile(path)) = path.credential() else { panic!("{path:?}") };
        assert!(path.is_absolute() && path.ends_with("key"));
    }

    #[test]
    fn a_credential_is_exactly_one_of_the_two() {
        for json in ["{}", r#"{"key_file":"/k","passphrase":"correct horse"}"#, r#"{"key_file":"k"}"#] {
            assert_eq!(parse(json).expect("well-formed").credential().expect_err(json).kind(), ErrorKind::Usage);
        }
        for json in [r#"{"passphrase":"short"}"#, r#"{"password":"correct horse"}"#] {
            parse(json).expect_err(json);
        }
    }
}
