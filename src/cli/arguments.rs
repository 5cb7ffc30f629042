//! The arguments of every command.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::annotation_command::{AddHoldTo, Release, Tag, Unset, Untag};
use super::attach_command::{Attach, Detach};
use super::bench::arguments::Bench;
use super::check_command::Check;
use super::clone_command::{CloneArguments, RollbackArguments};
use super::credential::CredentialArguments;
use super::diff_command::DiffArguments;
use super::export_command::{Export, Unexport};
use super::job_command::JobCommand;
use super::key_command::KeyCommand;
use super::nbd_arguments::NbdArguments;
use super::policy_command::PolicyCommand;
use super::quickstart_command::Quickstart;
use super::scrub_command::Scrub;
use super::size::parse_size;
use super::snapshot_command::{Log, ResolveReferences, TakeSnapshot};
use super::trash_command::TrashCommand;
use crate::daemon::on_full_resource::OnFull;
use crate::daemon::short_memory::MemoryLock;
use crate::daemon::volume_rule;
use crate::error::Error;
use crate::lane::IoChoice;
use crate::pool::Watermarks;
use crate::volume::Reference;

/// Thin, encrypted, copy-on-write disks from one pool, served over NBD.
#[derive(Debug, Parser)]
#[command(name = "rok-blk", version, max_term_width = 100, propagate_version = false)]
#[command(after_help = "Sizes: 10G and 10GiB are powers of 1024, 10GB of 1000; a bare number is bytes.\n\
    Exit codes: 0 done, 1 failed, 2 usage, 3 some targets failed, 4 not found, 5 exists, 6 not permitted, 7 busy, \
    8 no space, 9 damaged or foreign data, 10 key missing or wrong, 11 no daemon, 12 timed out, 13 not supported \
    here, 130 interrupted. Any other code but 0 means failure too.")]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(super) struct Global {
    /// How to print: a table, JSON, one JSON object a line, or tab-separated fields without a header
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Format,
    /// Short for --output json
    #[arg(long, global = true, conflicts_with = "output")]
    pub(super) json: bool,
    /// Print names only, one a line, and no messages that are not errors
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Leave out the header of tables
    #[arg(long, global = true)]
    pub(super) no_header: bool,
    /// Print sizes as exact bytes
    #[arg(long, global = true)]
    pub(super) bytes: bool,
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH", env = "ROK_SOCKET")]
    pub(super) socket: Option<PathBuf>,
    /// Answer yes to questions
    #[arg(short, long, global = true)]
    pub(super) yes: bool,
    /// Log more: once for what is done, twice for details
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Jsonl,
    Plain,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve a pool in the foreground until SIGINT or SIGTERM
    Serve(Serve),
    /// Serve a first encrypted volume, creating pool and key if there are none
    Quickstart(Quickstart),
    /// Create, show and extend pools
    Pool {
        #[command(subcommand)]
        command: PoolCommand,
    },
    /// Change which key files and passphrases open a pool; lock and unlock the one that is served
    #[command(after_help = "Each slot wraps the pool's one master key for one key file or passphrase. Without --pool \
        the daemon changes the pool that it serves; with it, the pool in DIR is changed directly, which must not be \
        served. rm and rotate overwrite the slot in both copies of the superblock; they write no data anew. So the \
        old key still opens an older copy of the superblock (a backup, or what a flash device kept of it): if such a \
        copy and the old key may be in wrong hands, move the data to a new pool.")]
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Create a volume; it takes space when it is written
    Create(Create),
    /// List volumes
    #[command(name = "ls")]
    List,
    /// Show a volume or a snapshot
    Show {
        /// A volume, or a snapshot of one: vol1@7, vol1@latest, vol1@-1, vol1@TAG, vol1@2026-11-01T10:00
        #[arg(value_name = "REF")]
        reference: Reference,
    },
    /// Make a snapshot of volumes: an instant that stays as it is
    Snapshot(TakeSnapshot),
    /// List the snapshots of a volume
    Log(Log),
    /// Tell where two snapshots or volumes differ, in time by what was written between them
    Diff(DiffArguments),
    /// Say which snapshots references mean; exit code 3 if one of them means none, 4 if all
    Resolve(ResolveReferences),
    /// Give a snapshot a further name
    Tag(Tag),
    /// Take a tag from a snapshot
    Untag(Untag),
    /// Remove labels of a snapshot
    Unset(Unset),
    /// Keep a snapshot from being removed
    Hold(AddHoldTo),
    /// End a hold of a snapshot
    Release(Release),
    /// Make volumes that start as a snapshot, at once and without copying
    Clone(CloneArguments),
    /// Set a volume back to one of its snapshots; what was there before is kept as a snapshot
    Rollback(RollbackArguments),
    /// Give a volume a new name
    Rename(Rename),
    /// Give a volume a new size
    Resize(Resize),
    /// Give properties of a volume, or labels of a snapshot, new values
    #[command(
        after_help = "Properties of a volume: on-full=error has writes fail that find no space in the pool; on-full=pause \
        has them wait until there is some. From pause to error, those that wait fail at once. Labels of a snapshot like \
        vol1@7 have any name and value."
    )]
    Set(Set),
    /// Put volumes and snapshots into the trash for 14 days, or remove them for good
    #[command(
        name = "rm",
        after_help = "--shred overwrites what the volume's key was wrapped with, so that neither the \
        pool's key nor old files of the pool's meta/ open it again. It does not reach copies of the pool's file shred-key \
        (backups, snapshots of the file system), nor what a flash device or a copy-on-write file system keeps of \
        overwritten blocks."
    )]
    Remove(Remove),
    /// Make disks of this host, /dev/ublkbN, of volumes and snapshots, and print their paths
    Attach(Attach),
    /// Take disks of this host away, which stops them once nobody uses them
    Detach(Detach),
    /// List the disks of this host that are volumes and snapshots
    Devices,
    /// Offer a volume to NBD clients, and say to whom and how
    #[command(
        after_help = "What is not said stays as it was. Rules: a network like 10.0.0.0/8 or an address (clients over \
        TCP), uid:NUMBER and gid:NUMBER (clients of the unix socket), subject:NAME (a name in a client's certificate). A \
        client must meet one rule of each kind that applies to it. Connections that there are stay as they are."
    )]
    Export(Export),
    /// Hide a volume from NBD clients
    Unexport(Unexport),
    /// List what NBD clients are offered, and where
    Exports,
    /// Show how daemon and pool do
    Status,
    /// Show where the pool's space is
    #[command(name = "df")]
    Space,
    /// List, restore and empty what rm has put away
    #[command(
        after_help = "What rm has put away goes for good after 14 days, once the daemon has seen it due for an hour: a clock \
        that is ahead for a while removes nothing. trash empty removes it at once."
    )]
    Trash {
        #[command(subcommand)]
        command: TrashCommand,
    },
    /// Take snapshots of volumes at regular times, and keep some of them
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Watch and end long work of the daemon
    Job {
        #[command(subcommand)]
        command: JobCommand,
    },
    /// Compare what is counted as used with what the map uses; changes nothing
    #[command(
        after_help = "Every leaf of the map and every part of the bitmap is read and verified. Exit code 9 says \
        that there are differences; they are listed on stdout. A leaked block costs space. A block that is not marked or \
        is mapped twice may cost data: stop writing, and restore meta/ and the devices from the same backup. Data is not \
        read; each read of a block verifies it."
    )]
    Check(Check),
    /// Read and verify every block that is mapped, once, while the pool is used
    #[command(
        after_help = "A block that several volumes and snapshots share is read once. Exit code 9 says that something is \
        damaged: status lists it, and each range is listed until it was written anew or removed and the next scrub came \
        there. A scrub gives way to everybody else; a restart of the daemon goes on with it."
    )]
    Scrub(Scrub),
    /// Measure the engine beside a raw io_uring loop; takes minutes and no daemon
    Bench(Bench),
    /// Print the completion script of a shell
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: Shell,
    },
}

