//! The routes of retention policies, under `/v1/policies`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Body, Name, Options, run};
use super::failure_resource::Failure;
use super::gate::Gate;
use super::policy_resource::{
    CreatePolicy, PolicyAnswer, PolicyChange, PolicyList, PolicyRun, PolicyTargets, SetPolicy,
};
use super::request::ChangeOptions;

pub(super) fn routes() -> OpenApiRouter<Arc<Gate>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, set, remove))
        .routes(routes!(apply))
        .routes(routes!(detach))
        .routes(routes!(run_now))
}

/// Lists the policies.
#[utoipa::path(get, path = "/v1/policies", responses(
    (status = 200, body = PolicyList), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn list(State(gate): State<Arc<Gate>>) -> Answer<PolicyList> {
    run(gate, None, |control| Ok(control.policies())).await
}

/// Makes a policy.
#[utoipa::path(post, path = "/v1/policies", params(ChangeOptions), request_body = CreatePolicy, responses(
    (status = 200, body = PolicyChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn create(
    State(gate): State<Arc<Gate>>,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<CreatePolicy>,
) -> Answer<PolicyChange> {
    run(gate, Some(request.name.clone()), move |control| control.create_policy(&request, options.dry_run)).await
}

/// Shows a policy.
#[utoipa::path(get, path = "/v1/policies/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = PolicyAnswer), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn show(State(gate): State<Arc<Gate>>, Name(name): Name) -> Answer<PolicyAnswer> {
    run(gate, Some(name.clone()), move |control| control.policy(&name)).await
}

/// Changes a policy.
#[utoipa::path(patch, path = "/v1/policies/{name}", params(("name" = String, Path), ChangeOptions),
    request_body = SetPolicy, responses(
    (status = 200, body = PolicyChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn set(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<SetPolicy>,
) -> Answer<PolicyChange> {
    run(gate, Some(name.clone()), move |control| control.edit_policy(&name, &request, options.dry_run)).await
}

/// Removes a policy; the snapshots that it took stay.
#[utoipa::path(delete, path = "/v1/policies/{name}", params(("name" = String, Path), ChangeOptions), responses(
    (status = 200, body = PolicyChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn remove(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
) -> Answer<PolicyChange> {
    run(gate, Some(name.clone()), move |control| control.remove_policy(&name, options.dry_run)).await
}

/// Applies a policy to volumes.
#[utoipa::path(post, path = "/v1/policies/{name}/apply", params(("name" = String, Path), ChangeOptions),
    request_body = PolicyTargets, responses(
    (status = 200, body = PolicyChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn apply(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<PolicyTargets>,
) -> Answer<PolicyChange> {
    run(gate, Some(name.clone()), move |control| control.apply_policy(&name, &request, options.dry_run)).await
}

/// Takes a policy from volumes; their snapshots stay.
#[utoipa::path(post, path = "/v1/policies/{name}/detach", params(("name" = String, Path), ChangeOptions),
    request_body = PolicyTargets, responses(
    (status = 200, body = PolicyChange), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn detach(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
    Body(request): Body<PolicyTargets>,
) -> Answer<PolicyChange> {
    run(gate, Some(name.clone()), move |control| control.detach_policy(&name, &request, options.dry_run)).await
}

/// Does now what a policy does when it is due.
#[utoipa::path(post, path = "/v1/policies/{name}/run", params(("name" = String, Path), ChangeOptions), responses(
    (status = 200, body = PolicyRun), (status = "4XX", body = Failure), (status = "5XX", body = Failure)))]
async fn run_now(
    State(gate): State<Arc<Gate>>,
    Name(name): Name,
    Options(options): Options<ChangeOptions>,
) -> Answer<PolicyRun> {
    run(gate, Some(name.clone()), move |control| control.run_policy(&name, options.dry_run)).await
}
