//! What a pool may hold after a crash at this moment: volumes and versions, each there or not, and the candidates of their blocks.

use super::RigLife;
use crate::model::{Model, Value, ZEROS};
use crate::sector::parse;
use rand::rngs::SmallRng;
use rok_blk::error::ErrorKind;
use rok_blk::units::BLOCK_SIZE;
use std::collections::{BTreeMap, BTreeSet};

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    There,
    /// A crash decides, for all of the same number alike.
    Open(u64),
    Gone,
}

const ZERO_BLOCK: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// What the blocks of a snapshot may hold that are not surely zeros.
pub type Content = BTreeMap<u64, Vec<Value>>;

/// A volume.
#[derive(Clone)]
pub struct Head {
    /// Whose key it is encrypted with: a clone has that of its origin.
    pub key_of: String,
    pub block_count: u64,
    /// It is like one of these, wholly.
    pub models: Vec<Model>,
    pub presence: Presence,
}

/// A snapshot.
#[derive(Clone)]
pub struct Version {
    pub block_count: u64,
    pub content: Content,
    pub presence: Presence,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Oracle {
    pub now: u64,
    pub heads: BTreeMap<String, Head>,
    pub versions: BTreeMap<String, Version>,
    next_change: u64,
}

/// The bytes of everything that was found.
pub type Found = BTreeMap<String, Vec<u8>>;

impl Oracle {
    /// The next moment.
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A number for what one change makes or removes.
    pub fn new_change(&mut self) -> Presence {
        self.next_change += 1;
        Presence::Open(self.next_change)
    }

    /// What was acknowledged before `begin` is durable.
    pub fn flushed(&mut self, begin: u64) {
        self.each_model(|model| model.flushed(begin));
    }

    /// The process died, the machine stayed.
    pub fn killed(&mut self) {
        self.each_model(Model::killed);
    }

    pub fn each_model(&mut self, change: impl Fn(&mut Model)) {
        self.heads.values_mut().flat_map(|head| &mut head.models).for_each(change);
    }

    /// Reads everything in full and compares it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn compare(&self, life: &RigLife, random: &mut SmallRng) -> Result<Found, String> {
        let mut found = Found::new();
        let mut decided: BTreeMap<u64, bool> = BTreeMap::new();
        let heads = self.heads.iter().map(|(name, head)| (name, head.block_count, head.presence));
        let versions = self.versions.iter().map(|(name, version)| (name, version.block_count, version.presence));
        for (name, block_count, presence) in heads.chain(versions) {
            let bytes = read_all(life, name, block_count, random)?;
            let is_there = bytes.is_some();
            let is_right = match presence {
                Presence::There => is_there,
                Presence::Gone => !is_there,
                Presence::Open(change) => *decided.entry(change).or_insert(is_there) == is_there,
            };
            if !is_right {
                return Err(format!("{name} is there: {is_there}, and it was {presence:?}"));
            }
            if let Some(bytes) = bytes {
                self.compare_one(name, &bytes)?;
                found.insert(name.clone(), bytes);
            }
        }
        let listed: BTreeSet<String> = life.volumes.list().into_iter().map(|info| info.name).collect();
        match listed.iter().find(|name| !found.contains_key(*name)) {
            Some(name) => Err(format!("{name} is there, and nobody made it")),
            None => Ok(found),
        }
    }

    fn compare_one(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let values = values_of(bytes).map_err(|error| format!("{name}: {error}"))?;
        if let Some(version) = self.versions.get(name) {
            return compare_values(&values, |block| version.content.get(&block).cloned())
                .map_err(|error| format!("{name}: {error}"));
        }
        let models = &self.heads[name].models;
        let compared = models.iter().map(|model| {
            compare_values(&values, |block| model.is_touched(block).then(|| model.candidate_values(block)))
        });
        let mut errors = Vec::new();
        for compared in compared {
            match compared {
                Ok(()) => return Ok(()),
                Err(error) => errors.push(error),
            }
        }
        Err(format!("{name}: {}", errors.join("; or ")))
    }
}

