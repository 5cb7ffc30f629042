//! Which snapshots of a volume a policy keeps: a computation over their times and what protects them, nothing else.
//!
//! For `hourly: 24` the newest snapshot of each of the last 24 hours *that have one* is kept; the other rules likewise.
//! Hours without a snapshot do not count, so that a machine that was off for a month loses nothing. Each rule looks at all
//! snapshots on its own, and a snapshot goes if no rule wants it. Times are valid times; hours, days, weeks (from Monday,
//! ISO 8601), months and years are those of UTC, which has no summer time.

use std::cmp::Reverse;

use jiff::Timestamp;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many snapshots of each kind stay. Without any rule all do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The newest ones.
    pub last: u32,
    /// The newest one of each of so many hours.
    pub hourly: u32,
    /// The newest one of each of so many days.
    pub daily: u32,
    /// The newest one of each of so many weeks.
    pub weekly: u32,
    /// The newest one of each of so many months.
    pub monthly: u32,
    /// The newest one of each of so many years.
    pub yearly: u32,
}

/// A snapshot as retention sees it.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its number; unique.
    pub number: u64,
    /// Its valid time.
    pub valid_at: Timestamp,
    /// Whether somebody holds it.
    pub is_held: bool,
    /// Whether it has a tag.
    pub is_tagged: bool,
    /// Whether it goes by itself at a time of its own.
    pub is_expiring: bool,
}

/// Why a snapshot stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It has the highest number, or the newest time.
    Newest,
    /// Somebody holds it.
    Held,
    /// It has a tag.
    Tagged,
    /// It goes by itself, at a time of its own.
    Expiring,
    /// It is among the last ones.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// There is no rule.
    Unlimited,
    /// A client has it open; it goes when none has and no other reason is left.
    Open,
}

/// What a policy does with one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The snapshot.
    pub number: u64,
    /// Why it stays, in the order of [`Reason`]; it goes if there is none.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Whether it stays.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

impl Retention {
    /// Whether there is no rule, so that everything stays.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// What to do with each of `snapshots`: the newest first, by time and among equal times by number. The same for the
    /// same set, in whatever order it comes.
    #[must_use]
    pub fn plan(&self, snapshots: &[Kept]) -> Vec<Verdict> {
        let mut sorted = snapshots.to_vec();
        sorted.sort_unstable_by_key(|snapshot| Reverse((snapshot.valid_at, snapshot.number)));
        let latest = sorted.iter().map(|snapshot| snapshot.number).max();
        let newest = sorted.first().map(|snapshot| snapshot.number);
        let mut verdicts: Vec<Verdict> = sorted
            .iter()
            .map(|snapshot| {
                let is_newest = Some(snapshot.number) == latest || Some(snapshot.number) == newest;
                Verdict { number: snapshot.number, reasons: protections(snapshot, is_newest) }
            })
            .collect();
        if self.is_unlimited() {
            for verdict in &mut verdicts {
                verdict.reasons.push(Reason::Unlimited);
            }
            return verdicts;
        }
        let last = usize::try_from(self.last).unwrap_or(usize::MAX);
        for verdict in verdicts.iter_mut().take(last) {
            verdict.reasons.push(Reason::Last);
        }
        let counts = [
            (self.hourly, Reason::Hourly),
            (self.daily, Reason::Daily),
            (self.weekly, Reason::Weekly),
            (self.monthly, Reason::Monthly),
            (self.yearly, Reason::Yearly),
        ];
        for (count, reason) in counts {
            keep_newest_of_each(&sorted, &mut verdicts, count, reason);
        }
        verdicts
    }
}

/// The hour, day, week, month or year of a time, as numbers that differ from those of every other one.
fn period_of(time: Timestamp, reason: Reason) -> [i32; 4] {
    let local = Offset::UTC.to_datetime(time);
    let (year, month, day) = (i32::from(local.year()), i32::from(local.month()), i32::from(local.day()));
    match reason {
        Reason::Hourly => [year, month, day, i32::from(local.hour())],
        Reason::Daily => [year, month, day, 0],
        Reason::Weekly => {
            // The year of a week is not always that of its days.
            let week = local.date().iso_week_date();
            [i32::from(week.year()), i32::from(week.week()), 0, 0]
        }
        Reason::Monthly => [year, month, 0, 0],
        _ => [year, 0, 0, 0],
    }
}

/// Adds `reason` to the first snapshot of each of the `count` first periods; the snapshots are sorted.
fn keep_newest_of_each(sorted: &[Kept], verdicts: &mut [Verdict], count: u32, reason: Reason) {
    let mut left = count;
    let mut period_before = None;
    for (snapshot, verdict) in sorted.iter().zip(verdicts) {
        if left == 0 {
            return;
        }
        let period = Some(period_of(snapshot.valid_at, reason));
        if period != period_before {
            verdict.reasons.push(reason);
            period_before = period;
            left -= 1;
        }
    }
}

