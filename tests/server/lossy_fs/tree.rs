//! Files and directories in memory, each as it is and as it was synced last, with what changed in between.
//!
//! Nothing is synced but what was asked for: a file's sync covers its bytes and size, not its name; a directory's sync
//! covers its names. Of what is not synced a power loss leaves each change of a file or not, torn at sectors, in any
//! choice; and of the changes of a directory those up to some point.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;

use rand::Rng as _;
use rand::rngs::SmallRng;

use super::content::Content;

/// The directory that holds all others.
pub const ROOT: u64 = 1;
/// What a disk writes as a whole.
const SECTOR_BYTES: u64 = 512;

/// A change of a file.
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Resize(u64),
    Punch(Range<u64>),
}

/// A change of a directory.
enum NameChange {
    Link(OsString, u64),
    Unlink(OsString),
    /// Atomic, as every file system has it.
    Rename(OsString, OsString),
}

/// A file.
#[derive(Default)]
pub struct File {
    pub now: Content,
    synced: Content,
    pending: Vec<Change>,
}

/// A directory.
#[derive(Default)]
pub struct Directory {
    pub now: BTreeMap<OsString, u64>,
    synced: BTreeMap<OsString, u64>,
    pending: Vec<NameChange>,
}

/// What a node is.
pub enum Kind {
    File(File),
    Directory(Directory),
}

/// A file or a directory. Who owns it and who may read it is never lost.
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    pub owner: (u32, u32),
}

/// What a power loss may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Whatever is not below the directory `meta`.
    Data,
    /// What is below it.
    Meta,
    /// Both.
    All,
}

/// Which syncs do nothing, as on a disk that lies, or by a program that forgets them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Lies {
    #[default]
    None,
    /// Those of directories.
    Directories,
    All,
}

/// What a power loss did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Losses {
    pub kept: u64,
    pub torn: u64,
    pub lost: u64,
}

/// The whole file system.
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    pub lies: Lies,
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { offset, data } => content.write(*offset, data),
            Self::Resize(size) => content.resize(*size),
            Self::Punch(range) => content.punch(range.clone()),
        }
    }

    /// Some of its sectors, if it has several.
    fn tear(&self, content: &mut Content, random: &mut SmallRng) {
        let Self::Write { offset, data } = self else { return self.apply(content) };
        let mut at = *offset;
        let mut rest = &data[..];
        while !rest.is_empty() {
            let length = usize::try_from(SECTOR_BYTES - at % SECTOR_BYTES).expect("64-bit").min(rest.len());
            let (now, later) = rest.split_at(length);
            if random.random_bool(0.5) {
                content.write(at, now);
            }
            at += u64::try_from(length).expect("64-bit");
            rest = later;
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<OsString, u64>) {
        match self {
            Self::Link(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.change(Change::Write { offset, data: data.to_vec() });
    }

    pub fn resize(&mut self, size: u64) {
        self.change(Change::Resize(size));
    }

    pub fn punch(&mut self, range: Range<u64>) {
        self.change(Change::Punch(range));
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.synced);
        }
    }

    fn lose(&mut self, random: &mut SmallRng, losses: &mut Losses) {
        // Much is found only where all of it is gone, or all of one file and none of another.
        let kept_share = [0.0, 0.5, 0.5, 0.9, 1.0][random.random_range(0..5)];
        for change in std::mem::take(&mut self.pending) {
            if !random.random_bool(kept_share) {
                losses.lost += 1;
            } else if kept_share < 1.0 && random.random_bool(0.3) {
                change.tear(&mut self.synced, random);
                losses.torn += 1;
            } else {
                change.apply(&mut self.synced);
                losses.kept += 1;
            }
        }
        self.now = self.synced.clone();
    }
}

impl Directory {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.synced);
        }
    }

    fn lose(&mut self, random: &mut SmallRng, losses: &mut Losses) {
        let kept = random.random_range(0..=self.pending.len());
        for (index, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if index < kept {
                change.apply(&mut self.synced);
                losses.kept += 1;
            } else {
                losses.lost += 1;
            }
        }
        self.now = self.synced.clone();
    }
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node { kind: Kind::Directory(Directory::default()), mode: 0o700, owner: (0, 0) };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, lies: Lies::None }
    }
}

