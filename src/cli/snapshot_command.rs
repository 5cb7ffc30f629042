//! The commands that make, list and find snapshots: `snapshot log resolve`, and `show` of one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;

use super::arguments::{DryRun, parse_name};
use super::client::Client;
use super::duration::parse_duration;
use super::failure::{EXIT_PARTIAL, Failed, Outcome, report_error};
use super::output::Output;
use super::snapshot_graph::graph;
use super::table::Table;
use crate::daemon::failure_resource::Failure;
use crate::daemon::host::user_at_host;
use crate::daemon::snapshot_request::{CreateSnapshots, MetaFileContent, Resolve};
use crate::daemon::snapshot_resource::{ResolutionList, Snapshot, SnapshotAnswer, SnapshotChangeList, SnapshotList};
use crate::daemon::version_rule::{check_file_name, parse_label};
use crate::error::{Error, ErrorKind};
use crate::volume::{Reference, Selector, parse_time, time_text};

/// Largest file that is kept with a snapshot: as much as the daemon takes of all files of one.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct TakeSnapshot {
    /// The volumes; several are taken at the same instant, all or none
    #[arg(value_name = "VOLUME", required = true, value_parser = parse_name)]
    targets: Vec<String>,
    /// Why
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// A further name for it, like before-upgrade; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A note; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// The time that its content is of, if not now: 2026-11-01, or 2026-11-01T10:00 with an offset or in UTC
    #[arg(long, value_parser = parse_time_text)]
    time: Option<String>,
    /// Make none of volumes that have not changed since their latest snapshot
    #[arg(long)]
    if_changed: bool,
    /// Keep this small file with it under that name; may be given several times
    #[arg(long = "attach-meta", value_name = "NAME=FILE", value_parser = parse_file)]
    files: Vec<(String, PathBuf)>,
    /// Put it into the trash by itself after this time, like 12h or 30d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expire: Option<u64>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Log {
    /// The volume
    #[arg(value_name = "VOLUME", value_parser = parse_name)]
    volume: String,
    /// Draw what builds on what
    #[arg(long)]
    graph: bool,
    /// List none of an earlier time
    #[arg(long, value_name = "TIME", value_parser = parse_time_text)]
    since: Option<String>,
    /// List none of a later time
    #[arg(long, value_name = "TIME", value_parser = parse_time_text)]
    until: Option<String>,
    /// List at most so many, the newest ones
    #[arg(short = 'n', value_name = "COUNT")]
    count: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct ResolveReferences {
    /// The references; a volume's name alone means its latest snapshot
    #[arg(value_name = "REF", required = true)]
    references: Vec<Reference>,
}

