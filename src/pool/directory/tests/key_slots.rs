//! Tests of key slots: who opens a pool, what changes of slots leave behind, and crashes within them.

use super::*;
use crate::format::superblock::{KeySlotRecord, Superblock};
use zeroize::Zeroizing;

/// What is tried as torn writes: within the slots, sector by sector, and short of the last byte.
const TORN_LENS: [usize; 11] = [0, 1, 100, 200, 512, 1024, 2048, 3584, 4032, 4064, 4095];

fn typed(text: &str) -> Credential {
    Credential::Passphrase(passphrase(Zeroizing::new(text.to_owned())).expect("long enough"))
}

impl Place {
    /// A new key file.
    fn key_file(&self, name: &str) -> Credential {
        generate_key_file(&self.path(name)).expect("a key file");
        Credential::KeyFile(self.path(name))
    }

    fn first_key(&self) -> Credential {
        Credential::KeyFile(self.key())
    }

    fn open_with(&self, credential: &Credential) -> Result<OpenPool> {
        open(&self.pool(), &open_options_with(Some(credential.clone())))
    }

    /// Whether the credential opens a slot, without the cost of opening the pool.
    fn unlocks(&self, credential: &Credential) -> bool {
        let file = SuperblockFile::read(&self.pool()).expect("a valid copy");
        match credential::unlock(&self.pool(), &file, Some(credential)) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Key, "{error}");
                false
            }
        }
    }

    fn change(&self, credential: &Credential, change: &KeyChange) -> Result<ChangedKeySlot> {
        KeySlots::lock(&self.pool())?.change(credential, change, false)
    }

    fn add(&self, new: Credential) -> ChangedKeySlot {
        self.change(&self.first_key(), &KeyChange::Add { new }).expect("a free slot")
    }

    fn refuse_change(&self, credential: &Credential, change: &KeyChange) -> Error {
        let before = self.superblock_bytes();
        let error = self.change(credential, change).expect_err("must be refused");
        assert!(self.superblock_bytes() == before, "nothing was written");
        assert!(error.hint().is_some(), "{error}");
        error
    }

    fn slot(&self, index: u8) -> KeySlotRecord {
        let slots = SuperblockFile::read(&self.pool()).expect("a valid copy").superblock().slots.clone();
        slots.into_iter().find(|slot| slot.index == index).expect("in use")
    }

    fn holds(&self, slot: &KeySlotRecord) -> bool {
        let bytes = self.superblock_bytes();
        let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        has(&slot.wrapped) || has(&slot.salt)
    }

    fn methods(&self) -> Vec<(u8, &'static str)> {
        describe(&self.pool()).expect("a pool").key_slots.iter().map(|slot| (slot.index, slot.method)).collect()
    }
}

#[test]
fn passphrase_opens_the_pool_that_was_created_with_it() {
    let place = Place::new();
    let options =
        CreateOptions { suite: Suite::XtsGmac, credential: Some(typed("correct horse")), ..plain(SIZE_BYTES) };

    let created = create(&place.pool(), &options).expect("a pool");

    assert_eq!(created.key_slots[0].method, "passphrase");
    assert_eq!(created.key_slots[0].costs, Some(crate::crypto::PassphraseCosts::DEFAULT));
    drop(place.open_with(&typed("correct horse")).expect("opens"));
    let error = refused(place.open_with(&typed("correct horsf")));
    assert_eq!(error.kind(), ErrorKind::Key);
    assert!(error.message().starts_with("The passphrase does not open"), "{error}");
    assert_eq!(refused(place.open_with(&place.key_file("key"))).kind(), ErrorKind::Key);
    assert_eq!(refused(place.open_plain()).kind(), ErrorKind::Key);
}

