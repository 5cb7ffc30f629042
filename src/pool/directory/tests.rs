//! Tests of pools on the file system.

mod copies;
mod devices;
mod key_slots;
mod refusals;

use super::creation::link_device;
use super::*;
use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use tempfile::TempDir;

/// The smallest pool there is: zeroing it takes some milliseconds.
const SIZE_BYTES: u64 = 16 << 20;

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    fn key(&self) -> PathBuf {
        self.path("key")
    }

    /// A pool without encryption.
    fn plain() -> Self {
        let place = Self::new();
        create(&place.pool(), &plain(SIZE_BYTES)).expect("a pool");
        place
    }

    /// A pool with encryption.
    fn encrypted() -> Self {
        let place = Self::new();
        generate_key_file(&place.key()).expect("a key file");
        create(&place.pool(), &place.encrypted_options()).expect("a pool");
        place
    }

    fn encrypted_options(&self) -> CreateOptions {
        CreateOptions { suite: Suite::XtsGmac, credential: Some(Credential::KeyFile(self.key())), ..plain(SIZE_BYTES) }
    }

    fn open_plain(&self) -> Result<OpenPool> {
        open(&self.pool(), &open_options(None))
    }

    fn open_with_key(&self) -> Result<OpenPool> {
        open(&self.pool(), &open_options(Some(self.key())))
    }

    /// Changes bytes of a copy of the superblock.
    fn patch_superblock(&self, copy: usize, change: impl FnOnce(&mut [u8])) {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.pool().join("superblock")).expect("there");
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut bytes, SUPERBLOCK_OFFSETS[copy]).expect("a whole copy");
        change(&mut bytes);
        file.write_all_at(&bytes, SUPERBLOCK_OFFSETS[copy]).expect("writable");
    }

    fn superblock_bytes(&self) -> Vec<u8> {
        fs::read(self.pool().join("superblock")).expect("readable")
    }
}

fn plain(size_bytes: u64) -> CreateOptions {
    CreateOptions { devices: vec![DeviceSource::File { size_bytes }], suite: Suite::Plain, credential: None }
}

fn open_options(key_file: Option<PathBuf>) -> OpenOptions {
    open_options_with(key_file.map(Credential::KeyFile))
}

fn open_options_with(credential: Option<Credential>) -> OpenOptions {
    OpenOptions {
        credential,
        lane_count: 2,
        map_cache_bytes: 1 << 20,
        meta_cache_bytes: 8 << 20,
        own_keys: OwnKeys::Opened,
        watermarks: Watermarks::default(),
    }
}

/// The error, whose kind and words the caller looks at.
fn refused(result: Result<OpenPool>) -> Error {
    result.err().expect("must be refused")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn flip(bytes: &mut [u8]) {
    bytes[100] ^= 1;
}

fn seal_checksum(bytes: &mut [u8]) {
    let end = SUPERBLOCK_BYTES - 32;
    let checksum = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(checksum.as_bytes());
}

fn copy_tree(source: &Path, target: &Path) {
    fs::create_dir(target).expect("a new directory");
    for entry in fs::read_dir(source).expect("readable") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), target.join(entry.file_name())).expect("a file");
    }
}

#[test]
fn created_pool_is_private_and_complete() {
    let place = Place::plain();
    let pool = place.pool();

    let mut names: Vec<_> =
        fs::read_dir(&pool).expect("there").map(|entry| entry.expect("readable").file_name()).collect();
    names.sort();

    assert_eq!(names, ["data-0", "meta", "meta-reserve", "superblock"]);
    assert_eq!([mode(&pool), mode(&pool.join("meta"))], [0o700; 2]);
    assert_eq!(["data-0", "meta-reserve", "superblock"].map(|name| mode(&pool.join(name))), [0o600; 3]);
    let sizes = ["data-0", "meta-reserve", "superblock"].map(|name| fs::metadata(pool.join(name)).expect("it").len());
    // The reserve of a small pool is a sixteenth.
    assert_eq!(sizes, [SIZE_BYTES, SIZE_BYTES / 16, 131_072]);
}

