//! Golden images: what every encoder gives for fixed values, keys and salts, kept in `tests/golden`.
//!
//! A difference means that pools on disk are not read any more. The same images are the examples of `FORMAT.md`.
//! Higher layers take images from here to show that they read and write the same.
//! `ROK_UPDATE_GOLDEN=1` writes images and examples anew, after the specification was changed.

use crate::crypto::slot::{
    KeySlot, SlotKind, unwrap_with_key_file, unwrap_with_passphrase, wrap_with_key_file, wrap_with_passphrase,
};
use crate::crypto::{
    BlockCipher, DomainKey, DomainWrapping, MasterKey, Passphrase, PassphraseCosts, Purpose, SealKind, SessionKeys,
    ShredKey, Suite, domain_place,
};
use crate::format::bitmap::{self, STRETCH_WORDS};
use crate::format::catalog::{
    ChainStart, CheckpointRecord, DomainRecord, HeldBlocks, Lifetime, OnFull, TreeRecord, TreeState, VolumeRecord,
};
use crate::format::device_header::DeviceHeader;
use crate::format::entry::Entry;
use crate::format::job::{JobFailure, JobRecord, JobState, JobUnit};
use crate::format::leaf::{Leaf, LeafChange, Level, Part, frames, part_value, push_frame, sealed_part};
use crate::format::owner::{self, OwnerRun};
use crate::format::policy::{PolicyKeep, PolicyRecord, PolicyVolume};
use crate::format::record::{Record, RecordPlace, Removal, WriteRun};
use crate::format::scrub::{Damage, DamageKind, DamageReader, ScrubPlace, ScrubRecord};
use crate::format::session::Session;
use crate::format::shred_key::ShredKeyCopy;
use crate::format::snapshot::{Annotations, Hold, Merge, MergeSide, PointRecord, SnapshotRecord};
use crate::format::superblock::{self, DeviceRecord, KeySlotRecord, Superblock};
use crate::format::{FormatError, key};
use crate::units::{
    Address, AddressRun, BLOCK_SIZE, BlockIndex, ChainSequence, CheckpointId, DeviceIndex, DomainId, Epoch,
    KeyGeneration, LaneIndex, LeafIndex, Sequence, SessionId, TreeId,
};
use std::fmt::Write;
use std::path::PathBuf;
use uuid::Uuid;

const POOL: Uuid = Uuid::from_u128(0x1000_0000_0000_4000_8000_0000_0000_0001);
const DEVICE: Uuid = Uuid::from_u128(0x2000_0000_0000_4000_8000_0000_0000_0002);
const VOLUME: Uuid = Uuid::from_u128(0x3000_0000_0000_4000_8000_0000_0000_0003);
const MASTER: [u8; 32] = [0x11; 32];
const KEY_FILE: [u8; 32] = [0x22; 32];
pub(crate) const SALT: [u8; 32] = [0x33; 32];
/// What stands for randomness: each call fills with the next value.
const FIRST_RANDOM: u8 = 0x40;
pub(crate) const SESSION: SessionId = SessionId::new(5);
const SHRED_KEY: u32 = 3;
const LANE: LaneIndex = LaneIndex::new(1);
const CHAIN: ChainSequence = ChainSequence::new(9);
/// Whose the stored leaf is.
pub(crate) const LEAF_PLACE: (TreeId, LeafIndex, Epoch) = (TreeId::new(7), LeafIndex::new(3), Epoch::new(2));
/// Bytes of a row of an image.
const ROW_BYTES: usize = 16;

