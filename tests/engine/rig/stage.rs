//! Requests and changes on a rig, each noted in the oracle before it begins and when it ends: so the oracle is right at each
//! moment between, whatever fails.

mod catalog;
mod growth;
mod looks;
mod superblock;
mod upkeep;

use super::oracle::{Head, Oracle, Presence};
use super::{Answers, Rig, RigLife};
use crate::model::{Model, Value, ZEROS};
use crate::sector::fill;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rok_blk::disk::IoBuffer;
use rok_blk::error::{Error, ErrorKind, IoError};
use rok_blk::units::{BLOCK_SIZE, BLOCK_SIZE_U64};
use rok_blk::volume::{Completion, NewVolume, RemoveMode};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

const SECTORS: u64 = 8;
const SECTOR: u64 = 512;

/// What a request in flight is about.
enum Pending {
    Write { name: String, blocks: Range<u64>, write: u64, is_fua: bool },
    Flush { begin: u64 },
    Other,
}

/// Why something was not done.
#[derive(Debug)]
pub enum Refusal {
    Request(IoError),
    Control(Error),
    /// It was not answered: the machine has died.
    Dead,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Control(error)
    }
}

impl Refusal {
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Request(error) => *error == IoError::NoSpace,
            Self::Control(error) => error.kind() == ErrorKind::NoSpace,
            Self::Dead => false,
        }
    }
}

/// What an action came to.
pub type Done = Result<(), Refusal>;

/// A rig and its oracle.
pub struct Stage {
    pub rig: Rig,
    pub life: Option<RigLife>,
    pub oracle: Arc<Mutex<Oracle>>,
    pub random: SmallRng,
    /// Whether the pool was made.
    pub is_made: bool,
    /// Whether it was closed last.
    pub is_closed: bool,
    pending: BTreeMap<u64, Pending>,
    next_cookie: u64,
    next_write: u64,
    next_id: u128,
}

impl Stage {
    /// On a machine that has a pool without volumes.
    pub fn new(rig: Rig, seed: u64) -> Self {
        Self {
            rig,
            life: None,
            oracle: Arc::default(),
            random: SmallRng::seed_from_u64(seed),
            is_made: false,
            is_closed: false,
            pending: BTreeMap::new(),
            next_cookie: 1,
            next_write: 1,
            next_id: 1,
        }
    }

    /// Another one at the same moment, when nobody has the pool open.
    pub fn image(&self, seed: u64) -> Self {
        assert!(self.life.is_none() && self.pending.is_empty(), "a life cannot be copied");
        Self {
            rig: self.rig.image(),
            life: None,
            oracle: Arc::new(Mutex::new(self.oracle.lock().clone())),
            random: SmallRng::seed_from_u64(seed),
            pending: BTreeMap::new(),
            ..*self
        }
    }

    /// Leaves numbers of writes out, which are what is written.
    pub fn skip_writes(&mut self, count: u64) {
        self.next_write += count;
    }

    pub fn life(&self) -> &RigLife {
        self.life.as_ref().expect("the pool is open")
    }

    /// Makes a pool.
    pub fn create_pool(&mut self) -> Done {
        self.rig.create_pool()?;
        self.is_made = true;
        Ok(())
    }

    /// Opens the pool.
    pub fn open(&mut self) -> Done {
        self.is_closed = false;
        self.life = Some(self.rig.open()?);
        Ok(())
    }

    fn new_id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    fn completion(&mut self, pending: Pending) -> Completion {
        self.next_cookie += 1;
        self.pending.insert(self.next_cookie, pending);
        Completion { owner: 0, cookie: self.next_cookie }
    }

    fn lane(&mut self) -> usize {
        let count = usize::from(self.rig.settings.lane_count);
        self.random.random_range(0..count)
    }

    /// Makes a volume.
    pub fn create(&mut self, name: &str, block_count: u64, has_own_key: bool) -> Done {
        let presence = self.oracle.lock().new_change();
        let key_of = if has_own_key { name.to_owned() } else { String::new() };
        let head = Head { key_of, block_count, models: vec![Model::default()], presence };
        self.oracle.lock().heads.insert(name.to_owned(), head);
        let id = self.new_id();
        let new = NewVolume::new(id, name, block_count * BLOCK_SIZE_U64);
        let volumes = &self.life().volumes;
        if has_own_key {
            volumes.create_with_own_key(&new, &mut super::filler(id.as_u64_pair().1))?;
        } else {
            volumes.create(&new)?;
        }
        self.set_presence(&[name.to_owned()], Presence::There);
        Ok(())
    }

