//! The commands on exports: `export unexport exports`.

use hyper::Method;

use super::arguments::Target;
use super::client::Client;
use super::failure::Outcome;
use super::output::Output;
use super::table::Table;
use super::volume_command::finish;
use crate::daemon::resource::{Change, ExportList};

/// `export NAME`.
pub(super) fn export(target: &Target, client: &Client, output: &Output) -> Outcome<()> {
    change(Method::PUT, "export", target, client, output)
}

/// `unexport NAME`.
pub(super) fn unexport(target: &Target, client: &Client, output: &Output) -> Outcome<()> {
    change(Method::DELETE, "unexport", target, client, output)
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

fn change(method: Method, verb: &str, target: &Target, client: &Client, output: &Output) -> Outcome<()> {
    let name = &target.volume.name;
    let path = format!("/v1/exports/{name}?dry_run={}", target.dry_run.is_dry_run);
    let change: Change = client.change(method, &path, name)?;
    finish(&change, &format!("{verb} {name}"), output)
}
