//! Proves that the ring of a real lane carries ublk commands, pool I/O and NBD sockets at the same time.
//!
//! Makes an encrypted pool on a block device, and serves with **one** lane: the volume `disk` as a ublk device, the
//! volume `export` over NBD on a unix socket, a null device, and one that copies no data. Run as root on a kernel with ublk:
//!
//! ```text
//! lane_device POOL_DIRECTORY BLOCK_DEVICE SOCKET_PATH SIZE_MIB
//! ```
//!
//! Prints `READY DISK_DEVICE BARE_DEVICE NULL_DEVICE`, then for each line of its standard input `ALLOCATIONS COUNT`: how often the process has
//! asked for memory so far (that of the metadata store, which is C++, not counted). Ends when its input does: stops the devices and the server, opens the
//! pool once more, and prints PASS or FAIL.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people and scripts")]
#![expect(unsafe_code, reason = "counts what its allocator is asked for")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::io::stdin;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rok_blk::crypto::Suite;
use rok_blk::lane::{
    AttachedDevice, DeviceTarget, IoChoice, ListenAddress, ListenSettings, NbdLimits, Server, ServerOptions,
};
use rok_blk::pool::directory::{
    CreateOptions, Credential, DeviceSource, OpenOptions, OpenPool, OwnKeys, create, generate_key_file, open,
};
use rok_blk::volume::NewVolume;
use rok_ublk::{Control, Device, DeviceParameters};
use uuid::Uuid;

type Failure = Box<dyn Error + Send + Sync>;

const QUEUE_COUNT: u16 = 2;
const MAP_CACHE_BYTES: u64 = 16 << 20;
const META_CACHE_BYTES: u64 = 16 << 20;
const END_TIME_MAX: Duration = Duration::from_secs(30);

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator; counts how often it gives memory.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is done by the system's allocator, with the arguments that came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that this asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above; what the system gave is what came here.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => {
            println!("PASS");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lane_device: {error}");
            println!("FAIL");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, block_device, socket, size_mib] = arguments.as_slice() else {
        return Err("usage: lane_device POOL_DIRECTORY BLOCK_DEVICE SOCKET_PATH SIZE_MIB".into());
    };
    let size_bytes = size_mib.parse::<u64>()? << 20;
    let directory = Path::new(directory);
    let key_file = directory.with_extension("key");
    generate_key_file(&key_file)?;
    let device = DeviceSource::Block { path: block_device.into() };
    let credential = Some(Credential::KeyFile(key_file.clone()));
    create(directory, &CreateOptions { devices: vec![device], suite: Suite::XtsGmac, credential })?;
    serve(directory, &key_file, Path::new(socket), size_bytes)?;
    // Whoever drives the devices compares the data; what is asked here is that the pool opens again.
    drop(open_pool(directory, &key_file)?);
    Ok(())
}

fn open_pool(directory: &Path, key_file: &Path) -> Result<OpenPool, Failure> {
    let credential = Some(Credential::KeyFile(key_file.to_owned()));
    Ok(open(
        directory,
        &OpenOptions {
            credential,
            lane_count: 1,
            map_cache_bytes: MAP_CACHE_BYTES,
            meta_cache_bytes: META_CACHE_BYTES,
            own_keys: OwnKeys::Opened,
            watermarks: rok_blk::pool::Watermarks::default(),
        },
    )?)
}

fn serve(directory: &Path, key_file: &Path, socket: &Path, size_bytes: u64) -> Result<(), Failure> {
    let OpenPool { pool, devices, .. } = open_pool(directory, key_file)?;
    let server =
        Server::start(pool, ServerOptions { devices, io: IoChoice::IoUring, nbd: NbdLimits::default(), tls: None })?;
    for name in ["disk", "export"] {
        server.volumes().create(&NewVolume::new(Uuid::new_v4(), name, size_bytes))?;
    }
    server.listen(&ListenAddress::Unix(PathBuf::from(socket)), ListenSettings::default())?;

    let control = Control::open()?;
    let volume = Arc::new(server.volumes().open("disk")?);
    let parameters = DeviceParameters { logical_block_bytes: 512, ..DeviceParameters::new(size_bytes) };
    let disk = attach(&server, &control, &parameters, &DeviceTarget::Volume(volume))?;
    let bare = attach(&server, &control, &DeviceParameters::new(size_bytes), &DeviceTarget::Bare)?;
    let null = attach(&server, &control, &DeviceParameters::new(size_bytes), &DeviceTarget::Null)?;
    let [disk_path, bare_path, null_path] = [&disk, &bare, &null].map(|(device, _)| device.block_path());
    println!("READY {} {} {}", disk_path.display(), bare_path.display(), null_path.display());
    for line in stdin().lines() {
        line?;
        println!("ALLOCATIONS {}", ALLOCATIONS.load(Ordering::Relaxed));
    }

    detach(&control, disk)?;
    detach(&control, bare)?;
    detach(&control, null)?;
    Ok(server.shutdown()?)
}

fn attach(
    server: &Server,
    control: &Control,
    parameters: &DeviceParameters,
    target: &DeviceTarget,
) -> Result<(Arc<Device>, AttachedDevice), Failure> {
    let device = Arc::new(control.add(None, &DeviceParameters { queue_count: QUEUE_COUNT, ..*parameters }, None)?);
    let attached = server.attach(&device, target)?;
    control.start(&device)?;
    Ok((device, attached))
}

fn detach(control: &Control, (device, attached): (Arc<Device>, AttachedDevice)) -> Result<(), Failure> {
    let id = device.id();
    control.stop(id)?;
    attached.wait_ended(END_TIME_MAX)?;
    drop(device);
    Ok(control.delete(id)?)
}