/// Every image, by the name of its file.
fn images() -> Vec<(&'static str, Vec<u8>)> {
    let keys = session_keys(Suite::XtsGmac);
    let (leaf_tree, index, epoch) = LEAF_PLACE;
    let leaf_key = key::leaf(leaf_tree, index, epoch);
    vec![
        ("superblock", superblock().encode(&master().static_mac(Purpose::Superblock)).1),
        ("superblock-passphrase", superblock_with_passphrase().encode(&master().static_mac(Purpose::Superblock)).1),
        ("device-header", device_header().encode(&master().static_mac(Purpose::DeviceHeader)).1),
        ("session", session().encode(&master().static_mac(Purpose::Session))),
        ("volume", volume().encode()),
        ("volume-on-full-pause", pausing_volume().encode()),
        ("volume-cloned", cloned_volume().encode()),
        ("tree", tree().encode()),
        ("tree-copying", copying_tree().encode()),
        ("point", point().encode()),
        ("snapshot", snapshot().encode()),
        ("domain", domain().encode()),
        ("domain-of-volume", domain_of_volume().encode()),
        ("shred-key", shred_key_copy().encode()),
        ("checkpoint", checkpoint().encode()),
        ("job", job().encode()),
        ("policy", policy().encode()),
        ("scrub", scrub().encode()),
        ("entry", entry_fields(entry(2000, 50))),
        ("leaf", leaf().encode()),
        ("leaf-change", leaf_change().encode()),
        ("leaf-value", leaf_value(&keys)),
        ("part", part().encode(epoch)),
        ("owners", long_owners()),
        ("owners-short", owner::encode(&owners())),
        ("bitmap", bitmap::encode(&bits())),
        ("sealed-value", keys.seal(SealKind::Tree, &key::tree(TreeId::new(7)), b"body")),
        ("sealed-value-plain", plain_sealed()),
        // Sealed behind those that were there before it.
        ("part-value", golden_part_value(&keys)),
        ("record", record_bytes(Suite::XtsGmac)),
        ("record-plain", record_bytes(Suite::Plain)),
        ("block", block_start()),
        ("key-volume", key::volume(VOLUME)),
        ("key-tree", key::tree(TreeId::new(7))),
        ("key-point", key::point(TreeId::new(7), Epoch::new(1))),
        ("key-snapshot", key::snapshot(VOLUME, 9)),
        ("key-domain", key::domain(DomainId::new(0))),
        ("key-job", key::job(41)),
        ("key-policy", key::policy("nightly")),
        ("key-scrub", key::SCRUB.to_vec()),
        ("key-checkpoint", key::CHECKPOINT.to_vec()),
        ("key-session", key::session(SESSION)),
        ("key-leaf", leaf_key),
        ("key-epoch-leaf", key::epoch_leaf(leaf_tree, epoch, index)),
        ("key-stretch", key::stretch(DeviceIndex::new(0), 2)),
        ("key-owner-group", key::owner_group(address(2000))),
    ]
}

pub(crate) fn master() -> MasterKey {
    MasterKey::from_bytes(MASTER)
}

fn session_keys(suite: Suite) -> SessionKeys {
    master().session_keys(suite, SESSION, &SALT)
}

fn counting() -> impl FnMut(&mut [u8]) {
    let mut next = FIRST_RANDOM;
    move |bytes| {
        bytes.fill(next);
        next += 1;
    }
}

fn address(block: u64) -> Address {
    Address::new(DeviceIndex::new(0), block)
}

fn entry(block: u64, sequence: u64) -> Entry {
    Entry::new(address(block), KeyGeneration::new(1), Sequence::new(sequence), 0xaaaa_0000 + sequence)
}

fn superblock() -> Superblock {
    let slot = wrap_with_key_file(&master(), &KEY_FILE, &POOL, 0, &mut counting());
    let device = DeviceRecord { id: DEVICE, block_count: 262_144, name: "data-0".to_owned() };
    let slots = vec![slot_record(0, slot)];
    Superblock { pool: POOL, generation: 6, suite: Suite::XtsGmac, devices: vec![device], slots }
}

fn superblock_with_passphrase() -> Superblock {
    let mut superblock = Superblock { generation: 8, ..superblock() };
    let costs = PassphraseCosts::new(8, 1, 1).expect("the least");
    let slot = wrap_with_passphrase(&master(), &passphrase(), costs, &POOL, 1, &mut counting()).expect("8 KiB");
    superblock.slots.push(slot_record(1, slot));
    superblock
}

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse".to_owned().into()).expect("long enough")
}

fn slot_record(index: u8, slot: KeySlot) -> KeySlotRecord {
    let KeySlot { kind, salt, wrapped, parameters, .. } = slot;
    KeySlotRecord { index, kind: kind.code(), salt, wrapped, parameters }
}

