//! Passphrases, and the secrets that Argon2id (RFC 9106) makes of them.
//!
//! Argon2id makes each guess cost memory and time. What it costs is stored with the slot and comes back from a disk
//! that anybody may have changed: [`PassphraseCosts`] exist only within named limits.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use std::ops::RangeInclusive;
use zeroize::Zeroizing;

use super::derive::KEY_BYTES;
use super::slot::{KeyError, SLOT_PARAMETERS_BYTES};

/// Bytes of a passphrase. A shorter one is guessed whatever a guess costs.
pub const PASSPHRASE_BYTES: RangeInclusive<usize> = 8..=512;

/// Memory of a guess in KiB. The upper limit, 1 GiB, is what a changed superblock can make a process allocate.
const MEMORY_KIB: RangeInclusive<u32> = 8..=1 << 20;
const PASS_COUNT: RangeInclusive<u32> = 1..=32;
const PARALLELISM: RangeInclusive<u32> = 1..=16;
/// Argon2 needs this much memory for each part that can be computed beside the others.
const MEMORY_KIB_FOR_EACH: u32 = 8;

/// A line of text that opens a slot. Its bytes count, as UTF-8, unchanged.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl_opaque_debug!(Passphrase);

/// Why a text is no passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// It is too short or too long.
    #[error("A passphrase has {} to {} bytes", PASSPHRASE_BYTES.start(), PASSPHRASE_BYTES.end())]
    Size,
    /// It has characters that cannot be typed at a prompt.
    #[error("A passphrase is one line of text without control characters")]
    Characters,
}

impl Passphrase {
    /// The passphrase with this text.
    ///
    /// # Errors
    /// [`PassphraseError`] for a text that is not within [`PASSPHRASE_BYTES`] or has control characters.
    pub fn new(text: Zeroizing<String>) -> Result<Self, PassphraseError> {
        if !PASSPHRASE_BYTES.contains(&text.len()) {
            return Err(PassphraseError::Size);
        }
        if text.chars().any(char::is_control) {
            return Err(PassphraseError::Characters);
        }
        Ok(Self(text))
    }

    /// The text, to hand it to a daemon.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The secret that stands for the passphrase under this salt: 32 bytes of Argon2id, version 0x13.
    ///
    /// # Errors
    /// [`KeyError::Memory`] if the memory that `costs` ask for is not there.
    pub(super) fn stretch(&self, salt: &[u8], costs: PassphraseCosts) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
        hash(&Argon2::new(Algorithm::Argon2id, Version::V0x13, costs.params()), self.0.as_bytes(), salt)
    }
}

fn hash(argon: &Argon2<'_>, passphrase: &[u8], salt: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    let mut memory: Zeroizing<Vec<Block>> = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(argon.params().block_count()).map_err(|_| KeyError::Memory)?;
    memory.resize(argon.params().block_count(), Block::new());
    let mut secret = Zeroizing::new([0; KEY_BYTES]);
    argon
        .hash_password_into_with_memory(passphrase, salt, secret.as_mut_slice(), memory.as_mut_slice())
        .expect("the lengths are within the limits of Argon2 and the memory is what it asked for");
    Ok(secret)
}

/// What one guess at a passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassphraseCosts {
    memory_kib: u32,
    pass_count: u32,
    parallelism: u32,
}

impl PassphraseCosts {
    /// RFC 9106, section 4, second recommended option: 64 MiB, 3 passes, parallelism 4.
    pub const DEFAULT: Self = Self { memory_kib: 64 << 10, pass_count: 3, parallelism: 4 };

    /// Within the limits, or `None`.
    #[must_use]
    pub fn new(memory_kib: u32, pass_count: u32, parallelism: u32) -> Option<Self> {
        let is_within = MEMORY_KIB.contains(&memory_kib)
            && PASS_COUNT.contains(&pass_count)
            && PARALLELISM.contains(&parallelism)
            && memory_kib >= MEMORY_KIB_FOR_EACH * parallelism;
        is_within.then_some(Self { memory_kib, pass_count, parallelism })
    }

    /// The costs in a slot's parameters, or `None` if they are out of their limits or a reserved byte is not zero.
    #[must_use]
    pub fn from_parameters(parameters: &[u8; SLOT_PARAMETERS_BYTES]) -> Option<Self> {
        let (words, _) = parameters.as_chunks::<4>();
        let word = |index: usize| u32::from_le_bytes(words[index]);
        if word(3) != 0 {
            return None;
        }
        Self::new(word(0), word(1), word(2))
    }

    /// As a slot's parameters.
    #[must_use]
    pub fn to_parameters(self) -> [u8; SLOT_PARAMETERS_BYTES] {
        let mut parameters = [0; SLOT_PARAMETERS_BYTES];
        parameters[..4].copy_from_slice(&self.memory_kib.to_le_bytes());
        parameters[4..8].copy_from_slice(&self.pass_count.to_le_bytes());
        parameters[8..12].copy_from_slice(&self.parallelism.to_le_bytes());
        parameters
    }