    fn set_presence(&mut self, names: &[String], presence: Presence) {
        let oracle = &mut *self.oracle.lock();
        for name in names {
            let head = oracle.heads.get_mut(name).map(|head| &mut head.presence);
            let version = oracle.versions.get_mut(name).map(|version| &mut version.presence);
            *head.or(version).expect("it is known") = presence;
        }
    }

    /// Whether it was ever made: what was refused may be missing.
    fn is_known(&self, name: &str) -> bool {
        self.oracle.lock().heads.contains_key(name)
    }

    /// Begins a write of whole blocks.
    pub fn write(&mut self, name: &str, blocks: Range<u64>, is_fua: bool) {
        if !self.is_known(name) {
            return;
        }
        let bytes = usize::try_from(blocks.end - blocks.start).expect("small") * BLOCK_SIZE;
        let write = self.next_write;
        let source = IoBuffer::allocate(bytes);
        source.with_bytes_mut(|bytes| fill(bytes, write));
        let values = vec![[write; 8]; bytes / BLOCK_SIZE];
        self.begin(name, blocks.start * BLOCK_SIZE_U64, (blocks, values), is_fua, Some(source));
    }

    /// Begins a write of some sectors, of blocks that hold what is known.
    pub fn write_sectors(&mut self, name: &str, sectors: Range<u64>, is_fua: bool) {
        if !self.is_known(name) {
            return;
        }
        let write = self.next_write;
        let Some(content) = self.content_with(name, &sectors, write) else {
            return self.write(name, sectors.start / SECTORS..sectors.end.div_ceil(SECTORS), is_fua);
        };
        let source = IoBuffer::allocate(usize::try_from((sectors.end - sectors.start) * SECTOR).expect("small"));
        source.with_bytes_mut(|bytes| fill(bytes, write));
        self.begin(name, sectors.start * SECTOR, content, is_fua, Some(source));
        // The model does not follow another write that meets it.
        let _is_answered = self.settle();
    }

    /// What blocks hold when this number is in some of their sectors; `None` if it is not known what the others hold.
    fn content_with(&self, name: &str, sectors: &Range<u64>, number: u64) -> Option<(Range<u64>, Vec<Value>)> {
        let blocks = sectors.start / SECTORS..sectors.end.div_ceil(SECTORS);
        let oracle = self.oracle.lock();
        let model = &oracle.heads[name].models[0];
        let mut values = blocks.clone().map(|block| model.certain(block)).collect::<Option<Vec<Value>>>()?;
        for sector in sectors.clone() {
            let block = usize::try_from(sector / SECTORS - blocks.start).expect("small");
            values[block][usize::try_from(sector % SECTORS).expect("small")] = number;
        }
        Some((blocks, values))
    }

    /// Removes blocks; what is under way ends first.
    pub fn remove_blocks(&mut self, name: &str, blocks: Range<u64>, mode: RemoveMode, is_fua: bool) -> Done {
        self.settle()?;
        if !self.is_known(name) {
            return Ok(());
        }
        let values = vec![ZEROS; usize::try_from(blocks.end - blocks.start).expect("small")];
        let range = (blocks.start * BLOCK_SIZE_U64, (blocks.end - blocks.start) * BLOCK_SIZE_U64);
        self.begin_removal(name, range, (blocks, values), mode, is_fua)
    }

    /// Makes sectors zeros, of blocks that hold what is known; what is under way ends first.
    pub fn zero_sectors(&mut self, name: &str, sectors: Range<u64>, mode: RemoveMode, is_fua: bool) -> Done {
        assert!(mode != RemoveMode::Discard, "it leaves parts of blocks");
        self.settle()?;
        if !self.is_known(name) {
            return Ok(());
        }
        let Some(content) = self.content_with(name, &sectors, 0) else { return Ok(()) };
        let range = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
        self.begin_removal(name, range, content, mode, is_fua)?;
        // The model does not follow another write that meets it.
        let _is_answered = self.settle();
        Ok(())
    }

    fn begin_removal(
        &mut self,
        name: &str,
        range: (u64, u64),
        content: (Range<u64>, Vec<Value>),
        mode: RemoveMode,
        is_fua: bool,
    ) -> Done {
        let completion = self.note(name, content, self.next_write, is_fua);
        let open = match self.life().volumes.open(name) {
            Ok(open) => open,
            Err(error) => {
                drop(self.forget(completion));
                return Err(error.into());
            }
        };
        let lane = self.lane();
        self.life().lanes[lane].remove(open.volume(), range, mode, is_fua, completion);
        Ok(())
    }

