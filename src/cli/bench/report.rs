//! What the bench prints: for each case the medians over the rounds, and how far the rounds lie apart.

use serde::Serialize;

use super::case::{Case, Metric, Target, all};
use super::contest::Round;
use super::load::Measured;
use crate::cli::bench::arguments::{Bench, BenchGroup};
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
    /// Of the case with leaves that are not cached.
    #[serde(rename = "mapped_size")]
    mapped_size_bytes: u64,
    seconds: f64,
    rounds: u32,
    items: Vec<Line>,
}

/// A case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    #[serde(rename = "ref")]
    reference: String,
    pub(super) group: BenchGroup,
    #[serde(rename = "request_size")]
    request_size_bytes: usize,
    depth: usize,
    flush_every: Option<u64>,
    metric: MetricName,
    /// What is measured first and again behind the second.
    first: Side,
    second: Side,
    /// As the metric says, from each round.
    pub(super) figure: Spread,
    /// The same of the usual one, where the figure is of the slowest.
    usual: Option<Spread>,
    /// The same from the first contestant's two measurements, of which it would be 1 (a difference: 0) without noise.
    pub(super) control: Spread,
    pub(super) target: Option<f64>,
    pub(super) is_upper_bound: bool,
    pub(super) is_target_met: Option<bool>,
    #[serde(skip)]
    found: Vec<Round>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum MetricName {
    ThroughputRatio,
    CpuMicrosecondsPerRequest,
    TailLatencyRatio,
    SecondsToOpen,
    TailDifferenceMilliseconds,
    SnapshotMilliseconds,
    SnapshotTimeRatio,
    SecondsToClone,
    SecondsToForecast,
    BytesEach,
    BlocksPerSecond,
    LongestMilliseconds,
}

/// One of the two contestants.
#[derive(Clone, Debug, Serialize)]
struct Side {
    name: &'static str,
    requests_per_second: Spread,
    cpu_us_per_request: Spread,
    /// What all but one request in a thousand stay below.
    tail_us: Option<Spread>,
}

/// Of the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
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

    fn text(&self) -> String {
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
            mapped_size_bytes: arguments.mapped_size,
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
        let Some(line) = self.items.last() else { return case.name() };
        let (first, second) = case.contestants();
        match case.metric() {
            Metric::Seconds => format!("{}: {} s to open", case.name(), line.figure.text()),
            Metric::ProcessorTime => format!("{}: {} us of processor time", case.name(), line.figure.text()),
            metric if !metric.is_ratio() => format!("{}: {}", case.name(), line.figure_text()),
            _ => format!("{}: {second} {} times {first}", case.name(), line.figure.text()),
        }
    }

    /// How many targets are met, and the cases that miss theirs; `None` if no case has one.
    pub(super) fn verdict(&self) -> Option<String> {
        let lines = self.lines();
        let missed: Vec<&str> =
            lines.iter().filter(|line| line.is_target_met == Some(false)).map(|line| line.name()).collect();
        let target_count = lines.iter().filter(|line| line.is_target_met.is_some()).count();
        let met_count = target_count - missed.len();
        match (target_count, missed.as_slice()) {
            (0, _) => None,
            (_, []) => Some(format!("Targets met: {target_count} of {target_count}")),
            _ => Some(format!("Targets met: {met_count} of {target_count}; missed: {}", missed.join(", "))),
        }
    }

    /// The lines, in the order of the cases.
    pub(super) fn lines(&self) -> Vec<&Line> {
        let names: Vec<String> = all().iter().map(Case::name).collect();
        let mut lines: Vec<&Line> = self.items.iter().collect();
        lines.sort_by_key(|line| names.iter().position(|name| *name == line.reference));
        lines
    }

    /// Prints it all.
    pub(super) fn print(&self, output: &Output) -> Outcome<()> {
        let header =
            ["CASE", "FIRST", "", "SECOND", "", "UNIT", "FIGURE", "CONTROL", "FIRST CPU", "SECOND CPU", "TARGET"];
        let mut table = Table::new(&header, &[2, 4, 8, 9]);
        let ordered = Self { items: self.lines().into_iter().cloned().collect(), ..self.clone() };
        for line in &ordered.items {
            table.row(&line.reference, line.cells());
        }
        Ok(output.list(&ordered, &ordered.items, &table)?)
    }
}

/// Requests from this size on are counted in MiB a second.
const LARGE_BYTES: usize = 1 << 20;

