//! What recovery makes of a log that is not as it was written.

use crate::rig::{Answers, Rig, RigLife, Settings};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rok_blk::crypto::Suite;
use rok_blk::disk::{CrashMode, IoBuffer};
use rok_blk::error::IoError;
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume, OpenVolume};
use uuid::Uuid;

const DEVICE_BYTES: u64 = 16 << 20;
const COMPLETION: Completion = Completion { owner: 0, cookie: 0 };

/// A machine whose pool has a volume, and its life. Nobody makes checkpoints.
struct Place {
    rig: Rig,
    life: Option<RigLife>,
    random: SmallRng,
}

impl Place {
    fn new() -> Self {
        let mut rig = Rig::new(Settings::new(Suite::XtsGmac, 1), &[DEVICE_BYTES]);
        let life = rig.open().expect("a new pool opens");
        life.volumes.create(&NewVolume::new(Uuid::from_u128(1), "vol", 1 << 20)).expect("a new volume");
        Self { rig, life: Some(life), random: SmallRng::seed_from_u64(1) }
    }

    fn life(&self) -> &RigLife {
        self.life.as_ref().expect("it is open")
    }

    fn open(&self) -> OpenVolume {
        self.life().volumes.open("vol").expect("it is there")
    }

    fn settle(&mut self) {
        let life = self.life.as_ref().expect("it is open");
        let mut answers = Answers::new();
        assert!(life.settle(&mut answers, &mut self.random), "nothing is in the way");
        assert!(answers.iter().all(|(_, result)| result.is_ok()));
    }

    /// Fills a block with a byte; where that is on the device.
    fn write(&mut self, block: u64, byte: u8) -> u64 {
        let device = self.rig.devices[0].0.clone();
        device.set_written_log(true);
        let source = IoBuffer::allocate(BLOCK_SIZE);
        source.with_bytes_mut(|bytes| bytes.fill(byte));
        self.life().lanes[0].write(self.open().volume(), block * BLOCK_SIZE_U64, source, false, COMPLETION);
        self.settle();
        let ends = device.take_written_log().into_iter().map(|write| write.offset_bytes + write.bytes.len() as u64);
        ends.max().expect("it was written") - BLOCK_SIZE_U64
    }

    fn flush(&mut self) {
        self.life().lanes[0].flush(COMPLETION);
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
        self.life = None;
        self.rig.kill(CrashMode::Kill, &mut self.random);
        self.life = Some(self.rig.open().expect("it opens"));
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