/// All bytes of what a reference names; `None` if there is no such thing.
fn read_all(life: &RigLife, name: &str, block_count: u64, random: &mut SmallRng) -> Result<Option<Vec<u8>>, String> {
    let open = match life.volumes.open_reference(name) {
        Ok(open) => open,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{name} cannot be opened: {error}")),
    };
    let bytes =
        life.read(&open, (0, block_count), random).map_err(|error| format!("{name} cannot be read: {error}"))?;
    Ok(Some(bytes))
}

/// Who wrote each sector of the blocks that are not zeros.
fn values_of(bytes: &[u8]) -> Result<Vec<Value>, String> {
    let value = |(block, bytes): (usize, &[u8])| {
        let mut value = ZEROS;
        if bytes != ZERO_BLOCK {
            for (place, sector) in value.iter_mut().zip(bytes.chunks_exact(512)) {
                *place = parse(sector).ok_or_else(|| format!("block {block} holds bytes that nobody wrote"))?;
            }
        }
        Ok(value)
    };
    bytes.chunks_exact(BLOCK_SIZE).enumerate().map(value).collect()
}

fn compare_values(values: &[Value], allowed: impl Fn(u64) -> Option<Vec<Value>>) -> Result<(), String> {
    for (block, value) in (0..).zip(values) {
        let allowed = allowed(block).unwrap_or_else(|| vec![ZEROS]);
        if !allowed.contains(value) {
            return Err(format!("block {block} holds {value:?}, and none of {allowed:?}"));
        }
    }
    Ok(())
}

impl Oracle {
    /// Compares what was read of a pool that lives.
    ///
    /// # Errors
    /// What is wrong.
    pub fn compare_visible(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let Some(head) = self.heads.get(name) else { return self.compare_one(name, bytes) };
        let values = values_of(bytes).map_err(|error| format!("{name}: {error}"))?;
        let compared = head
            .models
            .iter()
            .map(|model| compare_values(&values, |block| model.is_touched(block).then(|| model.visible_values(block))));
        let errors: Vec<String> = compared.filter_map(Result::err).collect();
        if errors.len() < head.models.len() { Ok(()) } else { Err(format!("{name}: {}", errors.join("; or "))) }
    }

    /// What was found behind a crash is the truth from now on.
    pub fn settle(&mut self, found: &Found) {
        self.heads.retain(|name, _| found.contains_key(name));
        self.versions.retain(|name, _| found.contains_key(name));
        for (name, bytes) in found {
            let values = values_of(bytes).expect("it was compared");
            let content =
                (0..).zip(values).filter(|(_, value)| *value != ZEROS).map(|(block, value)| (block, vec![value]));
            if let Some(head) = self.heads.get_mut(name) {
                (head.models, head.presence) = (vec![Model::of(&content.collect())], Presence::There);
            } else if let Some(version) = self.versions.get_mut(name) {
                (version.content, version.presence) = (content.collect(), Presence::There);
            }
        }
    }
}

impl Oracle {
    /// Whether a block holds its newest value; not so if it holds one that it had since it was last surely durable.
    ///
    /// # Errors
    /// If it holds something else, or what nobody wrote.
    pub fn judge_block(&self, name: &str, block: u64, value: Option<Value>) -> Result<bool, String> {
        let value = value.ok_or_else(|| format!("block {block} holds bytes that nobody wrote"))?;
        let (newest, possible) = match (self.heads.get(name), self.versions.get(name)) {
            (Some(head), _) => (head.models[0].visible_values(block), head.models[0].candidate_values(block)),
            (_, Some(version)) => (version.content.get(&block).cloned().unwrap_or_else(|| vec![ZEROS]), Vec::new()),
            _ => (Vec::new(), Vec::new()),
        };
        if newest.contains(&value) {
            return Ok(true);
        }
        if possible.contains(&value) {
            Ok(false)
        } else {
            Err(format!("block {block} holds {value:?}, and not {newest:?}"))
        }
    }
}