    fn begin(
        &mut self,
        name: &str,
        offset: u64,
        content: (Range<u64>, Vec<Value>),
        is_fua: bool,
        source: Option<IoBuffer>,
    ) {
        let write = self.next_write;
        let completion = self.note(name, content, write, is_fua);
        let Ok(open) = self.life().volumes.open(name) else { return drop(self.forget(completion)) };
        let lane = self.lane();
        let source = source.expect("a write has bytes");
        self.life().lanes[lane].write(open.volume(), offset, source, is_fua, completion);
    }

    fn note(&mut self, name: &str, (blocks, values): (Range<u64>, Vec<Value>), write: u64, is_fua: bool) -> Completion {
        self.next_write += 1;
        {
            let oracle = &mut *self.oracle.lock();
            let now = oracle.tick();
            for model in &mut oracle.heads.get_mut(name).expect("it is known").models {
                blocks.clone().zip(&values).for_each(|(block, value)| model.begin(block, write, *value, now));
            }
        }
        self.completion(Pending::Write { name: name.to_owned(), blocks, write, is_fua })
    }

    /// The volume is gone or cannot be opened: the write ends as it began.
    fn forget(&mut self, completion: Completion) -> Done {
        self.take(vec![(completion, Err(IoError::Io))])
    }

    /// Begins a flush.
    pub fn flush(&mut self) {
        let begin = self.oracle.lock().tick();
        let completion = self.completion(Pending::Flush { begin });
        let lane = self.lane();
        self.life().lanes[lane].flush(completion);
    }

    /// Lets a part of what is under way happen.
    pub fn progress(&mut self, steps: u32) -> Done {
        let mut result = Ok(());
        for _ in 0..steps {
            let mut answers = Answers::new();
            let life = self.life.as_ref().expect("the pool is open");
            life.turn(&mut answers);
            life.progress(&mut self.random);
            result = result.and(self.take(answers));
        }
        result
    }

    /// Lets everything end that is under way; the first error of all answers.
    pub fn settle(&mut self) -> Done {
        let mut answers = Answers::new();
        let life = self.life.as_ref().expect("the pool is open");
        let is_settled = life.settle(&mut answers, &mut self.random);
        let result = self.take(answers);
        if is_settled { result } else { result.and(Err(Refusal::Dead)) }
    }

    /// Notes answers; the first error of them.
    fn take(&mut self, answers: Answers) -> Done {
        let mut first = Ok(());
        for (completion, result) in answers {
            let oracle = &mut *self.oracle.lock();
            let now = oracle.tick();
            match self.pending.remove(&completion.cookie).expect("each request is answered once") {
                Pending::Write { name, blocks, write, is_fua } => {
                    for model in &mut oracle.heads.get_mut(&name).expect("it is known").models {
                        blocks.clone().for_each(|block| model.end(block, write, result.is_ok(), is_fua, now));
                    }
                }
                Pending::Flush { begin } if result.is_ok() => oracle.flushed(begin),
                Pending::Flush { .. } | Pending::Other => {}
            }
            if let Err(error) = result {
                first = first.and(Err(Refusal::Request(error)));
            }
        }
        first
    }

    /// Reads all of a volume or version and compares it with what it must hold now.
    ///
    /// # Panics
    /// If it holds something else.
    pub fn read(&mut self, name: &str) -> Done {
        self.settle()?;
        let open = self.life().volumes.open_reference(name)?;
        let block_count = open.volume().size_bytes() / BLOCK_SIZE_U64;
        let life = self.life.as_ref().expect("the pool is open");
        let bytes = life.read(&open, (0, block_count), &mut self.random).map_err(Refusal::Request)?;
        let compared = self.oracle.lock().compare_visible(name, &bytes);
        compared.unwrap_or_else(|error| panic!("{error}"));
        Ok(())
    }

    /// The life ends at once, and what is under way with it.
    pub fn end_life(&mut self) {
        self.pending.clear();
        self.life = None;
    }

    /// Opens the pool and takes what is there for the truth.
    ///
    /// # Errors
    /// What is wrong.
    pub fn recover(&mut self) -> Result<(), String> {
        self.open().map_err(|error| format!("the pool does not open: {error:?}"))?;
        self.life().check()?;
        let oracle = self.oracle.lock().clone();
        let life = self.life.as_ref().expect("the pool is open");
        let found = oracle.compare(life, &mut self.random)?;
        self.oracle.lock().settle(&found);
        Ok(())
    }
}