#[test]
fn description_says_what_was_created() {
    let place = Place::new();
    generate_key_file(&place.key()).expect("a key file");

    let created = create(&place.pool(), &place.encrypted_options()).expect("a pool");

    assert_eq!(describe(&place.pool()).expect("a pool"), created);
    assert_eq!(created.format_version, crate::format::FORMAT_VERSION);
    assert_eq!(created.suite, Suite::XtsGmac);
    assert_eq!(created.devices, [("data-0".to_owned(), SIZE_BYTES)]);
    assert_eq!(created.key_slots, [KeySlotDescription { index: 0, method: "key-file", costs: None }]);
}

#[test]
fn pool_opens_again_and_again() {
    for (place, key) in [(Place::plain(), None), (Place::encrypted(), Some("key"))] {
        let options = open_options(key.map(|name| place.path(name)));
        let id = describe(&place.pool()).expect("a pool").id;

        let sessions = [(); 3].map(|()| {
            let opened = open(&place.pool(), &options).expect("opens");
            assert_eq!(opened.pool.id(), id);
            assert_eq!(opened.devices.len(), 1);
            opened.pool.session().get()
        });

        // Creation was session 1.
        assert_eq!(sessions, [2, 3, 4]);
    }
}

#[test]
fn second_open_is_refused_as_busy_until_the_first_is_gone() {
    let place = Place::plain();
    let first = place.open_plain().expect("opens");

    assert_eq!(refused(place.open_plain()).kind(), ErrorKind::Busy);
    assert!(describe(&place.pool()).is_ok());

    drop(first);
    assert!(place.open_plain().is_ok());
}

#[test]
fn missing_pool_is_not_found() {
    let place = Place::new();

    assert_eq!(refused(place.open_plain()).kind(), ErrorKind::NotFound);
    assert_eq!(describe(&place.pool()).expect_err("no pool").kind(), ErrorKind::NotFound);
}

#[test]
fn wrong_key_is_refused() {
    let place = Place::encrypted();
    generate_key_file(&place.path("other")).expect("a key file");

    let error = refused(open(&place.pool(), &open_options(Some(place.path("other")))));

    assert_eq!(error.kind(), ErrorKind::Key);
    assert!(error.hint().is_some());
}

#[test]
fn a_key_file_is_made_only_where_a_directory_is_and_nothing_else() {
    let place = Place::new();
    generate_key_file(&place.key()).expect("a key file");
    let key = fs::read(place.key()).expect("ours");

    let taken = generate_key_file(&place.key()).expect_err("it is there");
    let nowhere = generate_key_file(&place.path("nowhere/key")).expect_err("no such directory");

    assert_eq!(taken.kind(), ErrorKind::Exists);
    assert_eq!(fs::read(place.key()).expect("ours"), key);
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    assert!(nowhere.hint().is_some_and(|hint| hint.contains("directory")), "{nowhere:?}");
}

#[test]
fn missing_key_is_refused() {
    let place = Place::encrypted();

    assert_eq!(refused(place.open_plain()).kind(), ErrorKind::Key);
    let error = refused(open(&place.pool(), &open_options(Some(place.path("nowhere")))));
    assert_eq!(error.kind(), ErrorKind::Key);
    assert!(error.message().contains("nowhere"), "{error}");
}

#[test]
fn key_for_a_pool_without_encryption_is_refused() {
    let place = Place::plain();
    generate_key_file(&place.key()).expect("a key file");

    assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Key);
}

#[test]
fn key_file_that_others_can_read_is_refused_with_the_command() {
    let place = Place::encrypted();
    for mode in [0o640, 0o604, 0o620, 0o610] {
        fs::set_permissions(place.key(), Permissions::from_mode(mode)).expect("ours");

        let error = refused(place.open_with_key());

        assert_eq!(error.kind(), ErrorKind::Key);
        assert_eq!(error.hint(), Some(format!("Run: chmod 600 {}", place.key().display()).as_str()));
    }
    fs::set_permissions(place.key(), Permissions::from_mode(0o400)).expect("ours");
    assert!(place.open_with_key().is_ok());
}

#[test]
fn key_file_of_another_size_or_kind_is_refused() {
    let place = Place::encrypted();
    let key = fs::read(place.key()).expect("readable");
    for bytes in [&key[..31], &[&key[..], b"\n"].concat(), b""] {
        fs::write(place.key(), bytes).expect("writable");
        assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Key, "{} bytes", bytes.len());
    }
    let directory = refused(open(&place.pool(), &open_options(Some(place.pool()))));
    assert_eq!(directory.kind(), ErrorKind::Key);
}

