//! The smallest part of a seed that fails: as few operations as possible, of which each is needed.

use std::collections::BTreeSet;

/// Operations of a seed: so many, but for some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub operations: u64,
    pub left_out: BTreeSet<u64>,
}

impl Part {
    pub fn whole(operations: u64) -> Self {
        Self { operations, left_out: BTreeSet::new() }
    }

    pub fn kept(&self) -> Vec<u64> {
        (0..self.operations).filter(|index| !self.left_out.contains(index)).collect()
    }

    /// What `ROK_LEFT_OUT` says.
    pub fn leave_out(&mut self, list: &str) {
        self.left_out.extend(
            list.split(',')
                .filter(|index| !index.is_empty())
                .map(|index| index.parse::<u64>().expect("numbers of operations, with commas between them")),
        );
    }
}

/// A smaller part of a failing one that fails too, by so many tries at most (Zeller and Hildebrandt, "Simplifying and Isolating
/// Failure-Inducing Input", 2002): the begin of it, then without some of its operations.
pub fn shrink(failing: Part, tries_max: u64, fails: &mut dyn FnMut(&Part) -> bool) -> Part {
    let mut tries = 0;
    let mut fails = |part: &Part| {
        tries += 1;
        tries <= tries_max && fails(part)
    };
    let mut best = failing;
    let (mut low, mut high) = (0, best.operations);
    while low < high {
        let middle = low.midpoint(high);
        let begin = Part { operations: middle, ..best.clone() };
        if fails(&begin) {
            (high, best) = (middle, begin);
        } else {
            low = middle + 1;
        }
    }
    let mut chunk = best.kept().len().div_ceil(2).max(1);
    loop {
        let mut has_shrunk = false;
        for some in best.kept().chunks(chunk) {
            let mut smaller = best.clone();
            smaller.left_out.extend(some);
            if fails(&smaller) {
                (best, has_shrunk) = (smaller, true);
            }
        }
        if chunk == 1 && !has_shrunk {
            return best;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
}

#[test]
fn only_what_is_needed_is_left() {
    let mut tries = 0;
    let found = shrink(Part::whole(250), 1000, &mut |part| {
        tries += 1;
        let kept = part.kept();
        [3, 70, 71, 200].iter().all(|index| kept.contains(index))
    });
    assert_eq!(found.kept(), [3, 70, 71, 200]);
    assert_eq!(found.operations, 201);
    assert!(tries < 200, "{tries} tries");
}

#[test]
fn tries_are_bounded_and_what_is_found_fails() {
    let mut tries = 0;
    let found = shrink(Part::whole(1000), 30, &mut |part| {
        tries += 1;
        part.kept().contains(&999)
    });
    assert!(tries <= 30 && found.kept().contains(&999));
}
