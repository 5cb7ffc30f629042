//! Which snapshot a reference means, among those that its volume has.

use super::reference::{Reference, Selector};
use super::valid_time::time_text;
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::SnapshotRecord;
use crate::pool::Catalog;
use jiff::Timestamp;

/// What a selection goes by of a snapshot. Numbers are unique, tags too.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its number, from 1.
    pub number: u64,
    /// When its content is of: its creation time, unless the user set another.
    pub valid_at: Timestamp,
    /// Its tags.
    pub tags: &'a [String],
}

impl Candidate<'_> {
    /// Later times are newer; among equal ones, higher numbers.
    const fn age(&self) -> (Timestamp, u64) {
        (self.valid_at, self.number)
    }
}

/// The number of the snapshot of `volume` that `selector` means, among `candidates` in any order.
///
/// # Errors
/// `NotFound` if there is none; for a time before the first, and a count that is too high, it names the oldest.
pub fn select<'a>(
    volume: &str,
    selector: &Selector,
    candidates: impl Iterator<Item = Candidate<'a>> + Clone,
) -> Result<u64> {
    let found = match selector {
        Selector::Number(number) => candidates.clone().find(|candidate| candidate.number == *number),
        Selector::Latest => candidates.clone().max_by_key(|candidate| candidate.number),
        Selector::Back(count) => nth_before_latest(candidates.clone(), *count),
        Selector::Tag(tag) => candidates.clone().find(|candidate| candidate.tags.contains(tag)),
        Selector::Time(time) => {
            candidates.clone().filter(|candidate| candidate.valid_at <= *time).max_by_key(Candidate::age)
        }
    };
    found.map(|candidate| candidate.number).ok_or_else(|| not_found(volume, selector, candidates))
}

fn nth_before_latest<'a>(candidates: impl Iterator<Item = Candidate<'a>>, count: u64) -> Option<Candidate<'a>> {
    let mut sorted: Vec<Candidate<'a>> = candidates.collect();
    sorted.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.number));
    sorted.get(usize::try_from(count).ok()?).copied()
}

fn not_found<'a>(volume: &str, selector: &Selector, candidates: impl Iterator<Item = Candidate<'a>> + Clone) -> Error {
    let reference = format!("{volume}@{selector}");
    let Some(oldest) = candidates.clone().min_by_key(Candidate::age) else {
        return Error::new(ErrorKind::NotFound, format!("There is no {reference}: {volume} has no snapshot"))
            .with_hint(format!("rok-blk snapshot {volume} makes one"));
    };
    let oldest = format!("{volume}@{} of {}", oldest.number, time_text(oldest.valid_at));
    let message = match selector {
        Selector::Time(time) => {
            format!("{volume} has no snapshot as old as {}: the oldest is {oldest}", time_text(*time))
        }
        Selector::Back(_) => format!(
            "There is no {reference}: {volume} has {} snapshots, and the oldest is {oldest}",
            candidates.count()
        ),
        Selector::Number(_) | Selector::Latest | Selector::Tag(_) => format!("There is no {reference}"),
    };
    Error::new(ErrorKind::NotFound, message).with_hint(format!("rok-blk log {volume} lists what there is"))
}

/// The snapshot that a reference means, among those that are not in the trash.
///
/// # Errors
/// `Usage` if it names a volume, `NotFound`.
pub fn find_selected<'a>(catalog: &'a Catalog, reference: &Reference) -> Result<&'a SnapshotRecord> {
    let name = reference.volume_name();
    let volume = catalog.find(name)?.id;
    let Some(selector) = reference.selector() else {
        return Err(Error::new(ErrorKind::Usage, format!("{name} is a volume, and a snapshot of it is needed"))
            .with_hint(format!("Name one like {name}@latest; rok-blk log {name} lists them")));
    };
    let living = catalog.snapshots_of(volume).filter(|record| !record.lifetime.is_trashed());
    let candidate = |record: &'a SnapshotRecord| Candidate {
        number: record.number,
        valid_at: timestamp_of(record.time_ms),
        tags: &record.annotations.tags,
    };
    let candidates: Vec<Candidate<'_>> = living.map(candidate).collect();
    let number = select(name, selector, candidates.iter().copied())?;
    catalog.snapshot_or_error((volume, number))
}

