//! All epochs of one leaf of a tree, parts put together with what they build on.

use crate::format::leaf::Leaf;
use crate::map::{OneLeaf, StoredLeaves};
use crate::units::Epoch;

/// An epoch of a leaf, as its value has it; or what is wrong with that.
pub(in crate::pool) type OpenedLeaf = (Epoch, Result<OneLeaf, String>);
/// An epoch of a leaf, as it is seen.
pub(in crate::pool) type SeenLeaf = (Epoch, Result<Leaf, String>);

/// The leaves that the epochs of one see, which come with the newest first.
pub(in crate::pool) fn assemble(group: &[OpenedLeaf]) -> Vec<SeenLeaf> {
    let mut seen: Vec<SeenLeaf> = Vec::new();
    for position in (0..group.len()).rev() {
        let leaf = seen_at(&group[position..], seen.last());
        seen.push((group[position].0, leaf));
    }
    seen.reverse();
    seen
}

/// The first leaf of a group, and a look at whether it may be applied to the next older one as well: if that was merged into
/// it, it would be.
fn seen_at(group: &[OpenedLeaf], older: Option<&SeenLeaf>) -> Result<Leaf, String> {
    let newest = group[0].1.as_ref().map_err(Clone::clone)?;
    let mut chain = vec![newest];
    for (_, next) in &group[1..] {
        let depth = chain[chain.len() - 1].level.depth;
        if depth == 0 {
            break;
        }
        let next = next.as_ref().map_err(|reason| format!("what it builds on cannot be read: {reason}"))?;
        if next.level.depth < depth {
            chain.push(next);
        }
    }
    let leaf = StoredLeaves::assemble(&chain)?.leaf;
    if let Some((epoch, Ok(older))) = older.filter(|_| newest.level.depth > 0) {
        let mut over_older = older.clone();
        over_older.apply(&newest.change);
        if over_older != leaf {
            return Err(format!("the part does not hold all that changed up to epoch {epoch}"));
        }
    }
    Ok(leaf)
}