#[test]
fn added_passphrase_opens_beside_the_first_key() {
    let place = Place::encrypted();

    let added = place.add(typed("correct horse"));

    assert_eq!(added.before, None);
    assert_eq!(added.after, Some(describe(&place.pool()).expect("a pool").key_slots[1]));
    assert_eq!(place.methods(), [(0, "key-file"), (1, "passphrase")]);
    let id = describe(&place.pool()).expect("a pool").id;
    for credential in [place.first_key(), typed("correct horse")] {
        assert_eq!(place.open_with(&credential).expect("opens").pool.id(), id);
    }
}

#[test]
fn rotated_slot_opens_with_the_new_key_only_and_leaves_nothing_of_the_old() {
    let place = Place::encrypted();
    place.add(place.key_file("second"));
    let (first, second) = (place.slot(0), place.slot(1));

    let rotated = place.change(&place.first_key(), &KeyChange::Rotate { index: 0, new: typed("correct horse") });

    let rotated = rotated.expect("slot 0 is in use");
    assert_eq!(rotated.before.map(|slot| slot.method), Some("key-file"));
    assert_eq!(rotated.after.map(|slot| slot.method), Some("passphrase"));
    assert!(!place.holds(&first) && place.holds(&second));
    assert!(!place.unlocks(&place.first_key()));
    assert!(place.unlocks(&Credential::KeyFile(place.path("second"))));
    assert!(place.open_with(&typed("correct horse")).is_ok());
}

#[test]
fn slot_is_rotated_with_the_key_of_another_slot() {
    let place = Place::encrypted();
    place.add(typed("forgotten by now"));

    let change = KeyChange::Rotate { index: 1, new: typed("correct horse") };
    place.change(&place.first_key(), &change).expect("the first key is enough");

    assert!(place.unlocks(&typed("correct horse")) && !place.unlocks(&typed("forgotten by now")));
}

#[test]
fn removed_slot_leaves_nothing_and_its_place_is_taken_again() {
    let place = Place::encrypted();
    let second = place.key_file("second");
    place.add(second.clone());
    let first = place.slot(0);

    let removed = place.change(&second, &KeyChange::Remove { index: 0 }).expect("another one stays");

    assert_eq!((removed.before.map(|slot| slot.index), removed.after), (Some(0), None));
    assert!(!place.holds(&first));
    assert!(!place.unlocks(&place.first_key()) && place.unlocks(&second));
    let again = place.change(&second, &KeyChange::Add { new: place.first_key() }).expect("slot 0 is free");
    assert_eq!(again.after.map(|slot| slot.index), Some(0));
    assert_eq!(place.methods(), [(0, "key-file"), (1, "key-file")]);
    assert!(place.open_with_key().is_ok());
}

#[test]
fn last_slot_is_never_removed() {
    let place = Place::encrypted();

    let error = place.refuse_change(&place.first_key(), &KeyChange::Remove { index: 0 });

    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(error.message().contains("last"), "{error}");
}

#[test]
fn slot_is_not_removed_with_its_own_key() {
    let place = Place::encrypted();
    place.add(place.key_file("second"));

    let error = place.refuse_change(&place.first_key(), &KeyChange::Remove { index: 0 });

    assert_eq!(error.kind(), ErrorKind::Key);
    assert!(error.hint().is_some_and(|hint| hint.contains("one that stays")), "{error}");
}

#[test]
fn slot_that_is_not_in_use_is_not_found() {
    let place = Place::encrypted();
    place.add(place.key_file("second"));

    for index in [2, 7, 8, 255] {
        let rotate = KeyChange::Rotate { index, new: typed("correct horse") };
        for change in [rotate, KeyChange::Remove { index }] {
            assert_eq!(place.refuse_change(&place.first_key(), &change).kind(), ErrorKind::NotFound, "{index}");
        }
    }
}

#[test]
fn ninth_slot_is_refused() {
    let place = Place::encrypted();
    for index in 1..8 {
        let added = place.add(place.key_file(&format!("key-{index}")));
        assert_eq!(added.after.map(|slot| slot.index), Some(index));
    }

    let error = place.refuse_change(&place.first_key(), &KeyChange::Add { new: place.key_file("ninth") });

    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(place.unlocks(&Credential::KeyFile(place.path("key-7"))));
}