/// A volume's name.
#[derive(Clone, Debug, Args)]
pub(super) struct VolumeName {
    /// The volume
    #[arg(value_parser = parse_name)]
    pub(super) name: String,
}

/// The option of every command that changes something.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DryRun {
    /// Say what would change, and change nothing
    #[arg(short = 'n', long = "dry-run")]
    pub(super) is_dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The pool's directory
    #[arg(long, value_name = "DIR")]
    pub(super) pool: PathBuf,
    #[command(flatten)]
    pub(super) credential: CredentialArguments,
    /// Start without a key: rok-blk key unlock opens the pool later
    #[arg(long, conflicts_with_all = ["key_file", "passphrase", "passphrase_file"])]
    pub(super) locked: bool,
    /// Go on although the pool's file shred-key is lost: volumes that were made with --own-key stay closed
    #[arg(long)]
    pub(super) without_own_keys: bool,
    /// As --without-own-keys, where shred-key is lost for good: also if what those volumes held may be lost by it
    #[arg(long)]
    pub(super) give_up_own_keys: bool,
    /// Serve NBD over TCP here too, like 127.0.0.1:10809; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub(super) nbd_listen: Vec<SocketAddr>,
    /// The NBD socket, if not beside the control socket
    #[arg(long, value_name = "PATH")]
    pub(super) nbd_unix: Option<PathBuf>,
    #[command(flatten)]
    pub(super) resources: Resources,
    #[command(flatten)]
    pub(super) nbd: NbdArguments,
}

