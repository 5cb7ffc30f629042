//! Where the control socket is, who may have it, and what to do with one that a dead daemon left.
//!
//! A lock on a file beside the socket decides between daemons that start at the same time; it ends with its process.
//! Whoever holds it may replace a socket that nobody answers on.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::host;
use crate::error::{Error, ErrorKind, Result};

/// Longest path of a unix socket: `sun_path` with its closing zero has 108 bytes.
const PATH_LEN_MAX: usize = 107;
const DIRECTORY: &str = "rok-blk";
const FILE: &str = "control.sock";

/// Where daemon and clients meet if nobody says otherwise: in `runtime_directory` (`XDG_RUNTIME_DIR`) if that is an
/// absolute path of a directory, else in `/run` for root, else in a directory of the user's own in `/tmp`.
#[must_use]
pub fn default_path(runtime_directory: Option<&Path>, uid: u32) -> PathBuf {
    let directory = match runtime_directory {
        Some(directory) if directory.is_absolute() && directory.is_dir() => directory.join(DIRECTORY),
        _ if uid == 0 => Path::new("/run").join(DIRECTORY),
        _ => Path::new("/tmp").join(format!("{DIRECTORY}-{uid}")),
    };
    directory.join(FILE)
}

/// Where a client of root's finds the daemon of the host, which systemd runs as a user of its own, if there is none at the default
/// path. Only root makes directories in `/run`: whose it is was root's decision.
#[must_use]
pub fn path_of_service(uid: u32) -> Option<PathBuf> {
    (uid == 0).then(|| Path::new("/run").join(DIRECTORY).join(FILE))
}

/// Checks that nobody else can have put the directory of a default socket there: it is a directory, not a link,
/// belongs to `uid` and is closed to others. `/tmp` is everybody's.
///
/// # Errors
/// `Permission` if not, `NotFound` if there is none.
pub fn check_private_directory(directory: &Path, uid: u32) -> Result<()> {
    let found = fs::symlink_metadata(directory).map_err(|error| Error::from_io("Looking at", directory, error))?;
    if found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let message = format!("{} is not a directory that only you can use", directory.display());
    Err(Error::new(ErrorKind::Permission, message)
        .with_hint("Remove it or make it yours with mode 0700, or name another socket with --socket"))
}

/// Makes the directory of a default socket, with mode 0700, and checks it.
///
/// # Errors
/// As [`check_private_directory`], or what the operating system says.
pub fn make_private_directory(directory: &Path, uid: u32) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::from_io("Creating", directory, error)),
    }
    check_private_directory(directory, uid)
}

/// Where the NBD socket of the daemon with this control socket is if nobody says otherwise: beside it.
#[must_use]
pub fn nbd_path_beside(control: &Path) -> PathBuf {
    if control.file_name().is_some_and(|name| name == FILE) {
        return control.with_file_name("nbd.sock");
    }
    control.with_extension("nbd.sock")
}

/// A control socket that this process owns. Dropped, it removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
    _lock: File,
}

impl ControlSocket {
    /// Takes the socket at `path`, replacing one that a dead daemon left.
    ///
    /// # Errors
    /// `Busy` if a daemon answers there, `Exists` if something is there that is no socket, `Usage` for a path that
    /// is too long, and what the operating system says.
    pub fn claim(path: &Path) -> Result<Self> {
        check_path_len(path)?;
        let lock = lock_beside(path)?;
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(|error| Error::from_io("Binding", path, error))?;
        let close = |error| Error::from_io("Setting up", path, error);
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(close)?;
        listener.set_nonblocking(true).map_err(close)?;
        Ok(Self { path: path.to_owned(), listener, _lock: lock })
    }

    /// A second handle of the listening socket, for the runtime.
    pub(super) fn listener(&self) -> Result<UnixListener> {
        self.listener.try_clone().map_err(|error| Error::from_io("Duplicating", &self.path, error))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the control socket was not there any more");
        }
    }
}

