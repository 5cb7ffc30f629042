//! TLS with the clients that people have: certificates, who may open what, and replaced certificates.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::clients::{self, are_there};
use crate::nbd_client::NbdClient;
use crate::support::{Home, Serving, finish, tcp_address};

/// Clients' certificates: the directory of each, and the common name in it.
const CLIENTS: [(&str, &str); 2] = [("hv1", "hv1.lab"), ("hv2", "hv2.lab")];

/// Makes an authority in `DIR/ca`, a server's certificate in `DIR/server`, and those of clients beside it.
fn make_certificates(home: &Home) {
    make_authority(home);
    for (directory, name) in [("server", "localhost")].into_iter().chain(CLIENTS) {
        make_certificate(home, directory, name);
    }
}

fn openssl(arguments: &[&str]) {
    clients::run("openssl", arguments);
}

fn make_authority(home: &Home) {
    fs::create_dir(home.path("ca")).expect("a directory");
    let (key, certificate) = (home.text("ca/key.pem"), home.text("ca/ca-cert.pem"));
    let fixed = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
    openssl(&[&fixed[..], &["-subj", "/CN=lab", "-keyout", &key, "-out", &certificate]].concat());
}

/// A certificate of `name` in `directory`, named as servers and as clients want it, beside the authority's.
fn make_certificate(home: &Home, directory: &str, name: &str) {
    let path = |file: &str| home.text(&format!("{directory}/{file}"));
    fs::create_dir_all(home.path(directory)).expect("a directory");
    let (key, request, certificate, extensions) = (path("key.pem"), path("request.pem"), path("cert.pem"), path("ext"));
    let fixed = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(&[&fixed[..], &["-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &request]].concat());
    fs::write(&extensions, format!("subjectAltName=DNS:{name},IP:127.0.0.1\n")).expect("a file");
    let (ca, ca_key) = (home.text("ca/ca-cert.pem"), home.text("ca/key.pem"));
    let signed = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "30"];
    openssl(&[&signed[..], &["-extfile", &extensions, "-out", &certificate]].concat());
    for role in ["server", "client"] {
        fs::copy(&certificate, path(&format!("{role}-cert.pem"))).expect("a copy");
        fs::copy(&key, path(&format!("{role}-key.pem"))).expect("a copy");
    }
    fs::copy(home.path("ca/ca-cert.pem"), path("ca-cert.pem")).expect("a copy");
}

/// A volume `vol1`, served over TCP with TLS.
pub fn served(further: &[&str]) -> (Home, Serving) {
    let home = Home::new();
    home.create_pool_of("pool", "256M");
    make_certificates(&home);
    let directory = home.text("server");
    let serving = home.serve(&[&["--tls-dir", directory.as_str()], further].concat());
    home.run(["create", "vol1", "--size", "64M"]).success();
    (home, serving)
}

/// The volume as clients of libnbd take it, with the certificates in a directory.
pub fn tls_uri(home: &Home, client: &str) -> String {
    let port = tcp_address(home).port();
    format!("nbds://localhost:{port}/vol1?tls-certificates={}", home.text(client))
}

/// Whether nbdinfo gets the volume's size.
fn is_served(uri: &str) -> bool {
    let mut command = clients::command("nbdinfo");
    command.args(["--size", uri]);
    finish(command).code == Some(0)
}

#[test]
fn clients_work_over_tls_as_they_do_without() {
    if !are_there(&["openssl", "nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        return;
    }
    let (home, serving) = served(&["--tls", "require"]);
    let uri = tls_uri(&home, "hv1");
    let info: Value = serde_json::from_str(&clients::run("nbdinfo", ["--json", &uri])).expect("JSON");
    assert_eq!((&info["TLS"], &info["structured"]), (&true.into(), &true.into()), "{info}");

    let source = home.path("source");
    let content: Vec<u8> = (0..64_u32 << 20).map(|index| index.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
    fs::write(&source, &content).expect("space");
    clients::copy(&source, &uri);
    let target = home.path("target");
    clients::copy(&uri, &target);
    assert!(fs::read(&target).expect("the copy") == content, "nbdcopy in and out");

    let port = tcp_address(&home).port();
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", home.text("hv1"));
    let options = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,file.server.port={port},\
         file.export=vol1,file.tls-creds=tls0"
    );
    clients::run(
        "qemu-img",
        [
            "compare",
            "--object",
            &object,
            "--image-opts",
            &options,
            &format!("driver=raw,file.driver=file,file.filename={}", home.text("source")),
        ],
    );
    let script = [
        "-c",
        "write -P 7 1M 3M",
        "-c",
        "discard 2M 1M",
        "-c",
        "flush",
        "-c",
        "read -P 7 1M 1M",
        "-c",
        "read -P 0 2M 1M",
    ];
    let printed = clients::run(
        "qemu-io",
        [&["--object", object.as_str(), "--image-opts"][..], &script[..], &[options.as_str()]].concat(),
    );
    assert!(!printed.contains("failed"), "{printed}");
    serving.stop();
}

#[test]
fn client_without_a_certificate_of_the_authority_or_without_tls_is_refused() {
    if !are_there(&["openssl", "nbdinfo"]) {
        return;
    }
    let (home, serving) = served(&["--tls", "require"]);
    assert!(is_served(&tls_uri(&home, "hv1")));
    assert!(!is_served(&format!("nbd://{}/vol1", tcp_address(&home))), "without TLS");
    // It knows the server's authority, and has no certificate, or one of another authority.
    let nameless = home.path("nameless");
    fs::create_dir(&nameless).expect("a directory");
    fs::copy(home.path("ca/ca-cert.pem"), nameless.join("ca-cert.pem")).expect("a copy");
    assert!(!is_served(&tls_uri(&home, "nameless")));
    let other = Home::new();
    make_authority(&other);
    make_certificate(&other, "foreign", "hv1.lab");
    for file in ["client-cert.pem", "client-key.pem"] {
        fs::copy(other.path(PathBuf::from("foreign").join(file)), nameless.join(file)).expect("a copy");
    }
    assert!(!is_served(&tls_uri(&home, "nameless")));
    assert!(is_served(&tls_uri(&home, "hv1")), "the others go on");
    serving.stop();
}

#[test]
fn exports_ask_for_tls_and_for_subjects() {
    if !are_there(&["openssl", "nbdinfo"]) {
        return;
    }
    // On the loopback address both are allowed.
    let (home, serving) = served(&[]);
    let plain = format!("nbd://{}/vol1", tcp_address(&home));
    assert!(is_served(&plain) && is_served(&tls_uri(&home, "hv1")));
    home.run(["export", "vol1", "--tls", "require"]).success();
    assert!(!is_served(&plain) && is_served(&tls_uri(&home, "hv1")));
    home.run(["export", "vol1", "--tls", "allow", "--allow", "subject:hv2.lab"]).success();
    assert!(!is_served(&plain) && !is_served(&tls_uri(&home, "hv1")) && is_served(&tls_uri(&home, "hv2")));
    serving.stop();
}

#[test]
fn replaced_certificates_are_used_and_connections_stay() {
    if !are_there(&["openssl", "nbdinfo"]) {
        return;
    }
    let (home, serving) = served(&[]);
    let mut open = NbdClient::connect(&clients::unix_socket(&home), "vol1").expect("it is offered");
    assert!(is_served(&tls_uri(&home, "hv1")));
    // A new authority: the old clients are not known any more.
    fs::rename(home.path("hv1"), home.path("old")).expect("moved");
    fs::rename(home.path("ca"), home.path("old-ca")).expect("moved");
    make_authority(&home);
    for (directory, name) in [("server", "localhost"), ("hv1", "hv1.lab")] {
        make_certificate(&home, directory, name);
    }
    assert!(is_served(&tls_uri(&home, "hv1")) && !is_served(&tls_uri(&home, "old")));
    // One that cannot be read changes nothing.
    fs::write(home.path("server/server-key.pem"), "no key").expect("a file");
    assert!(is_served(&tls_uri(&home, "hv1")));
    open.flush();
    open.disconnect();
    serving.stop();
}

#[test]
fn what_cannot_be_safe_is_refused_by_name() {
    let home = Home::with_pool();
    let key = home.text("pool.key");
    let refusal = |options: &[&str], code: i32| {
        home.serve_fails(&[&["--key-file", key.as_str()], options].concat()).failure(code)
    };
    let everywhere = refusal(&["--nbd-listen", "0.0.0.0:0"], 2);
    assert!(everywhere.contains("--allow-plaintext") && everywhere.contains("--tls-dir"), "{everywhere}");
    let no_certificates = refusal(&["--tls", "require"], 2);
    assert!(no_certificates.contains("--tls-dir"), "{no_certificates}");
    let empty = home.text("run");
    let no_files = refusal(&["--tls-dir", &empty], 2);
    assert!(no_files.contains("server-cert.pem"), "{no_files}");
}