impl Side {
    fn new(name: &'static str, found: &[Round], of_round: impl Fn(&Round) -> Vec<Measured>) -> Self {
        let mean = |value: &dyn Fn(&Measured) -> f64| {
            Spread::of(found.iter().map(|round| {
                let (sum, count) =
                    of_round(round).iter().fold((0.0, 0.0), |(sum, count), one| (sum + value(one), count + 1.0));
                sum / count
            }))
        };
        let has_tail = found.iter().all(|round| round.second.tail_us.is_some());
        Self {
            name,
            requests_per_second: mean(&Measured::requests_per_second),
            cpu_us_per_request: mean(&Measured::cpu_us_per_request),
            tail_us: has_tail.then(|| mean(&|one| one.tail_us.unwrap_or(f64::NAN))),
        }
    }
}

/// The figure of two measurements, of which the first may have been made twice.
fn figure_of(metric: Metric, firsts: &[Measured], second: &Measured) -> f64 {
    let value = |measured: &Measured| match metric {
        Metric::Throughput => measured.requests_per_second(),
        Metric::ProcessorTime => measured.cpu_us_per_request(),
        Metric::Tail => measured.tail_us.unwrap_or(f64::NAN),
        Metric::TailDifference => measured.tail_us.map_or(f64::NAN, |tail| tail / 1000.0),
        Metric::LongestMilliseconds => measured.longest_us.map_or(f64::NAN, |longest| longest / 1000.0),
        _ => measured.duration.as_secs_f64(),
    };
    let first = match firsts {
        [one, again] => f64::midpoint(value(one), value(again)),
        firsts => firsts.iter().map(value).sum(),
    };
    match metric {
        Metric::ProcessorTime | Metric::TailDifference => value(second) - first,
        metric if metric.is_ratio() => value(second) / first,
        _ => value(second),
    }
}

impl Line {
    fn new(case: &Case, target: Option<Target>, found: Vec<Round>) -> Self {
        let metric = case.metric();
        let (first, second) = case.contestants();
        let figure = |round: &Round| {
            let of_both = || figure_of(metric, &[round.first, round.first_again], &round.second);
            round.own.map_or_else(of_both, |own| own.figure)
        };
        let figure = Spread::of(found.iter().map(figure));
        let control = |round: &Round| {
            let of_first = || figure_of(metric, &[round.first], &round.first_again);
            round.own.map_or_else(of_first, |own| own.control)
        };
        let usual: Option<Vec<f64>> = found.iter().map(|round| round.own.and_then(|own| own.usual)).collect();
        Self {
            reference: case.name(),
            group: case.group,
            request_size_bytes: case.size_bytes,
            depth: case.depth,
            flush_every: case.flush_every,
            metric: match metric {
                Metric::Throughput => MetricName::ThroughputRatio,
                Metric::ProcessorTime => MetricName::CpuMicrosecondsPerRequest,
                Metric::Tail => MetricName::TailLatencyRatio,
                Metric::Seconds => MetricName::SecondsToOpen,
                Metric::TailDifference => MetricName::TailDifferenceMilliseconds,
                Metric::TakeMilliseconds => MetricName::SnapshotMilliseconds,
                Metric::TakeRatio => MetricName::SnapshotTimeRatio,
                Metric::SecondsToClone => MetricName::SecondsToClone,
                Metric::SecondsToForecast => MetricName::SecondsToForecast,
                Metric::BytesEach => MetricName::BytesEach,
                Metric::BlocksPerSecond => MetricName::BlocksPerSecond,
                Metric::LongestMilliseconds => MetricName::LongestMilliseconds,
            },
            first: Side::new(first, &found, |round| vec![round.first, round.first_again]),
            second: Side::new(second, &found, |round| vec![round.second]),
            figure,
            usual: usual.map(|usual| Spread::of(usual.into_iter())),
            control: Spread::of(found.iter().map(control)),
            target: target.map(Target::bound),
            is_upper_bound: matches!(target, Some(Target::AtMost(_))),
            is_target_met: target.map(|target| target.is_met(figure.median)),
            found,
        }
    }

    /// What people and scripts call it.
    pub(super) fn name(&self) -> &str {
        &self.reference
    }

