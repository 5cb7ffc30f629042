//! Which mutant is chosen. This file becomes `src/mutant.rs` of the planted copy.
//!
//! Environment: `ROK_MUTANT`, its number, `none`, or `seen`: none is chosen, and at the end of the process a byte for each that was
//! asked for is 1 in the file that `ROK_MUTANT_SEEN` names.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Not known yet.
const UNKNOWN: usize = usize::MAX;
/// None, and what is asked for is noted.
const SEEN: usize = usize::MAX - 1;
/// None.
const NONE: usize = usize::MAX - 2;
/// More than there are mutants.
const COUNT_MAX: usize = 1 << 14;

static CHOSEN: AtomicUsize = AtomicUsize::new(UNKNOWN);
static ASKED: [AtomicU8; COUNT_MAX] = [const { AtomicU8::new(0) }; COUNT_MAX];

/// Whether this one is chosen; none is while the compiler evaluates constants.
#[inline]
#[expect(internal_features, reason = "there is no other way to ask at run time in a constant function")]
pub const fn is(number: usize) -> bool {
    std::intrinsics::const_eval_select((number,), none, is_chosen)
}

const fn none(_number: usize) -> bool {
    false
}

#[inline]
fn is_chosen(number: usize) -> bool {
    match CHOSEN.load(Ordering::Relaxed) {
        SEEN => {
            ASKED[number].store(1, Ordering::Relaxed);
            false
        }
        UNKNOWN => find_out(number),
        chosen => chosen == number,
    }
}

#[cold]
#[inline(never)]
fn find_out(number: usize) -> bool {
    if CHOSEN.load(Ordering::Relaxed) == UNKNOWN {
        let chosen = match std::env::var("ROK_MUTANT") {
            Ok(word) if word == "seen" => SEEN,
            // `none`, too.
            Ok(word) => word.parse().unwrap_or(NONE),
            Err(_) => NONE,
        };
        if CHOSEN.compare_exchange(UNKNOWN, chosen, Ordering::Relaxed, Ordering::Relaxed).is_ok() && chosen == SEEN {
            // SAFETY: the function has the signature that is wanted, and does not unwind.
            unsafe { libc::atexit(tell) };
        }
    }
    is_chosen(number)
}

extern "C" fn tell() {
    let seen: Vec<u8> = ASKED.iter().map(|asked| asked.load(Ordering::Relaxed)).collect();
    if let Some(path) = std::env::var_os("ROK_MUTANT_SEEN") {
        if let Err(error) = std::fs::write(&path, seen) {
            eprintln!("{}: {error}", path.to_string_lossy());
        }
    }
}