    /// Memory of a guess, in KiB.
    #[must_use]
    pub const fn memory_kib(self) -> u32 {
        self.memory_kib
    }

    /// How often a guess goes over that memory.
    #[must_use]
    pub const fn pass_count(self) -> u32 {
        self.pass_count
    }

    /// How many parts of a guess can be computed beside each other.
    #[must_use]
    pub const fn parallelism(self) -> u32 {
        self.parallelism
    }

    fn params(self) -> Params {
        Params::new(self.memory_kib, self.pass_count, self.parallelism, Some(KEY_BYTES))
            .expect("costs are within the limits of Argon2")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::{AssociatedData, ParamsBuilder};

    fn passphrase(text: &str) -> Result<Passphrase, PassphraseError> {
        Passphrase::new(Zeroizing::new(text.to_owned()))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 9106, section 5.3. It has a secret and associated data, which slots do not use.
    #[test]
    fn argon2id_gives_the_vector_of_its_rfc() {
        let params = ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .output_len(32)
            .data(AssociatedData::new(&[4; 12]).expect("short enough"))
            .build()
            .expect("the RFC's own");
        let argon =
            Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).expect("short enough");

        let tag = hash(&argon, &[1; 32], &[2; 16]).expect("32 KiB are there");

        assert_eq!(hex(&tag[..]), "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659");
    }

    /// From the tests of the reference implementation, phc-winner-argon2: 64 MiB, 2 passes, parallelism 1.
    #[test]
    fn stretching_gives_what_the_reference_implementation_gives() {
        let costs = PassphraseCosts::new(64 << 10, 2, 1).expect("within the limits");

        let secret = passphrase("password").expect("8 bytes").stretch(b"somesalt", costs).expect("64 MiB are there");

        assert_eq!(hex(&secret[..]), "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7");
    }

    #[test]
    fn passphrases_are_one_line_of_8_to_512_bytes() {
        let longest = "a".repeat(512);
        for text in ["12345678", "ööää", "with spaces in it ", longest.as_str()] {
            assert_eq!(passphrase(text).expect(text).expose(), text);
        }
        for text in ["", "1234567", "öää", &"a".repeat(513)] {
            assert_eq!(passphrase(text).err(), Some(PassphraseError::Size), "{text}");
        }
        for text in ["two\nlines", "12345678\n", "12345678\r", "a\ttabulator", "nothing\0more"] {
            assert_eq!(passphrase(text).err(), Some(PassphraseError::Characters), "{text:?}");
        }
    }

    #[test]
    fn debug_prints_no_passphrase() {
        assert_eq!(format!("{:?}", passphrase("12345678").expect("8 bytes")), "Passphrase");
    }

    #[test]
    fn costs_come_back_from_their_parameters() {
        for costs in [PassphraseCosts::DEFAULT, PassphraseCosts::new(1 << 20, 32, 16).expect("the most")] {
            assert_eq!(PassphraseCosts::from_parameters(&costs.to_parameters()), Some(costs));
        }
        assert_eq!(PassphraseCosts::new(65_536, 3, 4), Some(PassphraseCosts::DEFAULT));
        let PassphraseCosts { memory_kib, pass_count, parallelism } = PassphraseCosts::DEFAULT;
        let costs = PassphraseCosts::DEFAULT;
        assert_eq!(
            (costs.memory_kib(), costs.pass_count(), costs.parallelism()),
            (memory_kib, pass_count, parallelism)
        );
    }

    #[test]
    fn costs_out_of_their_limits_are_refused() {
        let least = (8, 1, 1);
        assert!(PassphraseCosts::new(least.0, least.1, least.2).is_some());
        let refused = [
            (7, 1, 1),
            (8, 0, 1),
            (8, 1, 0),
            (8, 1, 2),
            ((1 << 20) + 1, 1, 1),
            (u32::MAX, 1, 1),
            (8, 33, 1),
            (8, u32::MAX, 1),
            (1 << 20, 1, 17),
            (1 << 20, 1, u32::MAX),
        ];
        for (memory_kib, pass_count, parallelism) in refused {
            let mut parameters = [0; SLOT_PARAMETERS_BYTES];
            for (place, word) in parameters.chunks_exact_mut(4).zip([memory_kib, pass_count, parallelism]) {
                place.copy_from_slice(&word.to_le_bytes());
            }
            assert_eq!(PassphraseCosts::from_parameters(&parameters), None, "{memory_kib} {pass_count} {parallelism}");
        }
        for reserved in 12..SLOT_PARAMETERS_BYTES {
            let mut parameters = PassphraseCosts::DEFAULT.to_parameters();
            parameters[reserved] = 1;
            assert_eq!(PassphraseCosts::from_parameters(&parameters), None, "byte {reserved}");
        }
    }
}