#[test]
fn generated_key_files_are_private_and_never_overwritten() {
    let place = Place::new();
    generate_key_file(&place.key()).expect("a key file");
    generate_key_file(&place.path("other")).expect("a key file");
    let key = fs::read(place.key()).expect("readable");

    let error = generate_key_file(&place.key()).expect_err("it exists");

    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(fs::read(place.key()).expect("readable"), key);
    assert_eq!((key.len(), mode(&place.key())), (32, 0o600));
    assert_ne!(fs::read(place.path("other")).expect("readable"), key);
}

#[test]
fn one_damaged_copy_is_written_anew() {
    for copy in [0, 1] {
        let place = Place::encrypted();
        place.patch_superblock(copy, flip);

        assert!(describe(&place.pool()).is_ok());
        drop(place.open_with_key().expect("the other copy is whole"));

        // Now the other copy can fail.
        place.patch_superblock(1 - copy, flip);
        assert!(place.open_with_key().is_ok(), "copy {copy} was not written anew");
    }
}

#[test]
fn whole_superblock_is_not_written_by_an_open() {
    let place = Place::encrypted();
    let before = place.superblock_bytes();

    drop(place.open_with_key().expect("opens"));

    assert!(place.superblock_bytes() == before);
}

#[test]
fn two_damaged_copies_are_refused() {
    let place = Place::plain();
    place.patch_superblock(0, flip);
    place.patch_superblock(1, flip);

    assert_eq!(refused(place.open_plain()).kind(), ErrorKind::Integrity);
    assert_eq!(describe(&place.pool()).expect_err("damaged").kind(), ErrorKind::Integrity);
}

#[test]
fn truncated_superblock_opens_while_one_copy_is_left() {
    let place = Place::plain();
    let file = fs::OpenOptions::new().write(true).open(place.pool().join("superblock")).expect("there");
    let whole_copy = u64::try_from(SUPERBLOCK_BYTES).expect("small");

    file.set_len(whole_copy).expect("shorter");
    drop(place.open_plain().expect("the first copy is left"));
    assert!(place.superblock_bytes().len() > SUPERBLOCK_BYTES, "the second copy was written anew");

    for len in [whole_copy - 1, 0] {
        file.set_len(len).expect("shorter");
        assert_eq!(refused(place.open_plain()).kind(), ErrorKind::Integrity, "{len} bytes");
    }
}

#[test]
fn newer_version_is_refused_by_number() {
    for copy in [0, 1] {
        let place = Place::plain();
        place.patch_superblock(copy, |bytes| {
            bytes[8] = 77;
            seal_checksum(bytes);
        });

        for error in [refused(place.open_plain()), describe(&place.pool()).expect_err("newer")] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains("77"), "{error}");
        }
    }
}

#[test]
fn damage_in_the_version_is_no_newer_version() {
    let place = Place::plain();
    place.patch_superblock(0, |bytes| bytes[8] = 77);

    assert!(place.open_plain().is_ok());
}

#[test]
fn superblock_changed_without_the_key_is_refused() {
    let place = Place::encrypted();
    for copy in [0, 1] {
        place.patch_superblock(copy, |bytes| {
            // A bit of the device's size, which an attacker would want smaller.
            bytes[48 + 16] ^= 1;
            seal_checksum(bytes);
        });
    }

    assert!(describe(&place.pool()).is_ok(), "only the key tells");
    let error = refused(place.open_with_key());
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("without the pool's key"), "{error}");
}

#[test]
fn missing_device_is_refused_by_name() {
    let place = Place::plain();
    fs::rename(place.pool().join("data-0"), place.path("elsewhere")).expect("moved");

    let error = refused(place.open_plain());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("Device data-0 is missing"), "{error}");
}

#[test]
fn device_of_another_pool_is_refused_by_its_id() {
    let (place, other) = (Place::encrypted(), Place::encrypted());
    fs::copy(other.pool().join("data-0"), place.pool().join("data-0")).expect("replaced");
    let other_id = describe(&other.pool()).expect("a pool").id.to_string();

    let error = refused(place.open_with_key());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains(&other_id), "{error}");
}