/// How lanes do their I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Io {
    Auto,
    #[value(name = "io-uring")]
    Uring,
    Threads,
}

impl From<Io> for IoChoice {
    fn from(io: Io) -> Self {
        match io {
            Io::Auto => Self::Auto,
            Io::Uring => Self::IoUring,
            Io::Threads => Self::Threads,
        }
    }
}

/// What a daemon may use of the machine.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Resources {
    /// Threads that do the pool's I/O; by default one for each processor, at most 8
    #[arg(long = "lanes", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=63))]
    pub(super) lane_count: Option<u16>,
    /// How lanes do their I/O: auto takes io_uring if this host allows it, else threads, which are slower
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(super) io: Io,
    /// Memory for the map: 1 MiB of it maps about 160 MiB of scattered blocks, 440 MiB of blocks that were written in order;
    /// the rest is read when it is needed
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256MiB")]
    pub(super) map_cache: u64,
    /// Memory for the metadata store: its own cache and what it has not written yet
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256MiB")]
    pub(super) meta_cache: u64,
    /// Let the daemon's memory be swapped out also while disks are attached, which may wait for themselves then
    #[arg(long)]
    pub(super) swappable: bool,
    /// From this share of used space on, in percent, status warns that space is low
    #[arg(long, value_name = "PERCENT", default_value_t = Watermarks::default().low_percent())]
    space_low: u8,
    /// From this share of used space on, in percent, status warns that space is critical
    #[arg(long, value_name = "PERCENT", default_value_t = Watermarks::default().critical_percent())]
    space_critical: u8,
}

impl Resources {
    /// When memory is locked.
    pub(super) const fn memory_lock(&self) -> MemoryLock {
        if self.swappable { MemoryLock::Never } else { MemoryLock::WithDisks }
    }

    /// When space counts as low.
    ///
    /// # Errors
    /// `Usage` for shares that make no sense.
    pub(super) fn watermarks(&self) -> Result<Watermarks, Error> {
        Watermarks::new(self.space_low, self.space_critical)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// Create a pool in a directory; no daemon is needed
    Create(CreatePool),
    /// Show what a pool is made of: the daemon's, or the one in DIR (no key is needed)
    Show {
        /// The pool's directory
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Make a device of the daemon's pool larger while it is used
    Grow(GrowPool),
    /// Add a file or a block device to the daemon's pool while it is used
    AddDevice(AddPoolDevice),
}

#[derive(Debug, Args)]
pub(super) struct GrowPool {
    /// The new size of a file; a disk that was made larger takes its own
    #[arg(long, value_parser = parse_size)]
    pub(super) size: Option<u64>,
    /// The device, as pool show calls it; needed if there are several
    #[arg(long, value_name = "NAME")]
    pub(super) device: Option<String>,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("new_device").required(true).args(["size", "block"]))]
pub(super) struct AddPoolDevice {
    /// Store data in one more file of this size in the pool's directory
    #[arg(long, value_parser = parse_size)]
    pub(super) size: Option<u64>,
    /// Store data on this block device too; its first MiB must be zeros, and what else it holds is lost
    #[arg(long, value_name = "PATH")]
    pub(super) block: Option<PathBuf>,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("device_source").required(true).multiple(true).args(["size", "devices"]))]
