//! Programs that may not use io_uring, as in containers: a seccomp filter answers for the kernel.

use std::io;
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The three system calls of io_uring, whose numbers follow each other on every machine.
pub const ALL: RangeInclusive<libc::c_long> = libc::SYS_io_uring_setup..=libc::SYS_io_uring_register;

/// Has the system calls in `refused` answered with `errno`, in the program and in all that it starts.
pub fn refuse(command: &mut Command, refused: RangeInclusive<libc::c_long>, errno: i32) {
    let filter = filter(&refused, errno);
    // SAFETY: between fork and exec the closure makes system calls only; it owns the filter that they are given.
    unsafe { command.pre_exec(move || install(&filter)) };
}

/// Whether this process can set up a ring.
pub fn is_uring_allowed() -> bool {
    io_uring::IoUring::new(1).is_ok()
}

fn filter(refused: &RangeInclusive<libc::c_long>, errno: i32) -> [libc::sock_filter; 5] {
    let number = |value: libc::c_long| u32::try_from(value).expect("system calls have small numbers");
    let errno = u32::try_from(errno).expect("errors have small numbers");
    // What a filter sees begins with the number of the system call.
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_K;
    [
        step(load, 0, [0, 0]),
        step(jump | libc::BPF_JGE, number(*refused.start()), [0, 2]),
        step(jump | libc::BPF_JGT, number(*refused.end()), [1, 0]),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno, [0, 0]),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, [0, 0]),
    ]
}

/// An instruction; a jump skips so many if it holds, and so many if not.
fn step(code: u32, operand: u32, [held, failed]: [u8; 2]) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("codes are small"), jt: held, jf: failed, k: operand }
}

fn install(filter: &[libc::sock_filter; 5]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(filter.len()).expect("five");
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: takes numbers only.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) };
    if promised != 0 {
        return Err(io::Error::last_os_error());
    }
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the program and its instructions outlive the call, which copies them.
    let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
