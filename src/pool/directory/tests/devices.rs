//! Tests of pools with several devices: growing, adding, what a crash behind each step leaves, and what is refused.

use super::super::device_list::DeviceList;
use super::*;
use crate::format::superblock::Superblock;

const MIB: u64 = 1 << 20;

fn file(size_bytes: u64) -> DeviceSource {
    DeviceSource::File { size_bytes }
}

fn add(opened: &mut OpenPool, size_bytes: u64) -> ChangedDevice {
    let prepared = opened.device_list.prepare(&file(size_bytes)).expect("there is space");
    opened.device_list.join(prepared).expect("a healthy machine")
}

fn capacity_bytes(opened: &OpenPool) -> u64 {
    opened.pool.status().capacity_bytes
}

impl Place {
    /// An encrypted pool with a second device.
    fn with_two_devices() -> Self {
        let place = Self::encrypted();
        let mut opened = place.open_with_key().expect("opens");
        add(&mut opened, 20 * MIB);
        place
    }

    fn sizes(&self) -> Vec<(String, u64)> {
        describe(&self.pool()).expect("a pool").devices
    }

    /// The pool's directory as a machine that stops now leaves it, opened elsewhere; the present one goes on.
    fn crashed(&self) -> Self {
        let crashed = Self::new();
        copy_pool(&self.pool(), &crashed.pool());
        fs::copy(self.key(), crashed.key()).expect("ours");
        crashed
    }

    fn list_after(&self, opened: &OpenPool, devices: Vec<DeviceRecord>) -> [(u64, Vec<u8>); 2] {
        let file = SuperblockFile::read(&self.pool()).expect("a valid copy");
        let new = Superblock { devices, ..file.superblock().clone() };
        file.copies_of(&new, opened.pool.keys().master())
    }

    fn write_superblock(&self, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.pool().join("superblock")).expect("there");
        file.write_all_at(bytes, offset).expect("writable");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pool()).expect("there");
        let names = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"));
        let mut names: Vec<String> = names.filter(|name| name.starts_with("data-")).collect();
        names.sort();
        names
    }
}

fn copy_pool(source: &Path, target: &Path) {
    fs::create_dir(target).expect("a new directory");
    for entry in fs::read_dir(source).expect("readable") {
        let (from, to) = entry.map(|entry| (entry.path(), target.join(entry.file_name()))).expect("readable");
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            fs::copy(&from, &to).expect("a file");
        }
    }
}

#[test]
fn file_grows_while_the_pool_is_open_and_stays_so() {
    let place = Place::encrypted();
    let mut opened = place.open_with_key().expect("opens");
    let before = capacity_bytes(&opened);

    let changed = opened.device_list.grow(None, Some(40 * MIB), false).expect("there is space");

    assert_eq!(changed, ChangedDevice { name: "data-0".into(), before: Some(SIZE_BYTES), after: 40 * MIB });
    assert_eq!(capacity_bytes(&opened), before + 24 * MIB);
    assert_eq!(opened.devices[0].size_bytes(), 40 * MIB, "lanes may use it");
    let mut last = vec![1; 4096];
    opened.pool.devices()[0].read_at(40 * MIB - 4096, &mut last).expect("it is there");
    assert!(last.iter().all(|byte| *byte == 0), "written with zeros");
    drop(opened);
    assert_eq!(place.sizes(), [("data-0".to_owned(), 40 * MIB)]);
    let opened = place.open_with_key().expect("opens");
    assert_eq!(capacity_bytes(&opened), before + 24 * MIB);
}

