//! Where a server listens.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// An address of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket. The file is made with the listener, for its owner only, and removed with it.
    Unix(PathBuf),
    /// A TCP port; port 0 is any that is free.
    Tcp(SocketAddr),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(formatter),
            Self::Tcp(address) => address.fmt(formatter),
        }
    }
}

impl ListenAddress {
    /// Listens; also returns the real address.
    pub(super) fn bind(&self) -> Result<(OwnedFd, Self)> {
        match self {
            Self::Unix(path) => Ok((bind_unix(path)?.into(), self.clone())),
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(|source| self.bind_error(source))?;
                let address = listener.local_addr().map_err(|source| self.bind_error(source))?;
                Ok((listener.into(), Self::Tcp(address)))
            }
        }
    }

    /// Removes what listening left in the file system.
    pub(super) fn clean_up(&self) {
        if let Self::Unix(path) = self
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "a socket could not be removed");
        }
    }

    fn bind_error(&self, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::AddrInUse {
            return Error::new(ErrorKind::Busy, format!("{self} is in use by another server"))
                .with_hint("Choose another address, or stop that server")
                .with_source(source);
        }
        let kind = match source.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::InvalidInput | io::ErrorKind::AddrNotAvailable => ErrorKind::Usage,
            _ => ErrorKind::Other,
        };
        Error::new(kind, format!("Listening on {self} failed: {source}")).with_source(source)
    }
}

/// Listens on a unix socket; replaces a file that no server listens on any more.
fn bind_unix(path: &Path) -> Result<UnixListener> {
    let address = ListenAddress::Unix(path.to_path_buf());
    let listener = match UnixListener::bind(path) {
        Err(source) if source.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path).map_err(|source| Error::from_io("Removing the stale socket", path, source))?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.map_err(|source| address.bind_error(source))?;
    let owner_only = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, owner_only).map_err(|source| Error::from_io("Protecting", path, source))?;
    Ok(listener)
}

/// Whether the path is a socket on which nobody listens. Other files are never taken for one.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
