//! The commands `status` and `df`.

use super::client::Client;
use super::failure::Outcome;
use super::output::Output;
use super::scrub_command::describe;
use super::table::Table;
use crate::daemon::cleaning_resource::Cleaning;
use crate::daemon::on_full_resource::PausedVolume;
use crate::daemon::resource::{Io, Space, SpaceLevel, Status};

/// `status`.
pub(super) fn status(client: &Client, output: &Output) -> Outcome<()> {
    let answer: Status = client.get("/v1/status", None)?;
    for warning in &answer.warnings {
        output.message(&format!("Warning: {warning}"));
    }
    let daemon = format!("{} (process {}) since {}", answer.version, answer.pid, answer.started_at);
    let (Some(pool), Some(space)) = (&answer.pool, &answer.space) else {
        let fields = vec![("pool", answer.path.clone()), ("state", "locked".to_owned()), ("daemon", daemon)];
        return Ok(output.one(&answer, &Table::of_fields(&answer.path, fields))?);
    };
    let state = match &pool.failure {
        Some(failure) => format!("takes no writes: {failure}"),
        None => "ok".to_owned(),
    };
    let recovery = format!("{} records, {} blocks lost", pool.recovered_records, pool.lost_blocks);
    let io = match pool.io {
        Io::IoUring => "io-uring",
        Io::Threads => "threads, slower than io-uring",
    };
    let fields = vec![
        ("pool", pool.path.clone()),
        ("uuid", pool.uuid.to_string()),
        ("state", state),
        ("encrypted", if pool.is_encrypted { "yes" } else { "no" }.to_owned()),
        ("used", format!("{} of {}", output.size(space.used_bytes), output.size(space.capacity_bytes))),
        ("space", level(space)),
        ("not yet stored", format!("{} in changes, records and windows", output.size(space.quarantined_bytes))),
        ("reserve", format!("{} of the free space, for overwrites and deletions", output.size(space.reserve_bytes))),
        ("metadata", metadata(space, output)),
        ("volumes", format!("{} with {} in all", answer.volumes, output.size(space.nominal_bytes))),
        ("connections", answer.connections.to_string()),
        ("paused", paused(&answer)),
        ("listeners", answer.listeners.join(" ")),
        ("io", io.to_owned()),
        ("session", pool.session.to_string()),
        ("checkpoint", format!("{} and {} changes since", pool.checkpoint, pool.changes)),
        ("map cache", format!("{} of {}", output.size(pool.map_cache_bytes), output.size(pool.map_cache_bytes_max))),
        ("free space", free_space(&pool.cleaning, output)),
        ("cleaner", cleaner(&pool.cleaning, output)),
        ("opened in", format!("{} ms", pool.open_ms)),
        ("recovered", recovery),
        ("reads", pool.damage_text()),
        ("scrub", describe(&pool.scrub, *output)),
        ("daemon", daemon),
    ];
    Ok(output.one(&answer, &Table::of_fields(&pool.uuid.to_string(), fields))?)
}

fn level(space: &Space) -> String {
    let level = match space.level {
        SpaceLevel::Enough => "enough",
        SpaceLevel::Low => "low",
        SpaceLevel::Critical => "critical",
    };
    format!("{level} (low from {} % used, critical from {} %)", space.low_percent, space.critical_percent)
}

fn paused(status: &Status) -> String {
    let of_volume = |paused: &PausedVolume| {
        let PausedVolume { reference, writes, since } = paused;
        format!("{reference}: {writes} writes wait for space since {since}")
    };
    if status.paused.is_empty() {
        return "no writes".to_owned();
    }
    status.paused.iter().map(of_volume).collect::<Vec<_>>().join(", ")
}

fn metadata(space: &Space, output: &Output) -> String {
    let free = space.metadata_free_bytes.map_or_else(|| "unknown space".to_owned(), |bytes| output.size(bytes));
    format!("{}, {free} free in its file system", output.size(space.metadata_bytes))
}

fn free_space(cleaning: &Cleaning, output: &Output) -> String {
    let (long_runs, holes) = (output.size(cleaning.long_run_bytes), output.size(cleaning.hole_bytes));
    let given_back = output.size(cleaning.given_back_bytes);
    format!("{long_runs} in long runs, {holes} in holes, {given_back} given back to the file system")
}

fn cleaner(cleaning: &Cleaning, output: &Output) -> String {
    let state = if cleaning.is_resting { "rests" } else { "works" };
    let (amplification, most) = (cleaning.write_amplification, cleaning.write_amplification_max);
    let moved = output.size(cleaning.moved_bytes);
    format!("{state}, moved {moved}: write amplification {amplification:.2} of at most {most}")
}

/// `df`.
pub(super) fn space(client: &Client, output: &Output) -> Outcome<()> {
    let answer: Space = client.get("/v1/space", None)?;
    let header = [
        "CAPACITY",
        "USED",
        "FREE",
        "QUARANTINED",
        "RESERVE",
        "RECLAIM",
        "UNIQUE",
        "VERSIONS",
        "METADATA",
        "NOMINAL",
        "ALLOCATED",
        "TRASH",
        "OVERCOMMIT",
    ];
    let mut table = Table::new(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let mut cells: Vec<String> = [
        answer.capacity_bytes,
        answer.used_bytes,
        answer.free_bytes,
        answer.quarantined_bytes,
        answer.reserve_bytes,
        answer.reclaim_bytes,
        answer.unique_bytes,
        answer.versions_bytes,
        answer.metadata_bytes,
        answer.nominal_bytes,
        answer.allocated_bytes,
        answer.trash_bytes,
    ]
    .into_iter()
    .map(|bytes| output.size(bytes))
    .collect();
    cells.push(format!("{:.2}", answer.overcommit));
    table.row("pool", cells);
    Ok(output.one(&answer, &table)?)
}
