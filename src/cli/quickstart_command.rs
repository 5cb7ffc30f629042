//! The command `quickstart`, which `make run` runs: from nothing to an encrypted volume, and on with it the next time.

use std::fs::{self, DirBuilder, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::arguments::{Global, Resources};
use super::failure::{Failed, Outcome};
use super::output::Output;
use super::pool_command::generate_key;
use super::serve_command::{absolute, finish, lane_count, prepare_process, prepare_socket, print_uris};
use super::size::{format_size, parse_size};
use crate::crypto::Suite;
use crate::daemon::control_socket::nbd_path_beside;
use crate::daemon::on_full_resource::OnFull;
use crate::daemon::request::CreateVolume;
use crate::daemon::volume_rule::SECTOR_SIZE_DEFAULT;
use crate::daemon::{Control, Daemon, DaemonOptions, TcpListen, host};
use crate::disk::free_space_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::lane::ListenAddress;
use crate::lane::{ListenSettings, NbdLimits};
use crate::pool::directory::{self, CreateOptions, Credential, DeviceSource, OwnKeys};

const POOL_SIZE_BYTES_DEFAULT: u64 = 8 << 30;
/// Of the free space, a new pool takes at most this part.
const FREE_SPACE_PART: u64 = 10;
/// A pool of the default size is a multiple of this.
const POOL_SIZE_STEP: u64 = 16 << 20;
/// Below this a pool that nobody asked for in particular is of no use.
const POOL_SIZE_BYTES_MIN: u64 = 256 << 20;
const VOLUME_NAME: &str = "vol1";
const VOLUME_SIZE_BYTES: u64 = 10 << 30;
/// The port that IANA gave to NBD.
const NBD_PORT: u16 = 10809;
const PORT_TRIES: u16 = 32;

/// The arguments of `quickstart`.
#[derive(Debug, Args)]
pub(super) struct Quickstart {
    /// Where pool and key are; by default rok-blk in the user's data directory
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Size of a new pool; by default 8G, or a tenth of the free space if that is less
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) pool_size: Option<u64>,
    #[command(flatten)]
    pub(super) resources: Resources,
}

/// `quickstart`.
pub(super) fn run(arguments: &Quickstart, global: &Global, output: &Output) -> Outcome<ExitCode> {
    prepare_process(global.verbose)?;
    let place = Place::new(arguments.data_dir.as_deref())?;
    let _lock = place.lock()?;
    let socket = prepare_socket(global)?;
    if place.has_pool()? {
        output.message(&format!("Going on with the pool in {}.", place.pool().display()));
    } else {
        place.create_pool(arguments.pool_size, output)?;
    }
    let options = DaemonOptions {
        pool: place.pool(),
        credential: Some(Credential::KeyFile(place.key_file())),
        nbd_unix: Some(nbd_path_beside(&socket)),
        nbd_unix_settings: ListenSettings::default(),
        nbd_limits: NbdLimits::default(),
        tls_directory: None,
        nbd_tcp: vec![TcpListen {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, NBD_PORT)),
            port_tries: PORT_TRIES,
            settings: ListenSettings::default(),
        }],
        nbd_given: Vec::new(),
        lane_count: lane_count(arguments.resources),
        io: arguments.resources.io.into(),
        map_cache_bytes: arguments.resources.map_cache,
        meta_cache_bytes: arguments.resources.meta_cache,
        watermarks: arguments.resources.watermarks()?,
        memory_lock: arguments.resources.memory_lock(),
        is_locked: false,
        own_keys: OwnKeys::Opened,
        socket,
    };
    let daemon = Daemon::start(options)?;
    let introduced = daemon
        .gate()
        .with(|control| create_volume_if_none(control, output))
        .map_err(Failed::from)
        .and_then(|()| introduce(&daemon, global, output));
    finish(daemon, introduced, "Ready. Ctrl-C stops it; the next start goes on with the same pool.", output)
}

/// The directory with the pool and its key.
struct Place {
    directory: PathBuf,
}

