//! The control API: what the OpenAPI document says is what the daemon does, and who may use it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;

use serde_json::{Value, json};

use crate::job::with_data;
use crate::schema::violations;
use crate::support::{Answer, Home, finish, request, skip};

/// One request for every route, in an order in which all succeed.
/// `HOME` stands for the home's path.
const REQUESTS: [(&str, &str, &str, &str); 61] = [
    ("GET", "/v1/openapi.json", "/v1/openapi.json", ""),
    ("POST", "/v1/volumes", "/v1/volumes", r#"{"name":"a","size":1048576,"sector_size":4096}"#),
    ("GET", "/v1/volumes", "/v1/volumes", ""),
    ("GET", "/v1/volumes/{name}", "/v1/volumes/a", ""),
    ("POST", "/v1/volumes/{name}/resize", "/v1/volumes/a/resize", r#"{"size":2097152}"#),
    ("POST", "/v1/volumes/{name}/rename", "/v1/volumes/a/rename?dry_run=true", r#"{"name":"b"}"#),
    ("DELETE", "/v1/exports/{name}", "/v1/exports/a", ""),
    ("PUT", "/v1/exports/{name}", "/v1/exports/a", ""),
    ("GET", "/v1/exports", "/v1/exports", ""),
    ("GET", "/v1/devices", "/v1/devices", ""),
    ("POST", "/v1/devices", "/v1/devices", r#"{"ref":"a","queues":1,"depth":2,"read_only":true}"#),
    ("DELETE", "/v1/devices/{name}", "/v1/devices/a", ""),
    ("POST", "/v1/pool/grow", "/v1/pool/grow?dry_run=true", r#"{"size":83886080}"#),
    ("POST", "/v1/pool/devices", "/v1/pool/devices", r#"{"size":16777216}"#),
    ("GET", "/v1/pool", "/v1/pool", ""),
    (
        "POST",
        "/v1/keys",
        "/v1/keys",
        r#"{"credential":{"key_file":"HOME/pool.key"},"new":{"passphrase":"correct horse"}}"#,
    ),
    ("GET", "/v1/keys", "/v1/keys", ""),
    (
        "POST",
        "/v1/keys/{slot}/rotate",
        "/v1/keys/1/rotate",
        r#"{"credential":{"passphrase":"correct horse"},"new":{"passphrase":"other horse"}}"#,
    ),
    ("POST", "/v1/keys/{slot}/remove", "/v1/keys/1/remove", r#"{"credential":{"key_file":"HOME/pool.key"}}"#),
    ("GET", "/v1/space", "/v1/space", ""),
    ("GET", "/v1/status", "/v1/status", ""),
    ("GET", "/v1/check", "/v1/check", ""),
    ("POST", "/v1/check/repair", "/v1/check/repair?dry_run=true", ""),
    ("POST", "/v1/forecast", "/v1/forecast", r#"{"refs":["a"]}"#),
    ("GET", "/v1/jobs", "/v1/jobs", ""),
    ("GET", "/v1/jobs/{name}", "/v1/jobs/j-1", ""),
    ("GET", "/v1/jobs/{name}/wait", "/v1/jobs/j-1/wait?seconds=60", ""),
    ("POST", "/v1/jobs/{name}/cancel", "/v1/jobs/j-1/cancel?dry_run=true", ""),
    ("POST", "/v1/scrub", "/v1/scrub?rate=1048576&subset=50", ""),
    ("GET", "/v1/scrub", "/v1/scrub", ""),
    ("POST", "/v1/scrub/pause", "/v1/scrub/pause", ""),
    ("POST", "/v1/scrub/stop", "/v1/scrub/stop", ""),
    ("GET", "/v1/metrics", "/v1/metrics", ""),
    ("POST", "/v1/pool/lock", "/v1/pool/lock", ""),
    ("POST", "/v1/pool/unlock", "/v1/pool/unlock", r#"{"credential":{"key_file":"HOME/pool.key"}}"#),
    ("PATCH", "/v1/volumes/{name}", "/v1/volumes/a", r#"{"on_full":"pause"}"#),
    (
        "POST",
        "/v1/snapshots",
        "/v1/snapshots",
        r#"{"targets":["a"],"labels":{"k":"v"},"files":[{"name":"f","content":"Zg=="}],"expires_in_seconds":100000}"#,
    ),
    ("GET", "/v1/volumes/{name}/snapshots", "/v1/volumes/a/snapshots?since=2020-01-01&count=5", ""),
    ("GET", "/v1/snapshots/{name}", "/v1/snapshots/a@latest", ""),
    ("POST", "/v1/snapshots/{name}/tag", "/v1/snapshots/a@1/tag", r#"{"tag":"v1","move":true}"#),
    ("GET", "/v1/diff", "/v1/diff?from=a@1&to=a&limit=5", ""),
    ("POST", "/v1/resolve", "/v1/resolve", r#"{"references":["a@v1","a@9","?"]}"#),
    ("POST", "/v1/snapshots/{name}/untag", "/v1/snapshots/a@v1/untag", r#"{"tag":"v1"}"#),
    ("POST", "/v1/snapshots/{name}/labels", "/v1/snapshots/a@1/labels", r#"{"set":{"k":"w"},"unset":["l"]}"#),
    ("POST", "/v1/snapshots/{name}/hold", "/v1/snapshots/a@1/hold", r#"{"reason":"r","until":"2100-01-01"}"#),
    ("POST", "/v1/snapshots/{name}/release", "/v1/snapshots/a@1/release", r#"{"reason":"r"}"#),
    ("POST", "/v1/snapshots/{name}/clone", "/v1/snapshots/a@1/clone", r#"{"name":"c{:02}","count":2}"#),
    ("POST", "/v1/volumes/{name}/rollback", "/v1/volumes/a/rollback", r#"{"to":"1"}"#),
    ("DELETE", "/v1/snapshots/{name}", "/v1/snapshots/a@1", ""),
    ("GET", "/v1/trash", "/v1/trash", ""),
    ("POST", "/v1/trash/restore", "/v1/trash/restore?dry_run=true", r#"{"ref":"a@1"}"#),
    ("DELETE", "/v1/trash", "/v1/trash", ""),
    ("POST", "/v1/policies", "/v1/policies", r#"{"name":"p","every_seconds":3153600000,"keep":{"last":2}}"#),
    ("POST", "/v1/policies/{name}/apply", "/v1/policies/p/apply", r#"{"targets":["a*"]}"#),
    ("POST", "/v1/policies/{name}/run", "/v1/policies/p/run", ""),
    ("GET", "/v1/policies", "/v1/policies", ""),
    ("GET", "/v1/policies/{name}", "/v1/policies/p", ""),
    ("PATCH", "/v1/policies/{name}", "/v1/policies/p", r#"{"if_changed":true}"#),
    ("POST", "/v1/policies/{name}/detach", "/v1/policies/p/detach", r#"{"targets":["a"]}"#),
    ("DELETE", "/v1/policies/{name}", "/v1/policies/p", ""),
    ("DELETE", "/v1/volumes/{name}", "/v1/volumes/a?now=true", ""),
];

/// Requests that succeed only where the kernel's ublk driver may be used: how they fail elsewhere.
const NEED_DRIVER: [(&str, &str, &[u16]); 2] =
    [("POST", "/v1/devices", &[403, 501]), ("DELETE", "/v1/devices/{name}", &[404])];

fn document(home: &Home) -> Value {
    request(&home.socket(), "GET", "/v1/openapi.json", "").body
}

/// The method and path of every operation of the document.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("operations").keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect()
}

/// The violations of the schema that the document gives for this answer.
fn answer_violations(document: &Value, method: &str, path: &str, answer: &Answer) -> Vec<String> {
    let responses = &document["paths"][path][method.to_lowercase()]["responses"];
    let class = format!("{}XX", answer.status / 100);
    let response = responses.get(answer.status.to_string()).or_else(|| responses.get(class));
    let schema = response
        .and_then(|response| response["content"].as_object()?.values().next()?.get("schema"))
        .expect("the status is described");
    violations(document, schema, &answer.body)
}

#[test]
fn every_route_is_described_and_every_description_has_a_route() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    let document = document(&home);
    let described = operations(&document);
    let tried = REQUESTS.iter().map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned())).collect();

    assert_eq!(described, tried, "REQUESTS of this test lacks a route, or has one too many");
    for path in document["paths"].as_object().expect("paths").keys() {
        // The router itself says which methods a path takes.
        let answer = request(&home.socket(), "TRACE", &path.replace("{name}", "a").replace("{slot}", "1"), "");
        assert_eq!(answer.status, 405, "{path}");
        let allow = answer.head.lines().find_map(|line| line.strip_prefix("allow: ")).expect("an Allow header");
        let routed: BTreeSet<_> = allow.split(',').filter(|method| *method != "HEAD").map(str::to_owned).collect();
        let methods: BTreeSet<_> =
            described.iter().filter(|(_, other)| other == path).map(|(method, _)| method.clone()).collect();
        assert_eq!(routed, methods, "{path}");
    }
}

#[test]
fn answers_are_what_the_document_describes() {
    let home = with_data();
    let _serving = home.serve(&[]);
    let document = document(&home);
    // The first job.
    home.run(["rm", "vol1", "--now"]).success();
    home.run(["job", "wait", "j-1"]).success();

    for (method, path, target, body) in REQUESTS {
        let answer = request(&home.socket(), method, target, &body.replace("HOME/", &home.text("")));
        let needs_driver = NEED_DRIVER.iter().find(|(other, place, _)| (*other, *place) == (method, path));
        let is_excused = needs_driver.is_some_and(|(_, _, statuses)| statuses.contains(&answer.status));
        assert!(answer.status == 200 || is_excused, "{method} {target}: {} {}", answer.status, answer.body);
        let found = answer_violations(&document, method, path, &answer);
        assert_eq!(found, Vec::<String>::new(), "{method} {target}: {}", answer.body);
    }
}

#[test]
fn lists_are_not_empty_where_there_is_something() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    let create = request(&home.socket(), "POST", "/v1/volumes", r#"{"name":"a","size":1048576}"#);

    let volumes = request(&home.socket(), "GET", "/v1/volumes", "").body;
    let exports = request(&home.socket(), "GET", "/v1/exports", "").body;

    assert_eq!(create.body["after"], volumes["items"][0]);
    assert_eq!(volumes["api"], "rok-blk/v1");
    assert_eq!(volumes["kind"], "VolumeList");
    assert_eq!(volumes["items"][0]["sector_size"], 512, "the default");
    assert_eq!(exports["items"][0]["ref"], "a");
    assert_eq!(exports["items"][0]["uris"].as_array().expect("uris").len(), 2, "one for each listener");
}

#[test]
fn failures_have_the_form_the_document_describes() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    let document = document(&home);
    request(&home.socket(), "POST", "/v1/volumes", r#"{"name":"a","size":1048576}"#);
    let foreign_key = r#"{"credential":{"passphrase":"correct horse"}}"#;
    let foreign_rotation = r#"{"credential":{"passphrase":"correct horse"},"new":{"passphrase":"correct horse"}}"#;
    let misspelled = r#"{"name":"b","size":4096,"sectorsize":512}"#;
    let too_large = format!(r#"{{"name":"{}","size":4096}}"#, "x".repeat(1 << 20));
    let cases = [
        ("GET", "/v1/volumes/{name}", "/v1/volumes/none", "", 404, "not-found"),
        ("GET", "/v1/jobs/{name}", "/v1/jobs/j-9", "", 404, "not-found"),
        ("GET", "/v1/jobs/{name}/wait", "/v1/jobs/none/wait", "", 400, "usage"),
        ("POST", "/v1/volumes", "/v1/volumes", r#"{"name":"a","size":4096}"#, 409, "exists"),
        ("POST", "/v1/volumes", "/v1/volumes", r#"{"name":"b","size":4097}"#, 400, "usage"),
        ("POST", "/v1/volumes", "/v1/volumes", "{", 400, "usage"),
        ("POST", "/v1/volumes", "/v1/volumes", misspelled, 422, "usage"),
        ("POST", "/v1/volumes", "/v1/volumes", too_large.as_str(), 413, "usage"),
        ("POST", "/v1/volumes", "/v1/volumes?dryrun=true", r#"{"name":"b","size":4096}"#, 400, "usage"),
        ("POST", "/v1/volumes/{name}/resize", "/v1/volumes/a/resize", r#"{"size":4096}"#, 400, "usage"),
        ("GET", "/v1/snapshots/{name}", "/v1/snapshots/a@1", "", 404, "not-found"),
        ("GET", "/v1/snapshots/{name}", "/v1/snapshots/a", "", 400, "usage"),
        ("GET", "/v1/volumes/{name}/snapshots", "/v1/volumes/a/snapshots?since=then", "", 400, "usage"),
        ("POST", "/v1/snapshots", "/v1/snapshots", r#"{"targets":[]}"#, 400, "usage"),
        ("GET", "/v1/policies/{name}", "/v1/policies/none", "", 404, "not-found"),
        ("POST", "/v1/policies", "/v1/policies", r#"{"name":"p","every_seconds":0}"#, 400, "usage"),
        ("POST", "/v1/trash/restore", "/v1/trash/restore", r#"{"ref":"a"}"#, 404, "not-found"),
        ("DELETE", "/v1/volumes/{name}", "/v1/volumes/a?shred=true", "", 400, "usage"),
        ("POST", "/v1/devices", "/v1/devices", r#"{"ref":"none"}"#, 404, "not-found"),
        ("POST", "/v1/devices", "/v1/devices", r#"{"ref":"a","depth":0}"#, 400, "usage"),
        ("DELETE", "/v1/devices/{name}", "/v1/devices/%2Fdev%2Fublkb0", "", 404, "not-found"),
        ("POST", "/v1/keys/{slot}/remove", "/v1/keys/0/remove", foreign_key, 403, "permission"),
        ("POST", "/v1/keys", "/v1/keys", r#"{"credential":{},"new":{}}"#, 400, "usage"),
        ("POST", "/v1/keys/{slot}/remove", "/v1/keys/first/remove", foreign_key, 400, "usage"),
        ("POST", "/v1/keys/{slot}/rotate", "/v1/keys/0/rotate", foreign_rotation, 403, "key"),
    ];

    for (method, path, target, body, status, code) in cases {
        let answer = request(&home.socket(), method, target, body);
        assert_eq!((answer.status, &answer.body["error"]["code"]), (status, &json!(code)), "{method} {target}");
        assert_eq!(answer_violations(&document, method, path, &answer), Vec::<String>::new(), "{method} {target}");
    }
    let names = request(&home.socket(), "GET", "/v1/volumes", "").body["items"].as_array().expect("items").len();
    assert_eq!(names, 1, "no failed request changed anything");
}

#[test]
fn an_unknown_path_is_not_found_as_json() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);

    let answer = request(&home.socket(), "GET", "/v2/volumes", "");

    assert_eq!(answer.status, 404);
    assert_eq!(answer.body["error"]["exit"], 4);
}

#[test]
fn the_sockets_and_their_directory_are_for_the_user_only() {
    let home = Home::with_pool();
    let _serving = home.serve(&[]);

    for name in ["run/rok-blk", "run/rok-blk/control.sock", "run/rok-blk/nbd.sock"] {
        let mode = fs::metadata(home.path(name)).expect(name).mode();
        assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
    }
}

#[test]
fn another_user_is_refused_even_where_the_files_let_him_in() {
    const NOBODY: u32 = 65534;
    let home = Home::with_pool();
    let _serving = home.serve(&[]);
    if fs::metadata(home.path("run")).expect("metadata").uid() != 0 {
        return skip("only root can run a command as another user");
    }
    for name in ["", "run", "run/rok-blk", "run/rok-blk/control.sock"] {
        fs::set_permissions(home.path(name), fs::Permissions::from_mode(0o777)).expect("a mode");
    }
    // The program itself may lie where nobody else can reach it.
    let program = home.path("rok-blk");
    fs::copy(env!("CARGO_BIN_EXE_rok-blk"), &program).expect("a copy of the program");
    let socket = home.socket();
    let list = |uid| {
        let mut command = std::process::Command::new(&program);
        command.arg("ls").arg("--socket").arg(&socket).uid(uid).current_dir("/");
        finish(command)
    };

    list(0).success();
    list(NOBODY).failure(11);
}
