//! The system's source of random bytes.

/// Fills `bytes` from the operating system's generator; fit for keys, salts and ids.
///
/// # Panics
/// If the system has no random source, without which no key may be made.
pub fn system_random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source does not fail once it is seeded");
}

#[cfg(test)]
mod tests {
    use super::system_random;

    #[test]
    fn each_call_gives_other_bytes() {
        let (mut first, mut second) = ([0; 32], [0; 32]);

        system_random(&mut first);
        system_random(&mut second);

        assert_ne!(first, [0; 32]);
        assert_ne!(first, second);
    }
}
