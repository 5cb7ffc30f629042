//! Key slots: the master key, wrapped under keys that users hold.
//!
//! A slot is bound to its pool, its position and its kind. All kinds wrap alike: AES-256-GCM-SIV under a key that
//! HKDF derives from the user's secret and the slot's salt; a passphrase becomes a secret by Argon2id first, under the
//! same salt. Where the bytes lie is told by the superblock's format.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::derive::{KEY_BYTES, WRAPPED_KEY_BYTES, derive, unwrap, wrap};
use super::{MasterKey, Passphrase, PassphraseCosts, Random, Suite};

/// Slots of a pool.
pub const SLOT_COUNT_MAX: u8 = 8;
/// Size of a slot's parameters.
pub const SLOT_PARAMETERS_BYTES: usize = 16;

/// What opens a slot. The number is stored. 4 is reserved for a systemd credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotKind {
    /// 32 random bytes in a file.
    KeyFile = 1,
    /// Nothing: the wrapping key is derived from zeros, so that anybody can open it. Only with [`Suite::Plain`].
    Clear = 2,
    /// A passphrase, by Argon2id. Its costs are the slot's parameters.
    Passphrase = 3,
}

impl SlotKind {
    /// The kind with this number, if this version knows it.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::KeyFile),
            2 => Some(Self::Clear),
            3 => Some(Self::Passphrase),
            _ => None,
        }
    }

    /// The number that is stored.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// The master key in one wrapping. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// What opens it.
    pub kind: SlotKind,
    /// The user's word for it. It is not bound by the wrapping: the superblock's mac covers it.
    pub label: String,
    /// Random, drawn with each wrapping.
    pub salt: [u8; 32],
    /// [`PassphraseCosts`] of a passphrase, else zeros. Bound by the wrapping.
    pub parameters: [u8; SLOT_PARAMETERS_BYTES],
    /// Nonce 12, ciphertext 32, tag 16.
    pub wrapped: [u8; WRAPPED_KEY_BYTES],
}

/// Why a slot does not give the master key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The secret is not this slot's, or the slot is damaged or of another pool or position.
    #[error("the key does not open this slot")]
    Wrong,
    /// The slot has another kind than was asked for.
    #[error("the slot is of another kind")]
    OtherKind,
    /// The pool is encrypted, and a slot that anybody can open is in it.
    #[error("an encrypted pool must not have its key in the clear")]
    ClearKey,
    /// What the slot says that a guess at its passphrase costs is out of its limits.
    #[error("the slot's costs are out of their limits")]
    Costs,
    /// The memory that the slot's costs ask for is not there.
    #[error("there is not enough memory to try the passphrase")]
    Memory,
}

/// A slot that the 32 bytes of a key file open. Its label is empty.
#[must_use]
pub fn wrap_with_key_file(
    master: &MasterKey,
    key_file_bytes: &[u8; KEY_BYTES],
    pool: &Uuid,
    slot_index: u8,
    random: Random<'_>,
) -> KeySlot {
    let slot = fresh_slot(SlotKind::KeyFile, [0; SLOT_PARAMETERS_BYTES], random);
    wrap_slot(slot, master, key_file_bytes, &place(pool, slot_index), random)
}

/// The master key, if the slot is for these bytes of a key file.
///
/// # Errors
/// [`KeyError::Wrong`] for other bytes, another pool or position, or a damaged slot; [`KeyError::OtherKind`].
pub fn unwrap_with_key_file(
    slot: &KeySlot,
    key_file_bytes: &[u8; KEY_BYTES],
    pool: &Uuid,
    slot_index: u8,
) -> Result<MasterKey, KeyError> {
    unwrap_slot(SlotKind::KeyFile, slot, key_file_bytes, &place(pool, slot_index))
}