fn protections(snapshot: &Kept, is_newest: bool) -> Vec<Reason> {
    let all = [
        (is_newest, Reason::Newest),
        (snapshot.is_held, Reason::Held),
        (snapshot.is_tagged, Reason::Tagged),
        (snapshot.is_expiring, Reason::Expiring),
    ];
    all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, reason)| reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::parse_time;
    use proptest::prelude::*;

    const NONE: Retention = Retention { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };

    fn plain(number: u64, time: &str) -> Kept {
        let valid_at = parse_time(time).expect(time);
        Kept { number, valid_at, is_held: false, is_tagged: false, is_expiring: false }
    }

    fn numbered(times: &[&str]) -> Vec<Kept> {
        (1..).zip(times).map(|(number, time)| plain(number, time)).collect()
    }

    fn kept(retention: &Retention, snapshots: &[Kept]) -> Vec<u64> {
        retention.plan(snapshots).iter().filter(|verdict| verdict.is_kept()).map(|verdict| verdict.number).collect()
    }

    fn reasons(retention: &Retention, snapshots: &[Kept], number: u64) -> Vec<Reason> {
        let plan = retention.plan(snapshots);
        plan.into_iter().find(|verdict| verdict.number == number).expect("it is in the plan").reasons
    }

    #[test]
    fn the_last_ones_stay() {
        let snapshots = numbered(&["2026-11-01", "2026-11-02", "2026-11-03", "2026-11-04"]);

        assert_eq!(kept(&Retention { last: 2, ..NONE }, &snapshots), [4, 3]);
        assert_eq!(kept(&Retention { last: 9, ..NONE }, &snapshots), [4, 3, 2, 1]);
    }

    #[test]
    fn the_newest_of_each_hour_stays_and_empty_hours_do_not_count() {
        let snapshots = numbered(&[
            "2026-11-01T05:59",
            "2026-11-01T10:00",
            "2026-11-01T10:59:59",
            "2026-11-01T11:00",
            "2026-11-01T11:30",
        ]);

        assert_eq!(kept(&Retention { hourly: 2, ..NONE }, &snapshots), [5, 3]);
        assert_eq!(kept(&Retention { hourly: 3, ..NONE }, &snapshots), [5, 3, 1]);
    }

    #[test]
    fn the_same_hour_of_another_day_is_another_hour() {
        let snapshots = numbered(&["2026-11-01T10:00", "2026-11-02T10:00", "2026-12-02T10:00", "2027-12-02T10:00"]);

        assert_eq!(kept(&Retention { hourly: 4, ..NONE }, &snapshots), [4, 3, 2, 1]);
        assert_eq!(kept(&Retention { daily: 4, ..NONE }, &snapshots), [4, 3, 2, 1]);
        assert_eq!(kept(&Retention { monthly: 4, ..NONE }, &snapshots), [4, 3, 2]);
    }

    #[test]
    fn days_end_at_midnight_in_utc() {
        let snapshots =
            numbered(&["2026-10-25T01:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T23:59:59.9", "2026-10-26"]);

        assert_eq!(kept(&Retention { daily: 9, ..NONE }, &snapshots), [4, 3, 1]);
    }

    #[test]
    fn weeks_begin_on_monday_and_go_over_the_end_of_the_year() {
        // 2026-12-28 is the Monday of week 53 of 2026, which ends on Sunday 2027-01-03.
        let snapshots =
            numbered(&["2026-12-27T23:59", "2026-12-28", "2026-12-31", "2027-01-01", "2027-01-03T23:59", "2027-01-04"]);

        assert_eq!(kept(&Retention { weekly: 9, ..NONE }, &snapshots), [6, 5, 1]);
        // Monday 2024-12-30 is in week 1 of 2025 already, and 2024-01-01 in week 1 of 2024.
        let snapshots = numbered(&["2024-01-01", "2024-12-30", "2025-01-05"]);
        assert_eq!(kept(&Retention { weekly: 9, ..NONE }, &snapshots), [3, 1]);
    }

    #[test]
    fn months_and_years_end_where_the_calendar_says() {
        let snapshots = numbered(&["2027-12-31T23:59:59", "2028-01-01", "2028-02-29", "2028-03-01", "2029-02-28"]);

        assert_eq!(kept(&Retention { monthly: 4, ..NONE }, &snapshots), [5, 4, 3, 2]);
        assert_eq!(kept(&Retention { yearly: 2, ..NONE }, &snapshots), [5, 4]);
        assert_eq!(kept(&Retention { yearly: 9, ..NONE }, &snapshots), [5, 4, 1]);
    }

    #[test]
    fn rules_add_up_and_give_their_reasons() {
        let snapshots = numbered(&["2026-11-01T10:00", "2026-11-02T10:00", "2026-11-02T11:00", "2026-11-02T12:00"]);
        let retention = Retention { last: 2, daily: 2, yearly: 1, ..NONE };

        assert_eq!(kept(&retention, &snapshots), [4, 3, 1]);
        assert_eq!(reasons(&retention, &snapshots, 4), [Reason::Newest, Reason::Last, Reason::Daily, Reason::Yearly]);
        assert_eq!(reasons(&retention, &snapshots, 3), [Reason::Last]);
        assert_eq!(reasons(&retention, &snapshots, 1), [Reason::Daily]);
        assert_eq!(reasons(&retention, &snapshots, 2), []);
    }

    #[test]
    fn held_tagged_and_expiring_ones_stay_and_use_up_no_place() {
        let mut snapshots = numbered(&["2026-11-01", "2026-11-02", "2026-11-03", "2026-11-04", "2026-11-05"]);
        (snapshots[0].is_held, snapshots[1].is_tagged, snapshots[2].is_expiring) = (true, true, true);

        assert_eq!(kept(&Retention { last: 1, ..NONE }, &snapshots), [5, 3, 2, 1]);
        assert_eq!(reasons(&Retention { last: 1, ..NONE }, &snapshots, 1), [Reason::Held]);
        assert_eq!(reasons(&Retention { last: 1, ..NONE }, &snapshots, 2), [Reason::Tagged]);
        assert_eq!(reasons(&Retention { last: 1, ..NONE }, &snapshots, 3), [Reason::Expiring]);
    }

    #[test]
    fn the_newest_stays_by_number_and_by_time() {
        // Number 3 has a time that its user set back by a year.
        let snapshots = numbered(&["2026-11-01", "2026-11-02", "2025-11-03"]);

        assert_eq!(kept(&Retention { last: 1, ..NONE }, &snapshots), [2, 3]);
        assert_eq!(reasons(&Retention { last: 1, ..NONE }, &snapshots, 3), [Reason::Newest]);
    }

    #[test]
    fn without_rules_everything_stays() {
        let snapshots = numbered(&["2026-11-01", "2026-11-02"]);

        assert_eq!(kept(&NONE, &snapshots), [2, 1]);
        assert_eq!(reasons(&NONE, &snapshots, 1), [Reason::Unlimited]);
        assert_eq!(kept(&Retention { last: 1, ..NONE }, &[]), [0_u64; 0]);
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

    prop_compose! {
        fn any_retention()(counts in proptest::array::uniform6(0_u32..4)) -> Retention {
            let [last, hourly, daily, weekly, monthly, yearly] = counts;
            Retention { last, hourly, daily, weekly, monthly, yearly }
        }
    }

    proptest! {
        #[test]
        fn what_is_protected_never_goes(retention in any_retention(), snapshots in any_snapshots()) {
            let kept = kept(&retention, &snapshots);
            for snapshot in &snapshots {
                let is_protected = snapshot.is_held || snapshot.is_tagged || snapshot.is_expiring;
                prop_assert!(!is_protected || kept.contains(&snapshot.number));
            }
            let newest = snapshots.iter().max_by_key(|snapshot| (snapshot.valid_at, snapshot.number));
            prop_assert!(newest.is_none_or(|newest| kept.contains(&newest.number)));
        }

        #[test]
        fn the_order_of_the_snapshots_does_not_matter(retention in any_retention(), snapshots in any_snapshots()) {
            let reversed: Vec<Kept> = snapshots.iter().rev().copied().collect();
            prop_assert_eq!(retention.plan(&snapshots), retention.plan(&reversed));
        }

        #[test]
        fn doing_it_again_removes_nothing_more(retention in any_retention(), snapshots in any_snapshots()) {
            let first = kept(&retention, &snapshots);
            let left: Vec<Kept> = snapshots.into_iter().filter(|snapshot| first.contains(&snapshot.number)).collect();
            prop_assert_eq!(kept(&retention, &left), first);
        }

        #[test]
        fn no_rule_keeps_more_than_it_says(retention in any_retention(), snapshots in any_snapshots()) {
            let plan = retention.plan(&snapshots);
            let count_of = |reason| plan.iter().filter(|verdict| verdict.reasons.contains(&reason)).count();
            for (count, reason) in [
                (retention.last, Reason::Last),
                (retention.hourly, Reason::Hourly),
                (retention.daily, Reason::Daily),
                (retention.weekly, Reason::Weekly),
                (retention.monthly, Reason::Monthly),
                (retention.yearly, Reason::Yearly),
            ] {
                prop_assert!(count_of(reason) <= usize::try_from(count).expect("small"));
            }
        }
    }
}
