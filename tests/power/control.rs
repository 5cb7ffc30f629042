//! Controls: disks that have lied must be found out, else the other results would say nothing.

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

use crate::cut::{Images, Replay};
use crate::recording::{Action, Disk};
use crate::recovery::Recovery;
use crate::{Context as _, Result, Run, Tally};

/// Leaves out `count` flushed writes of the data's disk, one at a time, and then everything that the disk of `meta/` got
/// under load.
pub(crate) fn run(run: &Run, count: usize) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut files = run.claims.durable_files();
    files.shuffle(&mut SmallRng::seed_from_u64(run.seed));
    let mut found_out = 0;
    for range in files.iter().take(count) {
        // The largest write between the line before and the file's own, flushed by then: the file's content, or that of
        // what was written beside it.
        let events = &run.recording.events;
        let flush = run.recording.last_flush(Disk::Data, range.end).ok_or("a file is durable without a flush")?;
        let is_candidate =
            |index: &usize| events[*index].disk == Disk::Data && matches!(events[*index].action, Action::Write { .. });
        let candidates = (range.start..flush).filter(is_candidate);
        let omitted =
            candidates.max_by_key(|index| events[*index].len_bytes).ok_or("a file is durable without a write")?;
        let outcome = try_images(run, range.end + 1, |replay, position| replay.omit(omitted).build_flushed(position))?;
        println!(
            "NOTE without the flushed write {omitted} of {} bytes: {}",
            events[omitted].len_bytes,
            first_line(&outcome)
        );
        found_out += usize::from(outcome.is_err());
    }
    report(&mut tally, found_out * 2 > count, &format!("of {count} lost writes {found_out} were found out"));

    let load = run.claims.load_range();
    let outcome = try_images(run, load.end, |mut replay, position| {
        let old = replay.build_flushed(load.start)?;
        let kept = old.meta.with_extension("old");
        std::fs::rename(&old.meta, &kept).context("the old disk")?;
        let images = replay.build_flushed(position)?;
        std::fs::rename(&kept, &images.meta).context("the old disk")?;
        Ok(images)
    })?;
    let is_refused = outcome.as_ref().is_err_and(|problem| problem.contains("older"));
    report(
        &mut tally,
        is_refused,
        &format!("a disk of meta/ that has kept nothing of the load: {}", first_line(&outcome)),
    );
    Ok(tally)
}

fn report(tally: &mut Tally, is_right: bool, what: &str) {
    *(if is_right { &mut tally.passed } else { &mut tally.failed }) += 1;
    println!("{} control: {what}", if is_right { "PASS" } else { "FAIL" });
}

fn first_line(outcome: &Result<()>) -> String {
    match outcome {
        Ok(()) => "nothing is missed".to_owned(),
        Err(problem) => problem.lines().take(2).collect::<Vec<_>>().join(" "),
    }
}

/// What is found on the disks that `build` makes.
fn try_images(run: &Run, position: usize, build: impl FnOnce(Replay, usize) -> Result<Images>) -> Result<Result<()>> {
    let place = tempfile::tempdir().context("a directory for the disks")?;
    let images = build(Replay::new(run, place.path())?, position)?;
    Ok(Recovery::new(run, place.path()).verify(&images, &run.claims.at(position)).map(drop))
}