#[test]
fn empty_device_is_refused() {
    let place = Place::plain();
    fs::write(place.pool().join("data-0"), vec![0; 16 << 20]).expect("replaced");

    let error = refused(place.open_plain());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("no header"), "{error}");
}

#[test]
fn shrunk_device_is_refused_and_opens_at_its_full_size() {
    let place = Place::plain();
    let file = fs::OpenOptions::new().write(true).open(place.pool().join("data-0")).expect("there");
    file.set_len(SIZE_BYTES - 4096).expect("shorter");

    let error = refused(place.open_plain());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("shrunk"), "{error}");
    file.set_len(SIZE_BYTES).expect("longer");
    assert!(place.open_plain().is_ok());
}

#[test]
fn device_that_grew_is_used_up_to_its_listed_size() {
    let place = Place::plain();
    let file = fs::OpenOptions::new().write(true).open(place.pool().join("data-0")).expect("there");
    file.set_len(2 * SIZE_BYTES).expect("longer");

    let opened = place.open_plain().expect("opens");

    assert_eq!(opened.pool.devices().iter().map(|device| device.size_bytes()).collect::<Vec<_>>(), [SIZE_BYTES]);
    let device = opened.pool.devices().remove(0);
    assert_eq!(
        device.read_at(SIZE_BYTES, &mut [0; 4096]).map_err(|error| error.kind()),
        Err(io::ErrorKind::UnexpectedEof)
    );
    assert_eq!(device.write_at(SIZE_BYTES, &[0; 4096]).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
    drop((opened, device));
    file.set_len(SIZE_BYTES).expect("shorter");
    assert!(place.open_plain().is_ok(), "nothing was stored behind the listed size");
}

#[test]
fn older_device_is_refused() {
    let place = Place::plain();
    let old = place.path("old");
    fs::copy(place.pool().join("data-0"), &old).expect("copied");
    // Each open ends with a checkpoint. One may have been interrupted, two not.
    (0..2).for_each(|_| drop(place.open_plain().expect("opens")));
    fs::copy(&old, place.pool().join("data-0")).expect("replaced");

    let error = refused(place.open_plain());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("older than meta/"), "{error}");
}

#[test]
fn older_meta_is_refused() {
    let place = Place::plain();
    drop(place.open_plain().expect("opens"));
    let (meta, old) = (place.pool().join("meta"), place.path("old"));
    copy_tree(&meta, &old);
    drop(place.open_plain().expect("opens"));
    fs::remove_dir_all(&meta).expect("removed");
    fs::rename(&old, &meta).expect("replaced");

    let error = refused(place.open_plain());

    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("meta/ is older"), "{error}");
}

#[test]
fn missing_or_foreign_meta_is_refused() {
    let (place, other) = (Place::encrypted(), Place::encrypted());
    let meta = place.pool().join("meta");
    fs::remove_dir_all(&meta).expect("removed");
    let error = refused(place.open_with_key());
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(!meta.exists(), "no empty one was made");

    copy_tree(&other.pool().join("meta"), &meta);
    assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Integrity);
}

#[test]
fn impossible_number_of_lanes_is_refused() {
    let place = Place::plain();
    for lane_count in [0, 64] {
        let options = OpenOptions { lane_count, ..open_options(None) };
        assert_eq!(refused(open(&place.pool(), &options)).kind(), ErrorKind::Usage);
    }
}

#[test]
fn pool_opens_without_its_reserve() {
    let place = Place::plain();
    fs::remove_file(place.pool().join("meta-reserve")).expect("there");

    assert!(place.open_plain().is_ok());
}

#[test]
fn existing_directory_must_be_empty() {
    let place = Place::plain();
    let before = place.superblock_bytes();
    let again = create(&place.pool(), &plain(SIZE_BYTES)).expect_err("a pool is there");
    assert_eq!(again.kind(), ErrorKind::Exists);
    assert!(place.superblock_bytes() == before);

    let other = place.path("other");
    fs::create_dir(&other).expect("made");
    fs::write(other.join("note"), "mine").expect("written");
    assert_eq!(create(&other, &plain(SIZE_BYTES)).expect_err("not empty").kind(), ErrorKind::Exists);
    assert_eq!(fs::read(other.join("note")).expect("still there"), b"mine");
    assert_eq!(create(&other.join("note"), &plain(SIZE_BYTES)).expect_err("a file").kind(), ErrorKind::Exists);

    fs::remove_file(other.join("note")).expect("removed");
    assert!(create(&other, &plain(SIZE_BYTES)).is_ok());
    assert_eq!(mode(&other), 0o700);
}