fn slot_of(record: &KeySlotRecord) -> KeySlot {
    let kind = SlotKind::from_code(record.kind).expect("known");
    let KeySlotRecord { salt, wrapped, parameters, .. } = *record;
    KeySlot { kind, label: String::new(), salt, parameters, wrapped }
}

fn device_header() -> DeviceHeader {
    DeviceHeader {
        pool: POOL,
        device: DEVICE,
        index: DeviceIndex::new(0),
        block_count: 262_144,
        session: SESSION,
        checkpoint: CheckpointId::new(12),
        generation: 14,
    }
}

fn session() -> Session {
    Session { id: SESSION, first_sequence: Sequence::new(1000), salt: SALT }
}

fn volume() -> VolumeRecord {
    VolumeRecord {
        id: VOLUME,
        name: "vol1".to_owned(),
        size_bytes: 1 << 30,
        sector_size: 512,
        tree: TreeId::new(7),
        created_at: 1_700_000_000,
        on_full: OnFull::Error,
        next_snapshot: 1,
        origin: None,
        lifetime: Lifetime::default(),
        labels: Vec::new(),
    }
}

fn cloned_volume() -> VolumeRecord {
    let lifetime = Lifetime { expires_at: 1_800_000_000, trashed_at: 1_700_000_100, delete_at: 1_700_001_000 };
    let labels = vec![("team".to_owned(), "risk".to_owned())];
    VolumeRecord { next_snapshot: 10, origin: Some((DEVICE, 4)), lifetime, labels, ..volume() }
}

fn pausing_volume() -> VolumeRecord {
    VolumeRecord { on_full: OnFull::Pause, ..volume() }
}

fn scrub() -> ScrubRecord {
    let reader = DamageReader { volume: VOLUME, is_head: true, snapshot_count: 2, snapshots: vec![3, 4] };
    let damage = Damage {
        tree: TreeId::new(7),
        first: BlockIndex::new(770),
        count: 2,
        kind: DamageKind::Unreadable,
        is_of_before: false,
        readers: vec![reader],
    };
    ScrubRecord {
        place: Some(ScrubPlace { tree: TreeId::new(7), leaf: LeafIndex::new(4), epoch: Epoch::new(2) }),
        pass_count: 5,
        began_at: 1_700_000_000,
        ended_at: 1_699_900_000,
        read_blocks: 1000,
        pause_blocks: 4000,
        rate_bytes: 64 << 20,
        unlisted_blocks: 1,
        damages: vec![damage],
    }
}

fn job() -> JobRecord {
    JobRecord {
        id: 41,
        work: "reclaim".to_owned(),
        target: "vol1".to_owned(),
        state: JobState::Failed,
        unit: JobUnit::Bytes,
        done: 4096,
        total: 8192,
        began_at: 1_700_000_000,
        ended_at: 1_700_000_060,
        failure: Some(JobFailure { code: "busy".to_owned(), message: "No".to_owned(), hint: "Wait".to_owned() }),
    }
}

fn policy() -> PolicyRecord {
    PolicyRecord {
        name: "nightly".to_owned(),
        every_seconds: 3600,
        created_at: 1_700_000_000,
        keep: PolicyKeep { last: 1, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 2 },
        is_if_changed: true,
        volumes: vec![PolicyVolume { id: VOLUME, applied_at: 1_700_000_060 }],
    }
}

fn tree() -> TreeRecord {
    TreeRecord {
        id: TreeId::new(7),
        epoch: Epoch::new(2),
        parent: Some((TreeId::new(4), Epoch::new(1))),
        domain: DomainId::new(0),
        state: TreeState::Deleting(LeafIndex::new(3)),
        own_before: LeafIndex::new(0),
        held: HeldBlocks { own_count: 300, mapped_delta: -20 },
    }
}

fn copying_tree() -> TreeRecord {
    TreeRecord { state: TreeState::Living, own_before: LeafIndex::new(3), ..tree() }
}

fn point() -> PointRecord {
    PointRecord {
        tree: TreeId::new(7),
        epoch: Epoch::new(1),
        sequence: Sequence::new(1000),
        held: HeldBlocks { own_count: 90, mapped_delta: 90 },
        merge: Some(Merge { side: MergeSide::Follower, cursor: (Epoch::new(2), LeafIndex::new(3)) }),
    }
}

