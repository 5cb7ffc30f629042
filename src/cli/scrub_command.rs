//! The command `scrub`.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::arguments::DryRun;
use super::client::Client;
use super::failure::Outcome;
use super::job_command;
use super::output::Output;
use super::size::parse_size;
use crate::daemon::scrub_resource::{ScrubAnswer, ScrubPhase, Scrubbing};

#[derive(Debug, Args)]
pub(super) struct Scrub {
    /// Read so much in a second at most, from 1MiB on; by default 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with_all = ["pause", "stop"])]
    rate: Option<u64>,
    /// Pause when this share of the used space is read; the next scrub goes on there
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, conflicts_with_all = ["pause", "stop"])]
    subset: Option<u8>,
    /// Do not wait for the end; rok-blk job wait does
    #[arg(long, conflicts_with_all = ["pause", "stop"])]
    no_wait: bool,
    /// End the scrub for now; the next one goes on there
    #[arg(long, conflicts_with = "stop")]
    pause: bool,
    /// End the scrub; the next one begins at the start
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `scrub`.
pub(super) fn run(arguments: &Scrub, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let is_dry_run = arguments.dry_run.is_dry_run;
    if arguments.pause || arguments.stop {
        let action = if arguments.pause { "pause" } else { "stop" };
        let path = format!("/v1/scrub/{action}?dry_run={is_dry_run}");
        let answer: ScrubAnswer = client.change(Method::POST, &path, "pool")?;
        output.message(&format!("{}.", describe(&answer.scrub, *output)));
        output.reference(&answer, answer.scrub.job.as_deref().unwrap_or("pool"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rate = arguments.rate.map(|rate| format!("&rate={rate}")).unwrap_or_default();
    let subset = arguments.subset.map(|percent| format!("&subset={percent}")).unwrap_or_default();
    let path = format!("/v1/scrub?dry_run={is_dry_run}{rate}{subset}");
    let answer: ScrubAnswer = client.change(Method::POST, &path, "pool")?;
    let Some(job) = answer.scrub.job.clone().filter(|_| !is_dry_run && !arguments.no_wait) else {
        output.message(&format!("{}.", describe(&answer.scrub, *output)));
        return Ok(output
            .reference(&answer, answer.scrub.job.as_deref().unwrap_or("pool"))
            .map(|()| ExitCode::SUCCESS)?);
    };
    output.message(&format!(
        "Job {job} reads the pool; this command may be ended meanwhile, and scrub --pause ends the job."
    ));
    job_command::wait_until_ended(&job, None, client, output)?;
    let answer: ScrubAnswer = client.get("/v1/scrub", None)?;
    output.message(&format!("{}.", describe(&answer.scrub, *output)));
    output.reference(&answer, &job)?;
    Ok(ExitCode::SUCCESS)
}

/// The scrub in words.
pub(super) fn describe(scrub: &Scrubbing, output: Output) -> String {
    let read = output.size(scrub.read_bytes);
    let damage = match scrub.damages.len() {
        0 => "no damage is known".to_owned(),
        1 => "1 damaged range is known".to_owned(),
        count => format!("{count} damaged ranges are known"),
    };
    let time = |time: &Option<String>| time.clone().unwrap_or_default();
    match scrub.state {
        ScrubPhase::Never => "The pool was never scrubbed".to_owned(),
        ScrubPhase::Running => {
            let job = scrub.job.as_deref().unwrap_or("none");
            format!("Running as {job}, {} a second at most: {read} read, {damage}", output.size(scrub.rate_bytes))
        }
        ScrubPhase::Paused => format!("Paused: {read} read since {}, {damage}", time(&scrub.began_at)),
        ScrubPhase::Stopped => format!("Stopped: {read} read since {}, {damage}", time(&scrub.began_at)),
        ScrubPhase::Done => format!("Done at {}: {read} read, {damage}", time(&scrub.ended_at)),
    }
}

fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|percent| (1..=100).contains(percent)).ok_or_else(|| format!("{text:?} is not like 10%"))
}
