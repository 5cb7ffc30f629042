//! Key files: 32 random bytes that open a pool's key slot.
//!
//! A key file that others can read is refused, as `ssh` does with its own: the pool would only look encrypted.

#![expect(unsafe_code, reason = "the standard library does not tell the process's user")]

use super::KEY_HINT;
use crate::crypto::system_random;
use crate::error::{Error, ErrorKind, Result};
use crate::units::to_u64;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Size of a key file.
pub(super) const KEY_FILE_BYTES: usize = 32;
/// Permissions of group and others.
const FOREIGN_PERMISSIONS: u32 = 0o077;

/// Makes a new key file that only its owner can read. File and directory entry are durable at the end.
///
/// # Errors
/// `Exists` if anything has the path already, else the system's; the file is then gone.
pub fn generate_key_file(path: &Path) -> Result<()> {
    let mut key = Zeroizing::new([0; KEY_FILE_BYTES]);
    system_random(key.as_mut_slice());
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(|source| {
        let kind = source.kind();
        let error = Error::from_io("Creating the key file", path, source);
        match kind {
            io::ErrorKind::AlreadyExists => error.with_hint("A key file is never overwritten: choose another path"),
            io::ErrorKind::NotFound => error.with_hint("Make its directory first"),
            _ => error,
        }
    })?;
    let written = file.write_all(key.as_slice()).and_then(|()| file.sync_all());
    written.and_then(|()| super::sync_directory_of(path)).map_err(|source| {
        let error = Error::from_io("Writing the key file", path, source);
        match fs::remove_file(path) {
            Ok(()) => error,
            Err(_) => error.with_hint("The incomplete file could not be removed: remove it"),
        }
    })
}

/// The bytes of a key file.
///
/// # Errors
/// `Key` if it is missing, unreadable, no file of 32 bytes, of another user, or open to group or others.
pub(super) fn read(path: &Path) -> Result<Zeroizing<[u8; KEY_FILE_BYTES]>> {
    let unreadable = |source: io::Error| {
        Error::new(ErrorKind::Key, format!("Reading the key file {} failed: {source}", path.display()))
            .with_hint(KEY_HINT)
            .with_source(source)
    };
    // Without the flag, opening a pipe would wait for its other end.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    check(path, &file.metadata().map_err(unreadable)?)?;
    let mut key = Zeroizing::new([0; KEY_FILE_BYTES]);
    // Straight from the descriptor: no other buffer holds the key.
    file.read_exact(key.as_mut_slice()).map_err(unreadable)?;
    Ok(key)
}

fn check(path: &Path, metadata: &Metadata) -> Result<()> {
    let name = format!("The key file {}", path.display());
    let refuse = |reason: &str| Error::new(ErrorKind::Key, format!("{name} {reason}"));
    if !metadata.is_file() {
        return Err(refuse("is no regular file").with_hint("A key file has 32 random bytes"));
    }
    check_is_private(&name, path, metadata)?;
    if metadata.len() != to_u64(KEY_FILE_BYTES) {
        let reason = format!("has {} bytes, and a key has {KEY_FILE_BYTES}", metadata.len());
        return Err(refuse(&reason).with_hint(KEY_HINT));
    }
    Ok(())
}

/// How systemd may give a service that is not root a credential (`LoadCredential=`): the file is root's, and the service's user is in
/// its access control list, whose mask shows as the rights of the group. That is root's too, so the file is closed to others.
fn is_credential(metadata: &Metadata) -> bool {
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o777) == (0, 0, 0o440)
}

/// Checks that a file with a secret, which errors call `name`, is this user's or root's, and closed to others.
pub(super) fn check_is_private(name: &str, path: &Path, metadata: &Metadata) -> Result<()> {
    let refuse = |reason: &str| Error::new(ErrorKind::Key, format!("{name} {reason}"));
    // SAFETY: the call has no arguments, touches no memory and cannot fail.
    let user = unsafe { libc::geteuid() };
    if metadata.uid() != user && metadata.uid() != 0 {
        let reason = format!("belongs to user {}, and this process is user {user}", metadata.uid());
        return Err(refuse(&reason).with_hint(format!("Run: chown {user} {}", path.display())));
    }
    if metadata.mode() & FOREIGN_PERMISSIONS != 0 && !(user != 0 && is_credential(metadata)) {
        let reason = format!("can be used by others (mode {:03o})", metadata.mode() & 0o777);
        return Err(refuse(&reason).with_hint(format!("Run: chmod 600 {}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::path::PathBuf;
    use tempfile::TempDir;

    /// A key file with these permissions.
    fn key_file(mode: u32) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("the temporary folder is writable");
        let path = directory.path().join("key");
        generate_key_file(&path).expect("a key file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        (directory, path)
    }

    #[test]
    fn a_credential_of_systemd_is_of_root_and_can_be_read_by_root_and_its_group_alone() {
        for (mode, is_fit) in [(0o440, true), (0o400, false), (0o640, false), (0o444, false)] {
            let (_directory, path) = key_file(mode);
            let metadata = fs::metadata(&path).expect("there");
            let is_of_root = (metadata.uid(), metadata.gid()) == (0, 0);
            assert_eq!(is_credential(&metadata), is_fit && is_of_root, "{mode:o}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused_with_the_command() {
        let (_directory, path) = key_file(0o600);
        let is_private = || check_is_private("The key", &path, &fs::metadata(&path).expect("there"));
        assert!(is_private().is_ok(), "it is ours");
        // Only root can give a file away.
        if chown(&path, Some(1), None).is_err() {
            return;
        }

        let error = is_private().expect_err("it is not ours");

        assert_eq!(error.kind(), ErrorKind::Key);
        assert!(error.message().starts_with("The key belongs to user 1, "), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.starts_with("Run: chown ")), "{error}");
    }
}
