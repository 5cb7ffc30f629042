//! How recovery reads the log, and which records it takes.

use super::*;
use crate::disk::SimDevice;
use crate::format::catalog::{HeldBlocks, TreeRecord, TreeState};
use crate::pool::Pool;
use crate::pool::catalog::Edit;
use crate::pool::tests::Place;
use crate::units::{BlockIndex, DeviceIndex, DomainId, Epoch, KeyGeneration, LeafIndex, TreeId};

const BLOCKS: u64 = 2048;

/// Devices with nothing on them, and what else recovery needs.
struct Log {
    pool: Arc<Pool>,
    sims: [SimDevice; 2],
    devices: Vec<Arc<dyn Device>>,
    catalog: Catalog,
    space: Space,
}

impl Log {
    fn new() -> Self {
        let sims = ["one", "two"].map(|name| SimDevice::new(name, BLOCKS * BLOCK_SIZE_U64));
        let devices = sims.iter().map(|device| Arc::new(device.process_handle()) as Arc<dyn Device>).collect();
        let pool = Place::new().open();
        let catalog = pool.with_catalog(|catalog, _| catalog.clone());
        Self { pool, sims, devices, catalog, space: Space::new(&[BLOCKS, BLOCKS]) }
    }

    fn source(&self) -> Source<'_> {
        let (pool, keys) = (self.pool.id(), self.pool.keys());
        Source { pool, devices: &self.devices, keys, catalog: &self.catalog, space: &self.space }
    }

    fn place(&self, chain: u64, address: Address) -> RecordPlace {
        let chain = ChainSequence::new(chain);
        RecordPlace { pool: self.pool.id(), session: self.pool.session(), lane: LaneIndex::new(0), chain, address }
    }

    /// Puts a record with so many marks, which fill its blocks, and nothing else.
    fn put(&self, chain: u64, address: Address, marks: usize, next: Address) -> u64 {
        let record = Record {
            next,
            marks: vec![ChainSequence::new(0); marks],
            runs: Vec::new(),
            macs: Vec::new(),
            segments: Vec::new(),
            removals: Vec::new(),
        };
        let body = crate::format::record::body_bytes(marks, 0, 0, 0, 0);
        let block_count = crate::format::record::blocks_for_body(body);
        let mut bytes = vec![0; blocks_to_bytes(block_count)];
        record.encode(&self.place(chain, address), self.pool.session_keys(), &mut bytes, &mut Vec::new());
        let device = &self.sims[address.device().as_usize()];
        device.write_at(address.offset_bytes(), &bytes).expect("a healthy device");
        to_u64(block_count)
    }
}

fn at(device: u8, block: u64) -> Address {
    Address::new(DeviceIndex::new(device), block)
}

/// Where the chunk of a device starts and how many blocks it has.
fn chunk(walk: &Walk<'_>, device: usize) -> (u64, usize) {
    let (start, bytes) = walk.chunks[device].as_ref().expect("something was read");
    (start.block(), bytes.len() / BLOCK_SIZE)
}

#[test]
fn what_goes_straight_on_is_read_in_chunks_that_grow() {
    let log = Log::new();
    for block in 0..BLOCKS {
        let stamp = block.to_le_bytes();
        log.sims[0].write_at(at(0, block).offset_bytes(), &stamp.repeat(BLOCK_SIZE / 8)).expect("a healthy device");
    }
    let source = log.source();
    let mut walk = Walk::new(&source);
    let mut read = |block: u64, count: u64| {
        let bytes = walk.read(at(0, block), count).expect("a healthy device");
        let expected: Vec<u8> =
            (block..block + count).flat_map(|block| block.to_le_bytes().repeat(BLOCK_SIZE / 8)).collect();
        assert!(bytes == expected, "{count} blocks from {block}");
        chunk(&walk, 0)
    };
    assert_eq!(read(300, 1), (300, 16));
    assert_eq!(read(315, 1), (300, 16), "what is there is not read again");
    assert_eq!(read(314, 2), (300, 16));
    // Right behind it, or out of it.
    assert_eq!(read(316, 1), (316, 32));
    assert_eq!(read(347, 2), (347, 64));
    assert_eq!(read(411, 1), (411, 128));
    assert_eq!(read(539, 1), (539, 256));
    assert_eq!(read(795, 1), (795, 512));
    assert_eq!(read(1307, 1), (1307, 512));
    // Elsewhere.
    assert_eq!(read(100, 3), (100, 16));
    assert_eq!(read(117, 1), (117, 16), "one block was left out");
    assert_eq!(read(116, 1), (116, 16), "it goes back");
    // More than that is wanted, and no more than there is.
    assert_eq!(read(10, 40), (10, 40));
    assert_eq!(read(BLOCKS - 5, 1), (BLOCKS - 5, 5));
    assert_eq!(read(BLOCKS - 1, 1), (BLOCKS - 5, 5));
    // Each device has its own.
    walk.read(at(1, 116), 1).expect("a healthy device");
    assert_eq!((chunk(&walk, 0), chunk(&walk, 1)), ((BLOCKS - 5, 5), (116, 16)));
}