/// The time that is so many milliseconds from 1970, as near as it can be told.
#[must_use]
pub fn timestamp_of(milliseconds: i64) -> Timestamp {
    let bound = if milliseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_millisecond(milliseconds).unwrap_or(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::valid_time::parse_time;
    use proptest::prelude::*;

    struct Sample {
        number: u64,
        time: &'static str,
        tags: Vec<String>,
    }

    fn sample(number: u64, time: &'static str, tags: &[&str]) -> Sample {
        Sample { number, time, tags: tags.iter().map(|tag| (*tag).to_owned()).collect() }
    }

    /// Number 3 was removed; number 5 has a time that its user set back, and number 6 the same as number 4.
    fn samples() -> Vec<Sample> {
        vec![
            sample(4, "2026-11-03T10:00", &["before-upgrade"]),
            sample(1, "2026-11-01T10:00", &[]),
            sample(6, "2026-11-03T10:00", &["v2", "release"]),
            sample(2, "2026-11-02T10:00", &[]),
            sample(5, "2026-10-01", &[]),
        ]
    }

    fn selected(samples: &[Sample], selector: &str) -> Result<u64> {
        let candidates = samples.iter().map(|sample| Candidate {
            number: sample.number,
            valid_at: parse_time(sample.time).expect("a time"),
            tags: &sample.tags,
        });
        select("vol1", &selector.parse().expect("a selector"), candidates)
    }

    #[test]
    fn numbers_and_tags_name_one_snapshot() {
        assert_eq!(selected(&samples(), "4").expect("there"), 4);
        assert_eq!(selected(&samples(), "before-upgrade").expect("there"), 4);
        assert_eq!(selected(&samples(), "release").expect("there"), 6);
    }

    #[test]
    fn the_latest_and_those_before_it_go_by_number_over_removed_ones() {
        assert_eq!(selected(&samples(), "latest").expect("there"), 6);
        assert_eq!(selected(&samples(), "-1").expect("there"), 5);
        assert_eq!(selected(&samples(), "-3").expect("number 3 is gone"), 2);
        assert_eq!(selected(&samples(), "-4").expect("there"), 1);
    }

    #[test]
    fn a_time_means_the_newest_snapshot_that_is_not_later() {
        assert_eq!(selected(&samples(), "2026-11-02T12:00").expect("there"), 2);
        assert_eq!(selected(&samples(), "2026-11-02T10:00").expect("equality counts"), 2);
        assert_eq!(selected(&samples(), "2026-11-02T09:59:59.999999999").expect("just before"), 1);
        assert_eq!(selected(&samples(), "2026-11-02").expect("a bare date is its midnight"), 1);
        assert_eq!(selected(&samples(), "2026-11-02T12:00+02:00").expect("10:00 in UTC"), 2);
        assert_eq!(selected(&samples(), "2026-10-15").expect("by the time that was set"), 5);
    }

    #[test]
    fn among_equal_times_the_higher_number_wins() {
        assert_eq!(selected(&samples(), "2026-11-03T10:00").expect("there"), 6);
        assert_eq!(selected(&samples(), "2030-01-01").expect("there"), 6);
    }

    #[test]
    fn a_time_before_the_first_names_the_oldest() {
        let error = selected(&samples(), "2026-09-30T23:59:59").expect_err("too old");

        assert_eq!(error.kind(), ErrorKind::NotFound);
        let message =
            "vol1 has no snapshot as old as 2026-09-30T23:59:59Z: the oldest is vol1@5 of 2026-10-01T00:00:00Z";
        assert_eq!(error.message(), message);
    }

    #[test]
    fn what_is_not_there_is_not_found_with_a_way_out() {
        for selector in ["3", "7", "-5", "-18446744073709551615", "unknown"] {
            let error = selected(&samples(), selector).expect_err(selector);
            assert_eq!(error.kind(), ErrorKind::NotFound, "{selector}");
            assert_eq!(error.hint(), Some("rok-blk log vol1 lists what there is"));
        }
        let error = selected(&samples(), "-5").expect_err("there are five");
        assert!(error.message().contains("has 5 snapshots"), "{error}");
        assert!(error.message().contains("vol1@5 of 2026-10-01"), "{error}");
    }

    #[test]
    fn a_volume_without_snapshots_says_so() {
        for selector in ["1", "latest", "-1", "v1", "2026-11-01"] {
            let error = selected(&[], selector).expect_err("there are none");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{selector}");
            assert_eq!(error.hint(), Some("rok-blk snapshot vol1 makes one"));
        }
    }

    #[test]
    fn a_time_that_is_too_far_away_is_told_as_near_as_can_be() {
        assert_eq!(timestamp_of(i64::MIN), Timestamp::MIN);
        assert_eq!(timestamp_of(i64::MAX), Timestamp::MAX);
        assert_eq!(timestamp_of(-1).as_millisecond(), -1);
    }

    proptest! {
        #[test]
        fn a_selection_by_time_agrees_with_a_sorted_list(
            times in proptest::collection::vec(0_i64..8, 0..8),
            asked in 0_i64..8,
        ) {
            let at = |second| Timestamp::from_second(second).expect("in range");
            let mut sorted: Vec<(i64, u64)> = times.iter().copied().zip(1..).collect();
            let candidates = sorted.clone();
            let candidates =
                candidates.iter().map(|(time, number)| Candidate { number: *number, valid_at: at(*time), tags: &[] });
            sorted.sort_unstable();

            let found = select("vol1", &Selector::Time(at(asked)), candidates).ok();

            let expected = sorted.iter().rfind(|(time, _)| *time <= asked).map(|(_, number)| *number);
            prop_assert_eq!(found, expected);
        }
    }
}
