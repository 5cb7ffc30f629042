//! What the API answers about key slots. Nothing in it is secret.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::resource::{ApiVersion, Kind};
use crate::pool::directory::{ChangedKeySlot, KeyChange, KeySlotDescription};

/// One of the ways to unlock a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeySlot {
    /// Its number.
    pub slot: u8,
    /// What unlocks it: `key-file`, `passphrase`, `clear` (nothing), or a word for what this version cannot unlock.
    pub method: String,
    /// What each guess at its passphrase costs; null if it has none.
    pub costs: Option<KeyCosts>,
}

/// What each guess at a passphrase costs, in Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyCosts {
    /// Bytes of memory.
    #[serde(rename = "memory")]
    pub memory_bytes: u64,
    /// How often the guess goes over that memory.
    pub passes: u32,
    /// How many parts of a guess can be computed beside each other.
    pub parallelism: u32,
}

impl KeySlot {
    /// From what the engine says about a slot.
    #[must_use]
    pub fn new(slot: KeySlotDescription) -> Self {
        let costs = slot.costs.map(|costs| KeyCosts {
            memory_bytes: u64::from(costs.memory_kib()) << 10,
            passes: costs.pass_count(),
            parallelism: costs.parallelism(),
        });
        Self { slot: slot.index, method: slot.method.to_owned(), costs }
    }
}

/// The key slots in use, by number.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `KeyList`.
    pub kind: Kind,
    /// The slots.
    pub items: Vec<KeySlot>,
}

impl KeyList {
    /// From what the engine says.
    #[must_use]
    pub fn new(slots: Vec<KeySlotDescription>) -> Self {
        Self { api: ApiVersion::V1, kind: Kind::KeyList, items: slots.into_iter().map(KeySlot::new).collect() }
    }
}

/// What a request does to a key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum KeyAction {
    Add,
    Rotate,
    Remove,
}

/// What a request changed about a key slot or, as a dry run, would change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyChangeAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `KeyChange`.
    pub kind: Kind,
    /// What was asked for.
    pub action: KeyAction,
    /// The slot's number, as commands call it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Nothing was changed: this is the plan.
    pub is_dry_run: bool,
    /// The slot before; null if it was free.
    pub before: Option<KeySlot>,
    /// The slot afterwards; null if it is free.
    pub after: Option<KeySlot>,
}

impl KeyChangeAnswer {
    /// From what was asked for and what the engine did.
    ///
    /// # Panics
    /// If the slot was free before and is free afterwards: there is no such change.
    #[must_use]
    pub fn new(change: &KeyChange, is_dry_run: bool, changed: &ChangedKeySlot) -> Self {
        let action = match change {
            KeyChange::Add { .. } => KeyAction::Add,
            KeyChange::Rotate { .. } => KeyAction::Rotate,
            KeyChange::Remove { .. } => KeyAction::Remove,
        };
        let slot = changed.after.or(changed.before).expect("a change has a slot before or after it");
        Self {
            api: ApiVersion::V1,
            kind: Kind::KeyChange,
            action,
            reference: slot.index.to_string(),
            is_dry_run,
            before: changed.before.map(KeySlot::new),
            after: changed.after.map(KeySlot::new),
        }
    }
}
