//! What recovery makes of a log that is not as it was written.

use crate::rig::{Answers, Rig, RigLife, Settings};
use crate::world::new_snapshot;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rok_blk::crypto::Suite;
use rok_blk::disk::{CrashMode, Device, IoBuffer};
use rok_blk::error::{Error, ErrorKind, IoError};
use rok_blk::pool::{NewClone, Unverified};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume, OpenVolume, RemoveMode};
use std::ops::Range;
use uuid::Uuid;

const DEVICE_BYTES: u64 = 16 << 20;
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };

/// A machine whose pool has a volume, and its life. Nobody makes checkpoints.
struct Place {
    rig: Rig,
    life: Option<RigLife>,
    random: SmallRng,
    /// Which of its volumes is used.
    volume: &'static str,
}

impl Place {
    fn new() -> Self {
        Self::with_lanes(1)
    }

    fn with_lanes(lane_count: u16) -> Self {
        let mut rig = Rig::new(Settings::new(Suite::XtsGmac, lane_count), &[DEVICE_BYTES]);
        let life = rig.open().expect("a new pool opens");
        life.volumes.create(&NewVolume::new(Uuid::from_u128(1), "vol", 1 << 20)).expect("a new volume");
        Self { rig, life: Some(life), random: SmallRng::seed_from_u64(1), volume: "vol" }
    }

    /// With a second volume, which has a key of its own.
    fn with_own_key() -> Self {
        let mut place = Self::new();
        place.create_with_own_key("own");
        place
    }

    fn create_with_own_key(&mut self, name: &'static str) {
        self.volume = name;
        let new = NewVolume::new(Uuid::from_u128(name.len() as u128), name, 1 << 20);
        self.life().volumes.create_with_own_key(&new, &mut |bytes| bytes.fill(3)).expect("a new volume");
    }

    fn life(&self) -> &RigLife {
        self.life.as_ref().expect("it is open")
    }

    fn open(&self) -> OpenVolume {
        self.life().volumes.open(self.volume).expect("it is there")
    }

    fn settle(&mut self) {
        let life = self.life.as_ref().expect("it is open");
        let mut answers = Answers::new();
        assert!(life.settle(&mut answers, &mut self.random), "nothing is in the way");
        assert!(answers.iter().all(|(_, result)| result.is_ok()));
    }

    /// Fills a block with a byte; where that is on the device.
    fn write(&mut self, block: u64, byte: u8) -> u64 {
        self.write_by(0, block, byte).end - BLOCK_SIZE_U64
    }

    /// The same by a lane; where its batch is on the device, record and data.
    fn write_by(&mut self, lane: usize, block: u64, byte: u8) -> Range<u64> {
        let device = self.rig.devices[0].0.clone();
        device.set_written_log(true);
        let source = IoBuffer::allocate(BLOCK_SIZE);
        source.with_bytes_mut(|bytes| bytes.fill(byte));
        self.life().lanes[lane].write(self.open().volume(), block * BLOCK_SIZE_U64, source, false, COMPLETION);
        self.settle();
        let written = device.take_written_log();
        let start = written.iter().map(|write| write.offset_bytes).min().expect("it was written");
        let ends = written.iter().map(|write| write.offset_bytes + write.bytes.len() as u64);
        start..ends.max().expect("it was written")
    }

    fn flush(&mut self) {
        self.flush_by(0);
    }

    fn flush_by(&mut self, lane: usize) {
        self.life().lanes[lane].flush(COMPLETION);
        self.settle();
    }

    fn read(&mut self, block: u64) -> Result<u8, IoError> {
        let open = self.open();
        let life = self.life.as_ref().expect("it is open");
        let bytes = life.read(&open, (block, 1), &mut self.random)?;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is of one byte");
        Ok(bytes[0])
    }

    /// The process dies, and the pool is opened again.
    fn reopen(&mut self) {
        self.life = Some(self.try_reopen().expect("it opens"));
    }

    fn try_reopen(&mut self) -> Result<RigLife, Error> {
        self.kill();
        self.rig.open()
    }

    fn kill(&mut self) {
        self.life = None;
        self.rig.kill(CrashMode::Kill, &mut self.random);
    }

    fn remove(&mut self, block: u64) {
        let range = (block * BLOCK_SIZE_U64, BLOCK_SIZE_U64);
        self.life().lanes[0].remove(self.open().volume(), range, RemoveMode::Discard, false, COMPLETION);
        self.settle();
    }

    /// Why the pool is refused without the shred key, and that nothing is changed by that.
    fn refusal(&mut self) -> Option<(ErrorKind, String)> {
        let before = (self.rig.devices[0].0.digest(), self.rig.store.digest());
        let refusal = self.rig.open_without_own_keys(Unverified::Refused).err();
        let after = (self.rig.devices[0].0.digest(), self.rig.store.digest());
        assert!(refusal.is_none() || before == after, "it is changed");
        refusal.map(|error| (error.kind(), error.to_string()))
    }
}

#[test]
fn a_changed_block_is_damaged_where_a_flush_covered_it_and_lost_where_none_did() {
    for is_flushed in [true, false] {
        let mut place = Place::new();
        let changed = place.write(1, 7);
        if is_flushed {
            place.flush();
            // Its record says what was flushed.
            place.write(2, 8);
        }
        place.rig.devices[0].0.flip_bit(changed, 0);

        place.reopen();

        let report = place.life().pool.recovery();
        let wanted = if is_flushed { (1, 0) } else { (0, 1) };
        assert_eq!((report.damaged_block_count, report.lost_block_count), wanted, "flushed: {is_flushed}");
        assert_eq!(place.read(1), if is_flushed { Err(IoError::Io) } else { Ok(0) });
        assert_eq!(place.read(2), Ok(if is_flushed { 8 } else { 0 }));
    }
}

