//! A key slot: any bytes open nothing and cost nothing, what was wrapped opens with its secret alone, and a changed slot does not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rok_blk::crypto::slot::{
    KeyError, KeySlot, SlotKind, unwrap_clear, unwrap_with_key_file, unwrap_with_passphrase, wrap_clear,
    wrap_with_key_file, wrap_with_passphrase,
};
use rok_blk::crypto::{MasterKey, Passphrase, PassphraseCosts, Purpose, Suite};
use rok_fuzz::{POOL, bounded, master};

const SLOT: u8 = 1;
/// A guess that costs more is not made here.
const TRIED_MEMORY_KIB_MAX: u32 = 16;

/// Kind, salt, parameters, wrapped key: what is stored of a slot.
const SLOT_BYTES: usize = 1 + 32 + 16 + 60;

fn slot_of(bytes: &[u8; SLOT_BYTES]) -> Option<KeySlot> {
    let (&[kind], rest) = bytes.split_first_chunk()?;
    let (salt, rest) = rest.split_first_chunk()?;
    let (parameters, rest) = rest.split_first_chunk()?;
    let wrapped = rest.first_chunk()?;
    let kind = SlotKind::from_code(kind)?;
    assert_eq!(SlotKind::from_code(kind.code()), Some(kind));
    Some(KeySlot { kind, label: String::new(), salt: *salt, parameters: *parameters, wrapped: *wrapped })
}

/// Whether it is the pool's master key, by what follows from it.
fn is_master(key: &MasterKey) -> bool {
    key.static_mac(Purpose::Session).compute(&[]) == master().static_mac(Purpose::Session).compute(&[])
}

fn open(slot: &KeySlot, secret: &[u8; 32], passphrase: Option<&Passphrase>) -> Result<MasterKey, KeyError> {
    match slot.kind {
        SlotKind::KeyFile => unwrap_with_key_file(slot, secret, &POOL, SLOT),
        SlotKind::Clear => {
            assert_eq!(unwrap_clear(slot, Suite::XtsGmac, &POOL, SLOT).err(), Some(KeyError::ClearKey));
            unwrap_clear(slot, Suite::Plain, &POOL, SLOT)
        }
        SlotKind::Passphrase => {
            let costs = PassphraseCosts::from_parameters(&slot.parameters);
            let Some((costs, passphrase)) = costs.zip(passphrase) else { return Err(KeyError::Costs) };
            assert_eq!(costs.to_parameters(), slot.parameters);
            let (memory, passes, parallelism) = (costs.memory_kib(), costs.pass_count(), costs.parallelism());
            assert_eq!(PassphraseCosts::new(memory, passes, parallelism), Some(costs));
            if memory > TRIED_MEMORY_KIB_MAX || passes > 1 {
                return Err(KeyError::Wrong);
            }
            unwrap_with_passphrase(slot, passphrase, &POOL, SLOT)
        }
    }
}

/// A slot that the secret opens, of the kind that a byte chooses.
fn wrapped(choice: u8, secret: &[u8; 32], passphrase: Option<&Passphrase>) -> KeySlot {
    let mut next = choice;
    let mut random = |bytes: &mut [u8]| {
        bytes.fill(next);
        next = next.wrapping_add(1);
    };
    match (choice % 8, passphrase) {
        (0..4, _) => wrap_with_key_file(&master(), secret, &POOL, SLOT, &mut random),
        (7, Some(passphrase)) => {
            let costs = PassphraseCosts::new(8, 1, 1).expect("the least");
            wrap_with_passphrase(&master(), passphrase, costs, &POOL, SLOT, &mut random).expect("8 KiB")
        }
        _ => wrap_clear(&master(), Suite::Plain, &POOL, SLOT, &mut random),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((bytes, rest)) = input.split_first_chunk::<SLOT_BYTES>() else { return };
    let Some((&[choice, at, bit], rest)) = rest.split_first_chunk() else { return };
    let Some((secret, text)) = rest.split_first_chunk::<32>() else { return };
    let passphrase = std::str::from_utf8(text).ok().and_then(|text| Passphrase::new(text.to_owned().into()).ok());
    if let Some(slot) = slot_of(bytes) {
        let opened = bounded(input.len(), || open(&slot, secret, passphrase.as_ref()));
        assert!(opened.is_err() || is_master(&opened.expect("it opens")), "a slot gives a key that was never wrapped");
    }

    let mut slot = wrapped(choice, secret, passphrase.as_ref());
    assert!(open(&slot, secret, passphrase.as_ref()).is_ok_and(|key| is_master(&key)));
    let at = usize::from(at) % (32 + 60);
    let byte = if at < 32 { &mut slot.salt[at] } else { &mut slot.wrapped[at - 32] };
    *byte ^= 1 << (bit % 8);
    assert!(open(&slot, secret, passphrase.as_ref()).is_err(), "a changed slot opens");
});