#[test]
fn plans_and_impossible_changes_change_nothing() {
    let place = Place::plain();
    let mut opened = place.open_plain().expect("opens");
    let (superblock, capacity) = (place.superblock_bytes(), capacity_bytes(&opened));
    let list = &mut opened.device_list;

    let plan = list.grow(Some("data-0"), Some(20 * MIB), true).expect("possible");
    assert_eq!(plan.after, 20 * MIB);
    let plan = list.plan_adding(&file(16 * MIB)).expect("possible");
    assert_eq!(plan, ChangedDevice { name: "data-1".into(), before: None, after: 16 * MIB });
    for size_bytes in [0, SIZE_BYTES - 4096, SIZE_BYTES, SIZE_BYTES + 512, 1 << 53] {
        let error = list.grow(None, Some(size_bytes), false).expect_err("no such size");
        assert_eq!(error.kind(), ErrorKind::Usage, "{size_bytes}: {error}");
    }
    assert_eq!(list.grow(None, None, false).expect_err("a file").kind(), ErrorKind::Usage);
    assert_eq!(list.grow(Some("data-7"), Some(20 * MIB), false).expect_err("none").kind(), ErrorKind::NotFound);
    assert_eq!(list.grow(None, Some(1 << 50), false).expect_err("no space").kind(), ErrorKind::NoSpace);
    assert_eq!(list.prepare(&file(1 << 50)).err().map(|error| error.kind()), Some(ErrorKind::NoSpace));
    assert_eq!(list.prepare(&file(MIB)).err().map(|error| error.kind()), Some(ErrorKind::Usage));
    drop(list.prepare(&file(16 * MIB)).expect("there is space"));

    assert!(place.superblock_bytes() == superblock);
    assert_eq!(place.names(), ["data-0"]);
    assert_eq!(fs::metadata(place.pool().join("data-0")).expect("it").len(), SIZE_BYTES);
    assert_eq!(capacity_bytes(&opened), capacity);
}

#[test]
fn added_device_is_used_at_once_and_after_the_next_open() {
    let place = Place::encrypted();
    let mut opened = place.open_with_key().expect("opens");
    let before = capacity_bytes(&opened);

    let added = add(&mut opened, 20 * MIB);
    let third = add(&mut opened, 16 * MIB);

    assert_eq!(added, ChangedDevice { name: "data-1".into(), before: None, after: 20 * MIB });
    // Each has a front of a MiB.
    assert_eq!(capacity_bytes(&opened), before + 19 * MIB + 15 * MIB);
    assert_eq!((third.name.as_str(), mode(&place.pool().join("data-1"))), ("data-2", 0o600));
    // Checkpoints write the headers of all.
    (0..3).for_each(|_| crate::pool::Checkpoint::begin(Arc::clone(&opened.pool)).run().expect("healthy"));
    drop(opened);
    let mut opened = place.open_with_key().expect("opens");
    assert_eq!(capacity_bytes(&opened), before + 34 * MIB);
    assert_eq!(opened.devices.len(), 3);
    let error = opened.device_list.grow(None, Some(40 * MIB), false).expect_err("which?");
    assert!(error.hint().is_some_and(|hint| hint.contains("data-0, data-1, data-2")), "{error}");
    opened.device_list.grow(Some("data-1"), Some(24 * MIB), false).expect("there is space");
    assert_eq!(capacity_bytes(&opened), before + 38 * MIB);
}

#[test]
fn crash_behind_each_step_of_growing_leaves_the_old_pool_or_the_new_one() {
    let place = Place::encrypted();
    let opened = place.open_with_key().expect("opens");
    let list: &DeviceList = &opened.device_list;
    let size_after = |crashed: &Place| {
        let opened = crashed.open_with_key().unwrap_or_else(|error| panic!("never refused: {error}"));
        drop(opened);
        crashed.sizes()[0].1
    };

    // In the middle of the extension, then behind it.
    fs::OpenOptions::new()
        .write(true)
        .open(place.pool().join("data-0"))
        .and_then(|file| file.set_len(21 * MIB))
        .expect("it");
    assert_eq!(size_after(&place.crashed()), SIZE_BYTES);
    list.extend(0, 24 * MIB).expect("there is space");
    assert_eq!(size_after(&place.crashed()), SIZE_BYTES);
    let new = list.prepare_growth(0, 24 * MIB);
    let copies = place.list_after(&opened, vec![list.grown(0, 24 * MIB)]);
    assert_eq!(size_after(&place.crashed()), SIZE_BYTES);

    for (offset, bytes) in &copies {
        for torn_len in [0, 60, 512, 2048, 4032, 4095] {
            let torn = place.crashed();
            torn.write_superblock(*offset, &bytes[..torn_len]);
            let expected = if copies[0].0 == *offset { SIZE_BYTES } else { 24 * MIB };
            assert_eq!(size_after(&torn), expected, "{torn_len} bytes of the copy at {offset}");
        }
        place.write_superblock(*offset, bytes);
        assert_eq!(size_after(&place.crashed()), 24 * MIB);
    }
    opened.pool.use_blocks(&new);
    assert_eq!(size_after(&place.crashed()), 24 * MIB);
    crate::pool::Checkpoint::begin(Arc::clone(&opened.pool)).run().expect("healthy");
    assert_eq!(size_after(&place.crashed()), 24 * MIB);
}

