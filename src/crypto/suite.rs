//! How a pool protects its bytes.

/// The encryption suite of a pool. The number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// No cipher. All macs and seals stay, under keys that anybody can read from the pool: they catch damage only.
    Plain = 0,
    /// Blocks: AES-256-XTS and 64 bits of GMAC over the ciphertext. Metadata: AES-256-GCM.
    XtsGmac = 1,
}

impl Suite {
    /// The suite with this number, if this version knows it.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Plain),
            1 => Some(Self::XtsGmac),
            _ => None,
        }
    }

    /// The number that is stored.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::Suite;

    #[test]
    fn only_known_codes_decode() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(|code| Suite::from_code(code).map(|s| (code, s))).collect();

        assert_eq!(known, [(0, Suite::Plain), (1, Suite::XtsGmac)]);
        assert!(known.iter().all(|(code, suite)| suite.code() == *code));
    }
}
