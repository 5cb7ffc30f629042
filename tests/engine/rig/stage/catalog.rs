//! Snapshots, clones, rollback and removals.

use super::super::oracle::{Content, Head, Presence, Version};
use super::{Done, Stage};
use crate::model::Model;
use rok_blk::error::{Error, ErrorKind};
use rok_blk::format::snapshot::Annotations;
use rok_blk::pool::{NewClone, NewSnapshot};
use rok_blk::units::BLOCK_SIZE_U64;
use rok_blk::volume::NewVolume;
use uuid::Uuid;

impl Stage {
    fn volume_id(&self, name: &str) -> Result<Uuid, Error> {
        self.life().volumes.find(name).map(|info| info.id)
    }

    fn snapshot_id(&self, version: &str) -> Result<(Uuid, u64), Error> {
        let (name, number) = version.split_once('@').expect("a version has a number");
        Ok((self.volume_id(name)?, number.parse().expect("a number")))
    }

    fn new_snapshot(&mut self, volume: Uuid) -> NewSnapshot {
        let id = self.new_id();
        let annotations = Annotations::default();
        NewSnapshot { id, volume, created_at_ms: 0, time_ms: 0, expires_at: 0, annotations }
    }

    fn next_version(&self, volume: Uuid, name: &str) -> String {
        let next = |number: Option<u64>| format!("{name}@{}", number.expect("it is there"));
        next(self.life().pool.with_catalog(|catalog, _| catalog.volume(volume).map(|volume| volume.next_snapshot)))
    }

    fn visible(&self, name: &str) -> Content {
        let model = self.oracle.lock().heads[name].models[0].clone();
        model.touched().into_iter().map(|block| (block, model.visible_values(block))).collect()
    }

    fn block_count(&self, name: &str) -> u64 {
        self.oracle.lock().heads[name].block_count
    }

    /// Volumes that are surely there, with the numbers of their blocks.
    pub fn heads(&self) -> Vec<(String, u64)> {
        let oracle = self.oracle.lock();
        let heads = oracle.heads.iter().filter(|(_, head)| head.presence == Presence::There);
        heads.map(|(name, head)| (name.clone(), head.block_count)).collect()
    }

    /// Volumes and versions that may be there.
    pub fn thing_count(&self) -> usize {
        let oracle = self.oracle.lock();
        let heads = oracle.heads.values().map(|head| head.presence);
        let things = heads.chain(oracle.versions.values().map(|version| version.presence));
        things.filter(|presence| *presence != Presence::Gone).count()
    }

    /// Tries to make, change and remove things, and what comes of it. The oracle does not know: for a pool that must refuse.
    pub fn try_changes(&self) -> Vec<Result<(), Error>> {
        const NAME: &str = "late";
        let life = self.life();
        let new = NewVolume::new(Uuid::from_u128(0x1a7e), NAME, BLOCK_SIZE_U64);
        let mut tried = vec![life.volumes.create(&new).map(drop)];
        if let Some(volume) = life.volumes.list().first() {
            tried.push(life.volumes.rename(&volume.name, NAME).map(drop));
        }
        let found = life.pool.with_catalog(|catalog, _| catalog.snapshots().next().map(|of| (of.volume, of.number)));
        if let Some(id) = found {
            let (new_id, name) = (Uuid::from_u128(0x1a7f), NAME.to_owned());
            let clone = NewClone { id: new_id, name, created_at: 0, expires_at: 0, labels: Vec::new() };
            tried.push(life.volumes.clone_snapshot(id, vec![clone]).map(drop));
            tried.push(life.volumes.remove_snapshots(&[id]));
        }
        tried
    }

    /// Takes a snapshot of volumes at one instant.
    pub fn snapshot(&mut self, names: &[&str]) -> Done {
        self.settle()?;
        let begin = self.oracle.lock().tick();
        let presence = self.oracle.lock().new_change();
        let mut new = Vec::new();
        let mut made = Vec::new();
        for name in names {
            let volume = self.volume_id(name)?;
            let version = Version { block_count: self.block_count(name), content: self.visible(name), presence };
            let place = self.next_version(volume, name);
            new.push(self.new_snapshot(volume));
            self.oracle.lock().versions.insert(place.clone(), version);
            made.push(place);
        }
        self.life().volumes.snapshot(new)?;
        self.oracle.lock().flushed(begin);
        self.set_presence(&made, Presence::There);
        Ok(())
    }

    /// The oldest or newest version of a volume that is surely there.
    pub fn version_of(&self, name: &str, is_oldest: bool) -> Option<String> {
        let oracle = self.oracle.lock();
        let prefix = format!("{name}@");
        let is_there =
            |(of, version): &(&String, &Version)| of.starts_with(&prefix) && version.presence == Presence::There;
        let mut versions = oracle.versions.iter().filter(is_there).map(|(of, _)| of.clone());
        if is_oldest { versions.next() } else { versions.next_back() }
    }

