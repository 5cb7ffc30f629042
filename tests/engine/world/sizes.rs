//! How large the devices of a seed are.

/// Sizes of the devices. Two fifths of the seeds have more than one; together they hold about as much as the one of the
/// others, and they differ in size.
pub const fn device_bytes(seed: u64, is_short_of_space: bool) -> &'static [u64] {
    const MIB: u64 = 1 << 20;
    match (seed % 5, is_short_of_space) {
        (3, true) => &[4 * MIB, 2 * MIB],
        (4, true) => &[2 * MIB, 3 * MIB, 2 * MIB],
        (_, true) => &[5 * MIB],
        (3, false) => &[20 * MIB, 28 * MIB],
        (4, false) => &[24 * MIB, 17 * MIB, 9 * MIB],
        (0, false) => &[160 * MIB],
        (_, false) => &[48 * MIB],
    }
}