fn snapshot() -> SnapshotRecord {
    let text = str::to_owned;
    SnapshotRecord {
        id: DEVICE,
        volume: VOLUME,
        number: 9,
        point: (TreeId::new(7), Epoch::new(1)),
        size_bytes: 1 << 30,
        created_at_ms: 1_700_000_000_412,
        time_ms: 1_690_000_000_000,
        lifetime: Lifetime { expires_at: 1_800_000_000, ..Lifetime::default() },
        annotations: Annotations {
            creator: text("alice@lab"),
            message: text("nightly"),
            tags: vec![text("v1")],
            labels: vec![(text("git"), text("4f2a"))],
            holds: vec![Hold { reason: text("release"), until: 1_900_000_000 }],
            files: vec![(text("vm.xml"), b"<vm/>".to_vec())],
        },
    }
}

fn domain() -> DomainRecord {
    let place = domain_place(&POOL, DomainId::new(0), KeyGeneration::new(1));
    let wrapping = DomainWrapping::of_pool(&master());
    let wrapped = DomainKey::generate(&mut counting()).wrap(&wrapping, &place, &mut counting());
    DomainRecord { id: DomainId::new(0), shred_key: 0, keys: vec![(KeyGeneration::new(1), wrapped)] }
}

fn shred_key_copy() -> ShredKeyCopy {
    let mut random = counting();
    let wrapped = ShredKey::generate(&mut random).wrap(&master(), (&POOL, SHRED_KEY), &mut random);
    ShredKeyCopy { pool: POOL, number: SHRED_KEY, wrapped }
}

fn domain_of_volume() -> DomainRecord {
    let (id, generation) = (DomainId::new(7), KeyGeneration::new(0));
    let wrapping = DomainWrapping::of_volumes(&master(), &ShredKey::generate(&mut counting()));
    let mut random = counting();
    let wrapped = DomainKey::generate(&mut random).wrap(&wrapping, &domain_place(&POOL, id, generation), &mut random);
    DomainRecord { id, shred_key: SHRED_KEY, keys: vec![(generation, wrapped)] }
}

fn checkpoint() -> CheckpointRecord {
    CheckpointRecord {
        id: CheckpointId::new(12),
        next_tree: TreeId::new(8),
        next_sequence: Sequence::new(1234),
        chains: vec![ChainStart { session: SESSION, lane: LANE, chain: CHAIN, address: address(4000) }],
    }
}

fn entry_fields(entry: Entry) -> Vec<u8> {
    [entry.place(), entry.sequence().get(), entry.mac()].iter().flat_map(|field| field.to_le_bytes()).collect()
}

pub(crate) fn leaf() -> Leaf {
    let mut leaf = Leaf::default();
    for step in 0..3 {
        leaf.set(16 + step, Some(entry(2000 + u64::from(step), 50 + u64::from(step))));
    }
    leaf.set(255, Some(entry(3000, 40)));
    leaf
}

pub(crate) fn leaf_change() -> LeafChange {
    let mut change = LeafChange::default();
    change.removed.insert(17);
    change.entries.set(0, Some(entry(2500, 60)));
    change
}

fn leaf_value(keys: &SessionKeys) -> Vec<u8> {
    let (tree, index, epoch) = LEAF_PLACE;
    let leaf_key = key::leaf(tree, index, epoch);
    let base = keys.seal(SealKind::Leaf, &leaf_key, &leaf().encode());
    let associated = [&leaf_key[..], &base[..16], &[0]].concat();
    let mut value = Vec::new();
    push_frame(&mut value, &base);
    push_frame(&mut value, &keys.seal(SealKind::LeafChange, &associated, &leaf_change().encode()));
    value
}

pub(crate) const PART_LEVEL: Level = Level { depth: 3, restarts: 1 };

pub(crate) fn part() -> Part {
    Part { base: Epoch::new(1), change: leaf_change() }
}

fn golden_part_value(keys: &SessionKeys) -> Vec<u8> {
    let (tree, index, epoch) = LEAF_PLACE;
    let associated = [&key::leaf(tree, index, epoch)[..], &PART_LEVEL.bytes()].concat();
    part_value(PART_LEVEL, &keys.seal(SealKind::Leaf, &associated, &part().encode(epoch)))
}

