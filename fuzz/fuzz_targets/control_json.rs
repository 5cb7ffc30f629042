//! What the control API takes as JSON. The first byte chooses the request.
//!
//! What is understood is sent as a text that is understood as the same, a field that is not known is refused, and no passphrase
//! is shown.
#![no_main]

// The daemon is only built with a metadata store; what it takes is in files of their own.
#[path = "../../src/daemon/device_request.rs"]
mod device_request;
#[path = "../../src/daemon/on_full.rs"]
#[allow(dead_code, reason = "words are for the command line")]
mod on_full;
#[path = "../../src/daemon/policy_request.rs"]
mod policy_request;
#[path = "../../src/daemon/request.rs"]
#[allow(dead_code, reason = "what clients make is for the command line")]
mod request;
#[path = "../../src/daemon/retention.rs"]
#[allow(dead_code, reason = "what a policy keeps is for the daemon")]
mod retention;
#[path = "../../src/daemon/snapshot_request.rs"]
#[allow(dead_code, reason = "options of queries are no bodies")]
mod snapshot_request;
#[path = "../../src/daemon/volume_rule.rs"]
#[allow(dead_code, reason = "its limits are for the daemon")]
mod volume_rule;

use libfuzzer_sys::fuzz_target;
use rok_blk::{crypto, error, pool, units, volume};
use rok_fuzz::bounded;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Goes through JSON and back. What each says is compared as JSON, since maps and options have one form there.
fn check<T: Debug + Serialize + DeserializeOwned>(body: &[u8]) -> Option<T> {
    let request: T = bounded(body.len(), || serde_json::from_slice(body)).ok()?;
    let sent = serde_json::to_value(&request).expect("plain data");
    let again: T = serde_json::from_str(&sent.to_string()).expect("what is sent is understood");
    assert_eq!(serde_json::to_value(&again).expect("plain data"), sent);
    if let serde_json::Value::Object(mut fields) = sent {
        fields.insert("unknown".to_owned(), serde_json::Value::Null);
        assert!(serde_json::from_value::<T>(fields.into()).is_err(), "a field that is not known is ignored");
    }
    Some(request)
}

fn check_credential(credential: &request::KeyCredential) {
    let shown = format!("{credential:?}");
    match credential.credential() {
        Ok(pool::Credential::KeyFile(path)) => assert!(path.is_absolute()),
        Ok(pool::Credential::Passphrase(passphrase)) => {
            assert!(crypto::PASSPHRASE_BYTES.contains(&passphrase.expose().len()));
            assert!(!shown.contains('"'), "a text is shown: {shown}");
        }
        Err(error) => assert_eq!(error.kind(), error::ErrorKind::Usage),
    }
}

fuzz_target!(|input: &[u8]| {
    use device_request::{AddDevice, AttachDevice, GrowDevice};
    use policy_request::{CreatePolicy, PolicyTargets, SetPolicy};
    use request::{
        CreateVolume, ExportVolume, ForecastRemoval, NewKey, RemoveKey, RenameVolume, ResizeVolume, RestoreFromTrash,
        SetVolume, UnlockPool,
    };
    use snapshot_request::{
        AddHold, AddTag, ChangeLabels, CloneSnapshot, CreateSnapshots, RemoveHold, RemoveTag, Resolve, RollBack,
    };

    let [choice, body @ ..] = input else { return };
    match choice % 25 {
        0 => drop(check::<CreateVolume>(body)),
        1 => drop(check::<RenameVolume>(body)),
        2 => drop(check::<ResizeVolume>(body)),
        3 => drop(check::<SetVolume>(body)),
        4 => drop(check::<ExportVolume>(body)),
        5 => {
            if let Some(request) = check::<NewKey>(body) {
                check_credential(&request.credential);
                check_credential(&request.new);
            }
        }
        6 => {
            if let Some(request) = check::<RemoveKey>(body) {
                check_credential(&request.credential);
            }
        }
        7 => {
            if let Some(request) = check::<UnlockPool>(body) {
                check_credential(&request.credential);
            }
        }
        8 => drop(check::<CreateSnapshots>(body)),
        9 => drop(check::<Resolve>(body)),
        10 => drop(check::<AddTag>(body)),
        11 => drop(check::<RemoveTag>(body)),
        12 => drop(check::<ChangeLabels>(body)),
        13 => drop(check::<AddHold>(body)),
        14 => drop(check::<RemoveHold>(body)),
        15 => drop(check::<CloneSnapshot>(body)),
        16 => drop(check::<RollBack>(body)),
        17 => drop(check::<CreatePolicy>(body)),
        18 => drop(check::<SetPolicy>(body)),
        19 => drop(check::<PolicyTargets>(body)),
        20 => drop(check::<AddDevice>(body)),
        21 => drop(check::<GrowDevice>(body)),
        22 => drop(check::<AttachDevice>(body)),
        23 => drop(check::<ForecastRemoval>(body)),
        _ => drop(check::<RestoreFromTrash>(body)),
    }
});