#[command(group = clap::ArgGroup::new("protection").required(true)
    .args(["key_file", "passphrase", "passphrase_file", "no_encryption"]))]
pub(super) struct CreatePool {
    /// The directory; it is created
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,
    /// Store data in a file of this size in DIR
    #[arg(long, value_parser = parse_size)]
    pub(super) size: Option<u64>,
    /// Store data on this block device; may be given several times, and beside --size
    #[arg(long = "device", value_name = "PATH")]
    pub(super) devices: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) credential: CredentialArguments,
    /// Write a new random key to the key file first
    #[arg(long, requires = "key_file")]
    pub(super) generate_key: bool,
    /// Store data readable for everybody who has the device; checksums stay
    #[arg(long)]
    pub(super) no_encryption: bool,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    pub(super) volume: VolumeName,
    /// How large it looks
    #[arg(long, value_parser = parse_volume_size)]
    pub(super) size: u64,
    /// Bytes of its sectors, 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = volume_rule::SECTOR_SIZE_DEFAULT,
        value_parser = parse_sector_size)]
    pub(super) sector_size: u32,
    /// Succeed if there is a volume of this name already
    #[arg(long)]
    pub(super) if_missing: bool,
    /// Encrypt it with a key of its own, so that rm --shred can destroy its data
    #[arg(long)]
    pub(super) own_key: bool,
    /// What its writes do that find no space in the pool: fail (error), or wait until there is some (pause)
    #[arg(long, value_name = "error|pause", default_value = "error", value_parser = OnFull::parse)]
    pub(super) on_full: OnFull,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Rename {
    /// The volume
    #[arg(value_name = "OLD", value_parser = parse_name)]
    pub(super) from: String,
    /// Its new name
    #[arg(value_name = "NEW", value_parser = parse_name)]
    pub(super) to: String,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Resize {
    #[command(flatten)]
    pub(super) volume: VolumeName,
    /// Its new size
    #[arg(value_parser = parse_volume_size)]
    pub(super) size: u64,
    /// The new size may be smaller; what lies behind it is lost
    #[arg(long)]
    pub(super) shrink: bool,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// A volume, or a snapshot like vol1@7
    #[arg(value_name = "REF")]
    pub(super) reference: Reference,
    /// Properties of the volume, like on-full=pause, or labels of the snapshot
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub(super) values: Vec<String>,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Volumes, which go with their snapshots, and single snapshots like vol1@7
    #[arg(value_name = "REF", required = true)]
    pub(super) names: Vec<Reference>,
    /// Remove them for good, past the trash
    #[arg(long)]
    pub(super) now: bool,
    /// Remove them for good and destroy their keys: for volumes made with --own-key
    #[arg(long)]
    pub(super) shred: bool,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Target {
    #[command(flatten)]
    pub(super) volume: VolumeName,
    #[command(flatten)]
    pub(super) dry_run: DryRun,
}

pub(super) fn parse_name(text: &str) -> Result<String, Error> {
    volume_rule::check_name(text).map(|()| text.to_owned())
}

fn parse_volume_size(text: &str) -> Result<u64, Error> {
    let size_bytes = parse_size(text)?;
    volume_rule::check_size(size_bytes).map(|()| size_bytes)
}

fn parse_sector_size(text: &str) -> Result<u32, Error> {
    // Zero stands for what is no number; it is refused with the same sentence.
    let sector_size = text.parse().unwrap_or(0);
    volume_rule::check_sector_size(sector_size).map(|()| sector_size)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_definitions_contradict_nothing() {
        super::Arguments::command().debug_assert();
    }
}