#[test]
fn an_interrupted_growth_can_be_repeated() {
    let place = Place::encrypted();
    let opened = place.open_with_key().expect("opens");
    opened.device_list.extend(0, 24 * MIB).expect("there is space");
    opened.devices[0].write_at(20 * MIB, &[7; 4096]).expect("healthy");
    drop(opened);

    let mut opened = place.open_with_key().expect("opens");
    opened.device_list.grow(None, Some(22 * MIB), false).expect("there is space");

    assert_eq!(place.sizes()[0].1, 22 * MIB);
    let mut block = vec![1; 4096];
    opened.pool.devices()[0].read_at(20 * MIB, &mut block).expect("it is there");
    assert!(block.iter().all(|byte| *byte == 0), "written anew");
}

#[test]
fn crash_behind_each_step_of_adding_leaves_the_old_pool_or_the_new_one() {
    let place = Place::encrypted();
    let opened = place.open_with_key().expect("opens");
    let count_after = |crashed: &Place| {
        let opened = crashed.open_with_key().unwrap_or_else(|error| panic!("never refused: {error}"));
        // And the adding can be repeated.
        let mut opened = opened;
        let added = add(&mut opened, SIZE_BYTES);
        drop(opened);
        drop(crashed.open_with_key().expect("opens"));
        (crashed.sizes().len() - 1, added.name)
    };

    fs::write(place.pool().join("data-1.new"), [0; 4096]).expect("written");
    let draft = place.crashed();
    assert_eq!(count_after(&draft), (1, "data-1".into()));
    assert_eq!(draft.names(), ["data-0", "data-1"], "the rest of the other attempt is gone");
    let prepared = opened.device_list.prepare(&file(SIZE_BYTES)).expect("there is space");
    // A name that is taken is left alone, whatever it is.
    assert_eq!(count_after(&place.crashed()), (1, "data-2".into()));
    let device = Arc::new(ListedDevice::new(Arc::clone(prepared.file()), SIZE_BYTES));
    let id = Uuid::from_u128(7);
    let new = opened.pool.join(device, id).expect("healthy");
    assert_eq!(count_after(&place.crashed()), (1, "data-2".into()));
    // The joined device keeps up with checkpoints while it is not listed.
    (0..3).for_each(|_| crate::pool::Checkpoint::begin(Arc::clone(&opened.pool)).run().expect("healthy"));

    let mut devices = SuperblockFile::read(&place.pool()).expect("valid").superblock().devices.clone();
    devices.push(DeviceRecord { id, block_count: SIZE_BYTES / BLOCK_SIZE_U64, name: "data-1".into() });
    let copies = place.list_after(&opened, devices);
    for (offset, bytes) in &copies {
        for torn_len in [0, 60, 512, 4095] {
            let torn = place.crashed();
            torn.write_superblock(*offset, &bytes[..torn_len]);
            let expected = if copies[0].0 == *offset { 1 } else { 2 };
            assert_eq!(count_after(&torn), (expected, "data-2".into()), "{torn_len} bytes of the copy at {offset}");
        }
        place.write_superblock(*offset, bytes);
        assert_eq!(count_after(&place.crashed()), (2, "data-2".into()));
    }
    opened.pool.use_blocks(&new);
    crate::pool::Checkpoint::begin(Arc::clone(&opened.pool)).run().expect("healthy");
    assert_eq!(count_after(&place.crashed()), (2, "data-2".into()));
}

