//! Tests of devices that are files.

use super::*;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use tempfile::TempDir;

const SIZE_BYTES: u64 = 6 * MIB + BLOCK_SIZE_U64;

fn folder() -> TempDir {
    tempfile::tempdir().expect("the temporary folder is writable")
}

/// Different in every position of a block and in every block.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from((index ^ (index >> 8) ^ (index >> 12)) % 251).expect("below 251")).collect()
}

/// Memory at an odd address.
fn unaligned(bytes: &[u8]) -> (Vec<u8>, usize) {
    let mut memory = vec![0; bytes.len() + 2];
    let start = 1 + memory.as_ptr().addr() % 2;
    memory[start..start + bytes.len()].copy_from_slice(bytes);
    (memory, start)
}

#[test]
fn a_created_file_is_private_full_of_written_zeros_and_of_the_size_asked_for() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, SIZE_BYTES).expect("there is space for 6 MiB");

    assert_eq!(device.size_bytes(), SIZE_BYTES);
    assert_eq!(device.name(), path.display().to_string());
    let metadata = fs::metadata(&path).expect("the file is there");
    assert_eq!(metadata.len(), SIZE_BYTES);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 >= SIZE_BYTES, "all of it is allocated");
    // SAFETY: the descriptor is open; the call has no pointers.
    let hole_start = unsafe { libc::lseek64(device.raw_fd(), 0, libc::SEEK_HOLE) };
    assert_eq!(u64::try_from(hole_start).expect("no error"), SIZE_BYTES, "unwritten extents count as holes");
    let mut bytes = vec![1; to_usize(SIZE_BYTES)];
    device.read_at(0, &mut bytes).expect("the device works");
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn bytes_survive_closing_whatever_the_alignment_of_the_memory() {
    let folder = folder();
    let path = folder.path().join("data-0");
    // Above the bounce memory, so that it is used more than once, the last time in part.
    let bytes = pattern(2 * BOUNCE_BYTES_MAX + 3 * BLOCK_SIZE);
    let (source, source_start) = unaligned(&bytes);
    let device = FileDevice::create(&path, SIZE_BYTES).expect("there is space for 6 MiB");
    device.write_at(5 * BLOCK_SIZE_U64, &source[source_start..source_start + bytes.len()]).expect("the device works");
    let aligned = IoBuffer::allocate(BLOCK_SIZE);
    aligned.with_bytes_mut(|memory| memory.fill(9));
    aligned.with_bytes(|memory| device.write_at(0, memory)).expect("the device works");
    device.flush().expect("the device works");
    drop(device);

    let device = FileDevice::open(&path).expect("nobody holds it");
    assert_eq!(device.size_bytes(), SIZE_BYTES);
    let (mut target, target_start) = unaligned(&vec![0; bytes.len()]);
    let target = &mut target[target_start..target_start + bytes.len()];
    device.read_at(5 * BLOCK_SIZE_U64, target).expect("the device works");
    assert!(*target == bytes);
    let mut first = [0; BLOCK_SIZE];
    device.read_at(0, &mut first).expect("the device works");
    assert_eq!(first, [9; BLOCK_SIZE]);
    aligned.with_bytes_mut(|memory| device.read_at(4 * BLOCK_SIZE_U64, memory)).expect("the device works");
    aligned.with_bytes(|memory| assert!(memory.iter().all(|byte| *byte == 0)));
}

#[test]
fn without_direct_io_everything_works_through_the_page_cache() {
    let folder = folder();
    let mut device = FileDevice::create(&folder.path().join("data-0"), SIZE_BYTES).expect("there is space for 6 MiB");
    set_direct(&device.file, false).expect("a flag of our own file");
    device.is_direct = false;
    let bytes = pattern(3 * BLOCK_SIZE);
    let (source, start) = unaligned(&bytes);
    device.write_at(BLOCK_SIZE_U64, &source[start..start + bytes.len()]).expect("the device works");
    device.flush().expect("the device works");
    let mut target = vec![0; bytes.len()];
    device.read_at(BLOCK_SIZE_U64, &mut target).expect("the device works");
    assert!(target == bytes);
}