#[test]
fn around_a_block_that_cannot_be_read_only_what_is_needed_is_read() {
    let log = Log::new();
    log.sims[0].bad_block(110);
    let source = log.source();
    let mut walk = Walk::new(&source);
    let mut read = |device: u8, block: u64| {
        walk.read(at(device, block), 1).map(|_| chunk(&walk, usize::from(device))).map_err(|error| error.to_string())
    };
    assert_eq!(read(0, 100), Ok((100, 1)), "16 blocks cannot be read at once");
    assert_eq!(read(0, 109), Ok((109, 1)), "it is not tried again in there");
    assert_eq!(read(1, 109), Ok((109, 16)), "that is another device");
    assert_eq!(read(0, 115), Ok((115, 1)));
    assert_eq!(read(0, 116), Ok((116, 16)), "behind it");
    assert_eq!(read(0, 99), Ok((99, 1)), "in front of it a chunk would reach into it");
    assert_eq!(read(0, 115), Ok((115, 16)), "what is in the way now is there");
    let error = read(0, 110).expect_err("it cannot be read");
    assert!(error.starts_with("Reading the log on one at device 0 block 110 failed: "), "{error}");
}

#[test]
fn chain_is_followed_up_to_the_last_block_of_a_device() {
    let log = Log::new();
    for marks in [1, 600] {
        // The last record ends where the device does.
        let block_count = log.put(2, at(1, 500), marks, at(0, 5));
        log.put(1, at(0, 500), marks, at(1, BLOCKS - block_count));
        log.put(2, at(1, BLOCKS - block_count), marks, at(0, 700));
        let source = log.source();
        let mut walk = Walk::new(&source);
        let RecordPlace { session, lane, chain, address, .. } = log.place(1, at(0, 500));
        let end = walk.follow(&ChainStart { session, lane, chain, address }).expect("nothing is in the way");
        assert_eq!((end, walk.report.record_count), (ChainSequence::new(2), 2));
        let runs = [at(0, 500), at(1, BLOCKS - block_count)].map(|start| AddressRun { start, count: block_count });
        assert_eq!(walk.record_runs, runs);

        // What says that it reaches beyond is no record.
        log.put(1, at(0, 500), marks, at(1, BLOCKS - 1));
        log.put(2, at(1, 500), 600, at(0, 5));
        let mut head = vec![0; BLOCK_SIZE];
        log.sims[1].read_at(at(1, 500).offset_bytes(), &mut head).expect("a healthy device");
        log.sims[1].write_at(at(1, BLOCKS - 1).offset_bytes(), &head).expect("a healthy device");
        let mut walk = Walk::new(&source);
        let end = walk.follow(&ChainStart { session, lane, chain, address }).expect("nothing is in the way");
        assert_eq!(end, ChainSequence::new(1));
    }
}

#[test]
fn sealed_record_that_names_a_block_that_is_not_there_is_refused() {
    let log = Log::new();
    let source = log.source();
    let walk = Walk::new(&source);
    let place = log.place(3, at(0, 500));
    let check = |segments: &[(u64, u64)], next: u64| {
        let segments = segments.iter().map(|(block, count)| AddressRun { start: at(0, *block), count: *count });
        let (marks, runs, macs, removals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let record = Record { next: at(0, next), marks, runs, macs, segments: segments.collect(), removals };
        walk.check_addresses(&record, &place)
    };
    let whole = (500, BLOCKS - 500);
    assert!(check(&[], 500).is_ok() && check(&[(600, 1), whole], BLOCKS - 1).is_ok());
    let refused = [
        check(&[(600, 1)], BLOCKS),
        check(&[(500, whole.1 + 1)], 500),
        check(&[(BLOCKS, 1), whole], 500),
        check(&[(0, 500)], 500),
    ];
    for error in refused {
        let error = error.expect_err("it names what is not there");
        assert_eq!(error.message(), "Record 3 of lane 0 names a block that does not exist");
    }
    // Nor may a chain start there.
    let mut walk = Walk::new(&source);
    let RecordPlace { session, lane, chain, .. } = place;
    let start = ChainStart { session, lane, chain, address: at(0, BLOCKS) };
    let error = walk.follow(&start).expect_err("it is not there");
    assert_eq!(error.message(), "The log of lane 0 is at a block that does not exist");
}

/// Who removes its key from a machine does not lose what was acknowledged.
#[test]
fn torn_block_is_kept_where_nobody_has_the_key_to_tell() {
    let mut log = Log::new();
    let mut edit = Edit::default();
    let (open, closed) = (TreeId::new(50), TreeId::new(51));
    let domains = [(open, DomainId::POOL), (closed, DomainId::new(77))];
    for (id, domain) in domains {
        let (held, own_before, state) = (HeldBlocks::default(), LeafIndex::new(0), TreeState::Living);
        edit.put_tree(TreeRecord { id, epoch: Epoch::new(1), parent: None, domain, state, held, own_before });
    }
    log.catalog.apply(edit);
    let source = log.source();
    let mut walk = Walk::new(&source);
    for (tree, _) in domains {
        let (block, sequence, generation) = (BlockIndex::new(0), Sequence::new(9), KeyGeneration::new(0));
        let run = WriteRun { tree, epoch: Epoch::new(1), block, count: 1, generation, sequence };
        let entry = Entry::new(at(0, 600), generation, sequence, 1234);
        walk.take_block(&run, 0, entry, &log.place(1, at(0, 500))).expect("a healthy device");
    }
    let found: Vec<_> = walk.found.iter().map(|found| found.content).collect();
    assert_eq!(found, [Content::Torn, Content::Unverified]);
}