#[test]
fn change_without_the_right_key_is_refused() {
    let place = Place::encrypted();
    place.add(place.key_file("second"));
    let new = || typed("correct horse");

    let foreign = place.key_file("foreign");

    for change in
        [KeyChange::Add { new: new() }, KeyChange::Rotate { index: 0, new: new() }, KeyChange::Remove { index: 0 }]
    {
        for wrong in [&new(), &foreign] {
            assert_eq!(place.refuse_change(wrong, &change).kind(), ErrorKind::Key);
        }
    }
}

#[test]
fn new_key_file_that_cannot_be_read_changes_nothing() {
    let place = Place::encrypted();

    let nowhere = Credential::KeyFile(place.path("nowhere"));
    let error = place.refuse_change(&place.first_key(), &KeyChange::Rotate { index: 0, new: nowhere });

    assert_eq!(error.kind(), ErrorKind::Key);
    assert!(error.message().contains("nowhere"), "{error}");
}

#[test]
fn dry_run_says_what_the_run_does_and_writes_nothing() {
    let place = Place::encrypted();
    let before = place.superblock_bytes();
    let change = KeyChange::Add { new: typed("correct horse") };
    let mut slots = KeySlots::lock(&place.pool()).expect("nobody has it");

    let plan = slots.change(&place.first_key(), &change, true).expect("possible");

    assert!(place.superblock_bytes() == before);
    assert_eq!(slots.change(&place.first_key(), &change, false).expect("done"), plan);
    assert_eq!(
        slots.change(&typed("wrong enough"), &KeyChange::Remove { index: 1 }, true).expect_err("no key").kind(),
        ErrorKind::Key
    );
    let plan = slots.change(&place.first_key(), &KeyChange::Remove { index: 1 }, true).expect("possible");
    assert_eq!(slots.change(&place.first_key(), &KeyChange::Remove { index: 1 }, false).expect("done"), plan);
}

#[test]
fn pool_without_encryption_has_no_key_to_change() {
    let place = Place::plain();

    let error = place.refuse_change(&typed("correct horse"), &KeyChange::Add { new: typed("correct horse") });

    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(place.methods(), [(0, "clear")]);
}

#[test]
fn open_pool_changes_its_own_slots_and_nobody_else_does() {
    let place = Place::encrypted();
    let mut opened = place.open_with_key().expect("opens");
    let change = KeyChange::Rotate { index: 0, new: place.key_file("second") };

    assert_eq!(place.refuse_change(&place.first_key(), &change).kind(), ErrorKind::Busy);
    opened.key_slots.change(&place.first_key(), &change, false).expect("it has the devices");

    drop(opened);
    assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Key);
    assert!(place.open_with(&Credential::KeyFile(place.path("second"))).is_ok());
}

#[test]
fn key_slots_hold_the_pool_until_they_are_dropped() {
    let place = Place::encrypted();
    let slots = KeySlots::lock(&place.pool()).expect("nobody has it");

    assert_eq!(refused(place.open_with_key()).kind(), ErrorKind::Busy);

    drop(slots);
    assert!(place.open_with_key().is_ok());
}

/// A rotation whose writes the test does itself, and the keys before and after it.
struct Rotation {
    place: Place,
    old_slot: KeySlotRecord,
    new: Credential,
    copies: [(u64, Vec<u8>); 2],
    before: Vec<u8>,
}

impl Rotation {
    /// With a copy that was damaged before, if one is named.
    fn new(damaged_copy: Option<usize>) -> Self {
        let place = Place::encrypted();
        if let Some(copy) = damaged_copy {
            place.patch_superblock(copy, flip);
        }
        let old_slot = place.slot(0);
        let new = place.key_file("new");
        let file = SuperblockFile::read(&place.pool()).expect("a pool");
        let master = credential::unlock(&place.pool(), &file, Some(&place.first_key())).expect("the key");
        let slots = vec![new.wrap(&master, &file.superblock().pool, 0).expect("readable")];
        let copies = file.copies_of(&Superblock { slots, ..file.superblock().clone() }, &master);
        let before = place.superblock_bytes();
        Self { place, old_slot, new, copies, before }
    }