impl Place {
    /// In `directory`, else in the user's data directory. It is created, for the user only.
    fn new(directory: Option<&Path>) -> Result<Self> {
        let directory = match directory {
            Some(directory) => absolute(directory)?,
            None => default_directory(std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"))?,
        };
        create_durably(&directory).map_err(|error| Error::from_io("Creating", &directory, error))?;
        Ok(Self { directory })
    }

    fn pool(&self) -> PathBuf {
        self.directory.join("pool")
    }

    fn key_file(&self) -> PathBuf {
        self.directory.join("pool.key")
    }

    /// Keeps a second quickstart out, also while this one creates the pool.
    fn lock(&self) -> Result<File> {
        let path = self.directory.join("lock");
        let failed = |error| Error::from_io("Locking", &path, error);
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        if host::try_lock(&lock).map_err(failed)? {
            return Ok(lock);
        }
        let message = format!("The pool in {} is served by another process", self.pool().display());
        Err(Error::new(ErrorKind::Busy, message).with_hint("Use that one, stop it, or name another --data-dir"))
    }

    fn has_pool(&self) -> Result<bool> {
        match directory::describe(&self.pool()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound && !self.pool().exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates the pool under another name first: one that was interrupted half-way is not taken for a pool, and is
    /// replaced here the next time.
    fn create_pool(&self, size_bytes: Option<u64>, output: &Output) -> Result<()> {
        let draft = self.directory.join("pool.creating");
        match fs::remove_dir_all(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::from_io("Removing", &draft, error));
            }
            _ => {}
        }
        let free_bytes = free_space_bytes(&self.directory)
            .map_err(|error| Error::from_io("Asking for the free space of", &self.directory, error))?;
        let size_bytes = pool_size(size_bytes, free_bytes)?;
        if !self.key_file().exists() {
            generate_key(&self.key_file(), output)?;
        }
        output.message(&format!(
            "Creating an encrypted pool of {} in {}. Its file is filled once, which takes a moment.",
            format_size(size_bytes),
            self.pool().display()
        ));
        let options = CreateOptions {
            devices: vec![DeviceSource::File { size_bytes }],
            suite: Suite::XtsGmac,
            credential: Some(Credential::KeyFile(self.key_file())),
        };
        directory::create(&draft, &options)?;
        fs::rename(&draft, self.pool()).map_err(|error| Error::from_io("Renaming", &draft, error))?;
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::from_io("Syncing", &self.directory, error))
    }
}

/// `rok-blk` in the user's data directory, as the XDG Base Directory Specification says: a relative path is ignored.
fn default_directory(data_home: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Result<PathBuf> {
    let is_usable = |path: &PathBuf| path.is_absolute();
    data_home
        .map(PathBuf::from)
        .filter(is_usable)
        .or_else(|| home.map(PathBuf::from).filter(is_usable).map(|home| home.join(".local/share")))
        .map(|data| data.join("rok-blk"))
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, "Neither XDG_DATA_HOME nor HOME says where your data belongs")
                .with_hint("Name a directory with --data-dir")
        })
}

/// What was asked for; else 8 GiB, or a tenth of the free space if that is less.
fn pool_size(asked_bytes: Option<u64>, free_bytes: u64) -> Result<u64> {
    let default_bytes = POOL_SIZE_BYTES_DEFAULT.min(free_bytes / FREE_SPACE_PART) / POOL_SIZE_STEP * POOL_SIZE_STEP;
    let size_bytes = asked_bytes.unwrap_or(default_bytes);
    if size_bytes > free_bytes || (asked_bytes.is_none() && size_bytes < POOL_SIZE_BYTES_MIN) {
        let message = format!("{} are free here, too little for a pool", format_size(free_bytes));
        return Err(Error::new(ErrorKind::NoSpace, message)
            .with_hint("Free some, name a smaller one with --pool-size (make run POOL_SIZE=), or another --data-dir"));
    }
    Ok(size_bytes)
}