#[test]
fn a_range_behind_the_end_is_refused_and_the_file_does_not_grow() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, 2 * BLOCK_SIZE_U64).expect("there is space for 8 KiB");
    let mut two_blocks = [0; 2 * BLOCK_SIZE];
    let error = device.read_at(BLOCK_SIZE_U64, &mut two_blocks).expect_err("behind the end");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let error = device.write_at(BLOCK_SIZE_U64, &two_blocks).expect_err("behind the end");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(fs::metadata(&path).expect("the file is there").len(), 2 * BLOCK_SIZE_U64);
}

#[test]
fn a_file_that_became_shorter_gives_end_of_file() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, 2 * BLOCK_SIZE_U64).expect("there is space for 8 KiB");
    let other = OpenOptions::new().write(true).open(&path).expect("the lock is advisory");
    other.set_len(BLOCK_SIZE_U64).expect("the file is ours");
    let error = device.read_at(0, &mut [0; 2 * BLOCK_SIZE]).expect_err("the second block is gone");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_second_opening_is_refused_by_name_until_the_last_descriptor_closes() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, BLOCK_SIZE_U64).expect("there is space for 4 KiB");
    let error = FileDevice::open(&path).expect_err("it is open already");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let ours = format!("{} is in use by another rok-blk (process {})", path.display(), std::process::id());
    assert_eq!(error.message(), ours);
    assert!(error.hint().is_some());

    // What the kernel holds for operations in flight after the process is gone.
    // SAFETY: the descriptor is open; the call has no pointers.
    let duplicate = unsafe { libc::dup(device.raw_fd()) };
    assert!(duplicate >= 0);
    // SAFETY: `dup` just made it, and nothing else owns it.
    let duplicate = unsafe { File::from_raw_fd(duplicate) };
    drop(device);
    assert_eq!(FileDevice::open(&path).expect_err("still held").kind(), ErrorKind::Busy);
    drop(duplicate);
    FileDevice::open(&path).expect("nobody holds it");
}

#[test]
fn a_claimed_block_device_is_tried_again_and_nothing_else_is() {
    let busy = || io::Error::from_raw_os_error(libc::EBUSY);
    let mut answers = vec![Ok(7), Err(busy()), Err(busy())];
    assert_eq!(open_patiently(|| answers.pop().expect("three calls")).expect("the third one"), 7);

    let mut answers = vec![Err(io::Error::from_raw_os_error(libc::ENXIO))];
    let error = open_patiently(|| answers.pop().unwrap_or(Ok(7))).expect_err("no reason to wait");
    assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let folder = folder();
    let path = folder.path().join("data-0");
    fs::write(&path, b"precious").expect("the folder is ours");
    let error = FileDevice::create(&path, BLOCK_SIZE_U64).expect_err("the path is taken");
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(fs::read(&path).expect("it is there"), b"precious");
}

#[test]
fn a_size_above_the_free_space_is_refused_with_both_figures_and_leaves_nothing() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let size_bytes = 1 << 62;
    let error = FileDevice::create(&path, size_bytes).expect_err("nobody has 4 EiB");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let start = format!("{} needs {} MiB, and ", path.display(), size_bytes / MIB);
    assert!(error.message().starts_with(&start), "{error}");
    assert!(error.message().ends_with(" MiB are free there"), "{error}");
    assert!(!path.exists());
}

#[test]
fn space_that_runs_out_later_is_reported_the_same_way() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let source = io::Error::from_raw_os_error(libc::ENOSPC);
    let error = creation_error(&path, 5 * MIB, source);
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.message().contains("needs 5 MiB"), "{error}");
}

#[test]
fn a_creation_that_fails_halfway_removes_its_file_and_a_completed_one_does_not() {
    let folder = folder();
    let path = folder.path().join("data-0");
    fs::write(&path, b"").expect("the folder is ours");
    PartialFile { path: Some(path.clone()) }.keep();
    assert!(path.exists());
    drop(PartialFile { path: Some(path.clone()) });
    assert!(!path.exists());
}

