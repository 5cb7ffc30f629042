//! What the bench prints: for each case the medians over the rounds, and how far the rounds lie apart.

use serde::Serialize;

use super::case::Case;
use super::round::Round;
use crate::cli::arguments::Bench;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::cli::table::Table;
use crate::daemon::resource::ApiVersion;

/// The answer of `--json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    api: ApiVersion,
    kind: &'static str,
    is_encrypted: bool,
    #[serde(rename = "pool_size")]
    pool_size_bytes: u64,
    #[serde(rename = "volume_size")]
    volume_size_bytes: u64,
    seconds: f64,
    rounds: u32,
    items: Vec<Line>,
}

/// A case.
#[derive(Clone, Debug, Serialize)]
struct Line {
    #[serde(rename = "ref")]
    reference: String,
    #[serde(rename = "request_size")]
    request_size_bytes: usize,
    depth: usize,
    /// Requests a second.
    raw: Spread,
    engine: Spread,
    /// Engine to the mean of the raw measurements around it.
    ratio: Spread,
    /// The second raw measurement to the first.
    control: Spread,
    raw_cpu_us: Spread,
    engine_cpu_us: Spread,
    target: Option<f64>,
    is_target_met: Option<bool>,
    #[serde(skip)]
    found: Vec<Round>,
}

/// Of the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// # Panics
    /// Without values: each case has a round.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Self { median: f64::midpoint(low, high), min: values[0], max: values[values.len() - 1] }
    }

    fn ratio_text(&self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

impl Report {
    /// Without lines.
    pub(super) const fn new(arguments: &Bench, span_bytes: u64) -> Self {
        Self {
            api: ApiVersion::V1,
            kind: "BenchReport",
            is_encrypted: !arguments.no_encryption,
            pool_size_bytes: arguments.pool_size,
            volume_size_bytes: span_bytes,
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            items: Vec::new(),
        }
    }

    /// Adds a round of a case. The rounds of a case follow each other.
    pub(super) fn add(&mut self, case: &Case, round: Round) {
        let reference = case.name();
        let mut found = match self.items.pop_if(|line| line.reference == reference) {
            Some(line) => line.found,
            None => Vec::new(),
        };
        found.push(round);
        let target = case.target.filter(|_| self.is_encrypted);
        self.items.push(Line::new(case, target, found));
    }

    /// The case that was just measured, for people who wait.
    pub(super) fn sentence(&self, case: &Case) -> String {
        let ratio = self.items.last().map(|line| line.ratio.ratio_text()).unwrap_or_default();
        format!("{}: {ratio} times raw", case.name())
    }

    /// Prints it all.
    pub(super) fn print(&self, output: &Output) -> Outcome<()> {
        let header = ["CASE", "RAW", "ENGINE", "", "RATIO", "CONTROL", "RAW CPU", "ENGINE CPU", "", "TARGET"];
        let mut table = Table::new(&header, &[1, 2, 6, 7]);
        for line in &self.items {
            table.row(&line.reference, line.cells());
        }
        Ok(output.list(self, &self.items, &table)?)
    }
}

/// Requests from this size on are counted in MiB a second.
const LARGE_BYTES: usize = 1 << 20;

impl Line {
    fn new(case: &Case, target: Option<f64>, found: Vec<Round>) -> Self {
        let of = |value: fn(&Round) -> f64| Spread::of(found.iter().map(value));
        let ratio = of(|round| {
            let raw = f64::midpoint(round.raw.requests_per_second(), round.raw_again.requests_per_second());
            round.engine.requests_per_second() / raw
        });
        Self {
            reference: case.name(),
            request_size_bytes: case.size_bytes,
            depth: case.depth,
            raw: of(|round| f64::midpoint(round.raw.requests_per_second(), round.raw_again.requests_per_second())),
            engine: of(|round| round.engine.requests_per_second()),
            ratio,
            control: of(|round| round.raw_again.requests_per_second() / round.raw.requests_per_second()),
            raw_cpu_us: of(|round| f64::midpoint(round.raw.cpu_us_per_request(), round.raw_again.cpu_us_per_request())),
            engine_cpu_us: of(|round| round.engine.cpu_us_per_request()),
            target,
            is_target_met: target.map(|target| ratio.median >= target),
            found,
        }
    }

    fn cells(&self) -> Vec<String> {
        let unit = if self.request_size_bytes < LARGE_BYTES { "requests/s" } else { "MiB/s" };
        let target = match (self.target, self.is_target_met) {
            (Some(target), Some(true)) => format!("{target:.1} met"),
            (Some(target), _) => format!("{target:.1} missed"),
            (None, _) => String::new(),
        };
        vec![
            self.reference.clone(),
            format!("{:.0}", self.raw.median),
            format!("{:.0}", self.engine.median),
            unit.to_owned(),
            self.ratio.ratio_text(),
            self.control.ratio_text(),
            format!("{:.1}", self.raw_cpu_us.median),
            format!("{:.1}", self.engine_cpu_us.median),
            "us/request".to_owned(),
            target,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::case::CASES;
    use crate::cli::bench::load::Measured;
    use std::time::Duration;

    fn measured(request_count: u64) -> Measured {
        Measured { request_count, duration: Duration::from_secs(1), cpu: Duration::from_millis(1) }
    }

    fn round(raw: u64, engine: u64, raw_again: u64) -> Round {
        Round { raw: measured(raw), engine: measured(engine), raw_again: measured(raw_again) }
    }

    #[test]
    fn a_spread_has_the_middle_and_the_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0].into_iter()), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[test]
    fn ratios_are_taken_in_each_round_against_the_raw_around_it() {
        let found = vec![round(100, 300, 200), round(100, 100, 100), round(10, 40, 30)];

        let line = Line::new(&CASES[1], Some(1.5), found);

        assert_eq!(line.ratio, Spread { median: 2.0, min: 1.0, max: 2.0 });
        assert_eq!(line.control, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(line.is_target_met, Some(true));
    }
}