fn create_volume_if_none(control: &Control, output: &Output) -> Result<()> {
    if !control.volumes().items.is_empty() {
        return Ok(());
    }
    let request = CreateVolume {
        name: VOLUME_NAME.to_owned(),
        size_bytes: VOLUME_SIZE_BYTES,
        sector_size: SECTOR_SIZE_DEFAULT,
        if_missing: true,
        own_key: false,
        on_full: OnFull::default(),
    };
    control.create(&request, false)?;
    let size = format_size(VOLUME_SIZE_BYTES);
    output.message(&format!(
        "Created the volume {VOLUME_NAME} of {size}. It is thin: it takes space when it is written."
    ));
    let space = control.space();
    if space.nominal_bytes > space.capacity_bytes {
        output.message(&format!(
            "It is over-committed: {size} are promised, and the pool has {}. When that is full, writes fail.",
            format_size(space.capacity_bytes)
        ));
    }
    Ok(())
}

/// Tells where the volumes are and what to try with them.
fn introduce(daemon: &Daemon, global: &Global, output: &Output) -> Outcome<()> {
    let (exports, listeners) = daemon.gate().with(|control| Ok((control.exports(), control.listeners().to_vec())))?;
    let tcp = listeners.iter().find_map(|listener| match listener {
        ListenAddress::Tcp(address) => Some(*address),
        ListenAddress::Unix(_) => None,
    });
    let port = tcp.map_or(NBD_PORT, |address| address.port());
    if port != NBD_PORT {
        output.message(&format!("Port {NBD_PORT} is taken by another server; using {port}."));
    }
    output.message("The volumes, for NBD clients:");
    print_uris(daemon, output)?;
    let name = exports.items.first().map_or(VOLUME_NAME, |export| export.reference.as_str());
    let uri = format!("nbd://127.0.0.1:{port}/{name}");
    let program = std::env::current_exe()
        .map_err(|error| Error::new(ErrorKind::Other, "This program's path is unknown").with_source(error))?;
    let socket = global.socket.as_ref().map(|socket| format!(" --socket '{}'", socket.display())).unwrap_or_default();
    output.message("Try in another terminal:");
    output.message(&format!("  qemu-img info '{uri}'"));
    output.message(&format!("  nbdcopy disk.img '{uri}'        # copies a disk image into the volume"));
    output.message(&format!("  '{}'{socket} status", program.display()));
    Ok(())
}

/// Creates a directory and those that it is in, where they are missing, and flushes each that got an entry: else a
/// power loss takes the pool with the name of a directory above it.
fn create_durably(directory: &Path) -> std::io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    missing.iter().filter_map(|path| path.parent()).try_for_each(|parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_8_gib_or_a_tenth_of_the_free_space() {
        assert_eq!(pool_size(None, 1 << 40).expect("plenty"), 8 << 30);
        assert_eq!(pool_size(None, 10 << 30).expect("a tenth"), 1 << 30);
        assert_eq!(pool_size(None, (10 << 30) + 12_345).expect("rounded down"), 1 << 30);
    }

    #[test]
    fn a_size_that_was_asked_for_is_taken_if_it_fits() {
        assert_eq!(pool_size(Some(64 << 20), 1 << 30).expect("small but asked for"), 64 << 20);
        assert_eq!(pool_size(Some(2 << 30), 1 << 30).expect_err("too large").kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn too_little_free_space_is_told() {
        assert_eq!(pool_size(None, 1 << 30).expect_err("a tenth is too small").kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn the_data_directory_follows_the_xdg_rules() {
        let at = |data: Option<&str>, home: Option<&str>| default_directory(data.map(Into::into), home.map(Into::into));

        assert_eq!(at(Some("/data"), Some("/home/a")).expect("data"), Path::new("/data/rok-blk"));
        assert_eq!(at(Some("data"), Some("/home/a")).expect("home"), Path::new("/home/a/.local/share/rok-blk"));
        assert_eq!(at(None, Some("/home/a")).expect("home"), Path::new("/home/a/.local/share/rok-blk"));
        assert_eq!(at(None, None).expect_err("nowhere").kind(), ErrorKind::Usage);
    }
}
