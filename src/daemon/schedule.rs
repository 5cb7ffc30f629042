//! When a policy's next snapshot is due, and which of its snapshots go then: computations over times, without a clock.
//!
//! Due are the multiples of a period since 1970 in UTC. However many were missed, one snapshot makes up for them. A clock
//! that is set ahead or back neither stops the schedule nor has it remove more than it takes.

use jiff::Timestamp;

use super::retention::{Kept, Retention, Verdict};

/// When the next snapshot is due, in seconds since 1970, if the last one was taken at `last` and it is `now`. What is due
/// already has a time that is not later than `now`.
pub(super) fn next_due(every_seconds: u64, last: u64, now: u64) -> u64 {
    let (slot_now, slot_last) = (now / every_seconds, last / every_seconds);
    // The clock was set back by more than a period since then: what it shows now counts.
    if slot_last > slot_now.saturating_add(1) {
        return now;
    }
    slot_last.saturating_add(1).saturating_mul(every_seconds)
}

/// What becomes of a policy's own snapshots of one volume. Those that are later than the clock (it was ahead when they were
/// taken, or is behind now) are judged by themselves: they neither take the places of those before nor lose their own.
pub(super) fn plan(retention: &Retention, now: Timestamp, snapshots: &[Kept]) -> Vec<Verdict> {
    let (ahead, past): (Vec<Kept>, Vec<Kept>) = snapshots.iter().partition(|snapshot| snapshot.valid_at > now);
    let mut verdicts = retention.plan(&ahead);
    verdicts.extend(retention.plan(&past));
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    /// 2026-11-28T16:00:00Z, on the hour.
    const START: u64 = 1_795_881_600;
    const RETENTION: Retention = Retention { last: 2, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 3 };
    /// All that `RETENTION` can keep, and the newest by number.
    const KEPT_MAX: usize = 2 + 24 + 7 + 4 + 12 + 3 + 1;

    fn time(seconds: u64) -> Timestamp {
        Timestamp::from_second(seconds.cast_signed()).expect("in range")
    }

    /// A volume under a policy, as a daemon would treat it.
    struct World {
        every_seconds: u64,
        last: u64,
        next_number: u64,
        snapshots: Vec<Kept>,
    }

    impl World {
        fn new(every_seconds: u64) -> Self {
            Self { every_seconds, last: START, next_number: 1, snapshots: Vec::new() }
        }

        /// Does what is due; whether a snapshot was taken.
        fn tick(&mut self, now: u64) -> bool {
            if next_due(self.every_seconds, self.last, now) > now {
                return false;
            }
            let number = self.next_number;
            self.next_number += 1;
            let valid_at = time(now);
            self.snapshots.push(Kept { number, valid_at, is_held: false, is_tagged: false, is_expiring: false });
            self.last = now;
            self.remove(now);
            true
        }

        fn remove(&mut self, now: u64) {
            let plan = plan(&RETENTION, time(now), &self.snapshots);
            let kept: BTreeSet<u64> = plan.iter().filter(|one| one.is_kept()).map(|one| one.number).collect();
            self.snapshots.retain(|snapshot| kept.contains(&snapshot.number));
        }

        fn numbers(&self) -> BTreeSet<u64> {
            self.snapshots.iter().map(|snapshot| snapshot.number).collect()
        }
    }

    #[test]
    fn due_are_the_multiples_of_the_period() {
        assert_eq!(next_due(HOUR, START, START), START + HOUR);
        assert_eq!(next_due(HOUR, START + 59 * 60, START + 59 * 60), START + HOUR);
        assert_eq!(next_due(HOUR, START + 59 * 60, START + HOUR + 5), START + HOUR, "due already");
        assert_eq!(next_due(DAY, START, START) % DAY, 0, "midnight in UTC");
        assert_eq!(next_due(1, START, START), START + 1);
    }

    #[test]
    fn a_pause_is_made_up_for_once() {
        let mut world = World::new(HOUR);

        assert!(world.tick(START + 30 * DAY + 7));
        assert!(!world.tick(START + 30 * DAY + 8));
        assert!(world.tick(START + 30 * DAY + HOUR), "from then on as before");
        assert_eq!(world.snapshots.len(), 2);
    }

    #[test]
    fn a_clock_that_goes_back_a_little_waits_and_one_that_goes_back_far_does_not() {
        // An hour's snapshot was taken just before a correction of some seconds.
        assert_eq!(next_due(HOUR, START + HOUR, START + HOUR - 2), START + 2 * HOUR);
        // It was taken while the clock was a century ahead.
        assert_eq!(next_due(HOUR, START + 36_500 * DAY, START), START);
        // The longest wait is two periods.
        for back in 0..5 * HOUR {
            assert!(next_due(HOUR, START + back, START) <= START + 2 * HOUR);
        }
    }

    #[test]
    fn three_years_of_hours_keep_what_the_rules_say() {
        let mut world = World::new(HOUR);
        let end = START + 3 * 365 * DAY;

        for now in (START..=end).step_by(1800) {
            world.tick(now);
            assert!(world.snapshots.len() <= KEPT_MAX);
        }

        assert_eq!(world.next_number - 1, 3 * 365 * 24, "one an hour");
        let ages: Vec<u64> =
            world.snapshots.iter().map(|snapshot| end - snapshot.valid_at.as_second().cast_unsigned()).collect();
        assert!((0..24).all(|hour| ages.contains(&(hour * HOUR))), "the last 24 hours: {ages:?}");
        let months = ages.iter().filter(|age| **age > 40 * DAY).count();
        assert!((10..=15).contains(&months), "a year of months, and years: {ages:?}");
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_day_costs_the_places_of_a_day() {
        let mut world = World::new(HOUR);
        (0..60 * 24).for_each(|hour| assert_eq!(world.tick(START + hour * HOUR), hour > 0));
        let before = world.numbers();
        let years_ahead = START + 70 * 365 * DAY;

        (0..24).for_each(|hour| assert!(world.tick(years_ahead + hour * HOUR)));

        let left = world.numbers().intersection(&before).count();
        // It took 24 hours, two days, at most two weeks: so many of before lose their places.
        assert!(left >= before.len() - (24 + 2 + 2), "{left} of {}", before.len());
        // Back at the right time the schedule goes on, and what was taken meanwhile is not in its way.
        let back = START + 61 * DAY;
        (0..48).for_each(|hour| assert!(world.tick(back + hour * HOUR), "hour {hour}"));
        let latest: BTreeSet<u64> = (world.next_number - 24..world.next_number).collect();
        assert!(world.numbers().is_superset(&latest), "the last 24 hours are there");
        assert!(world.snapshots.len() <= 2 * KEPT_MAX);
    }

    #[test]
    fn a_clock_that_is_back_at_1970_removes_nothing_of_before() {
        let mut world = World::new(HOUR);
        (0..60 * 24).for_each(|hour| assert_eq!(world.tick(START + hour * HOUR), hour > 0));
        let before = world.numbers();

        (0..100).for_each(|hour| assert!(world.tick(hour * HOUR)));

        assert!(world.numbers().is_superset(&before));
        assert!(world.tick(START + 60 * DAY), "and it goes on when the clock is right again");
        let left = world.numbers().intersection(&before).count();
        assert!(left + 2 >= before.len(), "{left} of {}", before.len());
    }

    prop_compose! {
        fn any_snapshots()(all in proptest::collection::vec((0_i64..100_000_000, 0_u8..8), 0..24)) -> Vec<Kept> {
            let of = |(number, (second, bits)): (u64, &(i64, u8))| Kept {
                number,
                valid_at: Timestamp::from_second(1_700_000_000 + second).expect("in range"),
                is_held: bits & 7 == 1,
                is_tagged: bits & 7 == 2,
                is_expiring: bits & 7 == 3,
            };
            (1..).zip(&all).map(of).collect()
        }
    }

    proptest! {
        #[test]
        fn wherever_the_clock_stands_what_is_protected_stays(
            snapshots in any_snapshots(), second in 0_u64..100_000_000
        ) {
            let retention = Retention { last: 1, daily: 2, ..Retention::default() };
            let now = time(1_700_000_000 + second);
            let of = |all: &[Kept]| -> BTreeSet<u64> {
                plan(&retention, now, all).iter().filter(|one| one.is_kept()).map(|one| one.number).collect()
            };
            let kept = of(&snapshots);

            let protected = snapshots.iter().filter(|one| one.is_held || one.is_tagged || one.is_expiring);
            prop_assert!(protected.clone().all(|one| kept.contains(&one.number)));
            let latest = snapshots.iter().map(|one| one.number).max();
            prop_assert!(latest.is_none_or(|latest| kept.contains(&latest)));
            // One, two days, the newest by number; on each side of the clock.
            prop_assert!(kept.len() <= 2 * (1 + 2 + 1) + protected.count());
            let reversed: Vec<Kept> = snapshots.iter().rev().copied().collect();
            prop_assert_eq!(&of(&reversed), &kept, "the order does not matter");
            let left: Vec<Kept> = snapshots.iter().copied().filter(|one| kept.contains(&one.number)).collect();
            prop_assert_eq!(&of(&left), &kept, "doing it again removes nothing more");
            prop_assert_eq!(plan(&retention, now, &snapshots).len(), snapshots.len());
        }

        #[test]
        fn with_any_clock_a_schedule_goes_on_within_two_periods(
            jumps in proptest::collection::vec(0_u64..4_000_000_000, 1..20)
        ) {
            let mut world = World::new(DAY);
            for jump in jumps {
                let taken: usize = (0..=4).map(|half| usize::from(world.tick(jump + half * DAY / 2))).sum();
                prop_assert!((1..=3).contains(&taken), "{taken}");
            }
        }
    }
}
