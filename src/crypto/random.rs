//! The system's source of random bytes.

/// Fills `bytes` from the operating system's generator (getrandom(2)); fit for keys, salts and ids. Not from that of the crypto library,
/// which first gathers entropy from the jitter of the processor's timing: a third of what a daemon did until it was ready.
///
/// # Panics
/// If the system has no random source, without which no key may be made.
pub fn system_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the system's random source does not fail once it is seeded");
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
