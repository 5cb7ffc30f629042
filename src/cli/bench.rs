//! The command `bench`: the engine beside a raw io_uring loop, in one run on one file system, and beside itself.
//!
//! All sides are driven by the same loop ([`load`]), each on a thread of its own with a ring of its own. A case is a
//! contest of two, mostly of the raw file and the engine. A round measures the first, the second, and the first again:
//! that is the control, and tells how much of a ratio is noise of the machine.
//!
//! A pool is fresh in the sense of the targets: before each measurement of writes the volume is discarded and
//! a checkpoint frees its blocks, and no measurement writes more than the volume's size.

pub(super) mod arguments;
mod background;
mod case;
mod contest;
mod counted;
mod engine_side;
mod engine_team;
mod interrupt;
mod load;
mod place;
mod plot;
mod raw_side;
mod recovery;
mod report;
mod ring_turn;
mod snapshot_case;
mod snapshot_stage;
mod snapshot_team;
mod stage;
mod worker;

use std::process::ExitCode;

use super::arguments::Global;
use super::failure::Outcome;
use super::output::Output;
use super::serve_command::prepare_process;
use crate::error::{Error, ErrorKind, Result};
use arguments::{Bench, BenchGroup};
use case::Case;
use interrupt::Interrupt;
use place::Place;
use report::Report;
use snapshot_case::SnapshotCase;
use stage::{Stages, fresh_span_bytes};

/// `bench`.
pub(super) fn run(arguments: &Bench, global: &Global, output: &Output) -> Outcome<ExitCode> {
    let cases = cases_of(arguments)?;
    if let Some(count) = arguments.requests {
        counted::run(&cases, arguments, count)?;
        return Ok(ExitCode::SUCCESS);
    }
    prepare_process(global.verbose)?;
    let place = Place::create(&arguments.directory)?;
    let interrupt = Interrupt::install(place.directory().to_path_buf())?;
    output.message(&format!(
        "Writing pools and raw files, the largest of {}, in {}; all are removed at the end.",
        output.size(arguments.pool_size),
        arguments.directory.display()
    ));
    let report = Report::new(arguments, fresh_span_bytes(arguments.pool_size));
    let mut stages = Stages { arguments, output, place: &place, report };
    let measured = stages.run(&cases);
    let report = stages.report;
    // What a signal removes under us is no failure.
    let _until_the_end = interrupt.end();
    drop(place);
    measured?;
    if let Some(path) = &arguments.plot {
        plot::write(path, &report)?;
    }
    report.print(output)?;
    if let Some(verdict) = report.verdict() {
        output.message(&verdict);
    }
    Ok(ExitCode::SUCCESS)
}

/// The cases of the groups with one of the texts among the words of their name, or as all of it; all where nothing is
/// said.
fn cases_of(arguments: &Bench) -> Result<Vec<Case>> {
    let is_of_group = |case: &Case| {
        (arguments.groups.is_empty() || arguments.groups.iter().any(|group| case.is_of(*group)))
            && !(arguments.no_encryption && case.group == BenchGroup::Encryption)
    };
    let of_groups: Vec<Case> = case::all().into_iter().filter(is_of_group).collect();
    let is_name = |text: &String| of_groups.iter().any(|case| case.name() == *text);
    let has = |case: &Case, text: &String| {
        if is_name(text) { case.name() == *text } else { format!("-{}-", case.name()).contains(&format!("-{text}-")) }
    };
    let is_wanted = |case: &&Case| arguments.cases.is_empty() || arguments.cases.iter().any(|text| has(case, text));
    // A name chooses also what is too long for all others.
    let is_asked_for = |case: &&Case| {
        let is_long = case.snapshot.is_some_and(SnapshotCase::is_long);
        !is_long || arguments.cases.iter().any(|text| *text == case.name())
    };
    let cases: Vec<Case> = of_groups.iter().filter(is_wanted).filter(is_asked_for).copied().collect();
    if cases.is_empty() {
        let names: Vec<String> = case::all().iter().map(Case::name).collect();
        return Err(Error::new(ErrorKind::Usage, "No case of these groups is called like that")
            .with_hint(format!("There are {}", names.join(", "))));
    }
    Ok(cases)
}
