//! AES-256-XTS (IEEE 1619) of AWS-LC, which has no safe API. The only unsafe code among the ciphers.
#![expect(unsafe_code, reason = "calls the C library")]

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_Cipher, EVP_CipherInit_ex, EVP_aes_256_xts,
};

/// Size of an XTS key: two AES-256 keys.
pub(super) const XTS_KEY_BYTES: usize = 64;
/// Size of a tweak.
pub(super) const TWEAK_BYTES: usize = 16;
/// The shortest data unit: one AES block.
const UNIT_BYTES_MIN: usize = 16;
/// The longest data unit that the standard allows: 2^20 AES blocks.
const UNIT_BYTES_MAX: usize = UNIT_BYTES_MIN << 20;

/// Both directions of XTS under one key.
pub(super) struct Xts {
    encryption: Context,
    decryption: Context,
}

impl Xts {
    /// Expands the key schedules of both directions.
    ///
    /// # Panics
    /// If the halves of `key` are equal or memory is out.
    pub(super) fn new(key: &[u8; XTS_KEY_BYTES]) -> Self {
        Self { encryption: Context::new(key, Direction::Encrypt), decryption: Context::new(key, Direction::Decrypt) }
    }

    /// Encrypts one data unit.
    ///
    /// # Panics
    /// If the slices differ in length, or it is not between 16 bytes and 16 MiB.
    #[inline]
    pub(super) fn encrypt(&mut self, tweak: &[u8; TWEAK_BYTES], source: &[u8], target: &mut [u8]) {
        assert!(source.len() == target.len());
        // SAFETY: `source` is readable and `target` writable for the same length, and as a shared and a unique
        // borrow they do not overlap.
        unsafe { self.encryption.run(tweak, source.as_ptr(), target.as_mut_ptr(), source.len()) }
    }

    /// Decrypts one data unit.
    ///
    /// # Panics
    /// If the length is not between 16 bytes and 16 MiB.
    #[inline]
    pub(super) fn decrypt_in_place(&mut self, tweak: &[u8; TWEAK_BYTES], unit: &mut [u8]) {
        let target = unit.as_mut_ptr();
        // SAFETY: `unit` is readable and writable for its length; input and output are the very same memory.
        unsafe { self.decryption.run(tweak, target.cast_const(), target, unit.len()) }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// Owns a cipher context of the library, which wipes it when it is freed.
struct Context {
    raw: NonNull<EVP_CIPHER_CTX>,
}

// SAFETY: a context is plain memory without ties to its thread, only this value points to it, and each use takes
// `&mut self`.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &[u8; XTS_KEY_BYTES], direction: Direction) -> Self {
        let is_encrypting = match direction {
            Direction::Encrypt => 1,
            Direction::Decrypt => 0,
        };
        // SAFETY: takes nothing; null is checked below.
        let raw = unsafe { EVP_CIPHER_CTX_new() };
        let context = Self { raw: NonNull::new(raw).expect("memory for a cipher context") };
        // SAFETY: the context is fresh and owned; the cipher is a static of the library; no engine; `key` has the 64
        // bytes that this cipher reads and is copied; without a tweak none is read.
        let result = unsafe {
            EVP_CipherInit_ex(
                context.raw.as_ptr(),
                EVP_aes_256_xts(),
                ptr::null_mut(),
                key.as_ptr(),
                ptr::null(),
                is_encrypting,
            )
        };
        assert!(result == 1, "the cipher refused its key");
        context
    }

    /// Processes one data unit.
    ///
    /// # Safety
    /// `source` is readable and `target` writable for `len` bytes; they are equal or do not overlap.
    #[inline]
    unsafe fn run(&mut self, tweak: &[u8; TWEAK_BYTES], source: *const u8, target: *mut u8, len: usize) {
        assert!((UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&len));
        /// Keeps the direction that the context has.
        const SAME_DIRECTION: c_int = -1;
        // SAFETY: the context has its cipher and key since `new`, so null keeps both; `tweak` has the 16 bytes of
        // this cipher's vector and is copied.
        let set = unsafe {
            EVP_CipherInit_ex(
                self.raw.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                tweak.as_ptr(),
                SAME_DIRECTION,
            )
        };
        assert!(set == 1, "the cipher refused its tweak");
        // SAFETY: the context has key and tweak; the caller vouches for both pointers. XTS writes exactly `len` bytes.
        let done = unsafe { EVP_Cipher(self.raw.as_ptr(), target, source, len) };
        assert!(done == 1, "the cipher failed");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `EVP_CIPHER_CTX_new`, freed once, not used after.
        unsafe { EVP_CIPHER_CTX_free(self.raw.as_ptr()) }
    }
}

#[cfg(test)]
#[path = "xts_tests.rs"]
mod tests;
