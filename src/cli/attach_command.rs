//! The commands on block devices of this host: `attach detach devices`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::arguments::DryRun;
use super::client::Client;
use super::failure::{Failed, Outcome, exit_code};
use super::output::Output;
use super::table::Table;
use crate::daemon::attachment_resource::{
    Attachment, AttachmentAction, AttachmentChange, AttachmentChangeList, AttachmentList,
};
use crate::daemon::device_request::{AttachDevice, AttachmentDriver};
use crate::daemon::device_users::is_unused;
use crate::daemon::resource::{ApiVersion, Kind};
use crate::error::{Error, ErrorKind};
use crate::volume::Reference;

/// Numbers of devices are below this (a limit of the driver).
const DEVICE_ID_END: i64 = 1 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "What is attached already stays as it is, and its path is printed. A disk has its volume for itself: \
    while it is attached, NBD clients get it only for reads (rok-blk export VOLUME --read-only), and while they write it \
    it is not attached; --shared is for users who agree among themselves, like cluster file systems. Disks are remembered \
    until they are detached: the daemon brings them back under the same numbers when it starts, and while it is away the \
    requests of a disk that is in use wait. They need the kernel's ublk driver (modprobe ublk_drv) or, with --nbd, its NBD \
    client (modprobe nbd, Linux 5.14 or newer)."
)]
pub(super) struct Attach {
    /// Volumes, and snapshots like vol1@7, which are read-only
    #[arg(value_name = "REF", required = true)]
    references: Vec<Reference>,
    /// By the kernel's NBD client, as /dev/nbdN, where there is no ublk: slower, with one queue of 128 requests
    #[arg(long, conflicts_with_all = ["queues", "depth"])]
    nbd: bool,
    /// Queues of each disk, which lanes serve, as many as there are processors at most, and one on Linux 6.16 to 6.19; by
    /// default one for each lane, at most 4
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    queues: Option<u16>,
    /// Requests of each queue that may be under way, at most 512; by default 128
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    depth: Option<u16>,
    /// Refuse writes
    #[arg(short, long)]
    read_only: bool,
    /// Others may write the volume meanwhile
    #[arg(long, conflicts_with = "read_only")]
    shared: bool,
    /// N of /dev/ublkbN or /dev/nbdN, if only one is attached; by default the lowest that is free
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..DEVICE_ID_END))]
    id: Option<u32>,
    /// Forget it when it has ended with the daemon or the host; by default it is attached again then
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Detach {
    /// Volumes and snapshots that are attached, or paths of their disks
    #[arg(value_name = "REF|DEVICE", required = true)]
    names: Vec<String>,
    /// Also while a disk is mounted or open: what is cached is written, then its users get errors
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// `attach REF…`: all are tried; prints the path of each device.
pub(super) fn attach(arguments: &Attach, client: &Client, output: &Output) -> Outcome<ExitCode> {
    if arguments.id.is_some() && arguments.references.len() > 1 {
        return Err(Error::new(ErrorKind::Usage, "--id is the number of one disk, and several were to be attached")
            .with_hint("Attach them one by one, or leave --id out")
            .into());
    }
    let is_dry_run = arguments.dry_run.is_dry_run;
    let results = arguments.references.iter().map(|reference| {
        let reference = reference.to_string();
        let request = AttachDevice {
            reference: reference.clone(),
            driver: if arguments.nbd { AttachmentDriver::Nbd } else { AttachmentDriver::Ublk },
            queues: arguments.queues,
            depth: arguments.depth,
            read_only: arguments.read_only,
            shared: arguments.shared,
            id: arguments.id,
            once: arguments.once,
        };
        client.post(&format!("/v1/devices?dry_run={is_dry_run}"), &request, &reference)
    });
    finish(results.collect(), output)
}

/// `detach REF|DEVICE…`: all are tried; prints the path of each device.
pub(super) fn detach(arguments: &Detach, client: &Client, output: &Output) -> Outcome<ExitCode> {
    let results = arguments.names.iter().map(|name| detach_one(name, arguments, client));
    finish(results.collect(), output)
}

/// Looks for users of the disk too: this process may be allowed to see more of them than the daemon is.
fn detach_one(name: &str, arguments: &Detach, client: &Client) -> Outcome<AttachmentChange> {
    let is_dry_run = arguments.dry_run.is_dry_run;
    let request = |is_dry_run: bool, no_process_has_it: bool| {
        let force = arguments.force;
        let options = format!("force={force}&dry_run={is_dry_run}&no_process_has_it={no_process_has_it}");
        client.change(Method::DELETE, &format!("/v1/devices/{}?{options}", path_segment(name)), name)
    };
    if arguments.force || is_dry_run {
        return request(is_dry_run, false);
    }
    let plan: AttachmentChange = request(true, false)?;
    let no_process_has_it = is_unused(Path::new(&plan.reference))
        .map_err(|error| Failed::Error { error, reference: Some(name.to_owned()) })?;
    request(false, no_process_has_it)
}

/// `devices`.
pub(super) fn list(client: &Client, output: &Output) -> Outcome<()> {
    let answer: AttachmentList = client.get("/v1/devices", None)?;
    let mut table = Table::new(&["DEVICE", "REF", "SIZE", "SECTOR", "MODE", "QUEUES", "DEPTH", "STATE"], &[2, 3, 5, 6]);
    for attachment in &answer.items {
        let cells = vec![
            attachment.device.clone(),
            attachment.reference.clone(),
            output.size(attachment.size_bytes),
            attachment.sector_size.to_string(),
            mode(attachment).to_owned(),
            attachment.queues.to_string(),
            attachment.depth.to_string(),
            attachment.state.as_str().to_owned(),
        ];
        table.row(&attachment.device, cells);
    }
    for attachment in &answer.items {
        if let Some(problem) = &attachment.problem {
            output.message(&format!("{} ({}): {problem}.", attachment.device, attachment.reference));
        }
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}

/// Prints what was done, tells what was not, and gives the exit code for both.
fn finish(results: Vec<Outcome<AttachmentChange>>, output: &Output) -> Outcome<ExitCode> {
    let (mut items, mut failures): (Vec<AttachmentChange>, Vec<Failed>) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(change) => items.push(change),
            Err(failed) => failures.push(failed),
        }
    }
    let mut table = Table::new(&[], &[]);
    for change in &items {
        table.row(&change.reference, vec![change.reference.clone()]);
        tell(change, output);
    }
    let codes: Vec<ExitCode> = failures.iter().map(|failed| failed.report(output)).collect();
    let answer = AttachmentChangeList { api: ApiVersion::V1, kind: Kind::AttachmentChangeList, items };
    if !answer.items.is_empty() {
        output.list(&answer, &answer.items, &table)?;
    }
    Ok(exit_code(&codes, answer.items.is_empty()))
}

fn tell(change: &AttachmentChange, output: &Output) {
    if change.is_dry_run && change.has_changed {
        let verb = if change.action == AttachmentAction::Attach { "attach" } else { "detach" };
        output.message(&format!("Would {verb} {}.", change.reference));
    }
}

const fn mode(attachment: &Attachment) -> &'static str {
    match (attachment.is_read_only, attachment.is_shared) {
        (true, _) => "read-only",
        (false, true) => "shared",
        (false, false) => "read-write",
    }
}

/// A name as a part of a path: what is not plain is escaped.
fn path_segment(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~@:".contains(&byte);
    let escape = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_part_of_a_path() {
        assert_eq!(path_segment("/dev/ublkb0"), "%2Fdev%2Fublkb0");
        assert_eq!(path_segment("vol1@2026-11-01T10:00+02:00"), "vol1@2026-11-01T10:00%2B02:00");
        assert_eq!(path_segment("a?b ü"), "a%3Fb%20%C3%BC");
    }
}