/// Removes a unix socket at `path` that nobody answers on, so that it can be bound again.
///
/// # Errors
/// `Busy` if somebody answers, `Exists` if something is there that is no socket, and what the operating system says.
pub fn remove_stale(path: &Path) -> Result<()> {
    check_path_len(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::from_io("Looking at", path, error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(ErrorKind::Exists, format!("{} is there and is not a socket", path.display()))
                .with_hint("Choose another path for the socket"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(answered(path)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket that a dead process left");
            fs::remove_file(path).map_err(|error| Error::from_io("Removing", path, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::from_io("Connecting to", path, error)),
    }
}

fn check_path_len(path: &Path) -> Result<()> {
    if path.as_os_str().len() <= PATH_LEN_MAX {
        return Ok(());
    }
    let message = format!("{} is too long for the path of a socket", path.display());
    Err(Error::new(ErrorKind::Usage, message).with_hint(format!("At most {PATH_LEN_MAX} bytes are possible")))
}

fn lock_beside(path: &Path) -> Result<File> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&lock_path)
        .map_err(|error| Error::from_io("Opening", &lock_path, error))?;
    match host::try_lock(&lock) {
        Ok(true) => Ok(lock),
        Ok(false) => Err(answered(path)),
        Err(error) => Err(Error::from_io("Locking", &lock_path, error)),
    }
}

fn answered(path: &Path) -> Error {
    Error::new(ErrorKind::Busy, format!("A daemon already serves at {}", path.display()))
        .with_hint("Use it (rok-blk status), stop it, or name another socket with --socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn the_default_is_in_the_runtime_directory_if_there_is_one() {
        let runtime = directory();

        assert_eq!(default_path(Some(runtime.path()), 0), runtime.path().join("rok-blk/control.sock"));
    }

    #[test]
    fn without_a_usable_runtime_directory_root_and_users_have_their_own() {
        for runtime in [None, Some(Path::new("relative")), Some(Path::new("/does/not/exist"))] {
            assert_eq!(default_path(runtime, 0), Path::new("/run/rok-blk/control.sock"));
            assert_eq!(default_path(runtime, 1000), Path::new("/tmp/rok-blk-1000/control.sock"));
        }
    }

    #[test]
    fn a_socket_that_nobody_answers_on_is_replaced() {
        let directory = directory();
        let path = directory.path().join("control.sock");
        drop(UnixListener::bind(&path).expect("a first socket"));
        assert!(path.exists(), "a closed listener leaves its file");

        let claimed = ControlSocket::claim(&path).expect("a stale socket gives way");

        UnixStream::connect(&path).expect("the new one answers");
        drop(claimed);
        assert!(!path.exists(), "the owner removes it");
    }

    #[test]
    fn a_socket_that_somebody_answers_on_is_busy() {
        let directory = directory();
        let path = directory.path().join("control.sock");
        let _first = ControlSocket::claim(&path).expect("nobody is there");

        assert_eq!(ControlSocket::claim(&path).expect_err("taken").kind(), ErrorKind::Busy);
    }

    #[test]
    fn a_living_listener_without_our_lock_is_busy_too() {
        let directory = directory();
        let path = directory.path().join("control.sock");
        let _other = UnixListener::bind(&path).expect("a listener");

        assert_eq!(ControlSocket::claim(&path).expect_err("taken").kind(), ErrorKind::Busy);
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = directory();
        let path = directory.path().join("control.sock");
        fs::write(&path, "precious").expect("a file");

        assert_eq!(ControlSocket::claim(&path).expect_err("no socket").kind(), ErrorKind::Exists);
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[test]
    fn a_directory_that_others_can_use_is_refused() {
        let parent = directory();
        let open = parent.path().join("open");
        DirBuilder::new().mode(0o700).create(&open).expect("a directory");
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).expect("a link");
        let uid = host::effective_uid();

        assert_eq!(make_private_directory(&open, uid).expect_err("open").kind(), ErrorKind::Permission);
        assert_eq!(make_private_directory(&link, uid).expect_err("a link").kind(), ErrorKind::Permission);
        let own = parent.path().join("own");
        make_private_directory(&own, uid).expect("its own");
        assert_eq!(check_private_directory(&own, uid + 1).expect_err("foreign").kind(), ErrorKind::Permission);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_usage() {
        let path = Path::new("/tmp").join("x".repeat(200));

        assert_eq!(ControlSocket::claim(&path).expect_err("too long").kind(), ErrorKind::Usage);
    }
}
