//! The routes of key slots, under `/v1/keys`. Their bodies hold passphrases: nothing here logs a body.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Options, Slot, run, run_at};
use super::failure_resource::Failure;
use super::gate::Gate;
use super::key_resource::{KeyChangeAnswer, KeyList};
use super::request::{ChangeOptions, NewKey, RemoveKey};
use crate::pool::directory::KeyChange;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(rotate)).routes(routes!(remove))
}

/// Lists the key slots in use.
#[utoipa::path(get, path = "/v1/keys", responses(
    (status = 200, body = KeyList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<KeyList> {
    run_at(gate, None, Gate::keys).await
}

/// Lets one more key open the pool, in the first free slot.
#[utoipa::path(post, path = "/v1/keys", params(ChangeOptions), request_body = NewKey, responses(
    (status = 200, body = KeyChangeAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn add(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<NewKey>,
) -> Answer<KeyChangeAnswer> {
    run(gate, None, move |control| {
        let change = KeyChange::Add { new: request.new.credential()? };
        control.change_key(&request.credential, &change, options.dry_run)
    })
    .await
}

/// Gives a slot a new key, with the key of any slot. Data is not encrypted anew.
#[utoipa::path(post, path = "/v1/keys/{slot}/rotate", params(("slot" = u8, Path), ChangeOptions),
    request_body = NewKey, responses(
    (status = 200, body = KeyChangeAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn rotate(
    State(gate): State<Arc<Gate>>,
    Slot(index): Slot,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<NewKey>,
) -> Answer<KeyChangeAnswer> {
    run(gate, Some(index.to_string()), move |control| {
        let change = KeyChange::Rotate { index, new: request.new.credential()? };
        control.change_key(&request.credential, &change, options.dry_run)
    })
    .await
}

/// Frees a slot, with the key of another one. The last slot is never removed.
#[utoipa::path(post, path = "/v1/keys/{slot}/remove", params(("slot" = u8, Path), ChangeOptions),
    request_body = RemoveKey, responses(
    (status = 200, body = KeyChangeAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn remove(
    State(gate): State<Arc<Gate>>,
    Slot(index): Slot,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<RemoveKey>,
) -> Answer<KeyChangeAnswer> {
    run(gate, Some(index.to_string()), move |control| {
        control.change_key(&request.credential, &KeyChange::Remove { index }, options.dry_run)
    })
    .await
}