#[test]
fn after_a_superblock_that_cannot_be_written_the_old_blocks_are_used_and_nothing_more_is_changed() {
    let place = Place::encrypted();
    let mut opened = place.open_with_key().expect("opens");
    let capacity = capacity_bytes(&opened);
    let superblock = place.pool().join("superblock");
    // Whoever is root may write everything but a directory. Reading it fails too, which is before the writing.
    fs::rename(&superblock, place.path("aside")).expect("moved");
    fs::create_dir(&superblock).expect("made");

    opened.device_list.grow(None, Some(24 * MIB), false).expect_err("it cannot be read");

    assert_eq!(capacity_bytes(&opened), capacity);
    fs::remove_dir(&superblock).expect("empty");
    fs::rename(place.path("aside"), &superblock).expect("moved");
    let prepared = opened.device_list.prepare(&file(SIZE_BYTES)).expect("there is space");
    fs::rename(&superblock, place.path("aside")).expect("moved");
    opened.device_list.join(prepared).expect_err("it cannot be read");
    fs::rename(place.path("aside"), &superblock).expect("moved");

    assert_eq!(capacity_bytes(&opened), capacity);
    let error = opened.device_list.grow(None, Some(24 * MIB), false).expect_err("a device joined that is not listed");
    assert_eq!(error.kind(), ErrorKind::Busy);
    crate::pool::Checkpoint::begin(Arc::clone(&opened.pool)).run().expect("the pool goes on");
    drop(opened);
    let mut opened = place.open_with_key().expect("opens");
    opened.device_list.grow(None, Some(24 * MIB), false).expect("all is well again");
}

#[test]
fn second_device_that_is_missing_foreign_empty_swapped_or_shrunk_is_refused_by_name() {
    let other = Place::with_two_devices();
    let other_id = describe(&other.pool()).expect("a pool").id.to_string();
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, &str, Damage<'_>); 6] = [
        ("missing", "Device data-1 is missing", &|pool| {
            fs::remove_file(pool.join("data-1")).expect("there");
        }),
        ("foreign", &other_id, &|pool| {
            fs::copy(other.pool().join("data-1"), pool.join("data-1")).expect("replaced");
        }),
        ("empty", "no header", &|pool| {
            fs::write(pool.join("data-1"), vec![0; 20 << 20]).expect("replaced");
        }),
        // Of different sizes: not to be called shrunk.
        ("swapped", "data-0 is device 1 of the pool, not device 0", &|pool| {
            fs::rename(pool.join("data-0"), pool.join("aside")).expect("moved");
            fs::rename(pool.join("data-1"), pool.join("data-0")).expect("moved");
            fs::rename(pool.join("aside"), pool.join("data-1")).expect("moved");
        }),
        ("shrunk", "data-1 has shrunk", &|pool| {
            let file = fs::OpenOptions::new().write(true).open(pool.join("data-1"));
            file.and_then(|file| file.set_len(20 * MIB - 4096)).expect("shorter");
        }),
        ("cut to nearly nothing", "data-1 has shrunk", &|pool| {
            let file = fs::OpenOptions::new().write(true).open(pool.join("data-1"));
            file.and_then(|file| file.set_len(4096)).expect("shorter");
        }),
    ];
    for (case, expected, damage) in cases {
        let place = Place::with_two_devices();
        damage(&place.pool());

        let error = refused(place.open_with_key());

        assert_eq!(error.kind(), ErrorKind::Integrity, "{case}: {error}");
        assert!(error.message().contains(expected), "{case}: {error}");
    }
}

#[test]
fn second_device_that_is_older_is_refused() {
    let place = Place::with_two_devices();
    let old = place.path("old");
    fs::copy(place.pool().join("data-1"), &old).expect("copied");
    (0..2).for_each(|_| drop(place.open_with_key().expect("opens")));
    fs::copy(&old, place.pool().join("data-1")).expect("replaced");

    let error = refused(place.open_with_key());

    assert!(error.message().contains("data-1 is older than meta/"), "{error}");
}

#[test]
fn superblock_from_before_the_pool_grew_is_refused() {
    let place = Place::encrypted();
    let old = place.superblock_bytes();
    let mut opened = place.open_with_key().expect("opens");
    opened.device_list.grow(None, Some(24 * MIB), false).expect("there is space");
    crate::pool::Checkpoint::begin(Arc::clone(&opened.pool)).run().expect("healthy");
    drop(opened);
    fs::write(place.pool().join("superblock"), old).expect("writable");

    let error = refused(place.open_with_key());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.hint().is_some_and(|hint| hint.contains("superblock restored")), "{error}");
    let sizes = format!("had {} bytes in the pool, and {SIZE_BYTES} are left", 24 * MIB);
    assert!(error.message().contains(&sizes), "{error}");
}