/// The records of other lanes say what was flushed of a lane's: as little as its last one is missed.
#[test]
fn the_last_flushed_record_of_a_lane_is_missed_if_another_lane_knows_of_it() {
    for (is_flushed, is_gone) in [(true, true), (true, false), (false, true)] {
        let mut place = Place::with_lanes(2);
        place.write_by(0, 1, 7);
        let last = place.write_by(0, 2, 8);
        if is_flushed {
            place.flush_by(0);
        }
        place.write_by(1, 3, 9);
        if is_gone {
            place.rig.devices[0].0.write_at(last.start, &[0; BLOCK_SIZE]).expect("a healthy device");
        }

        let error = place.try_reopen().err().map(|error| (error.kind(), error.message().to_owned()));

        let message = "The log of lane 0 ends at record 1, but record 2 was flushed: flushed writes are missing";
        let wanted = (is_flushed && is_gone).then(|| (ErrorKind::Integrity, message.to_owned()));
        assert_eq!(error, wanted, "flushed: {is_flushed}, gone: {is_gone}");
    }
}

/// What a torn block replaced is flushed data, and would be free behind a checkpoint that takes the block for whole.
#[test]
fn pool_is_refused_without_the_shred_key_where_a_block_behind_the_last_flush_may_be_torn() {
    let mut place = Place::with_own_key();
    place.write(1, 7);
    place.flush();
    let torn = place.write(1, 8);
    place.create_with_own_key("second");
    place.write(1, 5);
    place.kill();
    place.rig.devices[0].0.flip_bit(torn, 0);

    let (kind, message) = place.refusal().expect("nobody can tell");

    assert_eq!(kind, ErrorKind::Key);
    assert!(message.starts_with("2 blocks of volumes with a key of their own (own, second) were "), "{message}");
    place.reopen();
    place.volume = "own";
    assert_eq!(place.read(1), Ok(7), "what was flushed is there, and what was torn is not");
    place.volume = "second";
    assert_eq!(place.read(1), Ok(5));
}

#[test]
fn pool_is_opened_without_the_shred_key_where_nothing_of_its_volumes_can_be_torn() {
    let mut place = Place::with_own_key();
    place.write(1, 7);
    place.flush();
    place.write(2, 8);
    place.remove(2);
    // Its record says what was flushed.
    place.volume = "vol";
    place.write(1, 9);
    place.kill();

    assert_eq!(place.refusal(), None);

    assert_eq!(place.rig.open_without_own_keys(Unverified::Refused).map(drop).err().map(|error| error.kind()), None);
    place.reopen();
    assert_eq!(place.read(1), Ok(9));
    place.volume = "own";
    assert_eq!((place.read(1), place.read(2)), (Ok(7), Ok(0)));
}

#[test]
fn what_nobody_can_verify_is_taken_where_the_key_is_given_up_and_is_there_should_it_turn_up() {
    let mut place = Place::with_own_key();
    place.write(1, 7);
    place.kill();
    assert!(place.refusal().is_some());

    drop(place.rig.open_without_own_keys(Unverified::Taken).expect("it is given up"));

    assert_eq!(place.refusal(), None, "it is stored");
    place.reopen();
    assert_eq!(place.read(1), Ok(7));
}

#[test]
fn what_is_left_of_a_shredded_volume_keeps_no_pool_from_being_opened_without_the_shred_key() {
    let mut place = Place::with_own_key();
    place.write(1, 7);
    let id = place.open().volume().id();
    let snapshots = place.life().volumes.snapshot(vec![new_snapshot(id)]).expect("there is space");
    let clone =
        NewClone { id: Uuid::from_u128(9), name: "clone".into(), created_at: 0, expires_at: 0, labels: Vec::new() };
    let source = (id, snapshots[0].number);
    place.life().volumes.clone_snapshot(source, vec![clone]).expect("there is space");
    place.life().volumes.remove("clone").expect("nobody has it open");
    // The tree stays as long as what was cloned from it is reclaimed.
    place.write(1, 8);
    place.life().volumes.shred("own", &mut |bytes| bytes.fill(4)).expect("nobody has it open");
    place.kill();

    assert_eq!(place.refusal(), None);
}

/// The place of a record is known to the one before it alone: behind a gap what comes next is looked for, since it may say that
/// what is missing was flushed.
#[test]
fn a_flushed_record_that_is_gone_is_missed_if_a_later_one_of_its_lane_knows_of_it() {
    for is_flushed in [true, false] {
        let mut place = Place::new();
        place.write(1, 7);
        let gone = place.write_by(0, 2, 8);
        if is_flushed {
            place.flush();
        }
        place.write(3, 9);
        place.rig.devices[0].0.write_at(gone.start, &[0; BLOCK_SIZE]).expect("a healthy device");

        let error = place.try_reopen().map(|life| place.life = Some(life)).err();

        let error = error.map(|error| (error.kind(), error.message().to_owned()));
        let message = "The log of lane 0 ends at record 1, but record 2 was flushed: flushed writes are missing";
        assert_eq!(error, is_flushed.then(|| (ErrorKind::Integrity, message.to_owned())));
        if !is_flushed {
            assert_eq!([1, 2, 3].map(|block| place.read(block)), [Ok(7), Ok(0), Ok(0)], "the log ends there");
        }
    }
}