    pub fn remove_version(&mut self, version: &str) -> Done {
        self.settle()?;
        let id = self.snapshot_id(version)?;
        let presence = self.oracle.lock().new_change();
        self.set_presence(&[version.to_owned()], presence);
        let removed = self.life().volumes.remove_snapshots(&[id]);
        self.is_changed(&[version.to_owned()], removed, Presence::Gone)
    }

    /// Makes clones of a version, all or none.
    pub fn clone_version(&mut self, version: &str, names: &[&str]) -> Done {
        self.settle()?;
        let source = self.snapshot_id(version)?;
        let presence = self.oracle.lock().new_change();
        let made: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut new = Vec::new();
        for name in names {
            let id = self.new_id();
            new.push(NewClone { id, name: (*name).to_owned(), created_at: 0, expires_at: 0, labels: Vec::new() });
            let oracle = &mut *self.oracle.lock();
            let Version { block_count, content, .. } = oracle.versions[version].clone();
            let (origin, _) = version.split_once('@').expect("a version has a volume");
            let key_of = oracle.heads[origin].key_of.clone();
            let models = vec![Model::of(&content)];
            oracle.heads.insert((*name).to_owned(), Head { key_of, block_count, models, presence });
        }
        self.life().volumes.clone_snapshot(source, new)?;
        self.set_presence(&made, Presence::There);
        Ok(())
    }

    /// Switches a volume to a version of it; what it held is kept as a version if that is said.
    pub fn roll_back(&mut self, name: &str, version: &str, keeps: bool) -> Done {
        self.settle()?;
        let begin = self.oracle.lock().tick();
        let target = self.snapshot_id(version)?;
        let keep = keeps.then(|| self.new_snapshot(target.0));
        let presence = self.oracle.lock().new_change();
        let place = self.next_version(target.0, name);
        if keeps {
            let kept = Version { block_count: self.block_count(name), content: self.visible(name), presence };
            self.oracle.lock().versions.insert(place.clone(), kept);
        }
        let content = self.oracle.lock().versions[version].content.clone();
        let new = Model::of(&content);
        self.oracle.lock().heads.get_mut(name).expect("it is known").models.push(new.clone());
        self.life().volumes.roll_back(target, keep)?;
        self.oracle.lock().flushed(begin);
        self.oracle.lock().heads.get_mut(name).expect("it is known").models = vec![new];
        if keeps {
            self.set_presence(&[place], Presence::There);
        }
        Ok(())
    }

    /// Removes a volume with its versions; its key goes with it if it has one.
    pub fn remove_volume(&mut self, name: &str, is_shredded: bool) -> Done {
        self.settle()?;
        let prefix = format!("{name}@");
        let mut names = vec![name.to_owned()];
        names.extend(self.oracle.lock().versions.keys().filter(|version| version.starts_with(&prefix)).cloned());
        names.retain(|name| self.is_there(name));
        let presence = self.oracle.lock().new_change();
        self.set_presence(&names, presence);
        let seed = self.next_write;
        let volumes = &self.life().volumes;
        let removed =
            if is_shredded { volumes.shred(name, &mut super::super::filler(seed)) } else { volumes.remove(name) };
        self.is_changed(&names, removed, Presence::Gone)
    }

    /// Whether no volume can have this name, after a crash neither: the oracle knows one volume of each.
    pub fn is_surely_free(&self, name: &str) -> bool {
        self.oracle.lock().heads.get(name).is_none_or(|head| head.presence == Presence::Gone)
    }

    /// Whether nothing else is encrypted with the key of a volume, so that it may be shredded.
    pub fn has_key_alone(&self, name: &str) -> bool {
        let oracle = self.oracle.lock();
        let others = oracle.heads.iter().filter(|(other, head)| *other != name && head.presence != Presence::Gone);
        oracle.heads[name].key_of == name && others.into_iter().all(|(_, head)| head.key_of != name)
    }

    fn is_there(&self, name: &str) -> bool {
        let oracle = self.oracle.lock();
        let head = oracle.heads.get(name).map(|head| head.presence);
        head.or_else(|| oracle.versions.get(name).map(|version| version.presence)) == Some(Presence::There)
    }

    /// A change succeeded, or was refused and changed nothing, or a crash decides.
    fn is_changed(&mut self, names: &[String], result: Result<(), Error>, then: Presence) -> Done {
        match &result {
            Ok(()) => self.set_presence(names, then),
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NoSpace | ErrorKind::Usage) => {
                self.set_presence(names, Presence::There);
            }
            Err(_) => {}
        }
        Ok(result?)
    }
}