/// A slot that a passphrase opens, where each guess costs `costs`. Its label is empty.
///
/// # Errors
/// [`KeyError::Memory`].
pub fn wrap_with_passphrase(
    master: &MasterKey,
    passphrase: &Passphrase,
    costs: PassphraseCosts,
    pool: &Uuid,
    slot_index: u8,
    random: Random<'_>,
) -> Result<KeySlot, KeyError> {
    let slot = fresh_slot(SlotKind::Passphrase, costs.to_parameters(), random);
    let secret = passphrase.stretch(&slot.salt, costs)?;
    Ok(wrap_slot(slot, master, &secret, &place(pool, slot_index), random))
}

/// The master key, if the slot is for this passphrase. Costs the time and memory that the slot asks for.
///
/// # Errors
/// [`KeyError::Wrong`] for another passphrase, pool or position, or a damaged slot; [`KeyError::Costs`] before anything
/// is allocated; [`KeyError::Memory`]; [`KeyError::OtherKind`].
pub fn unwrap_with_passphrase(
    slot: &KeySlot,
    passphrase: &Passphrase,
    pool: &Uuid,
    slot_index: u8,
) -> Result<MasterKey, KeyError> {
    if slot.kind != SlotKind::Passphrase {
        return Err(KeyError::OtherKind);
    }
    let costs = PassphraseCosts::from_parameters(&slot.parameters).ok_or(KeyError::Costs)?;
    let secret = passphrase.stretch(&slot.salt, costs)?;
    unwrap_slot(SlotKind::Passphrase, slot, &secret, &place(pool, slot_index))
}

/// A slot that anybody can open, for a pool without encryption. Its label is empty.
///
/// # Panics
/// If `suite` encrypts.
#[must_use]
pub fn wrap_clear(master: &MasterKey, suite: Suite, pool: &Uuid, slot_index: u8, random: Random<'_>) -> KeySlot {
    assert!(suite == Suite::Plain, "the key of an encrypted pool must not be stored in the clear");
    let slot = fresh_slot(SlotKind::Clear, [0; SLOT_PARAMETERS_BYTES], random);
    wrap_slot(slot, master, &[0; KEY_BYTES], &place(pool, slot_index), random)
}

/// The master key of a pool without encryption.
///
/// # Errors
/// [`KeyError::ClearKey`] if `suite` encrypts; [`KeyError::Wrong`] for another pool or position, or a damaged slot;
/// [`KeyError::OtherKind`].
pub fn unwrap_clear(slot: &KeySlot, suite: Suite, pool: &Uuid, slot_index: u8) -> Result<MasterKey, KeyError> {
    if suite != Suite::Plain {
        return Err(KeyError::ClearKey);
    }
    unwrap_slot(SlotKind::Clear, slot, &[0; KEY_BYTES], &place(pool, slot_index))
}

/// A slot with a new salt, in which nothing is wrapped yet.
fn fresh_slot(kind: SlotKind, parameters: [u8; SLOT_PARAMETERS_BYTES], random: Random<'_>) -> KeySlot {
    let mut salt = [0; 32];
    random(&mut salt);
    KeySlot { kind, label: String::new(), salt, parameters, wrapped: [0; WRAPPED_KEY_BYTES] }
}

fn wrap_slot(
    slot: KeySlot,
    master: &MasterKey,
    secret: &[u8; KEY_BYTES],
    place: &[u8; PLACE_BYTES],
    random: Random<'_>,
) -> KeySlot {
    let associated = associated(slot.kind, place, &slot.parameters);
    let wrapped = wrap(&wrapping_key(secret, &slot.salt), &associated, master.expose(), random);
    KeySlot { wrapped, ..slot }
}

fn unwrap_slot(
    kind: SlotKind,
    slot: &KeySlot,
    secret: &[u8; KEY_BYTES],
    place: &[u8; PLACE_BYTES],
) -> Result<MasterKey, KeyError> {
    if slot.kind != kind {
        return Err(KeyError::OtherKind);
    }
    let associated = associated(kind, place, &slot.parameters);
    let key = unwrap(&wrapping_key(secret, &slot.salt), &associated, &slot.wrapped).ok_or(KeyError::Wrong)?;
    Ok(MasterKey::from_bytes(*key))
}

