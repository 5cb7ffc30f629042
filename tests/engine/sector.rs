//! Contents of sectors that say who wrote them.

/// Fills whole sectors with what says who wrote them.
pub fn fill(bytes: &mut [u8], write: u64) {
    for sector in bytes.chunks_exact_mut(512) {
        for (index, word) in (0_u64..).zip(sector.chunks_exact_mut(8)) {
            word.copy_from_slice(
                &(write.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xff51)).to_le_bytes(),
            );
        }
        sector[..8].copy_from_slice(&write.to_le_bytes());
    }
}

/// Who wrote a sector; `None` if it is neither zeros nor what [`fill`] writes.
pub fn parse(sector: &[u8]) -> Option<u64> {
    let mut first = [0; 8];
    first.copy_from_slice(&sector[..8]);
    let write = u64::from_le_bytes(first);
    let mut expected = vec![0; 512];
    if write != 0 {
        fill(&mut expected, write);
    }
    (sector == expected).then_some(write)
}
