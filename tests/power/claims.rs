//! What must be there behind a cut: what the load has told before.
//!
//! `tests/kernel/power.sh` writes a line to a disk of its own when it has become true, and before it stops being true.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::recording::{Disk, Recording};
use crate::{Context as _, Result};

/// One line has a block of its own.
const BLOCK_BYTES: usize = 4096;

/// All that was told.
pub(crate) struct Claims {
    lines: Vec<Line>,
    range: Range<usize>,
}

/// A line, and the request that wrote it.
struct Line {
    position: usize,
    text: String,
}

/// Names and hashes (SHA-256, hexadecimal).
pub(crate) type Files = BTreeMap<String, String>;
/// By slot, the versions that it may have: the one that was told last, and the one that is told next.
pub(crate) type Slots = BTreeMap<u64, (u64, u64)>;

/// What holds at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub files: Files,
    pub slots: Slots,
    /// The newest snapshot, with what was durable before it was asked for.
    pub snapshot: Option<(String, Files)>,
}

impl Claims {
    pub(crate) fn read(recording: &Recording) -> Result<Self> {
        let mut lines: Vec<Line> = Vec::new();
        // What a block held before; it is written again with its neighbours.
        let mut blocks: BTreeMap<u64, String> = BTreeMap::new();
        for (position, event) in recording.events.iter().enumerate() {
            if event.disk != Disk::Marks || event.is_flush() {
                continue;
            }
            let content = recording.content_of(event)?;
            for (block, bytes) in (event.offset_bytes / 4096..).zip(content.chunks(BLOCK_BYTES)) {
                let text = String::from_utf8_lossy(bytes).trim_end_matches('\0').trim().to_owned();
                if !text.is_empty() && blocks.insert(block, text.clone()).as_ref() != Some(&text) {
                    lines.push(Line { position, text });
                }
            }
        }
        let position_of = |text: &str| {
            let line = lines.iter().find(|line| line.text == text);
            line.map(|line| line.position).ok_or_else(|| format!("the load has not told \"{text}\""))
        };
        let range = position_of("begin")?..position_of("end")?;
        Ok(Self { lines, range })
    }

    /// From the first moment at which pool and file system were there, to the load's end.
    pub(crate) fn load_range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Where each file was told to be durable, and the line before that.
    pub(crate) fn durable_files(&self) -> Vec<Range<usize>> {
        let pairs = self.lines.windows(2).filter(|pair| pair[1].text.starts_with("durable "));
        pairs.map(|pair| pair[0].position..pair[1].position).collect()
    }

    /// What must be there if the power goes at `position`.
    pub(crate) fn at(&self, position: usize) -> Expected {
        let mut expected = Expected::default();
        let mut before_snapshot = Files::new();
        for line in &self.lines {
            let is_told = line.position < position;
            let words: Vec<&str> = line.text.split(' ').collect();
            match (words.as_slice(), is_told) {
                (["durable", name, hash], true) => {
                    expected.files.insert((*name).to_owned(), (*hash).to_owned());
                }
                (["removing", name], true) => {
                    expected.files.remove(*name);
                }
                (["snapshot-begins"], true) => before_snapshot.clone_from(&expected.files),
                (["snapshot", name], true) => {
                    expected.snapshot = Some(((*name).to_owned(), before_snapshot.clone()));
                }
                (["slot", slot, version], _) => {
                    if let (Ok(slot), Ok(version)) = (slot.parse(), version.parse()) {
                        note_slot(&mut expected.slots, slot, version, is_told);
                    }
                }
                _ => {}
            }
        }
        expected
    }
}

fn note_slot(slots: &mut Slots, slot: u64, version: u64, is_told: bool) {
    let (told, next) = slots.entry(slot).or_insert((0, 0));
    if is_told {
        (*told, *next) = (version, version);
    } else if told == next {
        *next = version;
    }
}

/// The file of slots holds, in each, one version that it may have.
pub(crate) fn check_slots(content: &[u8], slots: &Slots) -> Result<()> {
    for (slot, block) in (0_u64..).zip(content.chunks(BLOCK_BYTES)) {
        let text = std::str::from_utf8(block).context(format!("slot {slot}"))?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let words: Vec<&str> = first.trim_end_matches('.').split(' ').collect();
        let ["slot", its_slot, "version", version] = words.as_slice() else {
            return Err(format!("slot {slot} holds \"{first}\""));
        };
        let (told, next) = slots.get(&slot).copied().unwrap_or((0, 0));
        let is_right =
            *its_slot == slot.to_string() && [told.to_string(), next.to_string()].contains(&(*version).to_owned());
        if !is_right {
            return Err(format!("slot {slot} holds \"{first}\", not version {told} or {next}"));
        }
        if let Some(index) = lines.position(|line| line != first) {
            return Err(format!("slot {slot} is a mix of \"{first}\" and what begins in line {}", index + 2));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::tests::Composer;

    fn block(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(BLOCK_BYTES, 0);
        bytes
    }

    fn claims(lines: &[&str]) -> Claims {
        let mut composer = Composer::new();
        for line in lines {
            composer.add(2, 0, &block(&format!("{line}\n")), 0);
        }
        Claims::read(&composer.recording().expect("it is right")).expect("begin and end are there")
    }

    #[test]
    fn a_file_is_expected_from_its_line_to_its_removal() {
        let claims = claims(&["begin", "durable a 11", "removing a", "end"]);

        assert_eq!(claims.load_range(), 0..3);
        assert_eq!(claims.durable_files().first(), Some(&(0..1)));
        assert!(claims.at(1).files.is_empty(), "the line itself is not there yet");
        assert_eq!(claims.at(2).files.get("a").map(String::as_str), Some("11"));
        assert!(claims.at(3).files.is_empty());
    }

    #[test]
    fn a_snapshot_has_what_was_durable_before_it_was_asked_for() {
        let claims = claims(&["begin", "durable a 1", "snapshot-begins", "snapshot vol1@1", "durable b 2", "end"]);

        assert_eq!(claims.at(3).snapshot, None);
        let (name, files) = claims.at(5).snapshot.expect("it was told");
        assert_eq!((name.as_str(), files.len()), ("vol1@1", 1));
    }

    #[test]
    fn a_slot_has_the_version_that_was_told_or_the_next_one() {
        let claims = claims(&["begin", "slot 0 1", "slot 0 2", "slot 0 3", "end"]);
        assert_eq!(claims.at(2).slots.get(&0), Some(&(1, 2)));
        assert_eq!(claims.at(9).slots.get(&0), Some(&(3, 3)));

        let slots = claims.at(2).slots;
        let content = |version: u64| "slot 0 version V.\n".replace('V', &version.to_string()).repeat(4).into_bytes();
        for (version, is_right) in [(0, false), (1, true), (2, true), (3, false)] {
            assert_eq!(check_slots(&content(version), &slots).is_ok(), is_right, "version {version}");
        }
        assert!(check_slots(&[content(1), content(2)].concat(), &slots).is_err(), "a mix");
    }
}