/// The form that is not written any more.
fn long_owners() -> Vec<u8> {
    let mut body = vec![1, 0];
    for run in owners() {
        body.extend([run.offset, u8::try_from(run.count - 1).expect("a small count")]);
        let fields = [run.tree.get(), run.epoch.get(), run.block.get()];
        body.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    }
    body
}

fn owners() -> Vec<OwnerRun> {
    let (tree, epoch) = (TreeId::new(7), Epoch::new(2));
    vec![OwnerRun { offset: 0xd0, count: 3, tree, epoch, block: BlockIndex::new(784) }]
}

fn bits() -> bitmap::StretchBits {
    let mut bits = [0; STRETCH_WORDS];
    for block in [0, 9, 2000, 2001, 2002, 4095] {
        bitmap::replace(&mut bits, block, true);
    }
    bits
}

fn plain_sealed() -> Vec<u8> {
    session_keys(Suite::Plain).seal(SealKind::Tree, &key::tree(TreeId::new(7)), b"body")
}

fn record_place() -> RecordPlace {
    RecordPlace { pool: POOL, session: SESSION, lane: LANE, chain: CHAIN, address: address(4000) }
}

fn record() -> Record {
    let (tree, epoch, generation) = (TreeId::new(7), Epoch::new(2), KeyGeneration::new(1));
    let run =
        WriteRun { tree, epoch, block: BlockIndex::new(784), count: 2, generation, sequence: Sequence::new(1234) };
    let removal = Removal { tree, epoch, block: BlockIndex::new(800), count: 8, sequence: Sequence::new(1236) };
    Record {
        next: address(4003),
        marks: vec![ChainSequence::new(4), ChainSequence::new(7)],
        runs: vec![run],
        macs: vec![0x0102_0304_0506_0708, 0x1112_1314_1516_1718],
        segments: vec![AddressRun { start: address(4001), count: 2 }],
        removals: vec![removal],
    }
}

fn record_bytes(suite: Suite) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE];
    record().encode(&record_place(), &session_keys(suite), &mut bytes, &mut Vec::new());
    bytes
}

/// Mac and first bytes of a block of zeros.
fn block_start() -> Vec<u8> {
    let generation = KeyGeneration::new(1);
    let key = DomainKey::generate(&mut counting()).block_key(Suite::XtsGmac, generation, SESSION, &SALT);
    let mut target = vec![0; BLOCK_SIZE];
    let mac = BlockCipher::new(Suite::XtsGmac, &key).encrypt(Sequence::new(1234), &vec![0; BLOCK_SIZE], &mut target);
    [&mac.to_le_bytes(), &target[..24]].concat()
}

/// Rows of an offset and 16 bytes; rows of zeros are left out, and the last line is the length.
fn to_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, row) in bytes.chunks(ROW_BYTES).enumerate() {
        if row.iter().any(|byte| *byte != 0) {
            let row: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{:04x}  {}", index * ROW_BYTES, row.join(" ")).expect("a string takes it");
        }
    }
    writeln!(text, "{:04x}", bytes.len()).expect("a string takes it");
    text
}

fn from_text(text: &str) -> Vec<u8> {
    let number = |digits: &str| usize::from_str_radix(digits, 16).expect("hexadecimal digits");
    let mut bytes = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        bytes.resize(number(fields.next().expect("an offset")), 0);
        bytes.extend(fields.map(|byte| u8::try_from(number(byte)).expect("a byte")));
    }
    bytes
}

