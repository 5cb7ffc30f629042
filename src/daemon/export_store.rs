//! How volumes are exported, in a file of the pool's directory, so that a restart opens nothing that was closed.
//!
//! Volumes are named by their ids: names do not appear in clear on the disk. The file is replaced whole, durably.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::durable_file;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::ExportPolicy;

/// The file's name in the pool's directory.
const FILE_NAME: &str = "exports.json";
/// Where a new one is written first.
const DRAFT_NAME: &str = "exports.json.new";
/// What this version writes, and the newest that it reads.
const VERSION: u32 = 1;

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    exports: BTreeMap<Uuid, Entry>,
}

/// How one volume is exported.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    is_exported: Option<bool>,
    is_read_only: bool,
    connections_max: Option<u32>,
    requires_tls: bool,
    allow: Vec<String>,
}

/// Reads what was set; nothing if there is no file.
///
/// # Errors
/// [`ErrorKind::Integrity`] if the file is damaged, [`ErrorKind::Unsupported`] if it is of a newer version, and those of
/// reading it: who may open a volume must be known before anybody can.
pub(super) fn read(pool: &Path) -> Result<BTreeMap<Uuid, ExportPolicy>> {
    let path = pool.join(FILE_NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(Error::from_io("Reading", &path, error)),
    };
    let damaged = |reason: String| {
        Error::new(ErrorKind::Integrity, format!("{} is damaged: {reason}", path.display()))
            .with_hint("Restore it from a backup, or remove it and export volumes anew: then all are as if never set")
    };
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if version > VERSION {
        let message = format!("{} has version {version}, and this program knows {VERSION}", path.display());
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("Use a newer rok-blk"));
    }
    let content: Content = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let policy = |(id, entry): (Uuid, Entry)| {
        let allow: std::result::Result<_, _> = entry.allow.iter().map(|rule| rule.parse()).collect();
        let allow = allow.map_err(|error: crate::lane::BadRule| damaged(error.to_string()))?;
        let Entry { is_exported, is_read_only, connections_max, requires_tls, .. } = entry;
        Ok((id, ExportPolicy { is_exported, is_read_only, connections_max, requires_tls, allow }))
    };
    content.exports.into_iter().map(policy).collect()
}

/// Replaces what was set, durably.
///
/// # Errors
/// Those of writing; then the file is as it was.
pub(super) fn write(pool: &Path, policies: &BTreeMap<Uuid, ExportPolicy>) -> Result<()> {
    let entry = |(id, policy): (&Uuid, &ExportPolicy)| {
        let ExportPolicy { is_exported, is_read_only, connections_max, requires_tls, allow } = policy.clone();
        (
            *id,
            Entry {
                is_exported,
                is_read_only,
                connections_max,
                requires_tls,
                allow: allow.iter().map(ToString::to_string).collect(),
            },
        )
    };
    let content = Content { version: VERSION, exports: policies.iter().map(entry).collect() };
    let bytes = serde_json::to_vec_pretty(&content).expect("plain data");
    let (path, draft) = (pool.join(FILE_NAME), pool.join(DRAFT_NAME));
    durable_file::replace(&path, &draft, &bytes).map_err(|error| {
        let kind = if error.kind() == IoErrorKind::StorageFull { ErrorKind::NoSpace } else { ErrorKind::Other };
        Error::new(kind, format!("Writing {} failed: {error}", path.display()))
            .with_hint("Nothing was changed; see to the file system and try again")
            .with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies() -> BTreeMap<Uuid, ExportPolicy> {
        let allow = ["10.0.0.0/8", "uid:7", "subject:hv1"].map(|rule| rule.parse().expect("a rule")).to_vec();
        let restricted = ExportPolicy {
            is_exported: Some(true),
            is_read_only: true,
            connections_max: Some(3),
            requires_tls: true,
            allow,
        };
        let hidden = ExportPolicy { is_exported: Some(false), ..ExportPolicy::default() };
        [(Uuid::from_u128(1), restricted), (Uuid::from_u128(2), hidden)].into()
    }

    #[test]
    fn what_was_written_is_read() {
        let pool = tempfile::tempdir().expect("a directory");
        assert_eq!(read(pool.path()).expect("no file is no policy"), BTreeMap::new());
        write(pool.path(), &policies()).expect("space");
        assert_eq!(read(pool.path()).expect("it was written"), policies());
        write(pool.path(), &BTreeMap::new()).expect("space");
        assert_eq!(read(pool.path()).expect("it was written"), BTreeMap::new());
    }

    #[test]
    fn damaged_file_is_refused_by_name_and_not_taken_for_none() {
        let pool = tempfile::tempdir().expect("a directory");
        write(pool.path(), &policies()).expect("space");
        let path = pool.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).expect("it was written");
        let damaged = [text[..text.len() / 2].to_owned(), text.replace("uid:7", "uid:"), text.replace("allow", "alow")];
        for content in damaged {
            fs::write(&path, content).expect("space");
            let error = read(pool.path()).expect_err("it is damaged");
            assert_eq!(error.kind(), ErrorKind::Integrity);
            assert!(error.message().contains(FILE_NAME), "{error}");
        }
    }

    #[test]
    fn file_of_a_newer_version_is_refused_by_its_number() {
        let pool = tempfile::tempdir().expect("a directory");
        fs::write(pool.path().join(FILE_NAME), r#"{"version": 2, "new": 1}"#).expect("space");
        let error = read(pool.path()).expect_err("it is newer");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("version 2"), "{error}");
    }
}
