//! A copy of the superblock: any bytes, and any body under the right mac and checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::crypto::Purpose;
use rok_blk::format::superblock::{self, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock};
use rok_fuzz::{bounded, canonical, master};

/// Bytes in front of mac and checksum.
const BODY_BYTES: usize = SUPERBLOCK_BYTES - 64;

fuzz_target!(|input: &[u8]| {
    let mac = master().static_mac(Purpose::Superblock);
    let _is_whole = bounded(input.len(), || Superblock::decode(input)).is_ok();

    let mut copy = input[..input.len().min(BODY_BYTES)].to_vec();
    copy.resize(BODY_BYTES, 0);
    copy.extend_from_slice(&mac.compute(&[&copy]));
    copy.extend_from_slice(blake3::hash(&copy).as_bytes());
    assert!(superblock::verify(&copy, &mac));
    let Some(superblock) = canonical(&copy, Superblock::decode, |superblock| superblock.encode(&mac).1) else { return };
    assert_eq!(superblock.encode(&mac).0, SUPERBLOCK_OFFSETS[usize::from(superblock.generation % 2 == 1)]);

    copy[BODY_BYTES] ^= 1;
    assert!(!superblock::verify(&copy, &mac) && Superblock::decode(&copy).is_err());
});
