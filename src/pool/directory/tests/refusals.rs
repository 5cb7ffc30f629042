//! What is told of a device that cannot be taken, and what an opened pool has of its options.

use super::*;
use crate::format::catalog::VolumeRecord;
use crate::format::device_header::HEADER_OFFSETS;
use crate::format::superblock::DEVICES_MAX;

#[test]
fn a_disk_that_is_not_empty_is_named_with_what_clears_it() {
    let place = Place::new();
    let target = place.path("disk");
    fs::write(&target, vec![1; 16 << 20]).expect("written");

    let error = link_device(&place.path("link-0"), &target).expect_err("something is on it");

    let hint = error.hint().expect("there is a way out");
    assert!(hint.contains(&format!("of={}", target.display())), "{hint}");
}

#[test]
fn a_device_whose_headers_are_both_damaged_is_told_from_a_foreign_one() {
    let place = Place::encrypted();
    let file = fs::OpenOptions::new().read(true).write(true).open(place.pool().join("data-0")).expect("there");
    for offset in HEADER_OFFSETS {
        let mut byte = [0];
        // Behind the pool's id, which can still be read.
        file.read_exact_at(&mut byte, offset + 200).expect("a whole header");
        file.write_all_at(&[byte[0] ^ 1], offset + 200).expect("writable");
    }

    let error = refused(place.open_with_key());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(place.pool().join("shred-key").exists(), "it is not what an opening made");
    assert!(error.message().starts_with("Both headers of device ") && error.message().contains("data-0"), "{error}");
}

#[test]
fn a_pool_with_as_many_devices_as_there_may_be_takes_no_other() {
    const ADDED_BYTES: u64 = 16 << 20;
    let place = Place::new();
    let devices = vec![DeviceSource::File { size_bytes: SIZE_BYTES }; DEVICES_MAX];
    create(&place.pool(), &CreateOptions { devices, ..plain(SIZE_BYTES) }).expect("a pool");
    let opened = place.open_plain().expect("a new pool opens");

    let source = DeviceSource::File { size_bytes: ADDED_BYTES };
    for error in [opened.device_list.plan_adding(&source).err(), opened.device_list.prepare(&source).err()] {
        assert_eq!(error.expect("there are too many").kind(), ErrorKind::Usage);
    }
}

#[test]
fn an_opened_pool_has_what_was_asked_for() {
    let place = Place::plain();
    let watermarks = Watermarks::new(41, 42).expect("in order");
    let options = OpenOptions { watermarks, map_cache_bytes: 3 << 20, ..open_options(None) };

    let opened = open(&place.pool(), &options).expect("a new pool opens");

    let status = opened.pool.status();
    assert_eq!((status.watermarks, status.map_cache_bytes_max), (watermarks, 3 << 20));
    assert!(metadata_free_bytes(&place.pool()).is_some_and(|bytes| bytes > 0));
}

#[test]
fn a_missing_shred_key_is_made_and_stays_and_one_that_is_there_stays_when_the_pool_is_refused() {
    let place = Place::encrypted();
    let path = place.pool().join("shred-key");
    fs::remove_file(&path).expect("there");
    drop(place.open_with_key().expect("no volume has a key of its own"));
    let made = fs::read(&path).expect("it was made");

    // A store without a checkpoint is no pool's.
    fs::rename(place.pool().join("meta"), place.path("away")).expect("there");
    assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Integrity);

    assert!(fs::read(&path).expect("it stays") == made);
}

#[test]
fn a_pool_that_lost_its_shred_key_opens_without_own_keys_and_gets_no_other_file() {
    let place = Place::encrypted();
    let path = place.pool().join("shred-key");
    let opened = place.open_with_key().expect("a new pool opens");
    let record = VolumeRecord { sector_size: 4096, ..VolumeRecord::new(Uuid::from_u128(1), "own", 1 << 20) };
    opened.pool.create_with_own_key(record, &mut system_random).expect("there is space");
    drop(opened);
    fs::remove_file(&path).expect("there");
    assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Integrity);

    let options = OpenOptions { own_keys: OwnKeys::Closed, ..open_options(Some(place.key())) };
    drop(open(&place.pool(), &options).expect("other volumes can be served"));

    assert!(!path.exists(), "the right one may come back");
}

/// RocksDB goes on after a lack of space only when a table's buffer is free: the reserve must have that.
#[test]
fn tables_of_a_small_pool_keep_no_more_in_memory_than_its_reserve_can_take() {
    let place = Place::plain();
    let _opened = place.open_plain().expect("a new pool opens");
    let reserve_bytes = fs::metadata(place.pool().join("meta-reserve")).expect("there").len();
    let files = fs::read_dir(place.pool().join("meta")).expect("there").map(|file| file.expect("readable").path());
    let is_of_options = |path: &PathBuf| path.display().to_string().contains("/OPTIONS-");
    // The newest is that of this opening.
    let newest = files.filter(is_of_options).max().expect("the store writes one when it is opened");
    let text = fs::read_to_string(newest).expect("it is text");

    let sizes = text.lines().filter_map(|line| line.trim().strip_prefix("write_buffer_size="));

    let sizes: Vec<u64> = sizes.map(|size| size.parse().expect("a number")).collect();
    assert!(!sizes.is_empty() && sizes.iter().all(|size| 4 * size <= reserve_bytes), "{sizes:?} of {reserve_bytes}");
}
