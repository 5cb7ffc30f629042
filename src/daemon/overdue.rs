//! What is due to leave the trash for good, and since when this daemon sees it so.
//!
//! A clock may be days ahead when a machine starts, until somebody sets it. So nothing goes for good because one look at the
//! clock says so: it must be due for an hour of the daemon's own time, at every look. A clock that was set back by then has it
//! begin anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::trash::Thing;

/// How long something must be due before it goes.
pub(super) const OVERDUE_TIME: Duration = Duration::from_secs(3600);

/// Since when things are due, by how long the daemon has run.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    since: BTreeMap<Thing, Duration>,
}

impl Overdue {
    /// Takes what is due now, after the daemon has run for `uptime`; returns what of it was so for long enough.
    pub(super) fn look(&mut self, due: &BTreeSet<Thing>, uptime: Duration) -> BTreeSet<Thing> {
        self.since.retain(|thing, _| due.contains(thing));
        let is_over =
            |thing: &Thing| uptime.saturating_sub(*self.since.entry(*thing).or_insert(uptime)) >= OVERDUE_TIME;
        due.iter().copied().filter(is_over).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const MINUTE: Duration = Duration::from_secs(60);

    fn things(numbers: &[u128]) -> BTreeSet<Thing> {
        numbers.iter().map(|number| Thing::Volume(Uuid::from_u128(*number))).collect()
    }

    #[test]
    fn what_is_due_goes_after_an_hour_of_it() {
        let mut overdue = Overdue::default();

        assert_eq!(overdue.look(&things(&[1]), MINUTE * 5), things(&[]));
        assert_eq!(overdue.look(&things(&[1, 2]), MINUTE * 64), things(&[]));
        assert_eq!(overdue.look(&things(&[1, 2]), MINUTE * 65), things(&[1]));
        assert_eq!(
            overdue.look(&things(&[1, 2]), MINUTE * 66),
            things(&[1]),
            "it could not be removed, and is tried again"
        );
        assert_eq!(overdue.look(&things(&[2]), MINUTE * 124), things(&[2]));
    }

    #[test]
    fn what_was_not_due_meanwhile_begins_anew() {
        let mut overdue = Overdue::default();

        assert_eq!(overdue.look(&things(&[1]), MINUTE), things(&[]));
        assert_eq!(overdue.look(&things(&[]), MINUTE * 60), things(&[]));
        assert_eq!(overdue.look(&things(&[1]), MINUTE * 61), things(&[]));
        assert_eq!(overdue.look(&things(&[1]), MINUTE * 120), things(&[]));
        assert_eq!(overdue.look(&things(&[1]), MINUTE * 121), things(&[1]));
    }
}
