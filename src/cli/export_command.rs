//! The commands on exports: `export unexport exports`.

use clap::Args;
use hyper::Method;

use super::arguments::{DryRun, Target, VolumeName};
use super::client::Client;
use super::failure::Outcome;
use super::output::Output;
use super::table::Table;
use super::volume_command::finish;
use crate::daemon::export_resource::ExportList;
use crate::daemon::request::ExportVolume;
use crate::daemon::resource::Change;

/// Ends the rules of an export.
const EVERYBODY: &str = "everybody";

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    volume: VolumeName,
    /// Clients cannot change it
    #[arg(long, conflicts_with = "read_write")]
    read_only: bool,
    /// Clients can change it
    #[arg(long)]
    read_write: bool,
    /// Connections that may have it open; 0 is what serve was told
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    /// Whether only encrypted connections may open it: require or allow
    #[arg(long, value_name = "HOW", value_parser = ["require", "allow"])]
    tls: Option<String>,
    /// Who may open it: these rules in place of the ones before; "everybody" for none
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(super) struct Unexport {
    #[command(flatten)]
    target: Target,
    /// Also while connections have it open, which end
    #[arg(long)]
    force: bool,
}

/// `export NAME`.
pub(super) fn export(arguments: &Export, client: &Client, output: &Output) -> Outcome<()> {
    let name = &arguments.volume.name;
    let is_read_only = (arguments.read_only || arguments.read_write).then_some(arguments.read_only);
    let request = ExportVolume {
        read_only: is_read_only,
        max_connections: arguments.max_connections,
        require_tls: arguments.tls.as_deref().map(|how| how == "require"),
        allow: match arguments.allow.as_slice() {
            [] => None,
            [everybody] if everybody == EVERYBODY => Some(Vec::new()),
            rules => Some(rules.to_vec()),
        },
    };
    let path = format!("/v1/exports/{name}?dry_run={}", arguments.dry_run.is_dry_run);
    let change: Change = client.put(&path, &request, name)?;
    finish(&change, &format!("export {name}"), output)
}

/// `unexport NAME`.
pub(super) fn unexport(arguments: &Unexport, client: &Client, output: &Output) -> Outcome<()> {
    let Unexport { target, force } = arguments;
    let name = &target.volume.name;
    let path = format!("/v1/exports/{name}?dry_run={}&force={force}", target.dry_run.is_dry_run);
    let change: Change = client.change(Method::DELETE, &path, name)?;
    finish(&change, &format!("unexport {name}"), output)
}

/// `exports`: a row for each URI.
pub(super) fn list(client: &Client, output: &Output) -> Outcome<()> {
    let answer: ExportList = client.get("/v1/exports", None)?;
    let mut table = Table::new(&["NAME", "CONNECTIONS", "URI"], &[1]);
    for export in &answer.items {
        for uri in &export.uris {
            table.row(&export.reference, vec![export.reference.clone(), export.connections.to_string(), uri.clone()]);
        }
    }
    Ok(output.list(&answer, &answer.items, &table)?)
}
