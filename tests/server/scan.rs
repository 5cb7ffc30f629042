//! Looks for needles in every byte of every file of a directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Read at once; the longest needle is far shorter.
const CHUNK_BYTES: usize = 4 << 20;
/// Directories in directories; the pool has one level.
const DEPTH_MAX: usize = 4;
/// What the first look at a place compares.
const KEY_BYTES: usize = 8;

/// Byte strings to look for, by name.
#[derive(Default)]
pub struct Needles {
    needles: Vec<(String, Vec<u8>)>,
    /// Whether a needle begins with a key of this hash.
    begins: Vec<bool>,
}

impl Needles {
    /// Adds one, of at least eight bytes.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= KEY_BYTES, "{name} is too short to mean anything");
        self.begins.resize(usize::from(u16::MAX) + 1, false);
        self.begins[hash(&bytes[..KEY_BYTES])] = true;
        self.needles.push((name.to_owned(), bytes.to_vec()));
    }

    /// Adds the pieces of 16 bytes that `bytes` consists of, all under one name.
    pub fn add_pieces(&mut self, name: &str, bytes: &[u8]) {
        bytes.chunks_exact(16).for_each(|piece| self.add(name, piece));
    }

    /// Names of the needles in `bytes`.
    pub fn in_bytes(&self, bytes: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (position, key) in bytes.windows(KEY_BYTES).enumerate() {
            if self.begins[hash(key)] {
                let here = self.needles.iter().filter(|(_, needle)| bytes[position..].starts_with(needle));
                found.extend(here.map(|(name, _)| name.clone()));
            }
        }
        found
    }

    /// Names of the needles in the files of `directory`, each with the file; and how many bytes were looked at.
    pub fn in_directory(&self, directory: &Path) -> (BTreeSet<(String, PathBuf)>, u64) {
        let overlap = self.needles.iter().map(|(_, needle)| needle.len()).max().expect("there are needles") - 1;
        let mut found = BTreeSet::new();
        let mut total = 0;
        for path in files(directory, 0) {
            let mut file = File::open(&path).expect("a file of the directory");
            let mut bytes: Vec<u8> = Vec::new();
            loop {
                // The end of what came before stays, for needles across the border.
                bytes.drain(..bytes.len().saturating_sub(overlap));
                let limit = u64::try_from(CHUNK_BYTES).expect("4 MiB");
                let count = file.by_ref().take(limit).read_to_end(&mut bytes).expect("the file can be read");
                if count == 0 {
                    break;
                }
                total += u64::try_from(count).expect("64-bit");
                found.extend(self.in_bytes(&bytes).into_iter().map(|name| (name, path.clone())));
            }
        }
        (found, total)
    }
}

/// All files below `directory`, sorted.
pub fn files(directory: &Path, depth: usize) -> Vec<PathBuf> {
    assert!(depth < DEPTH_MAX, "{} is nested too deeply", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            paths.extend(files(&path, depth + 1));
        } else {
            paths.push(path);
        }
    }
    paths.sort();
    paths
}

fn hash(key: &[u8]) -> usize {
    let word = u64::from_le_bytes(key.try_into().expect("eight bytes"));
    usize::try_from(word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48).expect("sixteen bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_are_found_wherever_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("inner")).expect("a directory");
        let mut bytes = vec![7; CHUNK_BYTES + 100];
        bytes[CHUNK_BYTES - 3..CHUNK_BYTES + 13].copy_from_slice(b"across the chunk");
        fs::write(directory.path().join("a"), &bytes).expect("a file");
        fs::write(directory.path().join("inner/b"), b"it ends with the end").expect("a file");
        let mut needles = Needles::default();
        needles.add("across", b"across the chunk");
        needles.add("end", b"with the end");
        needles.add("absent", b"with the enx");

        let (found, total) = needles.in_directory(directory.path());

        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["across", "end"]);
        assert_eq!(total, u64::try_from(bytes.len() + 20).expect("64-bit"));
    }
}
