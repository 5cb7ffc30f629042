//! What the daemon asks of the operating system about its own process.
//!
//! Unsafe here: system calls that take integers and plain structs, which std does not wrap.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Set to `1`, it leaves core dumps on: for debugging, and for the test that looks for secrets in a core file.
pub const ALLOW_CORE_VARIABLE: &str = "ROK_ALLOW_CORE";

/// The effective user id of this process.
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: takes nothing, returns an integer and cannot fail.
    unsafe { libc::geteuid() }
}

/// Who runs this process, and where, like `alice@lab-a`. What is not known is a number, or `localhost`.
#[must_use]
pub fn user_at_host() -> String {
    let is_plain = |text: &String| !text.is_empty() && !text.chars().any(|letter| letter.is_control() || letter == '@');
    let named = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(is_plain));
    let user = named.unwrap_or_else(|| effective_uid().to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    let host = host.ok().filter(is_plain).unwrap_or_else(|| "localhost".to_owned());
    format!("{user}@{host}")
}

/// Keeps secrets of this process out of core files and from other processes of the same user (`ptrace`,
/// `/proc/PID/mem`), unless [`ALLOW_CORE_VARIABLE`] says otherwise.
///
/// # Errors
/// If the kernel refuses; the process must not go on to hold keys then.
pub fn forbid_core_dumps() -> io::Result<()> {
    if std::env::var_os(ALLOW_CORE_VARIABLE).is_some_and(|value| value == "1") {
        return Ok(());
    }
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, initialised rlimit, which the call only reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) })?;
    // SAFETY: PR_SET_DUMPABLE takes integers only; the unused arguments are zero as the manual asks.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0_u64, 0_u64, 0_u64, 0_u64) })
}

/// Runs `work` while SIGINT does nothing to this process, for work that has to put a terminal back in order first.
///
/// Process-wide: call it before any other thread starts.
pub fn without_interrupts<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: takes integers only; SIG_IGN is no handler, so that nothing of ours runs in a signal's context.
    let before = unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let result = work();
    // SAFETY: `before` is what this call returned for the same signal: a disposition that was in force.
    unsafe { libc::signal(libc::SIGINT, before) };
    result
}

/// Files and sockets that this process creates are for its user only.
///
/// Process-wide: call it before any thread creates files.
pub fn create_private_files() {
    // SAFETY: takes an integer, swaps the process's mask and cannot fail.
    unsafe { libc::umask(0o077) };
}

/// Raises the number of files that may be open to what the administrator allows: each connection and each file of
/// the metadata store is one.
///
/// # Errors
/// If the kernel refuses.
pub fn raise_open_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that the call fills.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live, initialised rlimit, which the call only reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

/// How many files this process may have open.
///
/// # Errors
/// If the kernel refuses to tell.
pub fn open_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that the call fills.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit.rlim_cur)
}

/// Lets this process lock as much memory as it wants.
///
/// # Errors
/// If there is a limit and the capability `CAP_SYS_RESOURCE` is missing.
pub fn lift_memory_lock_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a live, initialised rlimit, which the call only reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })
}

/// How much memory this process may lock, in bytes.
///
/// # Errors
/// If the kernel refuses to tell.
pub fn memory_lock_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that the call fills.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit.rlim_cur)
}

/// Keeps everything that this process has and will have in memory there, from when it is first used. To be called only
/// without a limit: else the process gets no memory at all beyond it.
///
/// # Errors
/// If the kernel refuses.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: takes an integer.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
}

/// Locks `file` for this open description; false if another one holds the lock. The lock ends with the file.
///
/// # Errors
/// If the file system does not support locks.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends the process at once, without destructors: threads of the engine may still run, which destructors of static
/// objects (the metadata store has some) do not expect.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
