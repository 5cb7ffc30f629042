//! A record of the log: any bytes, and any body under the right seal, so that the decoder of the body is reached.
//!
//! The first byte chooses. What is sealed has its head as the specification tells it, not as the encoder writes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::crypto::SessionKeys;
use rok_blk::format::record::{BATCH_BLOCKS_MAX, RECORD_BLOCKS_MAX, Record, RecordHead, RecordPlace};
use rok_blk::units::{Address, BLOCK_SIZE, ChainSequence, DeviceIndex, LaneIndex};
use rok_fuzz::{POOL, SESSION, bounded, canonical, session_keys};

const HEAD_BYTES: usize = 48;
const CLEAR_BYTES: usize = 32;

fn place() -> RecordPlace {
    let (lane, chain) = (LaneIndex::new(1), ChainSequence::new(9));
    RecordPlace { pool: POOL, session: SESSION, lane, chain, address: Address::new(DeviceIndex::new(0), 4000) }
}

fn sealed(body: &[u8], place: &RecordPlace, keys: &SessionKeys) -> Vec<u8> {
    let block_count = (HEAD_BYTES + body.len()).div_ceil(BLOCK_SIZE);
    let mut bytes = b"RREC\x01\x00".to_vec();
    bytes.extend_from_slice(&place.lane.get().to_le_bytes());
    bytes.extend_from_slice(&place.session.get().to_le_bytes());
    bytes.extend_from_slice(&place.chain.get().to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).expect("a few blocks").to_le_bytes());
    bytes.extend_from_slice(&u16::try_from(block_count).expect("a few blocks").to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    assert_eq!(bytes.len(), CLEAR_BYTES);
    let associated = [&bytes[..], place.pool.as_bytes(), &place.address.bits().to_le_bytes()].concat();
    let mut body = body.to_vec();
    let tag = keys.seal_record(place.lane, place.chain, &associated, &mut body);
    bytes.extend_from_slice(&tag);
    bytes.extend_from_slice(&body);
    bytes.resize(block_count * BLOCK_SIZE, 0);
    bytes
}

fn check(record: &Record) {
    let in_runs: u64 = record.runs.iter().map(|run| u64::from(run.count)).sum();
    let in_segments: u64 = record.segments.iter().map(|segment| segment.count).sum();
    assert!(record.macs.len() <= BATCH_BLOCKS_MAX);
    assert_eq!((in_runs, in_segments), (record.macs.len() as u64, record.macs.len() as u64));
    assert!(record.runs.iter().all(|run| run.count > 0 && run.sequence.get() > 0));
    assert!(record.removals.iter().all(|removal| removal.count > 0 && removal.sequence.get() > 0));
}

fn check_bytes(bytes: &[u8], place: &RecordPlace, keys: &SessionKeys) {
    let encode = |record: &Record| {
        let mut target = vec![0xff; bytes.len()];
        record.encode(place, keys, &mut target, &mut Vec::new());
        target
    };
    if let Some(record) = canonical(bytes, |bytes| Record::decode(bytes, place, keys), encode) {
        check(&record);
        let elsewhere = RecordPlace { address: place.address.plus(1), ..*place };
        assert!(Record::decode(bytes, &elsewhere, keys).is_err());
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    let (keys, place) = (session_keys(), place());
    if choice % 2 == 1 {
        let body = &input[..input.len().min(RECORD_BLOCKS_MAX * BLOCK_SIZE - HEAD_BYTES)];
        return check_bytes(&sealed(body, &place, &keys), &place, &keys);
    }
    let Ok(head) = bounded(input.len(), || RecordHead::decode(input)) else { return };
    assert!((1..=RECORD_BLOCKS_MAX).contains(&head.block_count));
    let place = RecordPlace { session: head.session, lane: head.lane, chain: head.chain, ..place };
    let mut blocks = input.to_vec();
    blocks.resize(head.block_count * BLOCK_SIZE, 0);
    check_bytes(&blocks, &place, &keys);
});
