//! The command `bench`: the engine beside a raw io_uring loop, in one run on one file system.
//!
//! Both sides are driven by the same loop ([`load`]), on this thread, each with a ring of its own. A round measures raw,
//! then the engine, then raw again: the second raw measurement is the control, and tells how much of a ratio
//! is noise of the machine. Nothing is flushed on either side.
//!
//! The pool is fresh in the sense of the targets: before each measurement of writes the volume is discarded and
//! a checkpoint frees its blocks, and no measurement writes more than the volume's size.

mod background;
mod case;
mod engine_side;
mod interrupt;
mod load;
mod place;
mod raw_side;
mod report;
mod round;

use std::process::ExitCode;
use std::time::Duration;

use super::arguments::{Bench, Global};
use super::failure::{EXIT_INTERRUPTED, Outcome};
use super::output::Output;
use super::serve_command::prepare_process;
use crate::error::{Error, ErrorKind, Result};
use case::{CASES, Case};
use engine_side::EngineSide;
use interrupt::Interrupt;
use load::Plan;
use place::Place;
use raw_side::RawSide;
use report::Report;
use round::Rounds;

/// The volume is this part of the pool, so that long free runs are left when all of it was written once.
const VOLUME_PART: u64 = 4;
/// The volume has whole MiB: what the largest request has.
const VOLUME_STEP: u64 = 1 << 20;

/// `bench`.
pub(super) fn run(arguments: &Bench, global: &Global, output: &Output) -> Outcome<ExitCode> {
    let cases = cases_of(&arguments.cases)?;
    prepare_process(global.verbose)?;
    let interrupt = Interrupt::install()?;
    let span_bytes = arguments.pool_size / VOLUME_PART / VOLUME_STEP * VOLUME_STEP;
    output.message(&format!(
        "Writing a pool and a raw file of {} each in {}; both are removed at the end.",
        output.size(arguments.pool_size),
        arguments.directory.display()
    ));
    let place = Place::create(arguments, span_bytes)?;
    let plan = Plan { span_bytes, duration: Duration::from_secs_f64(arguments.seconds), interrupt: interrupt.clone() };
    let mut rounds = Rounds { raw: RawSide::open(&place.raw_file())?, engine: EngineSide::open(&place)?, plan };
    let mut report = Report::new(arguments, span_bytes);
    rounds.fill()?;
    for case in &cases {
        for round in 0..arguments.rounds {
            let found = rounds.measure(case, u64::from(round))?;
            // It may have ended early, and is no result then.
            if interrupt.is_raised() {
                return Ok(ExitCode::from(EXIT_INTERRUPTED));
            }
            report.add(case, found);
        }
        output.message(&report.sentence(case));
    }
    drop(rounds);
    drop(place);
    report.print(output)?;
    Ok(ExitCode::SUCCESS)
}

/// The cases with one of `texts` among the words of their name; all if there are none.
fn cases_of(texts: &[String]) -> Result<Vec<Case>> {
    let has = |case: &Case, text: &String| format!("-{}-", case.name()).contains(&format!("-{text}-"));
    let is_wanted = |case: &Case| texts.is_empty() || texts.iter().any(|text| has(case, text));
    let cases: Vec<Case> = CASES.into_iter().filter(is_wanted).collect();
    if cases.is_empty() {
        let names: Vec<String> = CASES.iter().map(Case::name).collect();
        return Err(Error::new(ErrorKind::Usage, "No case is called like that")
            .with_hint(format!("There are {}", names.join(", "))));
    }
    Ok(cases)
}
