//! Copies that are damaged while the pool is open.

use super::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;

/// Has the superblock where it can be read and not be written, until what is returned is dropped.
fn seal_superblock(place: &Place) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut sealed = File::from(memfd_create("superblock", flags).expect("memory"));
    sealed.write_all(&place.superblock_bytes()).expect("memory");
    fcntl_add_seals(&sealed, SealFlags::WRITE).expect("nobody has it mapped");
    let path = place.pool().join("superblock");
    fs::remove_file(&path).expect("there");
    symlink(format!("/proc/self/fd/{}", sealed.as_raw_fd()), path).expect("removed before");
    sealed
}

#[test]
fn a_scrub_writes_a_damaged_copy_of_the_superblock_anew() {
    for copy in [0, 1] {
        let place = Place::encrypted();
        let opened = place.open_with_key().expect("a new pool opens");
        let before = place.superblock_bytes();
        opened.copies.scrub().expect("both are right");
        assert!(place.superblock_bytes() == before, "what is right is not written");
        place.patch_superblock(copy, flip);

        opened.copies.scrub().expect("the other copy is whole");

        drop(opened);
        // Now the other copy can fail.
        place.patch_superblock(1 - copy, flip);
        assert!(place.open_with_key().is_ok(), "copy {copy} was not written anew");
    }
}

#[test]
fn a_scrub_says_that_both_copies_of_the_superblock_are_damaged() {
    let place = Place::encrypted();
    let opened = place.open_with_key().expect("a new pool opens");
    place.patch_superblock(0, flip);
    place.patch_superblock(1, flip);

    let error = opened.copies.scrub().expect_err("there is nothing to write");

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("superblock") && error.hint().is_some(), "{error}");
}

#[test]
fn a_scrub_says_that_a_damaged_copy_cannot_be_written_anew() {
    let place = Place::encrypted();
    let opened = place.open_with_key().expect("a new pool opens");
    place.patch_superblock(1, flip);
    let sealed = seal_superblock(&place);

    let error = opened.copies.scrub().expect_err("it is damaged still");

    assert_eq!(error.kind(), ErrorKind::Other);
    assert!(error.message().contains("superblock") && error.hint().is_some(), "{error}");
    drop(opened);
    assert!(place.open_with_key().is_ok(), "one copy is enough to open");
    drop(sealed);
}

#[test]
fn a_scrub_of_a_pool_that_has_failed_writes_nothing() {
    let place = Place::encrypted();
    let opened = place.open_with_key().expect("a new pool opens");
    place.patch_superblock(0, flip);
    let before = place.superblock_bytes();
    opened.pool.fail("the disk is broken".to_owned());

    assert_eq!(opened.copies.scrub().expect_err("it has failed").kind(), ErrorKind::Other);

    assert!(place.superblock_bytes() == before);
}