/// `snapshot VOLUME…`.
pub(super) fn take(arguments: &TakeSnapshot, client: &Client, output: &Output) -> Outcome<()> {
    let request = CreateSnapshots {
        targets: arguments.targets.clone(),
        message: arguments.message.clone(),
        tags: arguments.tags.clone(),
        labels: arguments.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        time: arguments.time.clone(),
        expires_in_seconds: arguments.expire,
        if_changed: arguments.if_changed,
        files: arguments.files.iter().map(read_file).collect::<Result<_, _>>()?,
        creator: Some(user_at_host()),
    };
    let path = format!("/v1/snapshots?dry_run={}", arguments.dry_run.is_dry_run);
    let answer: SnapshotChangeList = client.post(&path, &request, &arguments.targets.join(" "))?;
    let mut table = Table::new(&[], &[]);
    for change in &answer.items {
        table.row(&change.reference, vec![change.reference.clone()]);
        match (change.is_dry_run, change.has_changed) {
            (true, true) => output.message(&format!("Would make {}.", change.reference)),
            (_, false) => output.message(&format!("Nothing has changed since {}.", change.reference)),
            (false, true) => {}
        }
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

/// `log VOLUME`.
pub(super) fn log(arguments: &Log, client: &Client, output: &Output) -> Outcome<()> {
    let mut options = Vec::new();
    // A time holds a plus at most, which means a blank in a query.
    let escape = |time: &String| time.replace('+', "%2B");
    options.extend(arguments.since.as_ref().map(|time| format!("since={}", escape(time))));
    options.extend(arguments.until.as_ref().map(|time| format!("until={}", escape(time))));
    options.extend(arguments.count.map(|count| format!("count={count}")));
    let path = format!("/v1/volumes/{}/snapshots?{}", arguments.volume, options.join("&"));
    let answer: SnapshotList = client.get(&path, Some(&arguments.volume))?;
    let drawn = if arguments.graph { graph(&answer.items) } else { Vec::new() };
    let mut header = vec!["SEQ", "TIME", "CHANGED", "TAGS", "MESSAGE"];
    let mut right = vec![0, 2];
    if arguments.graph {
        header.insert(0, "");
        right = vec![1, 3];
    }
    let mut table = Table::new(&header, &right);
    for (index, snapshot) in answer.items.iter().enumerate() {
        let mut cells = vec![
            snapshot.number.to_string(),
            snapshot.time.clone(),
            output.size(snapshot.changed_bytes),
            or_dash(snapshot.tags.join(",")),
            // The first line says what it is.
            or_dash(snapshot.message.lines().next().unwrap_or_default().to_owned()),
        ];
        if let Some(line) = drawn.get(index) {
            cells.insert(0, line.clone());
        }
        table.row(&snapshot.reference, cells);
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

/// `show REF` of a snapshot.
pub(super) fn show(reference: &Reference, client: &Client, output: &Output) -> Outcome<()> {
    let asked = reference.to_string();
    let answer: SnapshotAnswer = client.get(&format!("/v1/snapshots/{asked}?space=true"), Some(&asked))?;
    let snapshot = &answer.snapshot;
    tell_resolved(reference, snapshot, output);
    let labels: Vec<String> = snapshot.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let files: Vec<String> =
        snapshot.meta_files.iter().map(|file| format!("{} ({})", file.name, output.size(file.bytes))).collect();
    let hold = |hold: &crate::daemon::snapshot_resource::Hold| match &hold.until {
        Some(until) => format!("{} until {until}", hold.reason),
        None => hold.reason.clone(),
    };
    let holds: Vec<String> = snapshot.holds.iter().map(hold).collect();
    let fields = vec![
        ("snapshot", snapshot.reference.clone()),
        ("uuid", snapshot.uuid.to_string()),
        ("tags", or_dash(snapshot.tags.join(", "))),
        ("time", snapshot.time.clone()),
        ("created", format!("{} by {}", snapshot.created_at, snapshot.created_by)),
        ("message", or_dash(snapshot.message.clone())),
        ("labels", or_dash(labels.join(", "))),
        ("files", or_dash(files.join(", "))),
        ("builds on", or_dash(snapshot.parents.join(", "))),
        ("size", output.size(snapshot.size_bytes)),
        ("allocated", output.size(snapshot.allocated_bytes)),
        ("changed", output.size(snapshot.changed_bytes)),
        ("unique", snapshot.unique_bytes.map_or_else(|| "not known now".to_owned(), |bytes| output.size(bytes))),
        ("holds", or_dash(holds.join(", "))),
        ("expires", or_dash(snapshot.expires_at.clone().unwrap_or_default())),
    ];
    Ok(output.one(&answer, &Table::of_fields(&snapshot.reference, fields))?)
}

/// `resolve REF…`: some missing among others have an exit code of their own.
pub(super) fn resolve(arguments: &ResolveReferences, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let request = Resolve { references: arguments.references.iter().map(ToString::to_string).collect() };
    let answer: ResolutionList = client.post("/v1/resolve", &request, &request.references.join(" "))?;
    let mut table = Table::new(&["ASKED", "REF", "TIME", "UUID"], &[]);
    let mut missing_count = 0;
    for item in &answer.items {
        if let (Some(reference), Some(snapshot)) = (&item.reference, &item.snapshot) {
            let cells = vec![item.asked.clone(), reference.clone(), snapshot.time.clone(), snapshot.uuid.to_string()];
            table.row(reference, cells);
        } else if let Some(error) = &item.error {
            missing_count += 1;
            let error = Failure { error: error.clone() }.into_error();
            report_error(&error, Some(item.asked.clone()), output.is_json());
        }
    }
    output.list(&answer, &answer.items, &table)?;
    Ok(match missing_count {
        0 => ExitCode::SUCCESS,
        all if all == answer.items.len() => ExitCode::from(ErrorKind::NotFound.exit_code()),
        _ => ExitCode::from(EXIT_PARTIAL),
    })
}

/// Says which snapshot a time, a tag or a count came to.
fn tell_resolved(reference: &Reference, snapshot: &Snapshot, output: &Output) {
    if !matches!(reference.selector(), Some(Selector::Number(_)) | None) {
        output.message(&format!("{reference} is {} ({}).", snapshot.reference, snapshot.time));
    }
}

fn read_file((name, path): &(String, PathBuf)) -> Result<MetaFileContent, Failed> {
    let content = read_small(path).map_err(|error| Failed::about(error, &path.display().to_string()))?;
    Ok(MetaFileContent { name: name.clone(), content: BASE64.encode(content) })
}

fn read_small(path: &Path) -> Result<Vec<u8>, Error> {
    let size_bytes = std::fs::metadata(path).map_err(|error| Error::from_io("Reading", path, error))?.len();
    if size_bytes > FILE_BYTES_MAX {
        let message = format!("{} has {size_bytes} bytes, too many to keep with a snapshot", path.display());
        return Err(Error::new(ErrorKind::Usage, message).with_hint("Keep large files on a volume; 700 KiB fit here"));
    }
    std::fs::read(path).map_err(|error| Error::from_io("Reading", path, error))
}

/// A time, in the form in which the daemon tells it.
pub(super) fn parse_time_text(text: &str) -> Result<String, Error> {
    parse_time(text).map(time_text)
}

fn parse_file(text: &str) -> Result<(String, PathBuf), Error> {
    let (name, path) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{text:?} names no file")).with_hint("Write it as NAME=FILE")
    })?;
    check_file_name(name)?;
    Ok((name.to_owned(), PathBuf::from(path)))
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}