impl Tree {
    pub fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub fn node_mut(&mut self, number: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&number)
    }

    /// # Errors
    /// `EISDIR`, `ENOENT`.
    pub fn file(&mut self, number: u64) -> Result<&mut File, i32> {
        match self.nodes.get_mut(&number).map(|node| &mut node.kind) {
            Some(Kind::File(file)) => Ok(file),
            Some(Kind::Directory(_)) => Err(libc::EISDIR),
            None => Err(libc::ENOENT),
        }
    }

    /// # Errors
    /// `ENOTDIR`, `ENOENT`.
    pub fn directory(&mut self, number: u64) -> Result<&mut Directory, i32> {
        match self.nodes.get_mut(&number).map(|node| &mut node.kind) {
            Some(Kind::Directory(directory)) => Ok(directory),
            Some(Kind::File(_)) => Err(libc::ENOTDIR),
            None => Err(libc::ENOENT),
        }
    }

    /// # Errors
    /// `ENOENT`, and those of [`Self::directory`].
    pub fn lookup(&mut self, parent: u64, name: &OsStr) -> Result<u64, i32> {
        self.directory(parent)?.now.get(name).copied().ok_or(libc::ENOENT)
    }

    /// Makes a node under a name that is free.
    ///
    /// # Errors
    /// `EEXIST`, and those of [`Self::directory`].
    pub fn make(&mut self, parent: u64, name: &OsStr, node: Node) -> Result<u64, i32> {
        let number = self.next;
        let directory = self.directory(parent)?;
        if directory.now.contains_key(name) {
            return Err(libc::EEXIST);
        }
        directory.change(NameChange::Link(name.to_owned(), number));
        self.next += 1;
        self.nodes.insert(number, node);
        Ok(number)
    }

    /// Takes a name away. The node stays, for those who have it open and until that is synced.
    ///
    /// # Errors
    /// `ENOTEMPTY`, and those of [`Self::lookup`].
    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), i32> {
        let number = self.lookup(parent, name)?;
        if self.directory(number).is_ok_and(|directory| !directory.now.is_empty()) {
            return Err(libc::ENOTEMPTY);
        }
        self.directory(parent)?.change(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    /// Renames within one directory; whatever had the new name has none.
    ///
    /// # Errors
    /// `EXDEV` between two directories, and those of [`Self::lookup`].
    pub fn rename(&mut self, parents: (u64, u64), from: &OsStr, to: &OsStr) -> Result<(), i32> {
        if parents.0 != parents.1 {
            return Err(libc::EXDEV);
        }
        self.lookup(parents.0, from)?;
        self.directory(parents.0)?.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Syncs one file or directory.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn sync(&mut self, number: u64) -> Result<(), i32> {
        let node = self.nodes.get_mut(&number).ok_or(libc::ENOENT)?;
        match &mut node.kind {
            Kind::File(file) if self.lies != Lies::All => file.sync(),
            Kind::Directory(directory) if self.lies == Lies::None => directory.sync(),
            _ => {}
        }
        Ok(())
    }

    /// Syncs all there is.
    pub fn sync_all(&mut self) {
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(file) => file.sync(),
                Kind::Directory(directory) => directory.sync(),
            }
        }
    }

    pub fn allocated_bytes(&self) -> u64 {
        let contents = self.nodes.values().filter_map(|node| match &node.kind {
            Kind::File(file) => Some(file.now.allocated_bytes()),
            Kind::Directory(_) => None,
        });
        contents.sum()
    }

    /// Takes away what a power loss may, within a scope; all else is synced.
    pub fn lose_power(&mut self, scope: Scope, random: &mut SmallRng) -> Losses {
        let below_meta = self.below_meta();
        let mut losses = Losses::default();
        for (number, node) in &mut self.nodes {
            let is_in_scope = match scope {
                Scope::All => true,
                Scope::Meta => below_meta.contains(number),
                Scope::Data => !below_meta.contains(number),
            };
            match &mut node.kind {
                Kind::File(file) if is_in_scope => file.lose(random, &mut losses),
                Kind::File(file) => file.sync(),
                Kind::Directory(directory) if is_in_scope => directory.lose(random, &mut losses),
                Kind::Directory(directory) => directory.sync(),
            }
        }
        let reachable = self.reachable(ROOT);
        self.nodes.retain(|number, _| reachable.contains(number));
        losses
    }

    fn below_meta(&self) -> Vec<u64> {
        let directories = self.nodes.values().filter_map(|node| match &node.kind {
            Kind::Directory(directory) => Some(directory),
            Kind::File(_) => None,
        });
        directories
            .filter_map(|directory| directory.now.get(OsStr::new("meta")))
            .flat_map(|meta| self.reachable(*meta))
            .collect()
    }

    /// A node and all that are below it, or were when it was synced.
    fn reachable(&self, number: u64) -> Vec<u64> {
        let mut found = vec![number];
        let mut next = 0;
        while let Some(number) = found.get(next) {
            if let Some(Node { kind: Kind::Directory(directory), .. }) = self.nodes.get(number) {
                found.extend(directory.now.values().chain(directory.synced.values()));
            }
            next += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn file() -> Node {
        Node { kind: Kind::File(File::default()), mode: 0o600, owner: (0, 0) }
    }

    fn directory() -> Node {
        Node { kind: Kind::Directory(Directory::default()), mode: 0o700, owner: (0, 0) }
    }

    /// What the file `name` of the root holds.
    fn read(tree: &mut Tree, name: &str) -> Option<Vec<u8>> {
        let number = tree.lookup(ROOT, OsStr::new(name)).ok()?;
        Some(tree.file(number).expect("a file").now.read(0, u64::MAX))
    }

    /// A tree with the synced file `a` of two sectors of ones, and its number.
    fn tree_with_file() -> (Tree, u64) {
        let mut tree = Tree::default();
        let number = tree.make(ROOT, OsStr::new("a"), file()).expect("it is free");
        tree.file(number).expect("a file").write(0, &[1; 1024]);
        tree.sync(number).expect("it is there");
        tree.sync(ROOT).expect("it is there");
        (tree, number)
    }

    #[test]
    fn of_what_is_not_synced_anything_may_be_there_and_of_what_is_all() {
        let mut seen = Vec::new();
        for seed in 0..64 {
            let (mut tree, number) = tree_with_file();
            tree.file(number).expect("a file").write(0, &[2; 1024]);
            tree.lose_power(Scope::All, &mut SmallRng::seed_from_u64(seed));
            seen.push(read(&mut tree, "a").expect("it was synced"));

            let (mut tree, number) = tree_with_file();
            tree.file(number).expect("a file").write(0, &[2; 1024]);
            tree.sync(number).expect("it is there");
            tree.lose_power(Scope::All, &mut SmallRng::seed_from_u64(seed));
            assert_eq!(read(&mut tree, "a"), Some(vec![2; 1024]));
        }
        for expected in [[1, 1], [1, 2], [2, 1], [2, 2]] {
            let content = [[expected[0]; 512], [expected[1]; 512]].concat();
            assert!(seen.contains(&content), "{expected:?}");
        }
    }

    #[test]
    fn a_name_stays_when_its_directory_was_synced_and_else_perhaps() {
        let stays = |is_synced: bool, seed| {
            let (mut tree, _) = tree_with_file();
            let number = tree.make(ROOT, OsStr::new("b"), file()).expect("it is free");
            tree.sync(if is_synced { ROOT } else { number }).expect("it is there");
            tree.lose_power(Scope::All, &mut SmallRng::seed_from_u64(seed));
            read(&mut tree, "b").is_some()
        };
        assert!((0..32).all(|seed| stays(true, seed)));
        assert!((0..32).any(|seed| stays(false, seed)) && !(0..32).all(|seed| stays(false, seed)));
    }

    #[test]
    fn a_rename_happened_or_not() {
        let mut counts = [0; 2];
        for seed in 0..32 {
            let (mut tree, _) = tree_with_file();
            let number = tree.make(ROOT, OsStr::new("b"), file()).expect("it is free");
            tree.file(number).expect("a file").write(0, &[2; 8]);
            tree.sync_all();
            tree.rename((ROOT, ROOT), OsStr::new("b"), OsStr::new("a")).expect("it is there");
            tree.lose_power(Scope::All, &mut SmallRng::seed_from_u64(seed));
            let found = (read(&mut tree, "a").expect("one of the two"), read(&mut tree, "b"));
            counts[usize::from(found.1.is_some())] += 1;
            assert!(found == (vec![2; 8], None) || found == (vec![1; 1024], Some(vec![2; 8])), "{found:?}");
        }
        assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    }

    #[test]
    fn only_what_is_in_the_scope_is_lost() {
        for (scope, losses) in [(Scope::Data, (true, false)), (Scope::Meta, (false, true)), (Scope::All, (true, true))]
        {
            let mut lost = (false, false);
            for seed in 0..32 {
                let (mut tree, data) = tree_with_file();
                let meta = tree.make(ROOT, OsStr::new("meta"), directory()).expect("it is free");
                let log = tree.make(meta, OsStr::new("log"), file()).expect("it is free");
                tree.sync_all();
                for number in [data, log] {
                    tree.file(number).expect("a file").write(0, &[2; 1]);
                }
                tree.lose_power(scope, &mut SmallRng::seed_from_u64(seed));
                lost.0 |= tree.file(data).expect("it was synced").now.read(0, 1) != [2];
                lost.1 |= tree.file(log).expect("it was synced").now.read(0, 1) != [2];
            }
            assert_eq!(lost, losses, "{scope:?}");
        }
    }

    #[test]
    fn a_disk_that_lies_syncs_nothing() {
        let lost = |seed| {
            let (mut tree, number) = tree_with_file();
            tree.lies = Lies::All;
            tree.file(number).expect("a file").write(0, &[2; 8]);
            tree.sync(number).expect("it says so");
            tree.lose_power(Scope::All, &mut SmallRng::seed_from_u64(seed)).lost > 0
        };
        assert!((0..32).any(lost));
    }
}