    /// The file as a crash leaves it that has let `done` copies through, and this many bytes of the next one.
    fn crash(&self, done: usize, torn_len: usize) {
        let mut bytes = self.before.clone();
        for (index, (offset, copy)) in self.copies.iter().enumerate() {
            let len = if index < done { copy.len() } else { torn_len * usize::from(index == done) };
            let start = usize::try_from(*offset).expect("64-bit");
            bytes[start..start + len].copy_from_slice(&copy[..len]);
        }
        fs::write(self.place.pool().join("superblock"), bytes).expect("writable");
    }
}

#[test]
fn crash_at_any_step_leaves_the_old_slots_or_the_new_ones() {
    for damaged_copy in [None, Some(0), Some(1)] {
        let rotation = Rotation::new(damaged_copy);
        let old = rotation.place.first_key();
        for (done, torn_len) in TORN_LENS.iter().flat_map(|len| [(0, *len), (1, *len)]) {
            rotation.crash(done, torn_len);

            let opens = [rotation.place.unlocks(&old), rotation.place.unlocks(&rotation.new)];

            assert_eq!(opens, [done == 0, done == 1], "{done} copies and {torn_len} bytes, {damaged_copy:?}");
        }
        rotation.crash(2, 0);
        assert!(!rotation.place.unlocks(&old) && rotation.place.unlocks(&rotation.new));
        assert!(!rotation.place.holds(&rotation.old_slot), "both copies are new");
    }
}

#[test]
fn open_after_a_crash_finishes_what_one_copy_says() {
    for (done, torn_len) in [(0, 0), (0, 2048), (1, 0), (1, 2048), (2, 0)] {
        let rotation = Rotation::new(None);
        let Rotation { place, old_slot, new, .. } = &rotation;
        rotation.crash(done, torn_len);
        let (valid, other) =
            if done == 0 { (place.first_key(), new.clone()) } else { (new.clone(), place.first_key()) };

        drop(place.open_with(&valid).expect("opens"));

        assert_eq!(place.holds(old_slot), done == 0, "{done} copies and {torn_len} bytes");
        for copy in [0, 1] {
            let whole = place.superblock_bytes();
            place.patch_superblock(copy, flip);
            assert!(place.unlocks(&valid) && !place.unlocks(&other), "{done} copies, {torn_len} bytes, not {copy}");
            fs::write(place.pool().join("superblock"), whole).expect("writable");
        }
    }
}

/// Where the parameters of the second slot are: behind the device's record, the first slot, and what precedes them.
const SECOND_PARAMETERS: usize = 48 + 64 + 112 + 96;

#[test]
fn costs_that_somebody_changed_are_refused_before_they_are_paid() {
    let place = Place::encrypted();
    place.add(typed("correct horse"));
    let stored = crate::crypto::PassphraseCosts::DEFAULT.to_parameters();
    for copy in [0, 1] {
        place.patch_superblock(copy, |bytes| {
            assert_eq!(bytes[SECOND_PARAMETERS..SECOND_PARAMETERS + 16], stored, "the place is right");
            // 4 TiB of memory, and as many passes as there can be.
            bytes[SECOND_PARAMETERS..SECOND_PARAMETERS + 8].fill(0xff);
            seal_checksum(bytes);
        });
    }

    assert_eq!(refused(place.open_with(&typed("correct horse"))).kind(), ErrorKind::Key);
    assert_eq!(describe(&place.pool()).expect("a pool").key_slots[1].costs, None);
    let error = refused(place.open_with_key());
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.message().contains("without the pool's key"), "{error}");
}