    /// Whether the figure is a ratio.
    pub(super) fn is_ratio(&self) -> bool {
        use MetricName::{SnapshotTimeRatio, TailLatencyRatio, ThroughputRatio};
        matches!(self.metric, ThroughputRatio | TailLatencyRatio | SnapshotTimeRatio)
    }

    fn figure_text(&self) -> String {
        let unit = match self.metric {
            MetricName::CpuMicrosecondsPerRequest => " us",
            MetricName::SecondsToOpen | MetricName::SecondsToClone | MetricName::SecondsToForecast => " s",
            MetricName::TailDifferenceMilliseconds => " ms p99.9",
            MetricName::SnapshotMilliseconds => " ms p99",
            MetricName::LongestMilliseconds => " ms",
            MetricName::BytesEach => " bytes",
            MetricName::BlocksPerSecond => " blocks/s",
            MetricName::ThroughputRatio | MetricName::TailLatencyRatio | MetricName::SnapshotTimeRatio => "",
        };
        let usual = self.usual.map(|usual| format!(", {} ms p50", usual.text())).unwrap_or_default();
        format!("{}{unit}{usual}", self.figure.text())
    }

    fn cells(&self) -> Vec<String> {
        let unit = match (self.metric, self.request_size_bytes < LARGE_BYTES) {
            (MetricName::SecondsToOpen, _) => "opens/s",
            (MetricName::SecondsToClone | MetricName::BytesEach, _) => "clones/s",
            (MetricName::SnapshotTimeRatio, _) => "snapshots/s",
            (MetricName::BlocksPerSecond | MetricName::SecondsToForecast, _) => "blocks/s",
            _ if self.first.tail_us.is_some() => "us p99.9",
            (_, true) => "requests/s",
            (_, false) => "MiB/s",
        };
        let value = |side: &Side| format!("{:.0}", side.tail_us.unwrap_or(side.requests_per_second).median);
        let processor = |side: &Side| format!("{:.2} us", side.cpu_us_per_request.median);
        let figure = self.figure_text();
        let target = match (self.target, self.is_target_met) {
            (Some(target), Some(is_met)) => {
                let sign = if self.is_upper_bound { "<=" } else { ">=" };
                format!("{sign} {target:.2} {}", if is_met { "met" } else { "missed" })
            }
            _ => String::new(),
        };
        vec![
            self.reference.clone(),
            self.first.name.to_owned(),
            value(&self.first),
            self.second.name.to_owned(),
            value(&self.second),
            unit.to_owned(),
            figure,
            self.control.text(),
            processor(&self.first),
            processor(&self.second),
            target,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn measured(request_count: u64) -> Measured {
        let (duration, cpu) = (Duration::from_secs(1), Duration::from_millis(request_count));
        Measured { cpu, tail_us: Some(1.0), ..Measured::of(1000, duration) }.with_rate(request_count)
    }

    impl Measured {
        fn with_rate(self, request_count: u64) -> Self {
            Self { request_count, ..self }
        }
    }

    fn round(first: u64, second: u64, first_again: u64) -> Round {
        Round { first: measured(first), second: measured(second), first_again: measured(first_again), own: None }
    }

    fn named(name: &str) -> Case {
        all().into_iter().find(|case| case.name() == name).expect("there is such a case")
    }

    #[test]
    fn a_spread_has_the_middle_and_the_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0].into_iter()), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[test]
    fn ratios_are_taken_in_each_round_against_the_first_around_it() {
        let found = vec![round(100, 300, 200), round(100, 100, 100), round(10, 40, 30)];

        let line = Line::new(&named("random-read-4k-qd32"), Some(Target::AtLeast(1.5)), found);

        assert_eq!(line.figure, Spread { median: 2.0, min: 1.0, max: 2.0 });
        assert_eq!(line.control, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(line.is_target_met, Some(true));
    }

    #[test]
    fn processor_time_is_what_the_engine_takes_beside_the_load() {
        // Each request of the load alone takes 2 us, of the engine 5 us.
        let side =
            |us: u64| Measured { cpu: Duration::from_micros(us * 1000), ..Measured::of(1000, Duration::from_secs(1)) };
        let found = vec![Round { first: side(2), second: side(5), first_again: side(2), own: None }];

        let line = Line::new(&named("memory-random-write-4k-qd32"), Some(Target::AtMost(2.0)), found);

        assert_eq!((line.figure.median, line.control.median), (3.0, 0.0));
        assert_eq!(line.is_target_met, Some(false));
    }
}