#[test]
fn remains_of_a_killed_creation_are_named_as_such() {
    let place = Place::plain();
    fs::remove_file(place.pool().join("superblock")).expect("there");

    let error = create(&place.pool(), &plain(SIZE_BYTES)).expect_err("not empty");

    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.message().contains("without a superblock"), "{error}");
    assert_eq!(refused(place.open_plain()).kind(), ErrorKind::NotFound);
}

#[test]
fn creation_without_space_leaves_nothing() {
    let place = Place::new();

    // More than any file system under test has.
    let error = create(&place.pool(), &plain(1 << 50)).expect_err("no space");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(!place.pool().exists());

    fs::create_dir(place.pool()).expect("made");
    assert!(create(&place.pool(), &plain(1 << 50)).is_err());
    assert_eq!(fs::read_dir(place.pool()).expect("still there").count(), 0);
}

#[test]
fn impossible_sizes_and_options_are_refused_before_anything_is_made() {
    let place = Place::new();
    for size_bytes in [0, SIZE_BYTES - 4096, SIZE_BYTES + 1, SIZE_BYTES + 512, 1 << 53] {
        let error = create(&place.pool(), &plain(size_bytes)).expect_err("no such size");
        assert_eq!(error.kind(), ErrorKind::Usage, "{size_bytes}");
    }
    let without_key = CreateOptions { suite: Suite::XtsGmac, ..plain(SIZE_BYTES) };
    assert_eq!(create(&place.pool(), &without_key).expect_err("no key").kind(), ErrorKind::Usage);
    assert_eq!(create(&place.pool(), &place.encrypted_options()).expect_err("no file").kind(), ErrorKind::Key);
    let needless_key = CreateOptions { credential: Some(Credential::KeyFile(place.key())), ..plain(SIZE_BYTES) };
    assert_eq!(create(&place.pool(), &needless_key).expect_err("not both").kind(), ErrorKind::Usage);
    let no_block_device =
        CreateOptions { devices: vec![DeviceSource::Block { path: place.path("file") }], ..plain(SIZE_BYTES) };
    fs::write(place.path("file"), [0; 4096]).expect("written");
    assert_eq!(create(&place.pool(), &no_block_device).expect_err("a file").kind(), ErrorKind::Usage);
    assert!(!place.pool().exists());
}

#[test]
fn missing_parent_is_named() {
    let place = Place::new();

    let error = create(&place.path("no/pool"), &plain(SIZE_BYTES)).expect_err("no parent");

    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// Block devices need privileges; a file that is linked goes the same way from here on.
#[test]
fn linked_device_must_have_an_empty_front() {
    let (place, other) = (Place::new(), Place::plain());
    let target = place.path("disk");
    fs::write(&target, vec![0; 16 << 20]).expect("written");
    drop(link_device(&place.path("link-0"), &target).expect("it is empty"));
    assert_eq!(fs::read_link(place.path("link-0")).expect("a link"), target);

    fs::OpenOptions::new().write(true).open(&target).and_then(|file| file.write_all_at(b"x", 1080)).expect("written");
    let foreign = link_device(&place.path("link-1"), &target).expect_err("something is on it");
    assert_eq!(foreign.kind(), ErrorKind::Exists);

    let pool = describe(&other.pool()).expect("a pool").id.to_string();
    let taken = link_device(&place.path("link-2"), &other.pool().join("data-0")).expect_err("a pool is on it");
    assert_eq!(taken.kind(), ErrorKind::Exists);
    assert!(taken.message().contains(&pool), "{taken}");
}

#[test]
fn device_whose_end_has_no_address_is_refused() {
    let place = Place::new();
    // 2^40 blocks: the last one has an address, the end has none.
    let options = CreateOptions { devices: vec![DeviceSource::File { size_bytes: 1 << 52 }], ..plain(SIZE_BYTES) };

    let error = create(&place.pool(), &options).expect_err("it is too large");

    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    assert!(error.message().contains("too large"), "{error}");
}