/// Pool and position.
const PLACE_BYTES: usize = 17;

fn place(pool: &Uuid, slot_index: u8) -> [u8; PLACE_BYTES] {
    let mut place = [0; PLACE_BYTES];
    place[..16].copy_from_slice(pool.as_bytes());
    place[16] = slot_index;
    place
}

fn associated(
    kind: SlotKind,
    place: &[u8; PLACE_BYTES],
    parameters: &[u8; SLOT_PARAMETERS_BYTES],
) -> [u8; PLACE_BYTES + 1 + SLOT_PARAMETERS_BYTES] {
    let mut associated = [0; PLACE_BYTES + 1 + SLOT_PARAMETERS_BYTES];
    associated[..PLACE_BYTES].copy_from_slice(place);
    associated[PLACE_BYTES] = kind.code();
    associated[PLACE_BYTES + 1..].copy_from_slice(parameters);
    associated
}

fn wrapping_key(secret: &[u8; KEY_BYTES], salt: &[u8; 32]) -> Zeroizing<[u8; KEY_BYTES]> {
    derive(secret, salt, "rok-blk key slot", &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Uuid = Uuid::from_u128(1);
    const FILE: [u8; 32] = [2; 32];

    fn master() -> MasterKey {
        MasterKey::from_bytes([3; 32])
    }

    /// Gives other bytes at each call.
    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0_u8;
        move |bytes| {
            bytes.iter_mut().for_each(|byte| {
                next = next.wrapping_add(1);
                *byte = next;
            });
        }
    }

    #[test]
    fn key_file_opens_its_slot() {
        let slot = wrap_with_key_file(&master(), &FILE, &POOL, 4, &mut counting());

        let opened = unwrap_with_key_file(&slot, &FILE, &POOL, 4).expect("the right key");

        assert_eq!(opened.expose(), master().expose());
    }

    #[test]
    fn wrong_key_file_pool_position_or_kind_is_refused() {
        let slot = wrap_with_key_file(&master(), &FILE, &POOL, 4, &mut counting());
        let other_kind = KeySlot { kind: SlotKind::Clear, ..slot.clone() };

        assert_eq!(unwrap_with_key_file(&slot, &[9; 32], &POOL, 4).err(), Some(KeyError::Wrong));
        assert_eq!(unwrap_with_key_file(&slot, &FILE, &Uuid::from_u128(2), 4).err(), Some(KeyError::Wrong));
        assert_eq!(unwrap_with_key_file(&slot, &FILE, &POOL, 5).err(), Some(KeyError::Wrong));
        assert_eq!(unwrap_with_key_file(&other_kind, &FILE, &POOL, 4).err(), Some(KeyError::OtherKind));
        assert_eq!(unwrap_clear(&other_kind, Suite::Plain, &POOL, 4).err(), Some(KeyError::Wrong));
    }

    #[test]
    fn damaged_salt_parameters_or_wrapping_is_refused() {
        let slot = wrap_with_key_file(&master(), &FILE, &POOL, 0, &mut counting());
        let mut damaged = [slot.clone(), slot.clone(), slot];
        damaged[0].salt[31] ^= 1;
        damaged[1].parameters[0] ^= 1;
        damaged[2].wrapped[59] ^= 1;

        for slot in &damaged {
            assert_eq!(unwrap_with_key_file(slot, &FILE, &POOL, 0).err(), Some(KeyError::Wrong));
        }
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(zeroize::Zeroizing::new(text.to_owned())).expect("long enough")
    }

    /// The least there is: the tests are about the slot.
    fn costs() -> PassphraseCosts {
        PassphraseCosts::new(8, 1, 1).expect("the least")
    }

    fn passphrase_slot() -> KeySlot {
        wrap_with_passphrase(&master(), &passphrase("correct horse"), costs(), &POOL, 4, &mut counting())
            .expect("8 KiB")
    }

    #[test]
    fn passphrase_opens_its_slot() {
        let slot = passphrase_slot();

        let opened = unwrap_with_passphrase(&slot, &passphrase("correct horse"), &POOL, 4).expect("the right one");

        assert_eq!(opened.expose(), master().expose());
        assert_eq!(PassphraseCosts::from_parameters(&slot.parameters), Some(costs()));
    }

    #[test]
    fn wrong_passphrase_pool_position_or_kind_is_refused() {
        let slot = passphrase_slot();
        let open = |slot: &KeySlot, text: &str, pool: u128, index| {
            unwrap_with_passphrase(slot, &passphrase(text), &Uuid::from_u128(pool), index).err()
        };
        let other_kind = KeySlot { kind: SlotKind::KeyFile, ..slot.clone() };

        assert_eq!(open(&slot, "correct horsf", 1, 4), Some(KeyError::Wrong));
        assert_eq!(open(&slot, "correct horse", 2, 4), Some(KeyError::Wrong));
        assert_eq!(open(&slot, "correct horse", 1, 5), Some(KeyError::Wrong));
        assert_eq!(open(&other_kind, "correct horse", 1, 4), Some(KeyError::OtherKind));
        assert_eq!(unwrap_with_key_file(&slot, &FILE, &POOL, 4).err(), Some(KeyError::OtherKind));
    }

    #[test]
    fn changed_salt_costs_or_wrapping_of_a_passphrase_are_refused() {
        let slot = passphrase_slot();
        let other_costs = PassphraseCosts::new(16, 1, 1).expect("within the limits").to_parameters();
        let mut damaged = [slot.clone(), slot.clone(), KeySlot { parameters: other_costs, ..slot }];
        damaged[0].salt[31] ^= 1;
        damaged[1].wrapped[59] ^= 1;

        for slot in &damaged {
            let opened = unwrap_with_passphrase(slot, &passphrase("correct horse"), &POOL, 4);
            assert_eq!(opened.err(), Some(KeyError::Wrong));
        }
    }

    /// 4 TiB: an attempt to allocate it would be `KeyError::Memory`, or the end of the process.
    #[test]
    fn costs_without_limit_are_refused_before_anything_is_allocated() {
        let mut slot = passphrase_slot();
        slot.parameters[..4].fill(0xff);

        let opened = unwrap_with_passphrase(&slot, &passphrase("correct horse"), &POOL, 4);

        assert_eq!(opened.err(), Some(KeyError::Costs));
    }

    #[test]
    fn clear_slot_opens_only_without_encryption() {
        let slot = wrap_clear(&master(), Suite::Plain, &POOL, 0, &mut counting());

        let opened = unwrap_clear(&slot, Suite::Plain, &POOL, 0).expect("anybody can open it");

        assert_eq!(opened.expose(), master().expose());
        assert_eq!(unwrap_clear(&slot, Suite::XtsGmac, &POOL, 0).err(), Some(KeyError::ClearKey));
    }

    #[test]
    #[should_panic(expected = "must not be stored in the clear")]
    fn key_of_an_encrypted_pool_is_never_wrapped_in_the_clear() {
        let _slot = wrap_clear(&master(), Suite::XtsGmac, &POOL, 0, &mut counting());
    }

    #[test]
    fn slot_holds_no_key_bytes_and_differs_each_time() {
        let mut random = counting();
        let first = wrap_with_key_file(&master(), &FILE, &POOL, 0, &mut random);
        let second = wrap_with_key_file(&master(), &FILE, &POOL, 0, &mut random);

        assert!(!first.wrapped.windows(4).any(|window| window == [3; 4] || window == [2; 4]));
        assert_ne!(first.salt, second.salt);
        assert_ne!(first.wrapped[12..], second.wrapped[12..]);
    }

    #[test]
    fn only_known_kinds_decode() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(SlotKind::from_code).collect();

        assert_eq!(known, [SlotKind::KeyFile, SlotKind::Clear, SlotKind::Passphrase]);
        assert!(known.iter().all(|kind| SlotKind::from_code(kind.code()) == Some(*kind)));
    }
}
