//! The header of a device: any bytes, and any body under the right mac. The record of a session, which has one too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::crypto::Purpose;
use rok_blk::format::device_header::DeviceHeader;
use rok_blk::format::session::Session;
use rok_blk::units::BLOCK_SIZE;
use rok_fuzz::{bounded, canonical, master};

/// Bytes in front of the header's mac.
const HEADER_BODY_BYTES: usize = 96;
/// Bytes in front of the session's mac.
const SESSION_BODY_BYTES: usize = 56;

fn filled(input: &[u8], len: usize) -> Vec<u8> {
    let mut body = input[..input.len().min(len)].to_vec();
    body.resize(len, 0);
    body
}

fuzz_target!(|input: &[u8]| {
    let mac = master().static_mac(Purpose::DeviceHeader);
    if let Ok(header) = bounded(input.len(), || DeviceHeader::decode(input, &mac)) {
        assert!(header.encode(&mac).1.starts_with(&input[..HEADER_BODY_BYTES + 32]));
    }
    let pool = DeviceHeader::peek_pool(input);

    let mut block = filled(input, HEADER_BODY_BYTES);
    block.extend_from_slice(&mac.compute(&[&block]));
    block.resize(BLOCK_SIZE, 0);
    let decode = |block: &[u8]| DeviceHeader::decode(block, &mac);
    if let Some(header) = canonical(&block, decode, |header| header.encode(&mac).1) {
        assert_eq!(DeviceHeader::peek_pool(&block), Some(header.pool));
        assert!(pool.is_none_or(|pool| pool == header.pool));
    }

    let mac = master().static_mac(Purpose::Session);
    canonical(input, |value| Session::decode(value, &mac), |session| session.encode(&mac));
    let body = filled(input, SESSION_BODY_BYTES);
    let value = [&body[..], &mac.compute(&[&body])].concat();
    canonical(&value, |value| Session::decode(value, &mac), |session| session.encode(&mac));
});
