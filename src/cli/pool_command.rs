//! The commands `pool create`, `pool show`, `pool grow` and `pool add-device`.

use std::path::Path;

use serde_json::json;

use super::arguments::{AddPoolDevice, CreatePool, GrowPool};
use super::client::Client;
use super::failure::{Failed, Outcome};
use super::output::Output;
use super::serve_command::keep_secrets;
use super::table::Table;
use crate::crypto::Suite;
use crate::daemon::device_request::{AddDevice, GrowDevice};
use crate::daemon::device_resource::DeviceChange;
use crate::daemon::resource::PoolAnswer;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::directory::{self, CreateOptions, DeviceSource};

/// `pool create DIR`.
pub(super) fn create(arguments: &CreatePool, output: &Output) -> Outcome<()> {
    let shown = arguments.directory.display().to_string();
    let key_file = arguments.credential.key_file.as_deref();
    check_key_file(key_file, arguments.generate_key).map_err(|error| Failed::about(error, &shown))?;
    if directory::describe(&arguments.directory).is_ok() {
        let error = Error::new(ErrorKind::Exists, format!("There is a pool in {shown} already"))
            .with_hint("Choose another directory");
        return Err(Failed::about(error, &shown));
    }
    let file = arguments.size.map(|size_bytes| DeviceSource::File { size_bytes });
    let disks = arguments.devices.iter().map(|path| DeviceSource::Block { path: path.clone() });
    let devices = file.into_iter().chain(disks).collect();
    if arguments.dry_run.is_dry_run {
        output.message(&format!("Would create a pool in {shown}."));
        let plan = json!({"api": "rok-blk/v1", "kind": "Pool", "path": shown, "is_dry_run": true});
        return Ok(output.reference(&plan, &shown)?);
    }
    keep_secrets()?;
    let credential = arguments.credential.read_new()?;
    if let Some(key_file) = key_file.filter(|_| arguments.generate_key) {
        generate_key(key_file, output)?;
    }
    let suite = if arguments.no_encryption { Suite::Plain } else { Suite::XtsGmac };
    let options = CreateOptions { devices, suite, credential };
    let description =
        directory::create(&arguments.directory, &options).map_err(|error| Failed::about(error, &shown))?;
    Ok(output.reference(&PoolAnswer::new(&arguments.directory, description), &shown)?)
}

/// `pool show`: the daemon's.
pub(super) fn show(client: &Client, output: &Output) -> Outcome<()> {
    print(&client.get("/v1/pool", None)?, output)
}

/// `pool show DIR`.
pub(super) fn show_offline(directory: &Path, output: &Output) -> Outcome<()> {
    let description = directory::describe(directory)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Error::new(ErrorKind::NotFound, format!("There is no pool in {}", directory.display()))
                    .with_hint("Create one with rok-blk pool create")
            }
            _ => error,
        })
        .map_err(|error| Failed::about(error, &directory.display().to_string()))?;
    print(&PoolAnswer::new(directory, description), output)
}

/// `pool grow`.
pub(super) fn grow(arguments: &GrowPool, client: &Client, output: &Output) -> Outcome<()> {
    let request = GrowDevice { device: arguments.device.clone(), size_bytes: arguments.size };
    let reference = arguments.device.as_deref().unwrap_or("pool");
    let path = format!("/v1/pool/grow?dry_run={}", arguments.dry_run.is_dry_run);
    tell(&client.post(&path, &request, reference)?, output)
}

/// `pool add-device`.
pub(super) fn add_device(arguments: &AddPoolDevice, client: &Client, output: &Output) -> Outcome<()> {
    let block = arguments.block.as_deref().map(absolute).transpose()?;
    let request = AddDevice { size_bytes: arguments.size, block };
    let path = format!("/v1/pool/devices?dry_run={}", arguments.dry_run.is_dry_run);
    tell(&client.post(&path, &request, "pool")?, output)
}

/// The path as the daemon finds it; links are kept.
fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|error| Error::from_io("Resolving", path, error))?;
    path.into_os_string().into_string().map_err(|path| {
        Error::new(ErrorKind::Usage, format!("The path {} is no UTF-8", path.display()))
            .with_hint("Name the device by another link of /dev/disk")
    })
}

fn tell(change: &DeviceChange, output: &Output) -> Outcome<()> {
    let (name, after) = (&change.reference, output.size(change.after.size_bytes));
    let before = change.before.as_ref().map(|device| output.size(device.size_bytes));
    output.message(&match (before, change.is_dry_run) {
        (Some(before), _) if change.before.as_ref() == Some(&change.after) => {
            format!("Device {name} has {before} and has not grown.")
        }
        (Some(before), true) => format!("Would grow {name} from {before} to {after}."),
        (Some(before), false) => format!("Device {name} has grown from {before} to {after}."),
        (None, true) => format!("Would add {name} of {after}."),
        (None, false) => format!("Device {name} of {after} was added."),
    });
    Ok(output.reference(change, name)?)
}

/// Writes a new key and tells what that means.
pub(super) fn generate_key(key_file: &Path, output: &Output) -> Result<()> {
    directory::generate_key_file(key_file)?;
    output.message(&format!(
        "The new key is in {}. Copy it to a safe place elsewhere: without it the data is gone.",
        key_file.display()
    ));
    Ok(())
}

fn print(pool: &PoolAnswer, output: &Output) -> Outcome<()> {
    let mut fields = vec![
        ("path", pool.path.clone()),
        ("uuid", pool.uuid.to_string()),
        ("format version", pool.format_version.to_string()),
        ("encryption", pool.encryption.clone()),
    ];
    for device in &pool.devices {
        fields.push(("device", format!("{} of {}", device.name, output.size(device.size_bytes))));
    }
    for slot in &pool.key_slots {
        fields.push(("key slot", format!("{}: {}", slot.slot, slot.method)));
    }
    Ok(output.one(pool, &Table::of_fields(&pool.uuid.to_string(), fields))?)
}

/// The key file must be there, or must not be there if it is to be written.
pub(super) fn check_key_file(path: Option<&Path>, is_generated: bool) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    match (std::fs::symlink_metadata(path), is_generated) {
        (Ok(_), true) => {
            Err(Error::new(ErrorKind::Exists, format!("The key file {} is there already", path.display()))
                .with_hint("Leave out --generate-key to use it, or choose another path"))
        }
        (Err(error), false) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::new(ErrorKind::Key, format!("The key file {} is not there", path.display()))
                .with_hint("Add --generate-key to have one written"))
        }
        (Ok(_), false) | (Err(_), true) => Ok(()),
        (Err(error), false) => Err(Error::from_io("Looking at", path, error)),
    }
}