fn repository_path(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn golden_path(name: &str) -> PathBuf {
    repository_path(&format!("tests/golden/{name}.hex"))
}

pub(crate) fn golden(name: &str) -> Vec<u8> {
    from_text(&std::fs::read_to_string(golden_path(name)).expect("every image has its file"))
}

/// Where the example of this name is in `FORMAT.md`, without its fences.
fn example_range(document: &str, name: &str) -> std::ops::Range<usize> {
    let fence = format!("```hex {name}\n");
    assert_eq!(document.matches(&fence).count(), 1, "FORMAT.md has one example of {name}");
    let start = document.find(&fence).expect("counted above") + fence.len();
    let end = start + document[start..].find("```").expect("the example is closed");
    start..end
}

fn update_when_asked() {
    if std::env::var_os("ROK_UPDATE_GOLDEN").is_none() {
        return;
    }
    let path = repository_path("src/format/FORMAT.md");
    let mut document = std::fs::read_to_string(&path).expect("readable");
    for (name, bytes) in images() {
        std::fs::write(golden_path(name), to_text(&bytes)).expect("writable");
        let range = example_range(&document, name);
        document.replace_range(range, &to_text(&bytes));
    }
    std::fs::write(path, document).expect("writable");
}

#[test]
fn encoders_give_the_golden_images_which_are_the_examples_of_the_specification() {
    update_when_asked();
    let document = std::fs::read_to_string(repository_path("src/format/FORMAT.md")).expect("readable");
    for (name, bytes) in images() {
        let stored = std::fs::read_to_string(golden_path(name)).expect("every image has its file");
        assert_eq!(to_text(&bytes), stored, "{name} differs from its golden image");
        assert_eq!(&document[example_range(&document, name)], stored, "{name} differs from its example in FORMAT.md");
    }
    assert_eq!(document.matches("```hex ").count(), images().len(), "an example has no golden image");
}

#[test]
fn every_golden_file_has_an_encoder() {
    let names: Vec<_> = images().into_iter().map(|(name, _)| golden_path(name)).collect();
    for entry in std::fs::read_dir(repository_path("tests/golden")).expect("there") {
        let path = entry.expect("readable").path();
        assert!(names.contains(&path), "{} is no image", path.display());
    }
}

#[test]
fn text_of_an_image_is_its_bytes() {
    for bytes in [&b""[..], &[0; 40], &[1; 16], &[&[0; 32][..], &[7; 5], &[0; 20]].concat()] {
        assert_eq!(from_text(&to_text(bytes)), bytes);
    }
}

#[test]
fn golden_superblock_header_and_session_decode_and_verify() {
    let mac = master().static_mac(Purpose::Superblock);
    let bytes = golden("superblock");
    let decoded = Superblock::decode(&bytes);
    assert_eq!(decoded, Ok(superblock()));
    assert!(superblock::verify(&bytes, &mac));
    let opened = unwrap_with_key_file(&slot_of(&superblock().slots[0]), &KEY_FILE, &POOL, 0);
    assert_eq!(opened.expect("the key file opens it").expose(), &MASTER);

    let header = DeviceHeader::decode(&golden("device-header"), &master().static_mac(Purpose::DeviceHeader));
    assert_eq!(header, Ok(device_header()));
    assert_eq!(Session::decode(&golden("session"), &master().static_mac(Purpose::Session)), Ok(session()));
}

#[test]
fn golden_superblock_with_a_passphrase_decodes_and_opens_both_ways() {
    let bytes = golden("superblock-passphrase");
    let decoded = Superblock::decode(&bytes).expect("our own");
    assert!(superblock::verify(&bytes, &master().static_mac(Purpose::Superblock)));
    let [key_file, with_passphrase] = [0, 1].map(|index| slot_of(&decoded.slots[index]));

    let by_key_file = unwrap_with_key_file(&key_file, &KEY_FILE, &POOL, 0).expect("the key file opens it");
    let by_passphrase = unwrap_with_passphrase(&with_passphrase, &passphrase(), &POOL, 1).expect("so does this");

    assert_eq!([by_key_file.expose(), by_passphrase.expose()], [&MASTER; 2]);
}

#[test]
fn golden_catalog_decodes() {
    assert_eq!(VolumeRecord::decode(&golden("volume")), Ok(volume()));
    assert_eq!(VolumeRecord::decode(&golden("volume-on-full-pause")), Ok(pausing_volume()));
    assert_eq!(VolumeRecord::decode(&golden("volume-cloned")), Ok(cloned_volume()));
    assert_eq!(TreeRecord::decode(&golden("tree")), Ok(tree()));
    assert_eq!(PointRecord::decode(&golden("point")), Ok(point()));
    assert_eq!(SnapshotRecord::decode(&golden("snapshot")), Ok(snapshot()));
    assert_eq!(CheckpointRecord::decode(&golden("checkpoint")), Ok(checkpoint()));
    let domain = DomainRecord::decode(&golden("domain")).expect("our own");
    let place = domain_place(&POOL, DomainId::new(0), KeyGeneration::new(1));
    assert!(DomainKey::unwrap(&DomainWrapping::of_pool(&master()), &place, &domain.keys[0].1).is_some());
    assert_eq!(JobRecord::decode(&golden("job")), Ok(job()));
    assert_eq!(PolicyRecord::decode(&golden("policy")), Ok(policy()));
    assert_eq!(ScrubRecord::decode(&golden("scrub")), Ok(scrub()));
}

#[test]
fn what_a_volume_does_without_space_is_one_of_the_known() {
    let mut body = golden("volume-on-full-pause");
    body[46] = 2;

    assert_eq!(VolumeRecord::decode(&body), Err(FormatError::Field("what writes do without space")));
}

#[test]
fn golden_shred_key_opens_the_golden_domain_of_a_volume() {
    let copy = ShredKeyCopy::decode(&golden("shred-key")).expect("our own");
    let shred_key = ShredKey::unwrap(&master(), (&copy.pool, copy.number), &copy.wrapped).expect("our own");
    let domain = DomainRecord::decode(&golden("domain-of-volume")).expect("our own");

    let wrapping = DomainWrapping::of_volumes(&master(), &shred_key);
    let place = domain_place(&POOL, domain.id, domain.keys[0].0);

    assert_eq!(domain.shred_key, copy.number);
    assert!(DomainKey::unwrap(&wrapping, &place, &domain.keys[0].1).is_some());
    assert!(DomainKey::unwrap(&DomainWrapping::of_pool(&master()), &place, &domain.keys[0].1).is_none());
}

#[test]
fn golden_map_decodes() {
    assert_eq!(Leaf::decode(&golden("leaf")), Ok(leaf()));
    assert_eq!(LeafChange::decode(&golden("leaf-change")), Ok(leaf_change()));
    assert_eq!(Part::decode(&golden("part"), LEAF_PLACE.2), Ok(part()));
    assert_eq!(owner::decode(&golden("owners")), Ok(owners()));
    assert_eq!(owner::decode(&golden("owners-short")), Ok(owners()));
    assert_eq!(bitmap::decode(&golden("bitmap")), Ok(bits()));

    let (keys, leaf_key, value) = (session_keys(Suite::XtsGmac), golden("key-leaf"), golden("leaf-value"));
    let (level, found) = frames(&value).expect("two frames");
    assert_eq!(level, Level::WHOLE);
    assert_eq!(keys.open(SealKind::Leaf, &leaf_key, found[0]), Ok(leaf().encode()));
    let associated = [&leaf_key[..], &found[0][..16], &[0]].concat();
    assert_eq!(keys.open(SealKind::LeafChange, &associated, found[1]), Ok(leaf_change().encode()));

    let value = golden("part-value");
    let (level, found) = frames(&value).expect("one frame");
    assert_eq!(level, PART_LEVEL);
    let associated = [&leaf_key[..], &level.bytes()].concat();
    let sealed = sealed_part(found[0]).expect("a seal");
    assert_eq!(keys.open(SealKind::Leaf, &associated, &sealed), Ok(part().encode(LEAF_PLACE.2)));
}

#[test]
fn golden_seals_open_and_golden_keys_parse() {
    let place = golden("key-tree");
    let open = |suite, name| session_keys(suite).open(SealKind::Tree, &place, &golden(name));
    assert_eq!(open(Suite::XtsGmac, "sealed-value"), Ok(b"body".to_vec()));
    assert_eq!(open(Suite::Plain, "sealed-value-plain"), Ok(b"body".to_vec()));
    for (suite, name) in [(Suite::XtsGmac, "record"), (Suite::Plain, "record-plain")] {
        assert_eq!(Record::decode(&golden(name), &record_place(), &session_keys(suite)), Ok(record()));
        let elsewhere = RecordPlace { address: address(4001), ..record_place() };
        assert_eq!(Record::decode(&golden(name), &elsewhere, &session_keys(suite)), Err(FormatError::Checksum));
    }
    assert_eq!(key::parse_leaf(&golden("key-leaf")), Ok(LEAF_PLACE));
    assert_eq!(key::parse_stretch(&golden("key-stretch")), Ok((DeviceIndex::new(0), 2)));
}