#[test]
fn sizes_that_are_not_whole_blocks_are_refused() {
    let folder = folder();
    for size_bytes in [0, 1, BLOCK_SIZE_U64 - 1, BLOCK_SIZE_U64 + 512, u64::MAX - 4095] {
        let error = FileDevice::create(&folder.path().join("data-0"), size_bytes).expect_err("no size");
        assert_eq!(error.kind(), ErrorKind::Usage, "{size_bytes}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder is ours").count(), 0);
}

#[test]
fn what_is_neither_file_nor_block_device_is_refused_without_waiting() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    let pipe_name = CString::new(pipe.as_os_str().as_bytes()).expect("no zero byte");
    // SAFETY: the path is a terminated string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(pipe_name.as_ptr(), 0o600) }, 0);
    for path in [folder.path(), &pipe, Path::new("/dev/null")] {
        let error = FileDevice::open(path).expect_err("not a device");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.message().ends_with("not a file or block device"), "{error}");
    }
}

#[test]
fn missing_and_empty_files_are_named() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let error = FileDevice::open(&path).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("data-0"));
    fs::write(&path, [0; 100]).expect("the folder is ours");
    let error = FileDevice::open(&path).expect_err("below a block");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().ends_with("has a size of 100 bytes"), "{error}");
}

#[test]
fn a_part_of_a_block_at_the_end_is_not_used_and_links_are_followed() {
    let folder = folder();
    let target = folder.path().join("target");
    fs::write(&target, vec![0; 3 * BLOCK_SIZE + 512]).expect("the folder is ours");
    let link = folder.path().join("data-0");
    symlink(&target, &link).expect("the folder is ours");
    assert_eq!(FileDevice::open(&link).expect("it is a file").size_bytes(), 3 * BLOCK_SIZE_U64);
}

#[test]
fn an_extended_file_has_written_zeros_behind_what_it_had() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, SIZE_BYTES).expect("there is space for 6 MiB");
    let bytes = pattern(to_usize(SIZE_BYTES));
    device.write_at(0, &bytes).expect("the device works");
    // What an interrupted attempt left: longer, with a hole and something else.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| {
            file.set_len(3 * SIZE_BYTES)?;
            file.write_all_at(b"old", SIZE_BYTES + BLOCK_SIZE_U64)
        })
        .expect("ours");

    device.extend(SIZE_BYTES, 2 * SIZE_BYTES).expect("there is space for 12 MiB");

    assert_eq!(device.size_bytes(), 2 * SIZE_BYTES);
    // SAFETY: the descriptor is open; the call has no pointers.
    let hole_start = unsafe { libc::lseek64(device.raw_fd(), 0, libc::SEEK_HOLE) };
    assert!(u64::try_from(hole_start).expect("no error") >= 2 * SIZE_BYTES, "no hole up to there: {hole_start}");
    let mut read = vec![1; 2 * to_usize(SIZE_BYTES)];
    device.read_at(0, &mut read).expect("the device works");
    assert!(read[..bytes.len()] == bytes, "what was there stays");
    assert!(read[bytes.len()..].iter().all(|byte| *byte == 0));
    device.write_at(2 * SIZE_BYTES - BLOCK_SIZE_U64, &bytes[..BLOCK_SIZE]).expect("it is in the device");
}

#[test]
fn an_extension_without_space_leaves_the_file_as_it_was() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, SIZE_BYTES).expect("there is space for 6 MiB");

    let error = device.extend(SIZE_BYTES, 1 << 60).expect_err("no space");

    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(device.size_bytes(), SIZE_BYTES);
    assert_eq!(fs::metadata(&path).expect("there").len(), SIZE_BYTES);
}

#[test]
fn a_device_that_became_larger_is_measured_and_one_that_shrank_is_refused() {
    let folder = folder();
    let path = folder.path().join("data-0");
    let device = FileDevice::create(&path, SIZE_BYTES).expect("there is space for 6 MiB");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("ours");

    file.set_len(2 * SIZE_BYTES + 100).expect("longer");
    assert_eq!(device.measure().expect("it is there"), 2 * SIZE_BYTES, "in whole blocks");
    assert_eq!(device.size_bytes(), 2 * SIZE_BYTES);

    file.set_len(SIZE_BYTES).expect("shorter");
    assert_eq!(device.measure().expect_err("smaller").kind(), ErrorKind::Integrity);
}
