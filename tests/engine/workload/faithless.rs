//! A device that does not do what it acknowledges: its flushes lie, a write goes nowhere, or to another place. That is told
//! whenever anything survives that was written later; else the pool is as it was at an earlier time, block by block.

use super::volumes::name;
use super::{VOLUME_COUNT, Workload, value_of};
use crate::model::{Model, Value};
use crate::world::End;
use rand::Rng;
use rok_blk::error::ErrorKind;
use rok_blk::units::BLOCK_SIZE_U64;
use std::collections::BTreeMap;

/// What a device does from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Lies,
    Loses,
    Misdirects,
}

/// What was acknowledged meanwhile.
pub(super) struct Faithless {
    deed: Deed,
    /// Writes that had gone astray on all devices before.
    strays_before: u64,
    /// When each flush began, and when it was acknowledged.
    flushes: Vec<(u64, u64)>,
}

impl Workload {
    /// Whether what a device acknowledges now may not be so. A lost write takes nothing away that was flushed before it.
    pub(super) fn is_device_faithless(&self) -> bool {
        let strays = self.world.device_counters().strays;
        self.faithless.as_ref().is_some_and(|it| it.deed != Deed::Loses || strays > it.strays_before)
    }

    /// A flush was acknowledged.
    pub(super) fn flush_done(&mut self, begin: u64) {
        if self.is_device_faithless() {
            let now = self.now;
            self.faithless.as_mut().expect("it is").flushes.push((begin, now));
        } else {
            self.models.iter_mut().for_each(|model| model.flushed(begin));
        }
    }

    /// The end of a seed: some operations on such a device, a crash, and what is left.
    pub(super) fn end_faithless(&mut self) {
        let deed = [Deed::Lies, Deed::Loses, Deed::Misdirects][self.world.random.random_range(0..3)];
        let strays_before = self.world.device_counters().strays;
        self.faithless = Some(Faithless { deed, strays_before, flushes: Vec::new() });
        let nth = self.world.random.random_range(1..12);
        let place = self.world.random.random_range(0..u64::MAX);
        let device = self.world.any_device();
        let blocks = rok_blk::disk::Device::size_bytes(device) / BLOCK_SIZE_U64;
        match deed {
            Deed::Lies => device.set_lying(true),
            Deed::Loses => device.lose_nth_write(nth),
            Deed::Misdirects => device.misdirect_nth_write(nth, place % blocks * BLOCK_SIZE_U64),
        }
        for _ in 0..self.world.random.random_range(5..60) {
            self.now += 1;
            let volume = self.random_volume();
            match self.world.random.random_range(0..16) {
                0..9 => self.write_up_to(volume, 8),
                9 => self.remove_up_to(volume, 8),
                10 => {
                    let mut life = self.life.take().expect("a life was begun");
                    self.world.checkpoints_alone(&mut life);
                    self.life = Some(life);
                }
                _ => self.flush(),
            }
            (0..self.world.random.random_range(0..12)).for_each(|_| self.step());
        }
        if self.world.random.random_bool(0.5) {
            self.drain();
        }
        self.world.clear_faults();
        self.pending.clear();
        let end = if deed == Deed::Lies || self.world.random.random_bool(0.5) { End::PowerLoss } else { End::Kill };
        let life = self.life.take();
        self.note(|| format!("a device that {deed:?}: {end:?}"));
        self.world.crash(life, end);
        self.judge_faithless();
    }

    fn judge_faithless(&mut self) {
        let Faithless { deed, strays_before, flushes } = self.faithless.take().expect("it was");
        let counters = self.world.device_counters();
        let is_met = if deed == Deed::Lies { counters.lies > 0 } else { counters.strays > strays_before };
        self.world.counts.faithless += u64::from(is_met);
        let mut life = match self.world.open() {
            Ok(life) => life,
            Err(error) => {
                assert!(is_met && error.kind() == ErrorKind::Integrity, "{deed:?}, met {is_met}: {error}");
                self.world.counts.faithless_refused += 1;
                return;
            }
        };
        for volume in 0..VOLUME_COUNT {
            life.handles.push(life.volumes.open(&name(volume)).expect("the volume is there"));
        }
        self.life = Some(life);
        let mut found: Vec<BTreeMap<u64, Value>> = Vec::new();
        for volume in 0..VOLUME_COUNT {
            let handle = self.life().handles.remove(volume);
            let contents = self.read_all(&handle, &self.models[volume].touched());
            self.life().handles.insert(volume, handle);
            assert!(is_met || contents.iter().all(|(_, content)| content.is_ok()), "{deed:?} was not met");
            self.world.counts.faithless_errors +=
                contents.iter().filter(|(_, content)| content.is_err()).count() as u64;
            let readable = contents.into_iter().filter_map(|(block, content)| Some((block, content.ok()?)));
            found.push(
                readable.map(|(at, content)| (at, content.with_bytes(|bytes| value_of(volume, at, bytes)))).collect(),
            );
        }
        self.check_found(&format!("{deed:?}"), &found);
        // What was written behind a flush is there: so is all that was acknowledged before it, or it is an error.
        let begins = |models: &[Model]| {
            let values = models.iter().zip(&found).flat_map(|(model, found)| found.iter().map(move |it| (model, it)));
            values.filter_map(|(model, (block, value))| model.begin_of(*block, *value)).max()
        };
        let newest = begins(&self.models).unwrap_or_default();
        if let Some((begin, _)) = flushes.into_iter().filter(|(_, end)| *end < newest).max() {
            self.models.iter_mut().for_each(|model| model.flushed(begin));
            self.check_found(
                &format!("{deed:?}, and something is there that was written behind the flush of {begin}"),
                &found,
            );
            self.world.counts.faithless_ordered += 1;
        }
    }

    fn check_found(&self, what: &str, found: &[BTreeMap<u64, Value>]) {
        for (volume, (model, found)) in self.models.iter().zip(found).enumerate() {
            for (block, value) in found {
                let candidates = model.candidate_values(*block);
                assert!(
                    candidates.contains(value),
                    "{what}: block {block} of volume {volume} holds {value:?}, possible are {candidates:?}"
                );
            }
        }
    }
}
